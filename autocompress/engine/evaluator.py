"""Evaluation: one plan in, one score out; the work of a worker."""

import contextlib
import math
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autocompress.core.artifact import Artifact
from autocompress.core.budget import Budget
from autocompress.core.files import write_whole
from autocompress.core.plan import Plan, Recipe
from autocompress.core.score import OBJECTIVES, Score
from autocompress.core.space import SearchSpace
from autocompress.cost.estimate import Estimate, Estimator, Feedback
from autocompress.cost.hardware import HardwareSpec
from autocompress.engine.agreement import arrays_of, farthest, refused
from autocompress.engine.intervals import Mean, mean_of
from autocompress.engine.proposers.guided.allocation import sweep
from autocompress.engine.proposers.guided.cost_tables import cost_tables
from autocompress.engine.proposers.guided.sensitivity_cache import Effect
from autocompress.errors import (
    ArtifactError,
    AutocompressError,
    InputError,
    PlanError,
    RunError,
)
from autocompress.models.network import Network
from autocompress.targets.base import Session, Target
from autocompress.targets.check import make_check
from autocompress.targets.checkfile import check_path
from autocompress.targets.differences import SIMULATED, UNCOMPRESSED
from autocompress.targets.made_inputs import InputStatistics, statistics_of
from autocompress.targets.probe import SATURATES
from autocompress.targets.timing import Timing, cpu_features, measure, openings
from autocompress.tasks.base import Task
from autocompress.transforms.compressor import Compressed, Compressor, Options
from autocompress.transforms.sensitivity import Effects

__all__ = ["Evaluator"]

#: A measured latency this near to the budget's line is measured again, longer.
_NEAR = 0.05
#: Calibration inputs on which a file is compared with its simulation.
_COMPARED = 32
#: What a latency measurement may take on a calm machine, and the opening of its file besides.
_SECONDS = 0.6


class _Stopwatch:
    """Wall time in seconds by the name of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] = time.perf_counter() - start


def _words(error: BaseException) -> str:
    """Return what an exception says; its own text may raise."""
    try:
        return str(error)
    except Exception:
        return "it has no words"


def _place(error: BaseException) -> str:
    """Return file and line in which an exception was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}, line {last.lineno}"


@dataclass(eq=False)
class Evaluator:
    """Scores plans of one task on one target; made once a search.

    Files go to ``directory/artifacts``. ``reference_ms`` is the uncompressed model's latency in
    milliseconds, measured here unless it is given (a resumed study gives it). ``differs``: what is
    to be said of every file, since the uncompressed one is not the task's model; found here, where
    the model is. ``device``: hardware that latency and energy are predicted for.
    ``estimator.model`` predicts latencies on this machine where it is set, and learns from every
    trial.
    """

    task: Task
    network: Network
    target: Target
    directory: Path
    seed: int = 0
    reference_ms: float | None = None
    options: Options | None = None
    budget: Budget = field(default_factory=Budget)
    device: HardwareSpec | None = None
    differs: str = ""

    def __post_init__(self) -> None:
        self.builder = self.target.prepare(self.network)
        self._start()
        if self.reference_ms is None:
            self.reference_ms = self._measure(self.references).reference_ms
        session = self._open_reference()
        for inputs in (self._compared, tuple(value[:1] for value in self._compared)):
            away = farthest(session, inputs, arrays_of(self.task.model, inputs))
            if away > UNCOMPRESSED and not self.differs:
                self.differs = (
                    "the uncompressed file is not the torch model: on a batch of "
                    f"{len(inputs[0])} from the calibration inputs its outputs are {away:.2g} of "
                    f"their deviation off, of which {UNCOMPRESSED:g} is rounding"
                )

    def _start(self) -> None:
        calibration = tuple(self.task.calibration)
        self.compressor = Compressor(self.network, calibration, self.target.abilities, self.options)
        self.estimator = Estimator(
            self.network, self.target.abilities, self.builder,
            options=self.options, device=self.device,
        )  # fmt: skip
        self.saturates = self.target.saturates()
        self.cpu = (*cpu_features(), *([SATURATES] if self.saturates else []))
        self._inputs = tuple(
            np.repeat(value.numpy(), self.target.batch_size, axis=0)
            for value in self.task.example_inputs
        )
        self._compared = tuple(v[:_COMPARED] for v in self.compressor.reference.inputs)

    @cached_property
    def _statistics(self) -> tuple[InputStatistics, ...]:
        return statistics_of([v.numpy() for v in batch] for batch in self.task.calibration)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs to evaluate: no sessions, no latency model."""
        kept = {f.name: getattr(self, f.name) for f in fields(self)}
        kept["task"] = replace(self.task, model=nn.Identity().eval())  # the network stands for it
        return {**kept, "directory": self.directory.resolve(), "builder": self.builder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    @cached_property
    def references(self) -> tuple[Session, ...]:
        """The openings of the uncompressed model's file, which is built where it is not there."""
        return openings(self._open_reference(), 4.0)

    @cached_property
    def effects(self) -> Effects:
        """The divergences of plans; what it holds in memory, ``drop_effects`` gives back."""
        return Effects(self.compressor)

    def drop_effects(self) -> None:
        """Give back the memory that effects take."""
        self.__dict__.pop("effects", None)

    def effect(self, plan: Plan) -> Effect:
        """Return what a plan does to the outputs on the calibration inputs, without a file."""
        start = time.perf_counter()
        try:
            loss = self.effects(plan)
        except Exception as error:
            kind = "" if isinstance(error, AutocompressError) else f"{type(error).__name__}: "
            return Effect(trouble=kind + _words(error))
        return Effect(loss, time.perf_counter() - start)

    @property
    def reference_path(self) -> Path:
        """Where the uncompressed model's file lies."""
        return self.path(Plan(), Recipe(seed=self.seed))

    def path(self, plan: Plan, recipe: Recipe) -> Path:
        """Return where the artifact of a plan lies."""
        return (
            self.directory / "artifacts" / (recipe.key(plan, self.target.name) + self.target.suffix)
        )

    def estimate(self, plan: Plan) -> Estimate:
        """Return what a plan is expected to cost, before anything is compressed."""
        return self.estimator(plan)

    def cheapest(self, space: SearchSpace, field: str) -> Plan | None:
        """Return the plan that cost tables say is the cheapest by a figure, None without tables."""
        latency = "latency_ms" if self.device is None else "device_latency_ms"
        figure = latency if field in ("latency_limit_ms", "latency_figure_ms") else field
        tables = cost_tables(space, self.estimator, [figure]).get(figure)
        if tables is None:
            return None
        (places,) = sweep([], [tables], np.ones((1, 1)))
        known = {name: space.knobs[name][place] for name, place in places.items()}
        return space.plan({name: values[0] for name, values in space.knobs.items()} | known)

    def over_budget(self, plan: Plan, recipe: Recipe, estimate: Estimate, accuracy: float) -> Score:
        """Return the score of a plan that is not built; ``accuracy`` is a guess for the sampler."""
        told = estimate.figures() | {"accuracy": accuracy}
        limited = [objective.field for objective in OBJECTIVES.values()] + ["latency_limit_ms"]
        told |= {name: estimate.expected(name) for name in limited if name != "accuracy"}
        words = ", ".join(
            f"{name} by {excess:.0%}"
            for name, excess in self.budget.constraints(estimate.least).items()
            if excess > 0
        )
        return Score(
            outcome="over_budget",
            message=f"predicted to exceed {words} at least",
            estimates={name: value for name, value in told.items() if not math.isnan(value)},
            **self._common(plan, recipe),
        )

    def _common(self, plan: Plan, recipe: Recipe) -> dict[str, Any]:
        return {
            "trial": -1, "plan": plan, "recipe": recipe, "target": self.target.name,
            "cpu": self.cpu, "seed": self.seed, "device": self.device.name if self.device else "",
        }  # fmt: skip

    def failed(self, plan: Plan, recipe: Recipe, baseline: str, message: str) -> Score:
        """Return the score of a plan whose evaluation failed, with a sentence."""
        common = self._common(plan, recipe)
        text = message.encode(errors="replace").decode()  # whatever a user's exception says
        return Score(outcome="failed", message=text, baseline=baseline, **common)

    def __call__(
        self, plan: Plan, recipe: Recipe, baseline: str = "", estimate: Estimate | None = None
    ) -> Score:
        """Compress, build, open and measure, and learn; a failure is a score with a sentence.

        ``estimate``: what was expected of the plan, to stand beside what is measured.
        """
        score, feedback = self.evaluate(plan, recipe, baseline, estimate)
        if feedback is not None:
            self.estimator.learn(feedback, score.latency_ms)
        return score

    def evaluate(
        self, plan: Plan, recipe: Recipe, baseline: str = "", estimate: Estimate | None = None
    ) -> tuple[Score, Feedback | None]:
        """Do the same without learning; return what there is to learn too.

        What a second try may mend (a file that vanished, a disk that was full) is tried twice.
        """
        for last in (False, True):
            watch, again = _Stopwatch(), False
            try:
                figures, feedback = self._figures(plan, recipe, watch)
            except AutocompressError as error:
                message = str(error)
                gone = isinstance(error, ArtifactError) and not self.path(plan, recipe).exists()
                again = gone or isinstance(error, RunError)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # evaluate, or a runtime, raises what it likes
                message = f"{type(error).__name__}: {_words(error)} ({_place(error)})"
                again = isinstance(error, OSError)
            else:
                common = {**self._common(plan, recipe), "baseline": baseline}
                if estimate is not None:
                    common["estimates"] = estimate.figures()
                return Score(outcome="ok", seconds=watch.seconds, **common, **figures), feedback
            if last or not again:
                break
        return replace(
            self.failed(plan, recipe, baseline, message),
            estimates=estimate.figures() if estimate is not None else {},
            seconds=watch.seconds,
        ), None

    def _figures(
        self, plan: Plan, recipe: Recipe, watch: _Stopwatch
    ) -> tuple[dict[str, Any], Feedback]:
        with watch("compress"):
            compressed = self.compressor.compress(plan)
        if self.saturates and not compressed.portable:
            raise PlanError(
                "A file's figures must be taken where it is right: its 8-bit codes overflow on "
                "this CPU, which has no VNNI. Search with portable = true, or on another CPU."
            )
        with watch("build"):
            artifact = self.builder.build(compressed, self.path(plan, recipe))
        with watch("open"):
            session, difference = self._opened(compressed, artifact)
        with watch("check"):
            self._write_check(session, artifact)
        with watch("accuracy"):
            accuracy = mean_of(self.task.evaluate(session))
        with watch("latency"):
            timing = self._measure(openings(session, _SECONDS))
        memory = session.peak_memory_bytes
        network = compressed.network
        costs = self.estimator.of(compressed, artifact.size_bytes)
        return {
            "accuracy": accuracy.mean,
            "accuracy_low": accuracy.low,
            "accuracy_high": accuracy.high,
            "size_bytes": artifact.size_bytes,
            "latency_ms": timing.latency_ms,
            "latency_low_ms": timing.low_ms,
            "latency_high_ms": timing.high_ms,
            "load_ms": session.load_ms,
            "peak_memory_bytes": memory or math.nan,  # 0: less than the system resolves
            "macs": costs.macs,
            "activation_bytes": costs.activation_bytes,
            "energy_mj": costs.energy_mj,
            "device_latency_ms": costs.device_latency_ms,
            "parameters": sum(value.numel() for value in network.params.values()),
            "effect": compressed.effect if math.isfinite(compressed.effect) else math.nan,
            "portable": compressed.portable,
            "difference": difference if math.isfinite(difference) else math.nan,
            "differs": self._words(compressed, difference),
            "artifact": artifact.path.name,
            "sha256": artifact.sha256,
            "timing": timing.to_json(),
        }, self.estimator.feedback(compressed)

    def _opened(self, compressed: Compressed, artifact: Artifact) -> tuple[Session, float]:
        """Return an opened file and how far it is from its simulation.

        Raises ArtifactError, which names the layer, where the runtime refuses it.
        """
        inputs = self._compared
        wanted = arrays_of(compressed, inputs)
        try:
            session = self.target.open(artifact.path)
            return session, farthest(session, inputs, wanted)
        except Exception as error:  # runtimes' exceptions have no common base
            if not artifact.path.exists():
                raise
            raise refused(self.target, self.builder, compressed, inputs, error) from error

    def _words(self, compressed: Compressed, difference: float) -> str:
        """Return what is to be said of a file that is not as it should be, "" of others."""
        allowed = SIMULATED if compressed.activations else UNCOMPRESSED
        if not difference > allowed:
            return self.differs
        return self.differs or (
            "the file is not its simulation: on calibration inputs its outputs are "
            f"{difference:.2g} of their deviation off, of which {allowed:g} is rounding"
        )

    def _write_check(self, session: Session, artifact: Artifact) -> None:
        """Keep how a file answers here beside it; inputs that are made may not suit a network."""
        with contextlib.suppress(InputError):
            check = make_check(session, artifact, self.target.version, self._statistics)
            write_whole(check_path(artifact.path), check.to_bytes())

    def _open_reference(self) -> Session:
        """Return the opened uncompressed model, built where no trial has built it yet."""
        path = self.reference_path
        try:
            return self.target.open(path)
        except ArtifactError:
            self.builder.build(self.compressor.compress(Plan()), path)
            return self.target.open(path)

    def _measure(self, sessions: tuple[Session, ...]) -> Timing:
        def timing(max_seconds: float = _SECONDS, relative_width: float = 0.01) -> Timing:
            return measure(
                sessions, self.references, self._inputs, threads=self.target.threads,
                reference_ms=self.reference_ms, max_seconds=max_seconds,
                relative_width=relative_width,
            )  # fmt: skip

        if self.reference_ms is None:  # it is this one's, and all others depend on it
            return timing(4.0, 0.001)
        found = timing()
        limit = self.budget.latency_ms if self.device is None else None  # else the device's
        near = limit and found.low_ms * (1 - _NEAR) <= limit <= found.high_ms * (1 + _NEAR)
        return timing(2.5, 0.001) if near else found

    def test(self, score: Score) -> Mean:
        """Score a file on the test split of a task that has one."""
        assert self.task.test is not None
        return mean_of(self.task.test(self.target.open(score.file(self.directory).path)), "test")

    def restore(self, score: Score) -> None:
        """Build a score's file again if it is not there as it was scored.

        Raises ArtifactError if it cannot be: another version of a library writes another file.
        """
        artifact = score.file(self.directory)
        try:
            artifact.verify()
        except ArtifactError:
            self.builder.build(self.compressor.compress(score.plan), artifact.path)
            artifact.verify()
        if score.cpu == self.cpu and not check_path(artifact.path).exists():
            self._write_check(self.target.open(artifact.path), artifact)
