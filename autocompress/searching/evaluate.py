"""Evaluation: one plan in, one score out; the work of a worker."""

import math
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.cost.size import estimate_size
from autocompress.errors import ArtifactError, AutocompressError, RunError
from autocompress.models.network import Network
from autocompress.report.front import Pick
from autocompress.searching.intervals import Mean, mean_of
from autocompress.spec.plan import Plan, Recipe
from autocompress.spec.score import Score
from autocompress.targets.base import Session, Target
from autocompress.targets.timing import Timing, cpu_features, measure
from autocompress.tasks.base import Task
from autocompress.transforms.compress import Compressor, Options

__all__ = ["Evaluator"]


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


def _place(error: Exception) -> str:
    """Return file and line in which an exception was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}, line {last.lineno}"


@dataclass(eq=False)
class Evaluator:
    """Scores plans of one task on one target; made once a search.

    Files go to ``directory/artifacts``. ``reference_ms`` is the uncompressed model's latency in
    milliseconds, measured here unless it is given (a resumed study gives it).
    """

    task: Task
    network: Network
    target: Target
    directory: Path
    seed: int = 0
    reference_ms: float | None = None
    options: Options | None = None

    def __post_init__(self) -> None:
        calibration = tuple(self.task.calibration)
        self.compressor = Compressor(self.network, calibration, self.target.abilities, self.options)
        self.builder = self.target.prepare(self.network)
        self.cpu = cpu_features()
        self._inputs = tuple(
            np.repeat(value.numpy(), self.target.batch_size, axis=0)
            for value in self.task.example_inputs
        )
        self._reference = self._open_reference()
        if self.reference_ms is None:
            self.reference_ms = self._measure(self._reference).reference_ms

    def path(self, plan: Plan, recipe: Recipe) -> Path:
        """Return where the artifact of a plan lies."""
        return (
            self.directory / "artifacts" / (recipe.key(plan, self.target.name) + self.target.suffix)
        )

    def __call__(self, plan: Plan, recipe: Recipe, baseline: str = "") -> Score:
        """Compress, build, open and measure; a failure is a score with a sentence."""
        watch = _Stopwatch()
        common: dict[str, Any] = {
            "trial": -1, "plan": plan, "recipe": recipe, "target": self.target.name,
            "baseline": baseline, "cpu": self.cpu, "seed": self.seed,
        }  # fmt: skip
        try:
            figures = self._figures(plan, recipe, watch)
        except RunError:  # nothing can be written: no fault of the plan
            raise
        except AutocompressError as error:
            message = str(error)
        except Exception as error:  # the user's evaluate, or a runtime, raises what it likes
            message = f"{type(error).__name__}: {error} ({_place(error)})"
        else:
            return Score(outcome="ok", seconds=watch.seconds, **common, **figures)
        return Score(outcome="failed", message=message, seconds=watch.seconds, **common)

    def _figures(self, plan: Plan, recipe: Recipe, watch: _Stopwatch) -> dict[str, Any]:
        with watch("compress"):
            compressed = self.compressor.compress(plan)
        with watch("build"):
            artifact = self.builder.build(compressed, self.path(plan, recipe))
        with watch("open"):
            session = self.target.open(artifact.path)
        with watch("accuracy"):
            accuracy = mean_of(self.task.evaluate(session))
        with watch("latency"):
            timing = self._measure(session)
        memory = session.peak_memory_bytes
        network = compressed.network
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
            "macs": network.macs,
            "parameters": sum(value.numel() for value in network.params.values()),
            "artifact": artifact.path.name,
            "sha256": artifact.sha256,
            "estimates": {"size_bytes": estimate_size(compressed)},
            "timing": timing.to_json(),
        }

    def _open_reference(self) -> Session:
        """Return the opened uncompressed model, built where no trial has built it yet."""
        plan, recipe = Plan(), Recipe(seed=self.seed)
        path = self.path(plan, recipe)
        try:
            return self.target.open(path)
        except ArtifactError:
            self.builder.build(self.compressor.compress(plan), path)
            return self.target.open(path)

    def _measure(self, session: Session) -> Timing:
        return measure(
            session,
            self._reference,
            self._inputs,
            threads=self.target.threads,
            reference_ms=self.reference_ms,
        )

    def test(self, pick: Pick) -> Mean:
        """Score a file on the test split of a task that has one."""
        assert self.task.test is not None
        return mean_of(self.task.test(self.target.open(pick.path)), "test")

    def restore(self, pick: Pick) -> None:
        """Build a score's file again if it is not there as it was scored.

        Raises ArtifactError if it cannot be: another version of a library writes another file.
        """
        try:
            pick.artifact.verify()
        except ArtifactError:
            self.builder.build(self.compressor.compress(pick.plan), pick.path)
            pick.artifact.verify()
