"""The Python interface: search, open a run, measure a file; names become objects here."""

import contextlib
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import autocompress
from autocompress.errors import (
    ArtifactError,
    AutocompressError,
    ConfigError,
    InputError,
    RunError,
    TaskError,
    unknown,
)
from autocompress.models.trace import trace
from autocompress.report.front import Front
from autocompress.report.tables import to_csv
from autocompress.searching.driver import Progress, ProgressCallback, drive, finish
from autocompress.searching.evaluate import Evaluator
from autocompress.searching.parameters import Parameters
from autocompress.searching.samplers import make_sampler
from autocompress.searching.study import Study, driver_lock, read_scores
from autocompress.spec.budget import Budget
from autocompress.spec.config import Config
from autocompress.spec.files import write_whole
from autocompress.spec.score import Score, check_objectives
from autocompress.spec.space import SpaceTemplate
from autocompress.targets import make_target
from autocompress.targets.timing import Timing, measure
from autocompress.tasks import TASKS
from autocompress.tasks.base import Task
from autocompress.transforms.options import Options

__all__ = ["Run", "bench", "make_task", "open_run", "search", "search_config", "spaces_directory"]


def spaces_directory() -> Path:
    """Return the folder of the search spaces that come with the package."""
    package = Path(autocompress.__file__).parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def find_space(space: str | Path | Mapping[str, Any] | SpaceTemplate) -> SpaceTemplate:
    """Return the template of a name, a path or a mapping of patterns to values."""
    if isinstance(space, SpaceTemplate):
        return space
    if isinstance(space, Mapping):
        return SpaceTemplate.of(space)
    if not isinstance(space, (str, Path)):
        raise InputError(f"A space is a name, a path or a mapping, not {type(space).__name__}.")
    path = Path(space)
    if path.suffix == ".toml":
        return SpaceTemplate.read(path)
    known = {file.stem: file for file in spaces_directory().glob("*.toml")}
    if str(space) not in known:
        raise InputError(unknown("search space", str(space), known) + " A path ends in .toml.")
    return SpaceTemplate.read(known[str(space)])


def make_task(options: Mapping[str, Any]) -> Task:
    """Return the task of a name, or of ``package.module:factory``, and its options.

    A module is also looked for in the current folder. Raises TaskError for an unknown name, a
    factory that cannot be imported or raises, or an unknown option.
    """
    values = dict(options)
    name = values.pop("name")
    factory = _factory(name)
    try:
        inspect.signature(factory).bind(**values)
    except TypeError as error:
        raise TaskError(f"Task '{name}' does not take these options: {error}.") from error
    try:
        task = factory(**values)
    except AutocompressError:
        raise
    except Exception as error:  # the user's code raises what it likes
        raise TaskError(
            f"A task factory must return a task: {name} raised {type(error).__name__}: {error}."
        ) from error
    if not isinstance(task, Task):
        raise TaskError(f"A task factory must return an autocompress.Task; {name} did not.")
    return task


def _factory(name: str) -> Callable[..., Task]:
    if ":" not in name:
        if name not in TASKS:
            raise TaskError(unknown("task", name, TASKS) + " Your own is package.module:factory.")
        return TASKS[name]
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        factory: Callable[..., Task] = getattr(importlib.import_module(module), attribute)
        inspect.signature(factory)
    except Exception as error:  # importing runs the user's code
        raise TaskError(
            f"A task factory must be importable, as package.module:factory: {name} is not "
            f"({type(error).__name__}: {error})."
        ) from error
    return factory


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

    @property
    def reference(self) -> Score | None:
        """The score of the uncompressed model, None before it has one."""
        return self.front().reference

    def front(self) -> Front:
        """Return the Pareto front of the scores so far."""
        return Front(self.scores, self.config.objectives, self.config.budget, self.directory)

    def write_front(self) -> None:
        """Write front.csv, front.png and front.svg into the run directory."""
        front = self.front()
        for suffix in ("png", "svg"):
            front.plot(self.directory / f"front.{suffix}")
        write_whole(self.directory / "front.csv", to_csv(front).encode())

    def complete(self) -> bool:
        """Tell whether all that a finished search leaves is there, to the byte."""
        try:
            for pick in self.front().picks:
                pick.artifact.verify()
        except ArtifactError:
            return False
        return all((self.directory / f"front.{end}").exists() for end in ("csv", "png", "svg"))

    def resume(self, trials: int | None = None, progress: ProgressCallback | None = None) -> "Run":
        """Go on: ``trials`` more, or by default up to the number that the search was started with.

        Returns this run with its new scores. Raises RunError if model, data, space or target have
        changed, TaskError if the task was given in Python and is not given to ``open_run`` now.
        """
        if trials is not None and (
            isinstance(trials, bool) or not isinstance(trials, int) or trials < 1
        ):
            raise InputError(f"trials must be an integer of at least 1, not {trials!r}.")
        scores = read_scores(self.directory / "study.log")  # others may have gone on
        done = sum(score.outcome == "ok" for score in scores)
        total = self.config.trials if trials is None else done + trials
        if self.task is None and self.config.task is None:
            raise TaskError(
                f"The task of {self.directory} was given in Python and must be given again: "
                "open_run(directory, task=task)."
            )
        new = _run(self.config, self.directory, self.task, total, progress)
        self.scores, self.note = new.scores, new.note
        return self


def search(
    task: Task,
    *,
    space: str | Path | Mapping[str, Sequence[float]] | SpaceTemplate = "ptq",
    target: str = "onnxruntime",
    sampler: str = "tpe",
    trials: int = 100,
    seed: int = 0,
    objectives: Sequence[str] = ("accuracy", "size"),
    budget: Budget | None = None,
    compress: Mapping[str, Any] | None = None,
    threads: int = 1,
    batch_size: int = 1,
    run_dir: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> Run:
    """Search plans for a task and return the run; an interrupted one in ``run_dir`` goes on.

    ``space`` is a shipped space's name, a path to a TOML file, or a mapping of patterns such as
    ``{"*/w_bits": [4, 8]}``. ``compress`` sets how plans are carried out: ``importance`` ("energy",
    "l1", "l2"), ``calibrate`` ("mse", "minmax", "percentile"), and ``refit``, ``bn`` or
    ``compensate`` False to switch these repairs off. ``threads`` and ``batch_size`` are of the
    latency measurement. ``trials`` are completed scores, baselines included; ``run_dir`` is
    ``runs/<task.name>`` by default. Raises InputError (TaskError, SpaceError, RunError).
    """
    if not isinstance(task, Task):
        raise TaskError(f"search needs an autocompress.Task, not {type(task).__name__}.")
    if budget is not None and not isinstance(budget, Budget):
        raise InputError(f"budget must be an autocompress.Budget, not {type(budget).__name__}.")
    config = Config(
        space=find_space(space), sampler=sampler, trials=trials, seed=seed, target=target,
        objectives=check_objectives(objectives), budget=budget or Budget(),
        compress=dict(compress or {}), threads=threads, batch_size=batch_size,
    )  # fmt: skip
    directory = Path(run_dir) if run_dir is not None else Path("runs") / task.name
    return _run(config, directory, task, trials, progress)


def search_config(
    path: str | Path,
    *,
    run_dir: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: ProgressCallback | None = None,
) -> Run:
    """Search as a TOML file says; ``overrides`` are fields of Config and of its budget.

    The run lies in ``run_dir``, by default ``runs/<name of the file>``.
    """
    path = Path(path)
    config = Config.read(path).override(**(overrides or {}))
    if config.task is None:
        raise ConfigError(f'{path}: a [task] section with name = "…" is needed.')
    config = replace(config, space=find_space(config.space))
    directory = Path(run_dir) if run_dir is not None else Path("runs") / path.stem
    return _run(config, directory, None, config.trials, progress)


def open_run(run_dir: str | Path, task: Task | None = None) -> Run:
    """Open a run directory for reading or resuming; ``task`` is needed where Python gave it."""
    directory = Path(run_dir)
    path = directory / "config.toml"
    if not path.is_file():
        raise RunError(f"A run directory has a config.toml: {directory} has none. Start a search.")
    config = Config.read(path)
    config = replace(config, space=find_space(config.space))
    return Run(directory, config, read_scores(directory / "study.log"), task)


def bench(
    path: str | Path,
    *,
    threads: int = 1,
    reference: str | Path | None = None,
    runtime: str = "onnxruntime",
) -> Timing:
    """Measure a file's latency, in milliseconds, against itself or a reference file.

    Raises ArtifactError for a file that the runtime refuses, InputError for files that do not take
    the same inputs.
    """
    target = make_target(runtime, threads=threads)
    candidate = target.open(Path(path))
    other = target.open(Path(path if reference is None else reference))
    inputs = candidate.example_inputs()
    for file, session in ((path, candidate), (reference, other)):
        try:
            session(*inputs)
        except Exception as error:  # runtimes' exceptions have no common base
            raise InputError(
                f"Both files must run on the same inputs, of shapes {[x.shape for x in inputs]}: "
                f"{file} does not ({' '.join(str(error).split())[:200]})."
            ) from error
    return measure(candidate, other, inputs, threads=threads)


def _run(
    config: Config,
    directory: Path,
    task: Task | None,
    total: int,
    progress: ProgressCallback | None,
) -> Run:
    """Drive a search in its directory until ``total`` trials are done."""
    report = progress or (lambda _: None)
    template = config.space
    assert isinstance(template, SpaceTemplate)
    target = make_target(config.target, threads=config.threads, batch_size=config.batch_size)
    # unknown names end here, before any work
    make_sampler(config.sampler, config.seed)
    options = Options.of(config.compress)
    with _disk_errors(directory), driver_lock(directory):
        _check_frozen(directory, config)
        if task is None:
            assert config.task is not None
            report(Progress(0, total, note="loading the task"))
            task = make_task(config.task)
        report(Progress(0, total, note="tracing the model"))
        network = trace(task.model, task.example_inputs)
        layers = [layer.name for layer in network.layers]
        units = [unit.name for unit in network.units]
        space = template.resolve(layers, units, target.abilities)
        study = Study(
            directory / "study.log",
            Parameters(space),
            sampler=lambda finished: make_sampler(config.sampler, config.seed + finished),
            objectives=config.objectives,
            budget=config.budget,
        )
        study.check_fingerprints(
            {
                "model": network.fingerprint,
                "data": _data_fingerprint(task),
                "space": space.digest,
                "target": f"{config.target}, {config.threads} threads, batch {config.batch_size}",
            }
        )
        write_whole(directory / "config.toml", config.to_toml().encode())
        run = Run(directory, config, study.scores, task)
        if study.completed >= total and run.complete():
            return run
        (directory / "front.csv").unlink(missing_ok=True)  # until it is up to date again
        report(Progress(study.completed, total, note="exporting the model"))
        evaluator = Evaluator(
            task, network, target, directory, config.seed, study.note("reference_ms"), options
        )
        study.set_note("reference_ms", evaluator.reference_ms)
        notes = [drive(study, evaluator, total, report), finish(study, evaluator, report)]
        run.note = "; ".join(note for note in notes if note)
        run.write_front()
    return run


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
    frozen = replace(Config.read(path), trials=config.trials)
    changed = [f.name for f in fields(Config) if getattr(config, f.name) != getattr(frozen, f.name)]
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
