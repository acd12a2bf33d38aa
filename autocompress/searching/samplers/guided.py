"""The guided sampler: plans solved on profiled tables, as parameters of an Optuna study.

Its parameters are those of every other sampler and it learns from all that a study has measured,
whoever proposed it, so that studies mix and resume across samplers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autocompress.searching.guide import Guide, Observed
from autocompress.searching.parameters import Parameters

__all__ = ["GuidedSampler"]


class GuidedSampler(BaseSampler):
    """Proposes what a guide does; without one, what another sampler does.

    ``fallback`` also stands in where a study's space is another. ``attach`` gives it the guide,
    once the profile is made.
    """

    def __init__(self, fallback: BaseSampler, seed: int = 0) -> None:
        self._fallback = fallback
        self._generator = np.random.default_rng(seed)
        self._guide: Guide | None = None
        self._parameters: Parameters | None = None
        self._observed: Callable[[], Sequence[Observed]] = tuple

    def attach(
        self, guide: Guide, parameters: Parameters, observed: Callable[[], Sequence[Observed]]
    ) -> None:
        """Follow a guide; ``observed`` returns what has been measured so far, by whomever."""
        self._guide, self._parameters, self._observed = guide, parameters, observed

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return all parameters of the space."""
        if self._parameters is None:
            return self._fallback.infer_relative_search_space(study, trial)
        return dict(self._parameters.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of the guide's plan."""
        if self._guide is None or self._parameters is None:
            return self._fallback.sample_relative(study, trial, search_space)
        plan = self._guide.propose(self._observed(), self._generator)
        return dict(self._parameters.of(plan) or {})

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a value of a parameter that the guide does not know of."""
        return self._fallback.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Start another sequence of random numbers, as workers in parallel must."""
        self._generator = np.random.default_rng()
        self._fallback.reseed_rng()

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Let the fallback know."""
        self._fallback.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Let the fallback know."""
        self._fallback.after_trial(study, trial, state, values)
