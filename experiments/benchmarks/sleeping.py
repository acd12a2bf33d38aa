"""Trials that sleep: figures are functions of the plan, so that only the driver's work counts."""

import hashlib
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

from autocompress.core.plan import Plan, Recipe
from autocompress.core.score import Score
from autocompress.core.space import SearchSpace
from autocompress.engine.evaluator import Evaluator

__all__ = ["Sleeper", "space_of"]


def space_of(parameters: int) -> SearchSpace:
    """Return a space with so many parameters of seven values each."""
    return SearchSpace({f"layer{i:02}/w_bits": (2, 3, 4, 5, 6, 7, 8) for i in range(parameters)})


class Target:
    name, suffix, threads = "sleep", ".bin", 1


class Task:
    test = None


class Forgetful:
    """Learns nothing."""

    def learn(self, feedback, ms) -> None:
        pass


@dataclass
class Sleeper:
    """Scores a plan after ``seconds`` of sleep; the file says which process did it, and when."""

    directory: Path
    seconds: float
    seed: int = 0
    target = Target()
    task = Task()
    estimator = Forgetful()
    device: None = None
    cpu: tuple[str, ...] = ()
    failed = Evaluator.failed
    path = Evaluator.path
    _common = Evaluator._common
    drop_effects = Evaluator.drop_effects

    def __post_init__(self) -> None:
        self.directory = self.directory.resolve()

    @property
    def reference_path(self) -> Path:
        return self.path(Plan(), Recipe(seed=self.seed))

    references = ()

    def __call__(self, *arguments) -> Score:
        return self.evaluate(*arguments)[0]

    def evaluate(self, plan, recipe, baseline="", estimate=None) -> tuple[Score, None]:
        start = time.time()
        time.sleep(self.seconds)
        bits = [value for _, value in plan.of("w_bits")]
        size = 1000 + 100 * sum(bits)
        content = bytes(size)
        path = self.path(plan, recipe)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return Score(
            **{**self._common(plan, recipe), "baseline": baseline}, outcome="ok",
            accuracy=1 - 1 / (2 + sum(math.sqrt(b) for b in bits)), size_bytes=size,
            latency_ms=1.0, latency_low_ms=0.9, latency_high_ms=1.1,
            artifact=path.name, sha256=hashlib.sha256(content).hexdigest(),
            seconds={"start": start, "end": time.time(), "pid": float(os.getpid())},
        ), None  # fmt: skip
