"""The Python interface: search, and runs that can be opened, resumed and explained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.core.budget import Budget
from autocompress.core.config import Config
from autocompress.core.execution import Execution
from autocompress.core.score import Score, check_objectives
from autocompress.core.space import SpaceTemplate
from autocompress.cost.estimate import Estimator
from autocompress.cost.fit_latency import calibration_path, load_calibration
from autocompress.cost.hardware import read_hardware
from autocompress.engine.progress import Progress, ProgressCallback
from autocompress.engine.store import Place, public_url, whole_url
from autocompress.engine.study import read_study
from autocompress.errors import (
    ConfigError,
    InputError,
    RunError,
    TaskError,
)
from autocompress.models.trace import trace
from autocompress.registry import find_space, make_task
from autocompress.report.front import Front
from autocompress.report.receipt import Receipt
from autocompress.report.status import Status
from autocompress.run.explain import explain
from autocompress.run.launch import (
    Launched,
    launch,
    place_of,
    read_config,
    target_of,
)
from autocompress.run.status import look
from autocompress.tasks.base import Task
from autocompress.transforms.compressor import Compressor
from autocompress.transforms.options import Options

__all__ = ["Run", "open_run", "search", "search_config", "status"]


@dataclass
class Run:
    """A search in its directory: scores, front, and the means to go on.

    ``directory`` holds config.toml, study.log, artifacts/, front.csv, front.png and front.svg.
    ``note`` says why the last search ended before its trials were done, if it did.
    """

    directory: Path
    config: Config
    scores: list[Score] = field(repr=False)
    task: Task | None = field(default=None, repr=False)
    note: str = ""
    floor: Mapping[str, float] = field(default_factory=dict, repr=False)
    storage: str = field(default="", repr=False)  # the database's URL with its password, if any

    @property
    def place(self) -> Place:
        """Where the study is kept."""
        return place_of(self.directory, self.config, self.storage)

    @property
    def reference(self) -> Score | None:
        """The score of the uncompressed model, None before it has one."""
        return self.front().reference

    def front(self) -> Front:
        """Return the Pareto front of the scores so far."""
        config = self.config
        return Front(self.scores, config.objectives, config.budget, self.directory, self.floor)

    def explain(self, trial: int) -> Receipt:
        """Return where a trial's bytes and milliseconds go, layer by layer, before and after.

        Profiles both files in the runtime. Raises InputError for a trial that there is not, or that
        failed, TaskError if the task was given in Python and is not given to ``open_run`` now.
        """
        known = {score.trial: score for score in self.scores if score.outcome != "failed"}
        if trial not in known:
            raise InputError(
                f"Only scored trials can be explained (0 to {max(known, default=-1)}, failed ones "
                f"excluded), not {trial}."
            )
        config = self.config
        target = target_of(config)
        task = self.task or make_task(self._task_options())
        network = trace(task.model, task.example_inputs)
        _, notes = read_study(self.place)
        if notes.get("fingerprints", {}).get("model") != network.fingerprint:
            raise RunError("A trial can only be explained on the model of its search; it changed.")
        options = Options.of(config.compress)
        compressor = Compressor(network, tuple(task.calibration), target.abilities, options)
        found, _ = load_calibration(calibration_path(network, target), target)
        estimator = Estimator(
            network, target.abilities, target.prepare(network), options=options,
            device=read_hardware(config.hardware) if config.hardware else None,
        )  # fmt: skip
        if found is not None:
            estimator.model = found.model(notes.get("reference_ms"))
        inputs = tuple(
            np.repeat(value.numpy(), target.batch_size, axis=0) for value in task.example_inputs
        )
        return explain(known[trial], self.reference, compressor, estimator, target, inputs)

    def _task_options(self) -> Mapping[str, Any]:
        """Return the task's configuration; raise TaskError where Python gave it."""
        if self.config.task is None:
            raise TaskError(
                f"The task of {self.directory} was given in Python and must be given again: "
                "open_run(directory, task=task)."
            )
        return self.config.task

    def resume(
        self,
        trials: int | None = None,
        progress: ProgressCallback | None = None,
        *,
        sampler: str | None = None,
        until_converged: bool = False,
        execution: Mapping[str, Any] | None = None,
    ) -> "Run":
        """Go on: ``trials`` more, or by default up to the number that the search was started with.

        ``sampler``: another one goes on from now on, with all that is known; ``until_converged``:
        or until next to nothing is still to gain; ``execution``: fields of ``Execution`` that are
        other than before, such as ``workers``; limits of None are taken off. Returns this run with
        its new scores. Raises RunError if model, data, space or target have changed, TaskError if
        the task was given in Python and is not given to ``open_run`` now.
        """
        if trials is not None and (
            isinstance(trials, bool) or not isinstance(trials, int) or trials < 1
        ):
            raise InputError(f"trials must be an integer of at least 1, not {trials!r}.")
        scores, _ = read_study(self.place)  # others may have gone on
        done = sum(score.outcome == "ok" for score in scores)
        total = self.config.trials if trials is None else done + trials
        if self.task is None:
            self._task_options()
        how = self.config.execution.changed({} if execution is None else execution)
        config = replace(self.config.override(sampler=sampler), execution=how)
        new = launch(
            replace(config, storage=self.storage or config.storage),
            self.directory,
            self.task,
            total,
            progress or _silent,
            until_converged=until_converged,
        )
        self.config, self.scores, self.note, self.floor = config, new.scores, new.note, new.floor
        return self


def search(
    task: Task,
    *,
    space: str | Path | Mapping[str, Sequence[float]] | SpaceTemplate = "ptq",
    target: str = "onnxruntime",
    sampler: str = "guided",
    trials: int = 100,
    seed: int = 0,
    objectives: Sequence[str] = ("accuracy", "size"),
    budget: Budget | None = None,
    compress: Mapping[str, Any] | None = None,
    threads: int = 1,
    batch_size: int = 1,
    portable: bool = True,
    hardware: str = "",
    run_dir: str | Path | None = None,
    start_from: str | Path | None = None,
    until_converged: bool = False,
    storage: str = "",
    workers: int = 1,
    ray_address: str = "",
    trial_seconds: float | None = None,
    trial_memory_bytes: int | None = None,
    progress: ProgressCallback | None = None,
) -> Run:
    """Search plans for a task; continue if ``run_dir`` holds an interrupted search.

    Args:
        task: The model, its data, and how files are scored.
        space: A shipped space's name, a path to a TOML file, or a mapping of patterns such as
            ``{"*/w_bits": [4, 8]}``.
        target: The runtime that files are written for.
        sampler: ``guided``, ``tpe``, ``nsga2``, ``gp`` or ``random``.
        trials: Scored files to reach, baselines included.
        seed: Of the sampler.
        objectives: ``accuracy`` and one or more of ``size``, ``latency``, ``energy``, ``memory``.
        budget: Limits that a file must meet.
        compress: How plans are carried out: ``importance`` ("energy", "l1", "l2"), ``calibrate``
            ("mse", "minmax", "percentile"); ``refit``, ``bn`` or ``compensate`` False switch these
            repairs off.
        threads: Threads of the latency measurement.
        batch_size: Batch size of the latency measurement.
        portable: False lets 8-bit codes use their whole range, for CPUs with VNNI or ARM only.
        hardware: A hardware file to predict latency and energy for, instead of this machine.
        run_dir: The run directory, by default ``runs/<task.name>``.
        start_from: The run directory of another search of the same model and data. Its
            sensitivities and scores are taken over; on another target, its front's plans are
            evaluated first.
        until_converged: End when next to nothing of the hypervolume is left to gain.
        storage: The URL of a database for the study, by default a file in ``run_dir``. A password
            in it is not stored.
        workers: Processes on a Ray cluster.
        ray_address: An existing Ray cluster.
        trial_seconds: Time limit per trial; a trial that exceeds it fails.
        trial_memory_bytes: Memory limit per trial, beyond what its process holds.
        progress: Called with each :class:`Progress`.

    Returns:
        The run, whose ``front()`` has the files.

    Raises:
        InputError: For invalid input (TaskError, SpaceError and RunError are kinds of it).
    """
    if not isinstance(task, Task):
        raise TaskError(f"search needs an autocompress.Task, not {type(task).__name__}.")
    if budget is not None and not isinstance(budget, Budget):
        raise InputError(f"budget must be an autocompress.Budget, not {type(budget).__name__}.")
    config = Config(
        space=find_space(space), sampler=sampler, trials=trials, seed=seed, target=target,
        objectives=check_objectives(objectives), budget=budget or Budget(),
        compress=dict(compress or {}), threads=threads, batch_size=batch_size,
        portable=portable, hardware=hardware,
        storage=storage,
        execution=Execution(
            workers=workers, ray_address=ray_address, trial_seconds=trial_seconds,
            trial_memory_bytes=trial_memory_bytes,
        ),
    )  # fmt: skip
    directory = Path(run_dir) if run_dir is not None else Path("runs") / task.name
    return _searched(
        directory, task, launch(
            config, directory, task, trials, progress or _silent,
            start_from=start_from, until_converged=until_converged,
        ),
    )  # fmt: skip


def search_config(
    path: str | Path,
    *,
    run_dir: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    start_from: str | Path | None = None,
    until_converged: bool = False,
    progress: ProgressCallback | None = None,
) -> Run:
    """Search as a TOML file says; ``overrides`` are fields of Config and of its budget.

    ``start_from`` and ``until_converged`` are as in :func:`search`. The run lies in ``run_dir``, by
    default ``runs/<name of the file>``.
    """
    path = Path(path)
    config = Config.read(path).override(**(overrides or {}))
    if config.task is None:
        raise ConfigError(f'{path}: a [task] section with name = "…" is needed.')
    config = replace(config, space=find_space(config.space))
    directory = Path(run_dir) if run_dir is not None else Path("runs") / path.stem
    return _searched(
        directory, None, launch(
            config, directory, None, config.trials, progress or _silent,
            start_from=start_from, until_converged=until_converged,
        ),
    )  # fmt: skip


def status(run_dir: str | Path) -> Status:
    """Return where a run stands, also while another process drives it; raise RunError."""
    directory, config = read_config(run_dir)
    place = place_of(directory, config)
    place.check()
    return look(directory, place, config.trials, config.objectives, config.budget)


def open_run(run_dir: str | Path, task: Task | None = None, *, storage: str = "") -> Run:
    """Open a run directory for reading or resuming; ``task`` is needed where Python gave it.

    ``storage``: the URL of its database, where the password is not known to the database's client.
    Raises RunError for what is no run directory, or of another database.
    """
    directory, config = read_config(run_dir)
    if storage and public_url(storage := whole_url(storage)) != config.storage:
        raise RunError(
            f"The study of {directory} is kept in {config.storage or 'its own file'}, not in "
            f"{public_url(storage)}. Leave the storage out, or name that."
        )
    place = place_of(directory, config, storage)
    place.check()
    scores, notes = read_study(place)
    return Run(directory, config, scores, task, floor=notes.get("floor", {}), storage=storage)


def _silent(progress: Progress) -> None:
    """Tell nobody."""


def _searched(directory: Path, task: Task | None, found: Launched) -> Run:
    return Run(directory, found.config, found.scores, task, found.note, found.floor, found.storage)
