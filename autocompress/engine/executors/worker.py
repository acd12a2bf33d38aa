"""Workers: evaluating plans away from the driver, in a process that may be lost.

A worker is made of a payload that the driver packed, once for all of them. It works in a folder of
its own and answers with the file's bytes, so that the driver alone writes into the run directory
and no file system need be shared.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cloudpickle
import threadpoolctl
import torch

from autocompress.core.files import write_whole
from autocompress.core.score import Score
from autocompress.cost.estimate import Feedback
from autocompress.engine.executors.heartbeats import Marker
from autocompress.engine.proposers.guided.sensitivity_cache import Effect
from autocompress.engine.scheduler import Job
from autocompress.engine.system import check_memory_limit, mapped_bytes
from autocompress.errors import AutocompressError, RunError, TaskError
from autocompress.targets.checkfile import check_path

if TYPE_CHECKING:
    from autocompress.engine.evaluator import Evaluator

__all__ = [
    "Answer", "Payload", "Worker", "memory_limited", "pack", "receive", "threads_limited", "unpack",
]  # fmt: skip

_WANT = re.compile(r"MemoryError|bad_alloc|[aA]lloc(ate|ation|ator)")


class Payload(NamedTuple):
    """What makes a worker: where modules lie, a trial's memory in bytes, the pickled evaluator."""

    path: list[str]
    memory_bytes: int | None
    evaluator: bytes


@dataclass(frozen=True)
class Answer:
    """What a worker found, what there is to learn from a score, bytes of the file and its check."""

    found: Score | Effect
    feedback: Feedback | None = None
    content: bytes = b""
    check: bytes = b""


def pack(evaluator: "Evaluator", memory_bytes: int | None = None) -> Payload:
    """Return all that a worker needs; raise TaskError for a task that cannot be sent.

    Functions and classes of a user's script travel with it; those of modules are imported.
    ``memory_bytes``: what a trial may take beyond what the worker holds before.
    """
    try:
        return Payload(list(sys.path), memory_bytes, cloudpickle.dumps(evaluator))
    except Exception as error:  # whatever the user's objects raise
        raise TaskError(
            "A task that other processes evaluate must go through pickle: "
            f"{type(error).__name__}: {error}. Open files and connections inside evaluate."
        ) from error


class Worker:
    """Evaluates plans, one after another."""

    def __init__(self, payload: Payload) -> None:
        check_memory_limit(payload.memory_bytes)
        self._memory_bytes = payload.memory_bytes
        sys.path.extend(place for place in payload.path if place not in sys.path)
        self.evaluator: Evaluator = cloudpickle.loads(payload.evaluator)  # the driver's own
        self._marker = Marker(self.evaluator.directory)
        self._home, reference = self.evaluator.directory, self.evaluator.reference_path
        with self._folder() as folder:
            with contextlib.suppress(OSError):  # on another machine it is built
                (folder / "artifacts").mkdir()
                os.link(reference, folder / "artifacts" / reference.name)
            _ = self.evaluator.references  # opened while the file is there

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        """Make a folder for one trial, where the driver removes what a lost worker leaves."""
        work = self._home / "work"
        with tempfile.TemporaryDirectory(dir=work if work.is_dir() else None) as folder:
            self.evaluator.directory = Path(folder)
            yield Path(folder)

    def __call__(self, job: Job, threads: int | None = None) -> Answer:
        """Do a job, with so many threads of third-party libraries (None: as they like)."""
        limited = threads_limited(threads) if threads else contextlib.nullcontext()
        with limited, self._marker.busy(job):
            if job.question:
                return Answer(self.evaluator.effect(job.plan))
            self.evaluator.drop_effects()
            return self._evaluated(job)

    def _evaluated(self, job: Job) -> Answer:
        try:
            with self._folder() as folder:
                with memory_limited(self._memory_bytes):
                    score, feedback = self.evaluator.evaluate(*job.arguments)
                if score.outcome == "ok":
                    file = folder / "artifacts" / score.artifact
                    check = check_path(file)
                    known = check.read_bytes() if check.exists() else b""
                    return Answer(score, feedback, file.read_bytes(), known)
        except OSError as error:  # a full disk, a folder that someone removed
            message = f"A worker's folder must be writable: {error}."
            failed = self.evaluator.failed(job.plan, job.recipe, job.baseline, message)
            return Answer(failed)
        if self._memory_bytes is not None and _WANT.search(score.message):
            most = f"a trial may take {self._memory_bytes:,} bytes"
            score = replace(score, message=f"out of memory, {most}: {score.message}")
        return Answer(score)


def unpack(payload: Payload) -> Worker:
    """Return the worker that a payload makes; raise TaskError for one that cannot be made here."""
    try:
        return Worker(payload)
    except AutocompressError:
        raise
    except Exception as error:  # a module that is not found, whatever the user's objects raise
        raise TaskError(f"A task must be usable in another process: {error!r}.") from error


def receive(evaluator: "Evaluator", job: Job, answer: Answer) -> Score | Effect:
    """Write a worker's file, learn from it, and return the score: a failure if it is not to be."""
    found = answer.found
    if isinstance(found, Score) and found.outcome == "ok":
        try:
            path = evaluator.path(job.plan, job.recipe)
            write_whole(path, answer.content)
            if answer.check:
                write_whole(check_path(path), answer.check)
        except RunError as error:
            return evaluator.failed(job.plan, job.recipe, job.baseline, str(error))
        if answer.feedback is not None:
            evaluator.estimator.learn(answer.feedback, found.latency_ms)
    return found


@contextlib.contextmanager
def threads_limited(count: int) -> Iterator[None]:
    """Let third-party libraries run on so many threads; more than cores hold each other up."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpoolctl.threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def memory_limited(more: int | None) -> Iterator[None]:
    """Let the process take so many bytes of memory more; raise ConfigError where none can be set.

    What exceeds it is told so by the system, and raises MemoryError or the like.
    """
    if more is None:
        yield
        return
    check_memory_limit(more)
    import resource

    held = mapped_bytes() or 0
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([held + more, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
