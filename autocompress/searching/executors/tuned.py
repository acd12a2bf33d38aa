"""Many workers: a ray.tune run whose searcher is the agenda and whose trainable is a worker.

The study stays the only truth: of Tune's own records nothing is kept. Every trial asks for the same
resources, so that Tune uses its processes again for all of them (``reuse_actors``); what a trial
really takes, by its recipe's rung, it takes from the slots of its machine, and waits for them.
"""

import contextlib
import faulthandler
import logging
import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune

from autocompress.errors import InputError
from autocompress.searching.agenda import Agenda, Job
from autocompress.searching.executors.interrupts import deferred
from autocompress.searching.executors.slots import share_of, slots, slots_folder
from autocompress.searching.executors.worker import Answer, Worker, pack, receive, threads_limited
from autocompress.spec.execution import Execution

if TYPE_CHECKING:
    from autocompress.searching.evaluate import Evaluator

__all__ = ["Tuned"]

#: What Tune is told by the environment: no records of its own, and Ctrl-C is ours.
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "0",
}


class Trainable(tune.Trainable):
    """A worker, which Tune gives one job after another."""

    def setup(self, config: dict[str, Any], **given: Any) -> None:
        """Make the worker of a ``parcel``, and find out how many slots its machine has.

        ``seconds``: what a trial may take; ``key``: of the slots.
        """
        self._seconds, self._key, self._job = given["seconds"], given["key"], config["job"]
        here = ray.get_runtime_context().get_node_id()
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        found = [node["Resources"] for node in nodes if node["NodeID"] == here]
        self._slots = max([int(resources.get("CPU", 1)) for resources in found], default=1)
        self._worker = Worker(given["parcel"])

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        """Take the next job."""
        self._job = new_config["job"]
        return True

    def step(self) -> dict[str, Any]:
        """Evaluate the job once the machine has room for it."""
        job: Job = pickle.loads(self._job)  # noqa: S301 - the driver's own
        # latency on several threads is measured while nothing else runs on them
        count = max(share_of(job.recipe.rung).cpus, self._worker.evaluator.target.threads)
        with slots(self._key, count, self._slots) as threads, _in_time(self._seconds):
            answer = self._worker(job, threads)
        return {"answer": pickle.dumps(answer), "done": True}


@contextlib.contextmanager
def _in_time(seconds: float | None) -> Iterator[None]:
    """End this process if the block takes too long, whatever it is doing."""
    if seconds is None:
        yield
        return
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


class _Searcher(tune.search.Searcher):
    """Gives Tune the agenda's jobs, and takes note of workers that were lost."""

    def __init__(self, agenda: Agenda, seconds: float | None, most: int) -> None:
        super().__init__()
        self._agenda, self._seconds, self._most = agenda, seconds, most
        self.jobs: dict[str, Job] = {}
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
        """Return a job as a configuration, None to wait, "FINISHED" at the end."""
        if not self._agenda.finished and len(self.jobs) < self._most:
            job = self.guard(self._agenda.next)
            if job is not None:
                self.jobs[trial_id] = job
                return {"job": pickle.dumps(job.sent)}
        return self.FINISHED if self._agenda.finished else None

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Nothing: the callback has the answer."""

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Take note of a worker that was lost: of others the callback has the answer."""
        job = self.jobs.pop(trial_id, None)
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

    def __init__(self, searcher: _Searcher, agenda: Agenda, evaluator: "Evaluator") -> None:
        self._searcher, self._agenda, self._evaluator = searcher, agenda, evaluator

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Take note of when a job began."""
        self._searcher.started[trial.trial_id] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record the score of a job."""
        job, content = self._searcher.jobs.pop(trial.trial_id, None), result.pop("answer", None)
        if job is None or content is None:
            return
        answer: Answer = pickle.loads(content)  # noqa: S301 - our own worker's
        self._searcher.guard(lambda: self._agenda.done(job, receive(self._evaluator, job, answer)))


class Tuned:
    """Evaluates on the processes of a Ray cluster: of its own, or of the one at an address.

    Raises InputError for a cluster that does not answer.
    """

    def __init__(self, execution: Execution) -> None:
        self.execution = execution

    def run(self, agenda: Agenda, evaluator: "Evaluator") -> None:
        """Evaluate until the agenda gives out nothing more."""
        if agenda.finished:
            return
        parcel = pack(evaluator, self.execution.trial_memory_bytes)
        seconds, address = self.execution.trial_seconds, self.execution.ray_address
        with (
            deferred(agenda.interrupted),
            self._cluster() as workers,
            _environment(),
            threads_limited(1),
        ):
            most = workers + (not address)  # one waits for the next to be free
            searcher = _Searcher(agenda, seconds, most)
            with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
                key = Path(folder).name
                tune.run(
                    tune.with_parameters(Trainable, parcel=parcel, seconds=seconds, key=key),
                    search_alg=searcher,
                    num_samples=-1,
                    resources_per_trial=_resources(agenda, workers),
                    reuse_actors=True,
                    storage_path=folder,
                    name="run",
                    callbacks=[_Answers(searcher, agenda, evaluator)],
                    trial_dirname_creator=lambda trial: trial.trial_id,
                    verbose=0,
                    raise_on_failed_trial=False,
                )  # fmt: skip
                shutil.rmtree(slots_folder(key), ignore_errors=True)
        if searcher.error is not None:
            raise searcher.error

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[int]:
        """Yield how many workers the cluster, started or joined, is to have."""
        ours = not ray.is_initialized()
        if ours:
            address, workers = self.execution.ray_address, self.execution.workers
            own = {"num_cpus": workers, "include_dashboard": False}
            options: dict[str, Any] = {"address": address} if address else own
            try:
                ray.init(
                    log_to_driver=False,
                    configure_logging=False,
                    logging_level=logging.ERROR,
                    **options,
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"A Ray cluster must answer at its address: {address} does not ({error}). "
                    "Start one with 'ray start --head', or leave --ray-address out."
                ) from error
        try:
            yield self.execution.workers or max(int(_cluster_resources().get("CPU", 1)), 1)
        finally:
            if ours:
                ray.shutdown()


def _cluster_resources() -> dict[str, float]:
    return dict(ray.cluster_resources())  # type: ignore[no-untyped-call]


def _resources(agenda: Agenda, workers: int) -> dict[str, float]:
    """Return what every worker asks of the cluster: a CPU, and what GPU its rungs may need."""
    gpus = _cluster_resources().get("GPU", 0.0)
    gpu = min(max(share_of(rung).gpu for rung in agenda.rungs), gpus / workers)
    return {"cpu": 1, "gpu": gpu} if gpu else {"cpu": 1}


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set what Tune reads from the environment, and put it back."""
    before = {name: os.environ.get(name) for name in _SETTINGS}
    os.environ.update(_SETTINGS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
