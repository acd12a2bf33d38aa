"""Gains: what a search found beyond uniform plans, at equal size and at equal latency."""

from collections.abc import Sequence
from dataclasses import dataclass

from autocompress.core.pareto import non_dominated
from autocompress.core.results import Results
from autocompress.core.score import OBJECTIVES, Score

__all__ = ["Gain", "gain_over_uniform", "gains_text"]


@dataclass(frozen=True)
class Gain:
    """What was gained over the uniform plans that are best at a cost, "size" or "latency".

    ``mean`` and ``most``: accuracy of the best file of at most the uniform file's cost, less that
    file's; ``at``: the uniform file where it is most; ``cheaper``: the greatest ratio of a uniform
    file's cost to that of a file at least as accurate.
    """

    cost: str
    mean: float
    most: float
    at: Score
    cheaper: float


def gain_over_uniform(front: Results, cost: str) -> Gain | None:
    """Return the gain over uniform plans within the budget, None where there is none to compare."""
    within = [score for score in front.measured if score.meets(front.budget)]
    uniform = [score for score in within if score.baseline.startswith("uniform")]
    found = [score for score in within if not score.baseline]
    best = non_dominated(uniform, ("accuracy", cost))
    if not best or not found:
        return None
    field = OBJECTIVES[cost].field
    return Gain(
        cost,
        *_rises(best, found, field),
        max(
            score.figure(field) / min(other.figure(field) for other in (*equal, score))
            for score in best
            for equal in [[other for other in found if other.accuracy >= score.accuracy]]
        ),
    )


def _rises(best: Sequence[Score], found: Sequence[Score], field: str) -> tuple[float, float, Score]:
    rises = []
    for score in best:
        within = [o.accuracy for o in found if o.figure(field) <= score.figure(field)]
        rises.append(max([*within, score.accuracy]) - score.accuracy)
    most = max(rises)
    return sum(rises) / len(rises), most, best[rises.index(most)]


def gains_text(front: Results) -> list[str]:
    """Return a line for size, one for latency, of what can be compared."""
    lines = []
    for cost, unit in (("size", "bytes"), ("latency", "ms")):
        gain = gain_over_uniform(front, cost)
        if gain is not None:
            figure = gain.at.figure(OBJECTIVES[cost].field)
            shown = f"{figure:,.0f}" if unit == "bytes" else f"{figure:.4g}"
            lines.append(
                f"against the best uniform plans at equal {cost}: {gain.mean:+.4f} accuracy on "
                f"average, {gain.most:+.4f} at {shown} {unit}; at equal accuracy up to "
                f"{gain.cheaper:.2f} × {'smaller' if cost == 'size' else 'faster'}"
            )
    return lines
