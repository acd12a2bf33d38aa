"""The Python interface: search, and runs that can be opened, resumed and explained."""

import contextlib
import hashlib
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.cost.calibrate import calibration_path, load_calibration
from autocompress.cost.device import Device, read_device
from autocompress.cost.estimate import Estimator
from autocompress.cost.workload import workload
from autocompress.errors import (
    ArtifactError,
    ConfigError,
    InputError,
    RunError,
    TaskError,
)
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.names import find_space, make_task, resolve_space
from autocompress.report.front import Front
from autocompress.report.receipt import Receipt
from autocompress.report.status import Status
from autocompress.report.tables import to_csv
from autocompress.searching.adopt import adopt, check_source
from autocompress.searching.agenda import due
from autocompress.searching.driver import drive, finish
from autocompress.searching.evaluate import Evaluator
from autocompress.searching.executors import make_executor
from autocompress.searching.explain import explain
from autocompress.searching.locks import driver_lock, study_lock
from autocompress.searching.parameters import Parameters
from autocompress.searching.prepare import set_guide, set_latency_model, tell_cost
from autocompress.searching.progress import Progress, ProgressCallback
from autocompress.searching.samplers import make_sampler
from autocompress.searching.status import look
from autocompress.searching.store import STUDY_NAME, Place, public_url
from autocompress.searching.study import Study, read_study
from autocompress.spec.budget import Budget
from autocompress.spec.config import Config
from autocompress.spec.execution import Execution
from autocompress.spec.files import write_whole
from autocompress.spec.plan import Plan, Recipe
from autocompress.spec.score import Score, check_objectives
from autocompress.spec.space import SpaceTemplate
from autocompress.targets import Target, make_target
from autocompress.tasks.base import Task
from autocompress.transforms.compress import Compressor
from autocompress.transforms.options import Options
from autocompress.transforms.sketch import sketch

# Fields of a configuration that may differ from what a run directory was begun with.
_CHANGEABLE = ("trials", "sampler", "execution")

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
        return _place(self.directory, self.config, self.storage)

    @property
    def reference(self) -> Score | None:
        """The score of the uncompressed model, None before it has one."""
        return self.front().reference

    def front(self) -> Front:
        """Return the Pareto front of the scores so far."""
        config = self.config
        return Front(self.scores, config.objectives, config.budget, self.directory, self.floor)

    def write_front(self) -> None:
        """Write front.csv, front.png and front.svg into the run directory."""
        front = self.front()
        write_whole(self.directory / "front.csv", to_csv(front).encode())
        try:
            for suffix in ("png", "svg"):
                front.plot(self.directory / f"front.{suffix}")
        except (ValueError, OverflowError) as error:  # figures beyond what can be drawn
            self.note = "; ".join(filter(None, (self.note, f"no picture of the front: {error}")))

    def complete(self) -> bool:
        """Tell whether all that a finished search leaves is there, to the byte."""
        try:
            for pick in self.front().picks:
                pick.artifact.verify()
        except ArtifactError:
            return False
        return all((self.directory / f"front.{end}").exists() for end in ("csv", "png", "svg"))

    def explain(self, trial: int) -> Receipt:
        """Return where a trial's bytes and milliseconds go, layer by layer, before and after.

        Profiles both files in the runtime. Raises InputError for a trial that there is not, or that
        failed, TaskError if the task was given in Python and is not given to ``open_run`` now.
        """
        known = {score.trial: score for score in self.scores if score.outcome != "failed"}
        if trial not in known:
            raise InputError(
                f"Explained can be what was scored, trials 0 to {max(known, default=-1)} but for "
                f"those that failed: not {trial}."
            )
        config = self.config
        target = make_target(config.target, threads=config.threads, batch_size=config.batch_size)
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
            device=read_device(config.device) if config.device else None,
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
        other than before, such as ``workers``. Returns this run with its new scores. Raises
        RunError if model, data, space or target have changed, TaskError if the task was given in
        Python and is not given to ``open_run`` now.
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
        config = self.config.override(sampler=sampler, **(execution or {}))
        new = _run(
            replace(config, storage=self.storage or config.storage),
            self.directory,
            self.task,
            total,
            progress,
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
    device: str = "",
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
    """Search plans for a task and return the run; an interrupted one in ``run_dir`` goes on.

    ``space`` is a shipped space's name, a path to a TOML file, or a mapping of patterns such as
    ``{"*/w_bits": [4, 8]}``. ``compress`` sets how plans are carried out: ``importance`` ("energy",
    "l1", "l2"), ``calibrate`` ("mse", "minmax", "percentile"), and ``refit``, ``bn`` or
    ``compensate`` False to switch these repairs off. ``threads`` and ``batch_size`` are of the
    latency measurement; ``device`` names a device file that latency and energy are predicted for,
    in place of this machine. ``start_from``: the run directory of another search of the same model
    and data, whose profile and scores are taken over (on another target its front's plans are
    evaluated first); ``until_converged``: end when next to nothing of the hypervolume is still to
    gain. ``trials`` are completed scores, baselines included; ``run_dir`` is
    ``runs/<task.name>`` by default. ``storage``: the URL of a database that keeps the study (a
    password in it is not written down), by default a file in ``run_dir``. ``workers``: processes on
    a Ray cluster of its own, or of the one at ``ray_address``; a trial that takes more than
    ``trial_seconds``, or ``trial_memory_bytes`` beyond what its process holds, is ended and counts
    as failed. Raises InputError (TaskError, SpaceError, RunError).
    """
    if not isinstance(task, Task):
        raise TaskError(f"search needs an autocompress.Task, not {type(task).__name__}.")
    if budget is not None and not isinstance(budget, Budget):
        raise InputError(f"budget must be an autocompress.Budget, not {type(budget).__name__}.")
    config = Config(
        space=find_space(space), sampler=sampler, trials=trials, seed=seed, target=target,
        objectives=check_objectives(objectives), budget=budget or Budget(),
        compress=dict(compress or {}), threads=threads, batch_size=batch_size, device=device,
        storage=storage,
        execution=Execution(
            workers=workers, ray_address=ray_address, trial_seconds=trial_seconds,
            trial_memory_bytes=trial_memory_bytes,
        ),
    )  # fmt: skip
    directory = Path(run_dir) if run_dir is not None else Path("runs") / task.name
    return _run(
        config, directory, task, trials, progress,
        start_from=start_from, until_converged=until_converged,
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
    return _run(
        config, directory, None, config.trials, progress,
        start_from=start_from, until_converged=until_converged,
    )  # fmt: skip


def status(run_dir: str | Path) -> Status:
    """Return where a run stands, also while another process drives it; raise RunError."""
    directory, config = _frozen(run_dir)
    return look(
        directory, _place(directory, config), config.trials, config.objectives, config.budget
    )


def open_run(run_dir: str | Path, task: Task | None = None, *, storage: str = "") -> Run:
    """Open a run directory for reading or resuming; ``task`` is needed where Python gave it.

    ``storage``: the URL of its database, where the password is not known to the database's client.
    Raises RunError for what is no run directory, or of another database.
    """
    directory, config = _frozen(run_dir)
    if storage and public_url(storage) != config.storage:
        raise RunError(
            f"The study of {directory} is kept in {config.storage or 'its own file'}, not in "
            f"{public_url(storage)}. Leave the storage out, or name that."
        )
    scores, notes = read_study(_place(directory, config, storage))
    return Run(directory, config, scores, task, floor=notes.get("floor", {}), storage=storage)


def _frozen(run_dir: str | Path) -> tuple[Path, Config]:
    """Return a run directory and its configuration; raise RunError if it has none."""
    directory = Path(run_dir)
    path = directory / "config.toml"
    if not path.is_file():
        raise RunError(f"A run directory has a config.toml: {directory} has none. Start a search.")
    config = Config.read(path)
    return directory, replace(config, space=find_space(config.space))


def _place(directory: Path, config: Config, storage: str = "") -> Place:
    path = directory / "study.log"
    return Place(path, storage or config.storage, config.study if config.storage else STUDY_NAME)


def _run(
    config: Config,
    directory: Path,
    task: Task | None,
    total: int,
    progress: ProgressCallback | None,
    *,
    start_from: str | Path | None = None,
    until_converged: bool = False,
) -> Run:
    """Drive a search in its directory until ``total`` trials are done, or it has converged."""
    report = progress or (lambda _: None)
    if not isinstance(until_converged, bool):
        raise InputError(f"until_converged must be True or False, not {until_converged!r}.")
    template = config.space
    assert isinstance(template, SpaceTemplate)
    target = make_target(config.target, threads=config.threads, batch_size=config.batch_size)
    # unknown names end here, before any work
    config.check_device()
    make_sampler(config.sampler, config.seed)
    device = read_device(config.device) if config.device else None
    options, executor = Options.of(config.compress), make_executor(config.execution)
    config, storage = _stored(directory, config)
    place = _place(directory, config, storage)
    other = _source(start_from, directory, place)
    with (
        _disk_errors(directory),
        driver_lock(directory),
        contextlib.closing(place),
        study_lock(place) as confirm,
    ):
        _check_frozen(directory, config)
        if task is None:
            assert config.task is not None
            report(Progress(0, total, note="loading the task"))
            task = make_task(config.task)
        report(Progress(0, total, note="tracing the model"))
        network = trace(task.model, task.example_inputs)
        space = resolve_space(template, network, target)
        if device is not None:
            _check_operators(config, network, target)
        study = Study(
            place,
            Parameters(space),
            sampler=lambda finished: make_sampler(config.sampler, config.seed + finished),
            objectives=config.objectives,
            budget=config.budget,
            confirm=confirm,
        )
        fingerprints = {
            "model": network.fingerprint,
            "data": _data_fingerprint(task),
            "space": space.digest,
            "target": f"{config.target}, {config.threads} threads, batch {config.batch_size}",
            **({"device": _digest(device)} if device else {}),
        }
        if other is not None:
            alike = Options.of(other.config.compress) == options
            _, theirs = read_study(other.place)
            check_source(study, directory, other.directory, theirs, fingerprints, same_rules=alike)
        elif study.note("adopting") is not None and study.note("adopted") is None:
            raise RunError(
                f"{directory} was interrupted while it took over {study.note('adopting')}: search "
                "once more with --from that directory (start_from), then resume."
            )
        study.check_fingerprints(fingerprints)
        write_whole(directory / "config.toml", config.to_toml().encode())
        if other is not None and (
            left := adopt(study, directory, other.front(), theirs, fingerprints, seed=config.seed)
        ):
            report(Progress(0, total, note=left))
        run = Run(
            directory, config, study.scores, task, floor=study.note("floor") or {}, storage=storage
        )
        recipe = Recipe(seed=config.seed)
        unfinished = study.completed < total or bool(due(study, recipe, target.name))
        if not unfinished and run.complete():
            return run
        (directory / "front.csv").unlink(missing_ok=True)  # until it is up to date again
        report(Progress(study.completed, total, note="exporting the model"))
        evaluator = Evaluator(
            task, network, target, directory, config.seed, study.note("reference_ms"), options,
            config.budget, device,
        )  # fmt: skip
        study.set_note("reference_ms", evaluator.reference_ms)
        latency = config.budget.latency_ms or (
            "latency" in config.objectives and (config.budget or config.sampler == "guided")
        )
        if latency and unfinished and device is None:
            set_latency_model(study, evaluator, report)
        set_guide(study, evaluator, report)
        notes = [
            drive(
                study, evaluator, total, report, executor=executor, until_converged=until_converged
            ),
            finish(study, evaluator, report),
            _missing(len(due(study, recipe, target.name))),
            getattr(study.sampler, "reason", ""),
        ]
        run.note = "; ".join(note for note in notes if note)
        tell_cost(study, report)
        run.floor = study.note("floor") or {}
        run.write_front()
    return run


def _missing(count: int) -> str:
    again = "failed and are not on the front; resume tries them again"
    return f"{count} of the baselines {again}" if count else ""


def _stored(directory: Path, config: Config) -> tuple[Config, str]:
    """Return a configuration that can be written down, and its database's URL with the password.

    A study in a database has a name of its own, chosen once.
    """
    url, study = config.storage, config.study
    if url and not study and (directory / "config.toml").exists():
        study = Config.read(directory / "config.toml").study
    if url and not study:
        study = f"{directory.resolve().name}-{secrets.token_hex(4)}"
    return replace(config, storage=public_url(url), study=study), url


def _source(start_from: str | Path | None, directory: Path, place: Place) -> Run | None:
    """Return the run that a search is to start from, None if it has done so already.

    Raises InputError if it has started from another.
    """
    if start_from is None:
        return None
    if not isinstance(start_from, (str, Path)) or not str(start_from):
        raise InputError(f"start_from must be a run directory's path, not {start_from!r}.")
    _, notes = read_study(place)
    begun = notes.get("adopting")
    if begun is not None and Path(begun) != Path(start_from).resolve():
        raise InputError(
            f"A search starts from one run: {directory} has started from {begun}. Name another run "
            "directory, or leave the other out."
        )
    if notes.get("adopted") is not None:
        return None
    try:
        return open_run(start_from)
    except RunError as error:
        raise InputError(f"A search starts from a run (--from, start_from): {error}") from error


def _check_operators(config: Config, network: Network, target: Target) -> None:
    """Raise InputError if the figures of a device are needed and an operator has no cost."""
    needed = config.budget.latency_ms or config.budget.max_energy_mj
    if not needed and not {"latency", "energy"} & set(config.objectives):
        return
    work = workload(sketch(network, Plan(), target.abilities), target.abilities)
    if work.unknown:
        raise InputError(
            "Latency and energy on a device are predicted where every operator has a cost; there "
            f"is none for {', '.join(work.unknown)}. Drop the device, or the limits and objectives "
            "that need it."
        )


def _digest(device: Device) -> str:
    return f"{device.name} {hashlib.sha256(repr(device).encode()).hexdigest()}"


@contextlib.contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    """Turn what a full or failing disk raises into one sentence."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"A run directory must be writable: {directory} ({error}). Make room there; the "
            "finished trials are kept, and resume goes on with them."
        ) from error


def _check_frozen(directory: Path, config: Config) -> None:
    """Raise RunError if a run directory is another search's."""
    path = directory / "config.toml"
    if not path.exists():
        return
    frozen = Config.read(path)
    changed = [
        f.name
        for f in fields(Config)
        if f.name not in _CHANGEABLE and getattr(config, f.name) != getattr(frozen, f.name)
    ]
    if changed:
        raise RunError(
            f"{directory} belongs to another search; these differ: {', '.join(changed)}. Name "
            "another run directory, or go on with that search by 'resume'."
        )


def _data_fingerprint(task: Task) -> str:
    """Return a sha256 over calibration inputs and the task's own fingerprint, in hex."""
    digest = hashlib.sha256(task.fingerprint.encode())
    for batch in task.calibration:
        for value in batch:
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
