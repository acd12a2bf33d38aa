"""An evaluator without a network: figures are functions of the plan."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from autocompress.core.budget import Budget
from autocompress.core.plan import Plan
from autocompress.core.score import Score
from autocompress.core.space import SearchSpace
from autocompress.cost.estimate import Estimate
from autocompress.cost.latency_model import Prediction
from autocompress.engine.evaluator import Evaluator
from autocompress.engine.intervals import Mean

SPACE = SearchSpace(
    {f"l{i}/w_bits": (2, 3, 4, 6, 8) for i in range(4)} | {"l0/keep": (0.5, 0.75, 1.0)}
)
"""Sizes go from 40 bytes to 320, latencies from 0.4 to 3.2 ms; uncompressed is 1,280 and 12.8."""


def size_of(plan: Plan) -> float:
    return sum(plan.get(f"l{i}", "w_bits") for i in range(4)) * plan.get("l0", "keep") * 10


class FakeTarget:
    name = "fake"


class FakeTask:
    test = True


@dataclass
class FakeEvaluator:
    """Counts its calls; ``fail`` and ``stop`` are called with the number of each.

    Latencies are predicted as they are, within 10 %, but for plans that are ``unknown``.
    """

    seed: int = 0
    fail: object = None
    stop: object = None
    budget: Budget = field(default_factory=Budget)
    unknown: Callable[[Plan], bool] = lambda plan: False
    calls: list[Plan] = field(default_factory=list)
    estimated: list[Plan] = field(default_factory=list)
    directory: Path = Path()
    target = FakeTarget()
    task = FakeTask()
    over_budget = Evaluator.over_budget
    failed = Evaluator.failed
    reference_path = Path("reference.onnx")

    def _common(self, plan, recipe):
        return {"trial": -1, "plan": plan, "recipe": recipe, "target": "fake"}

    def estimate(self, plan):
        self.estimated.append(plan)
        size = size_of(plan)
        unknown = self.unknown(plan)
        latency = math.nan if unknown else size / 100
        return Estimate(
            size_bytes=size,
            macs=int(size),
            activation_bytes=int(2 * size),
            latency=Prediction(latency, latency / 1.1, latency / 0.9),
            unknown=("aten.odd",) if unknown else (),
        )

    def cheapest(self, space, field):
        return None

    def __call__(self, plan, recipe, baseline="", estimate=None):
        if self.stop is not None and self.stop(len(self.calls)):
            raise KeyboardInterrupt
        self.calls.append(plan)
        common = {**self._common(plan, recipe), "baseline": baseline}
        if estimate is not None:
            common["estimates"] = estimate.figures()
        if self.fail is not None and self.fail(len(self.calls) - 1):
            return Score(outcome="failed", message="it broke", **common)
        size = size_of(plan)
        return Score(
            outcome="ok",
            accuracy=1 - 1 / (1 + size / 10),
            size_bytes=size,
            latency_ms=size / 100,
            latency_low_ms=size / 110,
            latency_high_ms=size / 90,
            activation_bytes=2 * size,
            artifact="x.onnx",
            **common,
        )

    def restore(self, score):
        pass

    def test(self, score):
        return Mean(score.accuracy - 0.01, score.accuracy - 0.02, score.accuracy)
