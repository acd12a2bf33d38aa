"""Non-domination: which scores no other beats in everything, and the volume that they hold."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autocompress.core.budget import Budget
from autocompress.core.score import OBJECTIVES, Score

__all__ = ["Volume", "closest_miss", "floor_of", "non_dominated", "undominated"]


def non_dominated(scores: Sequence[Score], objectives: tuple[str, ...]) -> list[Score]:
    """Return the scores that none dominates, in ascending order of the second objective.

    Of several with equal figures the first is kept. Scores need every objective measured.
    """
    signs = [-1.0 if OBJECTIVES[name].maximize else 1.0 for name in objectives]
    costs = np.array([score.values(objectives) for score in scores]).reshape(-1, len(signs)) * signs
    front = sorted(undominated(costs), key=lambda i: tuple(costs[i][1:]))
    return [scores[i] for i in front]


def undominated(costs: NDArray[np.float64]) -> list[int]:
    """Return the rows of [scores, costs] that no other dominates, of equal ones the first."""
    front = []
    left = np.lexsort(costs.T[::-1])
    while len(left):  # the first is dominated by none of the others
        first, left = left[0], left[1:]
        front.append(int(first))
        left = left[~(costs[left] >= costs[first]).all(axis=1)]
    return sorted(front)


def closest_miss(scores: Sequence[Score], budget: Budget) -> Score | None:
    """Return the measured score with the smallest worst excess over a budget, None without any."""
    measured = [score for score in scores if score.outcome == "ok"]
    return min(
        measured, key=lambda s: max(s.constraints(budget).values(), default=0.0), default=None
    )


def floor_of(accuracies: Sequence[float]) -> float:
    """Return a floor for :class:`Volume`: below it a file is of no use to anybody.

    Half of the best where all are fractions; of other metrics, whose zero means nothing, a little
    below all, so that all hold some.
    """
    least, most = min(accuracies, default=0.0), max(accuracies, default=1.0)
    if least >= 0 and most <= 1:
        return most / 2
    return least - (0.05 * (most - least) or 1e-3 * max(abs(least), 1e-9))


class Volume:
    """Hypervolume of accuracy × log costs, at points spread evenly over a box.

    ``low`` and ``high``: ends of the box in log costs, [costs]. What a point holds is the best
    accuracy of a file that costs no more than it in any respect, above ``floor``.
    """

    def __init__(
        self,
        low: Sequence[float] | NDArray[np.float64],
        high: Sequence[float] | NDArray[np.float64],
        *,
        floor: float = 0.0,
        count: int = 512,
    ) -> None:
        ends = np.array([low, high], dtype=np.float64)
        # multiples of the generalised golden ratio (Roberts 2018): even in any dimension
        ratio = 2.0
        for _ in range(50):
            ratio = (1 + ratio) ** (1 / (ends.shape[1] + 1))
        steps = ratio ** -np.arange(1, ends.shape[1] + 1)
        parts = (0.5 + np.arange(1, count + 1)[:, None] * steps) % 1
        self.points = ends[0] + parts * (ends[1] - ends[0])
        self.floor = floor

    def best(self, accuracies: Sequence[float], logs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the best accuracy at every point, of files with log costs [files, costs]."""
        found: NDArray[np.float64] = np.full(len(self.points), self.floor)
        if len(accuracies):
            under = (logs[:, None, :] <= self.points).all(-1)
            values = np.asarray(accuracies, dtype=np.float64)
            found = np.maximum(found, np.where(under, values[:, None], self.floor).max(0))
        return found

    def of(self, accuracies: Sequence[float], logs: NDArray[np.float64]) -> float:
        """Return the hypervolume, as a mean over the box."""
        return float((self.best(accuracies, logs) - self.floor).mean())

    def added(
        self,
        accuracies: NDArray[np.float64],
        logs: NDArray[np.float64],
        best: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return what each of other files would add to ``best``, by itself."""
        under = (logs[:, None, :] <= self.points).all(-1)
        rise = np.maximum(accuracies[:, None] - best, 0)
        gained: NDArray[np.float64] = np.where(under, rise, 0).mean(1)
        return gained
