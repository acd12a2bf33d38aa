"""Non-domination: which scores no other score beats in everything."""

from collections.abc import Sequence

import numpy as np

from autocompress.spec.budget import Budget
from autocompress.spec.score import OBJECTIVES, Score

__all__ = ["closest_miss", "non_dominated"]


def non_dominated(scores: Sequence[Score], objectives: tuple[str, ...]) -> list[Score]:
    """Return the scores that none dominates, in ascending order of the second objective.

    Of several with equal figures the first is kept. Scores need every objective measured.
    """
    if not scores:
        return []
    signs = [-1.0 if OBJECTIVES[name].maximize else 1.0 for name in objectives]
    costs = np.array([score.values(objectives) for score in scores]) * signs
    front = []
    for i, cost in enumerate(costs):
        no_worse = (costs <= cost).all(axis=1)
        better = no_worse & (costs < cost).any(axis=1)
        equal = no_worse & ~better
        if not better.any() and not equal[:i].any():
            front.append(i)
    front.sort(key=lambda i: tuple(costs[i][1:]))
    return [scores[i] for i in front]


def closest_miss(scores: Sequence[Score], budget: Budget) -> Score | None:
    """Return the measured score with the smallest worst excess over a budget, None without any."""
    measured = [score for score in scores if score.outcome == "ok"]
    return min(
        measured, key=lambda s: max(s.constraints(budget).values(), default=0.0), default=None
    )
