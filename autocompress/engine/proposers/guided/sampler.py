"""The guided sampler: plans solved on profiled tables, as parameters of an Optuna study.

Its parameters are those of every other sampler and it learns from all that a study has measured,
whoever proposed it, so that studies mix and resume across samplers.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from autocompress.engine.proposers.guided.guide import Guide, Observed

if TYPE_CHECKING:
    from autocompress.engine.study import Study

__all__ = ["GuidedSampler"]


class GuidedSampler(BaseSampler):
    """Proposes what a guide does; without one, what another sampler does, the ``fallback``.

    ``attach`` tells it how to make the guide, which it does when it is first asked for a plan.
    ``guide``: the guide, once there is one; ``reason``: why there is none, "" if there is one or
    none was asked for yet.
    """

    def __init__(self, fallback: BaseSampler, seed: int = 0) -> None:
        self.reason = ""
        self._fallback = fallback
        self._generator = np.random.default_rng(seed)
        self._make: Callable[[], Guide | str] | None = None
        self.guide: Guide | None = None
        self._study: Study | None = None
        self._fields: Sequence[str] = ()

    def attach(
        self, make: Callable[[], Guide | str], study: "Study", fields: Sequence[str]
    ) -> None:
        """Follow the guide that ``make`` returns, in place of which it may say why there is none.

        ``study`` tells what has been measured so far, by whomever, and what is being evaluated;
        ``fields`` are the names of the figures that are the guide's costs.
        """
        self._make, self._study, self._fields = make, study, fields

    @property
    def outlook(self) -> float:
        """The share of the hypervolume that is still to be gained, by the guide.

        NaN before its first proposal, 0 where there is no guide.
        """
        if self.guide is None:
            return 0.0 if self._make is None else math.nan
        return self.guide.outlook

    def _ready(self) -> bool:
        """Make the guide where that has not been tried yet; return whether there is one."""
        if self._make is not None:
            made, self._make = self._make(), None
            if isinstance(made, str):
                self.reason = f"not guided, tpe proposed: {made}"
            else:
                self.guide = made
        return self.guide is not None

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return all parameters of the space, or what the fallback has."""
        if not self._ready():
            return self._fallback.infer_relative_search_space(study, trial)
        assert self._study is not None
        return dict(self._study.parameters.distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of the guide's plan."""
        if self.guide is None or self._study is None:
            return self._fallback.sample_relative(study, trial, search_space)
        scores, running = self._study.scores, self._study.running
        observed = [
            Observed(s.plan, s.accuracy, tuple(map(s.figure, self._fields)), s.effect)
            for s in scores
            if s.outcome == "ok"
        ]
        tried = [score.plan for score in scores]
        plan = self.guide.propose(observed, self._generator, tried, running)
        return dict(self._study.parameters.of(plan) or {})

    def sample_independent(
        self,
        study: optuna.Study,
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

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Let the fallback know."""
        self._fallback.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Let the fallback know."""
        self._fallback.after_trial(study, trial, state, values)
