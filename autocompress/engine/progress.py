"""Where a search stands: how far it is, what is best so far, and how much is still to gain."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autocompress.core.budget import Budget
from autocompress.core.pareto import Volume, floor_of
from autocompress.core.plan import Plan
from autocompress.core.results import Results
from autocompress.core.score import Score
from autocompress.engine.study import Study

__all__ = [
    "Progress",
    "ProgressCallback",
    "best_of",
    "best_so_far",
    "seeds_of",
    "share_of_volume",
    "to_gain",
]

# Trials in a row that must have brought next to nothing before a search has converged.
_STALL = 30


@dataclass(frozen=True)
class Progress:
    """Where a search stands: how many are done of a total, the last score, the best in words.

    ``what`` is being counted: trials, or test scores at the end. A ``note`` stands alone: it says
    what comes next.
    """

    done: int
    total: int
    score: Score | None = None
    best: str = ""
    note: str = ""
    what: str = "trials"


ProgressCallback = Callable[[Progress], None]


def to_gain(study: Study) -> float:
    """Return the share of the hypervolume (accuracy × log costs) that is still to be gained.

    As much as the last thirty proposals have brought, or what the guided sampler expects of all
    plans that it can think of if that is more; NaN before there are so many. What was taken over
    from another run is no proposal.
    """
    scores = [score for score in study.scores if score.meets(study.budget)]
    others, adopted = set(seeds_of(study)), study.note("adopted") or 0
    proposed = [
        place
        for place, score in enumerate(scores)
        if not score.baseline and score.trial >= adopted and score.plan not in others
    ]
    expected = getattr(study.sampler, "outlook", 0.0)
    if len(proposed) < _STALL or math.isnan(expected):
        return math.nan
    before = np.ones(len(scores), dtype=bool)
    before[proposed[-_STALL:]] = False
    return max(1 - share_of_volume(scores, study.objectives)(before), expected)


def share_of_volume(
    scores: Sequence[Score], objectives: tuple[str, ...]
) -> Callable[[NDArray[np.bool_]], float]:
    """Return what share of the hypervolume of scores some of them have; of nothing, all."""
    logs = np.log(np.maximum([score.values(objectives)[1:] for score in scores], 1e-12))
    accuracies = np.array([score.accuracy for score in scores])
    floor = floor_of(accuracies.tolist())
    volume = Volume(logs.min(0) - 1e-3, logs.max(0), floor=floor)
    whole = volume.of(accuracies.tolist(), logs)

    def share(some: NDArray[np.bool_]) -> float:
        return volume.of(accuracies[some].tolist(), logs[some]) / whole if whole > 0 else 1.0

    return share


def seeds_of(study: Study) -> list[Plan]:
    """Return the plans that another run's front had, to be evaluated first."""
    return [Plan.from_json(text) for text in study.note("seeds") or ()]


def best_so_far(study: Study) -> str:
    """Return the smallest file so far near the uncompressed accuracy, and what is still to gain."""
    words, left = best_of(study.scores, study.objectives, study.budget), to_gain(study)
    return words if math.isnan(left) or not words else f"{words}; about {left:.1%} still to gain"


def best_of(scores: Sequence[Score], objectives: tuple[str, ...], budget: Budget) -> str:
    """Return the smallest file near the uncompressed accuracy, in words.

    Near is one point of a metric that is a fraction, one percent of any other.
    """
    front = Results(scores, objectives, budget, Path())
    good = [score for score in front.measured if score.meets(budget)]
    if front.reference is None or not good:
        return ""
    goal = front.reference.accuracy
    points = all(0 <= score.accuracy <= 1 for score in front.measured)
    floor = goal - (0.01 if points else 0.01 * abs(goal))
    near = [score for score in good if score.accuracy >= floor] or good
    best = min(near, key=lambda score: score.size_bytes)
    gained = round((best.accuracy - goal) * (100 if points else 1), 1) + 0.0  # no negative zero
    unit = " points" if points else ""
    return f"{front.reference.size_bytes / best.size_bytes:.1f}× smaller, {gained:+.1f}{unit}"
