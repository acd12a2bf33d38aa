"""An evaluator without a network: figures are functions of the plan."""

from dataclasses import dataclass, field
from pathlib import Path

from autocompress.searching.intervals import Mean
from autocompress.spec.plan import Plan
from autocompress.spec.score import Score
from autocompress.spec.space import SearchSpace

SPACE = SearchSpace(
    {f"l{i}/w_bits": (2, 3, 4, 6, 8) for i in range(4)} | {"l0/keep": (0.5, 0.75, 1.0)}
)


class FakeTarget:
    name = "fake"


class FakeTask:
    test = True


@dataclass
class FakeEvaluator:
    """Counts its calls; ``fail`` and ``stop`` are called with the number of each."""

    seed: int = 0
    fail: object = None
    stop: object = None
    calls: list[Plan] = field(default_factory=list)
    directory: Path = Path()
    target = FakeTarget()
    task = FakeTask()

    def __call__(self, plan, recipe, baseline=""):
        if self.stop is not None and self.stop(len(self.calls)):
            raise KeyboardInterrupt
        self.calls.append(plan)
        common = {
            "trial": -1, "plan": plan, "recipe": recipe, "target": "fake", "baseline": baseline,
        }  # fmt: skip
        if self.fail is not None and self.fail(len(self.calls) - 1):
            return Score(outcome="failed", message="it broke", **common)
        bits = sum(plan.get(f"l{i}", "w_bits") for i in range(4))
        keep = plan.get("l0", "keep")
        size = bits * keep * 10
        return Score(
            outcome="ok",
            accuracy=1 - 1 / (1 + bits * keep),
            size_bytes=size,
            latency_ms=size / 100,
            latency_low_ms=size / 110,
            latency_high_ms=size / 90,
            artifact="x.onnx",
            **common,
        )

    def restore(self, pick):
        pass

    def test(self, pick):
        score = pick.score
        return Mean(score.accuracy - 0.01, score.accuracy - 0.02, score.accuracy)
