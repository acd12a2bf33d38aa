"""The study: every score, in memory for the sampler and, once finished, in its store."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from autocompress.core.budget import Budget
from autocompress.core.plan import Plan
from autocompress.core.score import OBJECTIVES, Score
from autocompress.engine.parameters import Parameters
from autocompress.engine.store import Place, Store, finished
from autocompress.errors import PlanError, RunError

__all__ = ["Study", "read_study", "scores_of"]

_TEST = "test:"
_GENERATION = "NSGAIISampler:generation"


def scores_of(trials: Sequence[FrozenTrial], notes: Mapping[str, Any], place: Place) -> list[Score]:
    """Return the scores of a place's finished trials; raise RunError for other programs' trials."""
    try:
        scores = [Score.from_json(trial.user_attrs["score"]) for trial in trials]
    except (KeyError, TypeError, PlanError) as error:
        raise place.damaged(error) from error
    return [_with_test(score, notes.get(_TEST + score.key)) for score in scores]


def _with_test(score: Score, figures: Any) -> Score:
    if figures is None:
        return score
    mean, low, high = figures
    return replace(score, test_accuracy=mean, test_low=low, test_high=high)


def read_study(place: Place) -> tuple[list[Score], dict[str, Any]]:
    """Return the scores and notes at a place, also while another process writes there.

    Raises RunError for what autocompress did not write.
    """
    with contextlib.closing(place):
        study = place.open()
        if study is None:
            return [], {}
        notes = study.user_attrs
        return scores_of(finished(study), notes, place), notes


class Study:
    """Scores by plan, and the sampler that learns from them.

    The working study lives in memory; each finished trial is appended to the store at ``place``,
    so that nothing unfinished is ever there. ``sampler`` is given the number of finished trials, to
    seed it so that a resumed search does not repeat its proposals. ``confirm``, ``tell``: as a
    Store's.
    """

    def __init__(
        self,
        place: Place,
        parameters: Parameters,
        *,
        sampler: Callable[[int], optuna.samplers.BaseSampler],
        objectives: tuple[str, ...],
        budget: Budget,
        confirm: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.parameters = parameters
        self.objectives = objectives
        self.budget = budget
        up, down = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
        directions = [up if OBJECTIVES[name].maximize else down for name in objectives]
        self._store = Store(place, directions, confirm=confirm, tell=tell)
        trials = self._store.trials
        self.scores = scores_of(trials, self._store.notes, place)
        self.sampler = sampler(len(self.scores))
        self._memory = optuna.create_study(directions=directions, sampler=self.sampler)
        self._memory.add_trials(
            trial for trial in trials if trial.state == TrialState.COMPLETE and self._informs(trial)
        )
        self._by_key = {score.key: score for score in self.scores}
        self.running: list[Plan] = []  # those that are being evaluated

    def _informs(self, trial: FrozenTrial) -> bool:
        """Tell whether a trial has the space's parameters: samplers want all or none."""
        return bool(trial.params) or not self.parameters.distributions

    def answer(self, key: str) -> Score | None:
        """Return the score of an artifact's key if there is one."""
        return self._by_key.get(key)

    @property
    def completed(self) -> int:
        """Return the number of completed scores, baselines included."""
        return sum(score.outcome == "ok" for score in self.scores)

    def nearest_accuracy(self, plan: Plan) -> float:
        """Return the mean accuracy of the five completed plans that are most like a plan."""
        space = self.parameters.space
        span = {name: max(values[-1] - values[0], 1e-9) for name, values in space.knobs.items()}
        wanted = space.choices(plan)
        near = []
        for score in self.scores:
            if score.outcome == "ok":
                found = space.choices(score.plan)
                away = sum(abs(found[n] - wanted[n]) / span[n] for n in wanted)
                near.append((away, score.accuracy))
        closest = [accuracy for _, accuracy in sorted(near)[:5]]
        return sum(closest) / max(len(closest), 1)

    def ask(self, plan: Plan | None = None) -> tuple[Trial, Plan]:
        """Return a running trial, in memory alone, and its plan: the sampler's or the one given."""
        if plan is not None:
            self._memory.enqueue_trial(self.parameters.of(plan) or {})
        trial = self._memory.ask()
        return trial, self.parameters.suggest(trial)

    def repeat(self, trial: Trial, score: Score | None) -> FrozenTrial:
        """Tell the sampler the score of a plan that it proposed, None where there is none yet."""
        if score is None or score.outcome == "failed":
            return self._memory.tell(trial, state=TrialState.FAIL)
        for name, value in score.constraints(self.budget).items():
            trial.set_constraint(name, value)
        return self._memory.tell(trial, score.values(self.objectives))

    def add(self, score: Score, trial: Trial | None = None) -> Score:
        """Record a finished trial on disk, tell the sampler, and return it with its number."""
        score = replace(score, trial=len(self.scores))
        told = {} if trial is None else self.repeat(trial, score).system_attrs
        # NSGA-II breeds from what has a generation: what it did not propose is of the first
        attrs = {_GENERATION: told.get(_GENERATION, 0)}
        frozen = self._frozen(score, attrs)
        self._store.add(frozen)
        self.scores.append(score)
        self._by_key[score.key] = score
        if trial is None and score.outcome != "failed" and self._informs(frozen):
            self._memory.add_trial(frozen)
        return score

    def add_test(self, score: Score, figures: Sequence[float]) -> None:
        """Record (mean, low, high) of the test split for a score."""
        self._store.set_note(_TEST + score.key, [float(figure) for figure in figures])
        self.scores[score.trial] = _with_test(score, figures)

    def note(self, name: str) -> Any:
        """Return a note that was kept with the study, None if there is none."""
        return self._store.notes.get(name)

    def set_note(self, name: str, value: Any) -> None:
        """Keep plain data with the study under a name; nothing is written if it is there."""
        if self.note(name) != value:
            self._store.set_note(name, value)

    def check_fingerprints(self, found: Mapping[str, str]) -> None:
        """Record what the study is about, or raise RunError naming what has changed since."""
        stored = self.note("fingerprints")
        if stored is None:
            self.set_note("fingerprints", dict(found))
            return
        changed = [name for name in found if stored.get(name) != found[name]]
        if changed:
            raise RunError(
                "A study can only go on with what it began with; changed since then: "
                f"{', '.join(changed)}. Use another run directory for the new search."
            )

    def _frozen(self, score: Score, attrs: Mapping[str, Any]) -> FrozenTrial:
        params = self.parameters.of(score.plan) or {}
        failed = score.outcome == "failed"
        return create_trial(
            state=TrialState.FAIL if failed else TrialState.COMPLETE,
            values=None if failed else score.values(self.objectives),
            params=params,
            distributions={name: self.parameters.distributions[name] for name in params},
            user_attrs={"score": score.to_json()},
            system_attrs=dict(attrs),
            constraints=None if failed else score.constraints(self.budget),
        )
