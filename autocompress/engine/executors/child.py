"""A child process that evaluates plans, so that one that hangs or crashes takes no one with it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from autocompress.engine.executors.reaper import MARK
from autocompress.engine.executors.worker import Answer, Payload, unpack
from autocompress.engine.scheduler import Job
from autocompress.errors import AutocompressError

__all__ = ["Child", "LostError", "TimeLimitError"]


class LostError(Exception):
    """A worker ended while it evaluated a plan; says how."""


class TimeLimitError(Exception):
    """A plan took more than its time."""


class Child:
    """A worker in a process of its own; ``close`` ends it, as the end of this process does.

    ``seconds``: what a trial may take, None for no limit; ``mark``: what a reaper knows it by.
    """

    def __init__(self, payload: Payload, seconds: float | None, mark: str) -> None:
        self._seconds = seconds
        ours, theirs = socket.socketpair()
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        with theirs:
            command = [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(  # noqa: S603 - this very program
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path, MARK: mark},
                start_new_session=True,  # a group of its own, to be ended with what it starts
            )
        self._pipe: Connection[Any, Any] = Connection(ours.detach())
        self._ready = False
        with contextlib.suppress(OSError):  # it ended at once: the first question shows it
            self._pipe.send(payload)

    def __call__(self, job: Job) -> Answer:
        """Evaluate a plan; raise TimeLimitError after its time, LostError if the process ends."""
        if not self._ready:
            self._receive()
            self._ready = True
        try:
            self._pipe.send(job.sent)
        except OSError as error:
            raise self._lost() from error
        if not self._pipe.poll(self._seconds):
            self.close()
            raise TimeLimitError(f"a trial may take {self._seconds:g} s, and it took more")
        answer = self._receive()
        assert isinstance(answer, Answer)
        return answer

    def _receive(self) -> object:
        try:
            found: object = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if isinstance(found, AutocompressError):
            raise found
        return found

    def _lost(self) -> LostError:
        with contextlib.suppress(subprocess.TimeoutExpired):  # it may be on its way out
            self._process.wait(1.0)
        code = self._process.poll()
        how = "it answers no more"
        if code is not None:
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        self.close()
        return LostError(f"the worker was lost ({how})")

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._pipe.close()


def _die_with(parent: int) -> None:
    """Have the system end this process when its parent ends (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit(1)


def _main(handle: int, parent: int) -> None:
    """Answer questions until there are no more."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides
    pipe: Connection[Any, Any] = Connection(handle)
    quiet = (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt)
    with contextlib.suppress(*quiet):
        payload = pipe.recv()
        try:
            worker = unpack(payload)
        except AutocompressError as error:
            pipe.send(error)
            return
        pipe.send("ready")
        while True:
            pipe.send(worker(pipe.recv()))


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]))
