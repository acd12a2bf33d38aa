"""Markers: files in which workers say what they are doing, for whoever looks at a run."""

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autocompress.engine.scheduler import Job
from autocompress.engine.system import is_gone

__all__ = ["Marked", "Marker", "marked", "work_folder"]

_FOLDER = "work"


@contextlib.contextmanager
def work_folder(directory: Path) -> Iterator[Path]:
    """Make the folder of a run's workers, empty, and remove it and what they left in the end."""
    folder = directory / _FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Marker:
    """The marker of this process in a run's directory, if it is on this machine."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / _FOLDER / f"{socket.gethostname()}-{os.getpid()}.json"
        self._show({})

    def _show(self, content: dict[str, object]) -> None:
        draft = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # another machine's, a full disk: nobody looks then
            draft.write_text(json.dumps(content), encoding="utf-8")
            draft.replace(self._path)

    @contextlib.contextmanager
    def busy(self, job: Job) -> Iterator[None]:
        """Say that a job is being done, while it is."""
        plan = f"a plan of {len(job.plan.settings)} settings, {job.plan.digest[:8]}"
        what = job.baseline or (f"the profile, {plan}" if job.question else plan)
        self._show({"what": what, "since": time.time()})
        try:
            yield
        finally:
            self._show({})


@dataclass(frozen=True)
class Marked:
    """A worker: its machine and process, what it evaluates ("" for nothing), and since when."""

    host: str
    pid: int
    what: str = ""
    since: float = 0.0


def marked(directory: Path) -> list[Marked]:
    """Return the workers of a run that are alive, as far as this machine can tell."""
    found = []
    for path in sorted((directory / _FOLDER).glob("*.json")):
        host, _, pid = path.stem.rpartition("-")
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(path.read_text(encoding="utf-8"))
            if host == socket.gethostname() and is_gone(int(pid)):
                continue
            found.append(Marked(host, int(pid), content.get("what", ""), content.get("since", 0.0)))
    return found
