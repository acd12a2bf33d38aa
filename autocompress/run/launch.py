"""Launching: a search in its run directory, from configuration to the written front."""

import contextlib
import hashlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from autocompress.core.config import Config
from autocompress.core.files import write_whole
from autocompress.core.plan import Plan, Recipe
from autocompress.core.score import Score
from autocompress.core.space import SpaceTemplate
from autocompress.cost.hardware import HardwareSpec, read_hardware
from autocompress.cost.workload import workload
from autocompress.engine.evaluator import Evaluator
from autocompress.engine.executors import make_executor
from autocompress.engine.loop import drive, finish
from autocompress.engine.parameters import Parameters
from autocompress.engine.prepare import set_guide, set_latency_model, tell_cost
from autocompress.engine.progress import Progress, ProgressCallback
from autocompress.engine.proposers import make_sampler
from autocompress.engine.scheduler import due
from autocompress.engine.store import STUDY_NAME, Place, public_url, whole_url
from autocompress.engine.study import Study, read_study
from autocompress.errors import ArtifactError, InputError, RunError
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.registry import find_space, make_task, resolve_space
from autocompress.report.front import Front
from autocompress.report.tables import to_csv
from autocompress.run.locks import driver_lock, study_lock
from autocompress.run.warm_start import adopt, check_source
from autocompress.targets import Target, make_target
from autocompress.tasks.base import Task
from autocompress.transforms.dry_run import dry_run
from autocompress.transforms.options import Options

__all__ = ["Launched", "complete", "launch", "place_of", "read_config", "target_of", "write_front"]

# Fields of a configuration that may differ from what a run directory was begun with.
_CHANGEABLE = ("trials", "sampler", "execution")


@dataclass
class Launched:
    """What a search has come to.

    ``config`` as it was written down; ``floor``: what is predicted to be the least of each figure
    that the budget limits; ``storage``: the database's URL with its password; ``note``: why the
    search ended early, and what could not be done.
    """

    config: Config
    scores: list[Score]
    floor: Mapping[str, float]
    storage: str = field(repr=False)
    note: str = ""

    def front(self, directory: Path) -> Front:
        """Return the front of the scores."""
        config = self.config
        return Front(self.scores, config.objectives, config.budget, directory, self.floor)


def read_config(run_dir: str | Path) -> tuple[Path, Config]:
    """Return a run directory and its configuration; raise RunError if it has none."""
    directory = Path(run_dir)
    path = directory / "config.toml"
    if not path.is_file():
        raise RunError(f"A run directory has a config.toml: {directory} has none. Start a search.")
    config = Config.read(path, frozen=True)
    return directory, replace(config, space=find_space(config.space))


def target_of(config: Config) -> Target:
    """Return a configuration's target; raise ConfigError for an unknown one."""
    return make_target(
        config.target,
        threads=config.threads,
        batch_size=config.batch_size,
        portable=config.portable,
    )


def place_of(directory: Path, config: Config, storage: str = "") -> Place:
    """Return where a run's study is kept; ``storage``: the URL of its database with a password."""
    path = directory / "study.log"
    return Place(path, storage or config.storage, config.study if config.storage else STUDY_NAME)


def write_front(front: Front) -> str:
    """Write front.csv, front.png and front.svg; return why there is no picture, or ""."""
    write_whole(front.directory / "front.csv", to_csv(front).encode())
    try:
        for suffix in ("png", "svg"):
            front.plot(front.directory / f"front.{suffix}")
    except (ValueError, OverflowError) as error:  # figures beyond what can be drawn
        return f"no picture of the front: {error}"
    return ""


def complete(front: Front) -> bool:
    """Tell whether all that a finished search leaves is there, to the byte."""
    try:
        for pick in front.picks:
            pick.artifact.verify()
    except ArtifactError:
        return False
    return all((front.directory / f"front.{end}").exists() for end in ("csv", "png", "svg"))


def launch(
    config: Config,
    directory: Path,
    task: Task | None,
    total: int,
    report: ProgressCallback,
    *,
    start_from: str | Path | None = None,
    until_converged: bool = False,
) -> Launched:
    """Drive a search in its directory until ``total`` trials are done, or it has converged.

    ``task`` None: the configuration's. Raises InputError for what cannot be used.
    """
    if not isinstance(until_converged, bool):
        raise InputError(f"until_converged must be True or False, not {until_converged!r}.")
    template = config.space
    assert isinstance(template, SpaceTemplate)
    target = target_of(config)
    # unknown names end here, before any work
    config.check_hardware()
    make_sampler(config.sampler, config.seed)
    device = read_hardware(config.hardware) if config.hardware else None
    options, executor = Options.of(config.compress), make_executor(config.execution)
    config, storage = _stored(directory, config)
    place = place_of(directory, config, storage)
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
            tell=lambda text: report(Progress(0, total, note=text)),
        )
        fingerprints = {
            "model": network.fingerprint,
            "data": _data_fingerprint(task),
            "space": space.digest,
            "target": f"{config.target}, {config.threads} threads, batch {config.batch_size}"
            + (", portable" if config.portable else ""),
            **({"device": _digest(device)} if device else {}),
        }
        if other is not None:
            front, rules, theirs = other
            alike = Options.of(rules) == options
            check_source(study, directory, front.directory, theirs, fingerprints, same_rules=alike)
        elif study.note("adopting") is not None and study.note("adopted") is None:
            raise RunError(
                f"{directory} was interrupted while it took over {study.note('adopting')}: search "
                "once more with --from that directory (start_from), then resume."
            )
        study.check_fingerprints(fingerprints)
        if words := _other_host(study, target):
            report(Progress(0, total, note=words))
        write_whole(directory / "config.toml", config.to_toml().encode())
        if other is not None and (
            left := adopt(study, directory, front, theirs, fingerprints, seed=config.seed)
        ):
            report(Progress(0, total, note=left))
        study.set_note("wanted", total)
        found = Launched(config, study.scores, study.note("floor") or {}, storage)
        recipe = Recipe(seed=config.seed)
        unfinished = study.completed < total or bool(due(study, recipe, target.name))
        if not unfinished and complete(found.front(directory)):
            return found
        (directory / "front.csv").unlink(missing_ok=True)  # until it is up to date again
        report(Progress(study.completed, total, note="exporting the model"))
        evaluator = Evaluator(
            task, network, target, directory, config.seed, study.note("reference_ms"), options,
            config.budget, device,
        )  # fmt: skip
        study.set_note("reference_ms", evaluator.reference_ms)
        for note in filter(None, (evaluator.compressor.reference.note, evaluator.differs)):
            report(Progress(study.completed, total, note=note))
        latency = config.budget.latency_ms or (
            "latency" in config.objectives and (config.budget or config.sampler == "guided")
        )
        if latency and unfinished and device is None:
            set_latency_model(study, evaluator, report)
        notes = [
            drive(
                study,
                evaluator,
                total,
                report,
                executor=executor,
                until_converged=until_converged,
                cache=set_guide(study, evaluator, report),
            ),
            finish(study, evaluator, report),
            _missing(len(due(study, recipe, target.name))),
            getattr(study.sampler, "reason", ""),
        ]
        tell_cost(study, report)
        found.floor = study.note("floor") or {}
        notes.append(write_front(found.front(directory)))
        found.note = "; ".join(note for note in notes if note)
    return found


def _other_host(study: Study, target: Target) -> str:
    """Note whether this host's integer kernels overflow; return what is to be said of that.

    Said is where a study was begun on a host of the other kind.
    """
    now, then = target.saturates(), study.note("saturates")
    if then is None:
        study.set_note("saturates", now)
        return ""
    kinds = ("add 8-bit products exactly", "add 8-bit products in 16 bits (no VNNI)")
    if now == then:
        return ""
    return (
        f"this study was begun on a CPU whose integer kernels {kinds[then]}; this one's "
        f"{kinds[now]}: portable files answer alike on both, latencies are not comparable"
    )


def _missing(count: int) -> str:
    again = "failed and are not on the front; resume tries them again"
    return f"{count} of the baselines {again}" if count else ""


def _stored(directory: Path, config: Config) -> tuple[Config, str]:
    """Return a configuration that can be written down, and its database's URL with the password.

    A study in a database has a name of its own, chosen once.
    """
    url, study = config.storage and whole_url(config.storage), config.study
    if url and not study and (directory / "config.toml").exists():
        study = Config.read(directory / "config.toml", frozen=True).study
    if url and not study:
        study = f"{directory.resolve().name}-{secrets.token_hex(4)}"
    return replace(config, storage=public_url(url), study=study), url


def _source(
    start_from: str | Path | None, directory: Path, place: Place
) -> tuple[Front, Mapping[str, Any], Mapping[str, Any]] | None:
    """Return front, rules and notes of the run to start from, None if that has been done.

    Raises InputError if it has started from another.
    """
    if start_from is None:
        return None
    if not isinstance(start_from, (str, Path)) or not str(start_from):
        raise InputError(f"start_from must be a run directory's path, not {start_from!r}.")
    begun_here = (directory / "config.toml").exists()
    notes = read_study(place)[1] if begun_here else {}
    begun = notes.get("adopting")
    if begun is not None and Path(begun) != Path(start_from).resolve():
        raise InputError(
            f"A search starts from one run: {directory} has started from {begun}. Name another run "
            "directory, or leave the other out."
        )
    if notes.get("adopted") is not None:
        return None
    try:
        source, theirs = read_config(start_from)
        scores, notes = read_study(place_of(source, theirs))
    except RunError as error:
        raise InputError(f"A search starts from a run (--from, start_from): {error}") from error
    return Front(scores, theirs.objectives, theirs.budget, source), theirs.compress, notes


def _check_operators(config: Config, network: Network, target: Target) -> None:
    """Raise InputError if the figures of a device are needed and an operator has no cost."""
    needed = config.budget.latency_ms or config.budget.max_energy_mj
    if not needed and not {"latency", "energy"} & set(config.objectives):
        return
    work = workload(dry_run(network, Plan(), target.abilities), target.abilities)
    if work.unknown:
        raise InputError(
            "Latency and energy on a device are predicted where every operator has a cost; there "
            f"is none for {', '.join(work.unknown)}. Drop the device, or the limits and objectives "
            "that need it."
        )


def _digest(device: HardwareSpec) -> str:
    return f"{device.name} {hashlib.sha256(repr(device).encode()).hexdigest()}"


@contextlib.contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    """Turn what a full or failing disk raises into one sentence."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"A run directory must be writable: {directory} ({error}). Make room there, or name "
            "another; finished trials are kept, and resume goes on with them."
        ) from error


def _check_frozen(directory: Path, config: Config) -> None:
    """Raise RunError if a run directory is another search's."""
    path = directory / "config.toml"
    if not path.exists():
        return
    frozen = Config.read(path, frozen=True)
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
