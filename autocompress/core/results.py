"""Results: the scores of a study, and which of them make its front."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from autocompress.core.budget import Budget
from autocompress.core.pareto import closest_miss, non_dominated
from autocompress.core.score import Score

__all__ = ["Results", "by_size"]


@dataclass(frozen=True, repr=False)
class Results:
    """The scores of a study in its run directory, and what they were to reach.

    ``directory`` is the run directory, whose ``artifacts`` folder has the files. ``floor``: by
    limit of the budget, the least that is predicted over the search space.
    """

    scores: Sequence[Score]
    objectives: tuple[str, ...]
    budget: Budget
    directory: Path
    floor: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", tuple(self.scores))
        object.__setattr__(self, "objectives", tuple(self.objectives))
        object.__setattr__(self, "directory", Path(self.directory))

    @cached_property
    def measured(self) -> tuple[Score, ...]:
        """The scores of files that were measured, in order of trials."""
        return tuple(score for score in self.scores if score.outcome == "ok")

    @cached_property
    def reference(self) -> Score | None:
        """The score of the uncompressed model, None before it has one."""
        return next((score for score in self.measured if score.baseline == "uncompressed"), None)

    @cached_property
    def feasible(self) -> bool:
        """Whether a measured file meets the budget."""
        return any(score.meets(self.budget) for score in self.measured)

    @cached_property
    def miss(self) -> Score | None:
        """The measured score that exceeds the budget least, None without one."""
        return closest_miss(self.measured, self.budget)

    @cached_property
    def best(self) -> tuple[Score, ...]:
        """The front in ascending size; the closest miss alone where nothing meets the budget."""
        if self.feasible:
            within = [score for score in self.measured if score.meets(self.budget)]
            return by_size(non_dominated(within, self.objectives))
        return () if self.miss is None else (self.miss,)

    @cached_property
    def uniform(self) -> tuple[Score, ...]:
        """The measured baselines in ascending size, those on the front too."""
        return by_size([score for score in self.measured if score.baseline])

    @property
    def failures(self) -> tuple[Score, ...]:
        """The trials that failed."""
        return tuple(score for score in self.scores if score.outcome == "failed")

    @property
    def over_budget(self) -> tuple[Score, ...]:
        """The plans that were predicted to be over budget, and not built."""
        return tuple(score for score in self.scores if score.outcome == "over_budget")


def by_size(scores: Sequence[Score]) -> tuple[Score, ...]:
    """Return scores in ascending size of their files."""
    return tuple(sorted(scores, key=lambda score: (score.size_bytes, score.trial)))
