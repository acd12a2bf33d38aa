"""Many workers: a ray.tune run whose searcher is the scheduler and whose trainable is a worker.

The study stays the only truth: of Tune's own records nothing is kept. Trials are given to places,
as many as there are workers, and each place asks for resources a little different from all others',
so that Tune uses a place's process again for it (``reuse_actors``) and for no other; what a trial
really takes, by its recipe's rung, it takes from the slots of its machine, and waits for them.
"""

import contextlib
import faulthandler
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune
from ray._private import worker as ray_worker
from ray.tune.execution import tune_controller
from ray.tune.utils.object_cache import _ObjectCache

from autocompress.core.execution import Execution
from autocompress.engine.executors.interrupts import deferred
from autocompress.engine.executors.reaper import MARK, reaped
from autocompress.engine.executors.slots import share_of, slots
from autocompress.engine.executors.worker import Answer, pack, receive, threads_limited, unpack
from autocompress.engine.scheduler import Job, Scheduler
from autocompress.errors import AutocompressError, InputError, TaskError
from autocompress.models.trace import silence

if TYPE_CHECKING:
    from autocompress.engine.evaluator import Evaluator

__all__ = ["Tuned"]

# Seconds that a cluster may take to answer, and after which a job that waits is given room.
_ANSWER = 20.0
_STARVED = 20.0
# The least share of a resource that Ray tells apart.
_LEAST = 1e-4
#: What Tune is told by the environment: no records of its own, and Ctrl-C is ours.
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_MAX_PENDING_TRIALS_PG": "1000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
}


class Trainable(tune.Trainable):
    """A worker, which Tune gives one job after another."""

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        """Make the worker of a ``payload``, and find out how many slots its machine has.

        ``seconds``: what a trial may take; ``key``: of the slots.
        """
        self._seconds, self._key, self._job = given["seconds"], given["key"], config["job"]
        here = ray.get_runtime_context().get_node_id()
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        found = [node["Resources"] for node in nodes if node["NodeID"] == here]
        self._slots = max([int(resources.get("CPU", 1)) for resources in found], default=1)
        self._trouble = ""
        try:
            self._worker = unpack(given["payload"])
        except AutocompressError as error:
            self._trouble = str(error)

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        """Take the next job."""
        self._job = new_config["job"]
        return True

    def step(self) -> dict[str, Any]:
        """Evaluate the job once the machine has room for it."""
        if self._trouble:
            return {"answer": self._trouble, "done": True}
        # latency on several threads is measured while nothing else runs on them
        count = max(share_of(self._job.recipe.rung).cpus, self._worker.evaluator.target.threads)
        with slots(self._key, count, self._slots) as threads, _in_time(self._seconds):
            return {"answer": self._worker(self._job, threads), "done": True}


@contextlib.contextmanager
def _in_time(seconds: float | None) -> Iterator[None]:
    """End this process if the block takes too long, whatever it is doing."""
    if seconds is None:
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


class _Searcher(tune.search.Searcher):
    """Gives Tune the scheduler's jobs, and takes note of workers that were lost."""

    def __init__(self, scheduler: Scheduler, seconds: float | None, workers: int) -> None:
        super().__init__()
        self._agenda, self._seconds = scheduler, seconds
        self._free = list(range(workers))
        self._jobs: dict[str, tuple[Job, int]] = {}
        self._given: dict[str, float] = {}
        self.started: dict[str, float] = {}
        self.error: BaseException | None = None

    def guard(self, step: Callable[[], Any]) -> Any:
        """Take a step; keep an error that it raises for the driver, and end."""
        try:
            return step()
        except Exception as error:
            self.error = self.error or error
            self._agenda.stop()
            return None

    def suggest(self, trial_id: str) -> Any:
        """Return a job and its place as a configuration, None to wait, "FINISHED" at the end."""
        if not self._finished and self._free:
            job = self.guard(self._agenda.next)
            if job is not None:
                place = self._free.pop(0)
                self._jobs[trial_id], self._given[trial_id] = (job, place), time.monotonic()
                return {"job": job.sent, "place": place}
        return self.FINISHED if self._finished else None

    @property
    def _finished(self) -> bool:
        """Tell whether nothing more will come; after an error jobs may be out for ever."""
        return self._agenda.finished or (self.error is not None and not self._jobs)

    def starved(self) -> bool:
        """Tell whether a job waits for long to be begun."""
        late = time.monotonic() - _STARVED
        return any(n not in self.started and self._given[n] < late for n in self._jobs)

    def take(self, trial_id: str) -> Job | None:
        """Return the job of a trial, whose place is free again, None if it was taken before."""
        job, place = self._jobs.pop(trial_id, (None, -1))
        if job is not None:
            self._free.append(place)
        return job

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Nothing: the callback has the answer."""

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take note of a worker that was lost: of others the callback has the answer."""
        job = self.take(trial_id)
        if job is None:
            return
        seconds = self._seconds
        gone = time.monotonic() - self.started.get(trial_id, time.monotonic())
        if seconds is not None and gone >= seconds:
            text = f"a trial may take {seconds:g} s, and it took more"
            self.guard(lambda: self._agenda.failed(job, text))
        else:
            self.guard(lambda: self._agenda.lost(job, "the worker was lost"))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study has all there is."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as ``save``."""


class _Answers(tune.Callback):
    """Takes answers out of Tune's results as they come, so that Tune keeps none of them."""

    def __init__(self, searcher: _Searcher, scheduler: Scheduler, evaluator: "Evaluator") -> None:
        self._searcher, self._agenda, self._evaluator = searcher, scheduler, evaluator

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Take note of when a job began."""
        self._searcher.started[trial.trial_id] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record the score of a job."""
        answer: Answer | str | None = result.pop("answer", None)
        job = None if answer is None else self._searcher.take(trial.trial_id)
        if answer is None or job is None:
            return

        def record() -> None:
            if isinstance(answer, str):
                raise TaskError(answer)
            self._agenda.done(job, receive(self._evaluator, job, answer))

        self._searcher.guard(record)


class Tuned:
    """Evaluates on the processes of a Ray cluster: of its own, or of the one at an address.

    Raises InputError for a cluster that does not answer or cannot be started.
    """

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        if not ray.is_initialized():
            _check_address(execution.ray_address)

    def run(self, scheduler: Scheduler, evaluator: "Evaluator") -> None:
        """Evaluate until the scheduler gives out nothing more."""
        if scheduler.finished:
            return
        payload = pack(evaluator, self.execution.trial_memory_bytes)
        seconds = self.execution.trial_seconds
        with (
            deferred(scheduler.interrupted),
            tempfile.TemporaryDirectory(prefix="autocompress-") as folder,
            self._cluster(Path(folder)) as workers,
            threads_limited(1),
            contextlib.ExitStack() as ours,
        ):
            searcher, key = _Searcher(scheduler, seconds, workers), Path(folder).name
            ours.enter_context(_settings(searcher.starved))
            made = tune.with_parameters(Trainable, payload=payload, seconds=seconds, key=key)
            tune.run(
                tune.with_resources(made, _resources(scheduler, workers)),
                search_alg=searcher,
                num_samples=-1,
                reuse_actors=True,
                storage_path=folder,
                name="run",
                callbacks=[_Answers(searcher, scheduler, evaluator)],
                trial_dirname_creator=lambda trial: trial.trial_id,
                verbose=0,
                raise_on_failed_trial=False,
            )
        if searcher.error is not None:
            raise searcher.error

    @contextlib.contextmanager
    def _cluster(self, folder: Path) -> Iterator[int]:
        """Yield how many workers the cluster, started or joined, is to have."""
        address, workers = self.execution.ray_address, self.execution.workers
        with contextlib.ExitStack() as ours:
            if not ray.is_initialized():
                options: dict[str, Any] = {"address": address or "local"}
                if not address:
                    options |= {"num_cpus": workers, "include_dashboard": False}
                    ours.enter_context(reaped(folder.name, str(folder)))
                    ours.enter_context(mock.patch.dict(os.environ, {MARK: folder.name}))
                ours.callback(ray.shutdown)
                try:
                    # the dead are told by the scheduler
                    deaf = mock.patch.object(ray_worker, "listen_error_messages")
                    with silence(), deaf:
                        ray.init(
                            log_to_driver=False,
                            configure_logging=False,
                            logging_level=logging.ERROR,
                            **options,
                        )
                except Exception as error:  # Ray raises what it likes
                    raise _no_answer(address, error) from error
            cpus = max(int(_cluster_resources().get("CPU", 1)), 1)
            yield min(workers or cpus, cpus)


def _check_address(address: str) -> None:
    """Raise InputError where no cluster answers at once: Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if address in ("", "auto"):
        return
    if not colon or "://" in address:
        raise _no_answer(address, "an address is HOST:PORT of the cluster's head, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
        # in a process of its own: what fails there says much, and does not end in time
        ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        found = subprocess.run(ask, capture_output=True, text=True, timeout=_ANSWER)  # noqa: S603
    except (OSError, ValueError, OverflowError, subprocess.TimeoutExpired) as error:
        raise _no_answer(address, error) from error
    if "InvalidAuthToken" in found.stderr:
        raise _no_answer(
            address, "it asks for a token: set RAY_AUTH_MODE=token, as for all of Ray's commands"
        )
    if found.returncode:
        raise _no_answer(address, (found.stderr.splitlines() or ["no Ray is there"])[-1])


def _no_answer(address: str, why: object) -> InputError:
    if not address:
        return InputError(f"Ray must start on this machine: it does not ({_line(why)}).")
    return InputError(
        f"A Ray cluster must answer at its address: {address} does not ({_line(why)}). Start one "
        "with 'ray start --head', or give --workers N without an address."
    )


def _line(why: object) -> str:
    return " ".join(str(why).split())[:300]


def _cluster_resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def _resources(scheduler: Scheduler, workers: int) -> Callable[[Any], tune.PlacementGroupFactory]:
    """Return what the place of a configuration asks for: a CPU, and what GPU its rungs may need.

    A CPU less a ten thousandth, the least that Ray counts, for each place before it.
    """
    gpus = _cluster_resources().get("GPU", 0.0)
    gpu = min(max(share_of(rung).gpu for rung in scheduler.rungs), gpus / workers)
    more = {"GPU": gpu} if gpu else {}
    return lambda config: tune.PlacementGroupFactory(
        [{"CPU": 1 - _LEAST * (config.get("place", 0) % 5000), **more}]
    )


class _Kept(_ObjectCache):
    """Tune's idle processes, kept: it would end all but one between two trials.

    They are given up at the end, or where a job is ``starved`` since others have their CPUs.
    """

    def __init__(self, starved: Callable[[], bool]) -> None:
        super().__init__()
        self._starved = starved

    def cache_object(self, key: Any, obj: Any) -> bool:
        self._cached_objects[key].append(obj)
        self._num_cached_objects += 1
        return True

    def flush_cached_objects(self, force_all: bool = False) -> Any:
        wanted = force_all or self._starved()
        return super().flush_cached_objects(force_all=True) if wanted else iter(())


@contextlib.contextmanager
def _settings(starved: Callable[[], bool]) -> Iterator[None]:
    """Set what Tune reads from the environment, says and keeps, for a while."""
    log = logging.getLogger("ray.tune")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)  # it misses the records that it is told not to make
    try:
        with (
            mock.patch.dict(os.environ, _SETTINGS),
            mock.patch.object(tune_controller, "_ObjectCache", return_value=_Kept(starved)),
        ):
            yield
    finally:
        log.setLevel(level)
