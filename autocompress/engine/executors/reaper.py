"""A process that outlives the driver to end what is left of its cluster.

Ray's own processes end when their driver is killed, but for some that look for it up to a minute
longer. This file is run by itself and imports nothing of the package: it waits for the end of the
driver, which closes a pipe, and ends all processes whose environment holds the cluster's mark, and
orphaned agents in the driver's process group, whose environment may show nothing of it. After a
driver that was killed it also removes what that had in the temporary folder.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["MARK", "reaped"]

#: The environment variable by which processes of a cluster are known.
MARK = "AUTOCOMPRESS_CLUSTER"
#: Ray's processes that outlive their parent, before and after they give themselves a title.
_AGENTS = (
    b"ray::DashboardAgent", b"ray::RuntimeEnvAgent", b"ray/dashboard/agent.py",
    b"ray/_private/runtime_env/agent/main.py",
)  # fmt: skip
# Seconds of looking for processes, after a driver that was killed also for those that just begin.
_SECONDS = 5.0


@contextlib.contextmanager
def reaped(mark: str, folder: str = "") -> Iterator[None]:
    """Have all processes with a mark ended after the block, however it ends (Linux alone).

    ``folder``: what is removed, too, if this process is killed.
    """
    if not hasattr(os, "killpg"):  # nor could it be left a pipe
        yield
        return
    ours, theirs = os.pipe()
    process = subprocess.Popen(  # noqa: S603 - this very file
        [sys.executable, "-I", "-S", __file__, str(ours), mark, str(os.getpgrp()), folder],
        pass_fds=[ours],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    os.close(ours)
    try:
        yield
    finally:
        os.write(theirs, b"x")
        os.close(theirs)
        process.wait()


def _marked(mark: str, group: str = "") -> list[int]:
    """Return the processes that have the mark in their environment, and orphaned agents.

    Agents of a cluster that is alive have a parent, and are never among them.
    """
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            stat = (path / "stat").read_text(encoding="utf-8", errors="replace")
            parent, own = stat.rpartition(")")[2].split()[1:3]
            orphan = parent == "1" and own == group
            command = (path / "cmdline").read_bytes() if orphan else b""
            if any(agent in command for agent in _AGENTS) or f"{MARK}={mark}".encode() in (
                (path / "environ").read_bytes()
            ):
                found.append(int(path.name))
    return found


def _main(handle: int, mark: str, group: str, folder: str) -> None:
    regular, end = os.read(handle, 1), time.monotonic() + _SECONDS
    while time.monotonic() < end:
        left = _marked(mark, group)
        if regular and not left:
            return
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, 9)
        time.sleep(0.1)
    if folder and not regular:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _main(int(sys.argv[1]), *sys.argv[2:])
