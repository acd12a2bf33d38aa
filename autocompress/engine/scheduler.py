"""The scheduler: which plan to evaluate next, and what its score means for the search.

It proposes and records, and evaluates nothing itself: executors do that, in this process or in many
others, in any order.
"""

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from optuna.trial import Trial

from autocompress.core.budget import LIMITS
from autocompress.core.plan import Plan, Recipe
from autocompress.core.score import OBJECTIVES, Score
from autocompress.cost.estimate import Estimate
from autocompress.engine.lower_bound import predicted_floor
from autocompress.engine.progress import (
    Progress,
    ProgressCallback,
    best_so_far,
    seeds_of,
    to_gain,
)
from autocompress.engine.proposers.guided.sensitivity_cache import Effect, SensitivityCache
from autocompress.engine.study import Study
from autocompress.errors import TaskError

if TYPE_CHECKING:
    from autocompress.engine.evaluator import Evaluator

__all__ = ["Job", "Scheduler", "due"]

# Proposals in a row that the study had already answered before a plan is drawn at random.
_REPEATS = 10
# Spaces up to this size are gone through to the last plan; from larger ones so many are drawn.
_SMALL = 4096
# Failures in a row that end the run, at its start and later.
_FAILURES_AT_START = 3
_FAILURES = 20
# Plans over budget in a row after which one that is not is looked for.
_MISSES = 20
# The share of the hypervolume that is next to nothing.
_LITTLE = 0.001
# Estimates that may be spent on finding a plan within the budget.
_ESTIMATES = 300


@dataclass(eq=False)
class Job:
    """A plan to evaluate, and what is known of it before.

    ``baseline``: what every study scores it as, "" for other plans; ``trial``: what the sampler
    knows it by; ``question``: only its effect on the outputs is asked for; ``tries``: workers that
    were lost while they evaluated it.
    """

    plan: Plan
    recipe: Recipe
    baseline: str = ""
    estimate: Estimate | None = None
    trial: Trial | None = None
    question: bool = False
    tries: int = 0

    @property
    def arguments(self) -> tuple[Plan, Recipe, str, Estimate | None]:
        """Return what an evaluator wants."""
        return self.plan, self.recipe, self.baseline, self.estimate

    @property
    def sent(self) -> "Job":
        """Return what another process is told of it."""
        return replace(self, trial=None)


def due(study: Study, recipe: Recipe, target: str) -> list[tuple[str, Plan]]:
    """Return the baselines, with their labels, that must be scored before a search is done.

    Those that failed before, and those of the space that another run, whose scores were taken over,
    did not have.
    """
    found = []
    for label, plan in study.parameters.space.baselines():
        score = study.answer(recipe.key(plan, target))
        if (score is None and study.note("adopted")) or (score and score.outcome == "failed"):
            found.append((label, plan))
    return found


class Scheduler:
    """Gives out jobs until ``trials`` scores exist, and records their scores.

    Completed scores count, baselines among them; failures, repeated plans and plans that are
    predicted to be over budget do not. Baselines are built whatever is predicted, so that there is
    always something to show. ``until_converged``: or until so little of the hypervolume is still to
    gain (:func:`to_gain`). ``cache``: what it wants to know is asked before the sampler is.
    ``note``: why it ended early, or ""; ``rungs``: those of the recipes that it may give out.
    """

    rungs = (0,)

    def __init__(
        self,
        study: Study,
        evaluator: "Evaluator",
        trials: int,
        progress: ProgressCallback,
        *,
        until_converged: bool = False,
        cache: SensitivityCache | None = None,
    ) -> None:
        self.study, self.trials, self.note = study, trials, ""
        self._evaluator, self._progress, self._until = evaluator, progress, until_converged
        self._recipe = Recipe(seed=evaluator.seed)
        self._ended, self._dry = False, -1
        self._lost: list[Job] = []  # to be given out once more
        self._cache = cache
        self._questions = [p for p in cache.wanted if p not in cache.known] if cache else []
        self._asked: list[Plan] = []  # questions that are out
        baselines = study.parameters.space.baselines()
        target = evaluator.target.name
        # first those without which a front has nothing to beat, however many trials there are
        self._due = due(study, self._recipe, target)
        self._waiting = [*self._due]
        self._waiting += [
            pair for pair in baselines if self._known(pair[1]) is None and pair not in self._due
        ]
        own = {plan for _, plan in baselines}
        others = [p for p in seeds_of(study) if self._known(p) is None and p not in own]
        self._waiting[3:3] = [("", plan) for plan in others]
        self._failures = self._misses = 0
        self._hopeless, self._lowest = "", list[Plan]()
        if study.budget and not self.finished:
            floor, self._lowest = predicted_floor(study, evaluator)
            study.set_note("floor", floor)
            out = [name for name, least in floor.items() if least > getattr(study.budget, name)]
            if out and not any(score.meets(study.budget) for score in study.scores):
                self._hopeless = f"no plan is predicted to meet {' and '.join(out)}"
        progress(Progress(study.completed, trials, best=best_so_far(study)))

    def _known(self, plan: Plan) -> Score | None:
        return self.study.answer(self._recipe.key(plan, self._evaluator.target.name))

    @property
    def finished(self) -> bool:
        """Tell whether there is nothing more to give out, and nothing out that may come back."""
        done = self.study.completed >= self.trials and not self._pressing
        return (self._ended or done) and not self._out

    @property
    def _out(self) -> int:
        """Return how many jobs are out."""
        return len(self.study.running) + len(self._asked)

    @property
    def _pressing(self) -> bool:
        """Tell whether the next job is due, or was given out before and its worker lost."""
        return bool(self._lost or (self._waiting and self._waiting[0] in self._due))

    def stop(self) -> None:
        """Give out no more jobs; scores of those that are out are still taken."""
        self._ended = True

    def interrupted(self) -> None:
        """Stop, and tell the user how to leave at once."""
        self.stop()
        count = self._out
        trials = "the running trial" if count == 1 else f"{count} running trials"
        self._progress(Progress(0, 1, note=f"finishing {trials}; Ctrl-C once more leaves at once"))

    def next(self) -> Job | None:
        """Return a job, None where there is none before another score comes, or at all."""
        study = self.study
        while not self._ended and (
            self._pressing or study.completed + len(study.running) < self.trials
        ):
            if self._lost:
                return self._give(self._lost.pop(0))
            if study.running and self._dry == len(study.scores):
                return None  # nothing was found, and nothing is new
            job = self._choose()
            if isinstance(job, str):
                if not self._out:
                    self.note, self._ended = job, True
                self._dry = len(study.scores)
                return None
            if job is None or job.question:
                return job and self._give(job)
            job.estimate = self._evaluator.estimate(job.plan) if study.budget else None
            if job.estimate is None or job.baseline or not _surely_over(job.estimate, study):
                self._misses = 0
                return self._give(job)
            guess = study.nearest_accuracy(job.plan)
            over = self._evaluator.over_budget(job.plan, self._recipe, job.estimate, guess)
            study.add(over, job.trial)
            self._misses += 1
        return None

    def _give(self, job: Job) -> Job:
        (self._asked if job.question else self.study.running).append(job.plan)
        return job

    def _take(self, job: Job) -> None:
        (self._asked if job.question else self.study.running).remove(job.plan)

    def _choose(self) -> Job | str | None:
        """Return what to evaluate next or why there is nothing, None for a while of waiting."""
        study, done = self.study, self.study.completed
        if self._waiting:
            label, plan = self._waiting.pop(0)
            return Job(plan, self._recipe, label)
        if self._until and to_gain(study) < _LITTLE:
            return f"the search has converged after {done} trials"
        if self._hopeless:
            return f"the search ended after {done} trials: {self._hopeless}"
        if self._questions:
            return Job(self._questions.pop(0), self._recipe, question=True)
        if self._asked:
            return None
        proposal, reason = None, "no other plan is found that may meet the budget"
        if self._misses < _MISSES:
            proposal, reason = self._propose(), "every plan it finds has been scored"
        elif (fitting := self._within_budget()) is not None:
            proposal = study.ask(fitting)  # the sampler only finds plans over budget
        if proposal is None:
            return f"the search ended after {done} trials: {reason}"
        trial, plan = proposal
        return Job(plan, self._recipe, trial=trial)

    def done(self, job: Job, found: Score | Effect) -> None:
        """Record what was found of a job.

        Raises TaskError after three failures in a row at the start, or twenty later.
        """
        self._take(job)
        if isinstance(found, Effect):
            self._learn(job.plan, found)
            return
        score = self.study.add(found, job.trial)
        done = self.study.completed
        if score.outcome == "failed":
            self._failures += 1
            if done == 0 and self._failures >= _FAILURES_AT_START:
                raise TaskError(
                    f"The first {self._failures} trials must not all fail. The last one: "
                    f"{score.message}"
                )
            if self._failures >= _FAILURES:
                raise TaskError(
                    f"Trials must not fail {_FAILURES} times in a row. The last: {score.message}"
                )
        else:
            self._failures = 0
        self._progress(Progress(done, self.trials, score, best_so_far(self.study)))

    def _learn(self, plan: Plan, found: Effect) -> None:
        """Tell the cache an answer; after one that cannot be had no more is asked."""
        cache = self._cache
        assert cache is not None
        if found.trouble:
            cache.trouble = cache.trouble or found.trouble
            self._questions.clear()
            return
        cache.learn(plan, found.loss, found.seconds)
        every = len(cache.wanted)
        done = every - len(self._questions) - len(self._asked)
        self._progress(Progress(done, every, what="effects profiled"))

    def lost(self, job: Job, message: str) -> None:
        """Take note that the worker of a job was lost: it is given out once more, then a failure.

        Raises TaskError as ``done`` does.
        """
        job.tries += 1
        if job.tries > 1:
            self.failed(job, f"{message}, twice")
            return
        self._take(job)
        self._lost.append(job)

    def failed(self, job: Job, message: str) -> None:
        """Record that a job failed, with a sentence; raise TaskError as ``done`` does."""
        if job.question:
            self.done(job, Effect(trouble=message))
        else:
            failed = self._evaluator.failed(job.plan, job.recipe, job.baseline, message)
            self.done(job, failed)

    def _propose(self) -> tuple[Trial, Plan] | None:
        """Return a trial whose plan has no score yet, None if none is found.

        The sampler is told the score of what it proposes again; a sampler that insists (GP on a
        plan that failed) is given a plan drawn at random.
        """
        for _ in range(_REPEATS):
            trial, plan = self.study.ask()
            score = self._known(plan)
            if score is None and plan not in self.study.running:
                return trial, plan
            self.study.repeat(trial, score)
        new = next((plan for plan in self._draws() if self._is_new(plan)), None)
        return None if new is None else self.study.ask(new)

    def _is_new(self, plan: Plan) -> bool:
        return self._known(plan) is None and plan not in self.study.running

    def _within_budget(self) -> Plan | None:
        """Return a plan without a score that is not surely over budget, None if none is found.

        Of a small space all plans are gone through; from a large one they are drawn at random,
        later ones nearer and nearer to the plans of the lowest figures.
        """
        study, lowest = self.study, self._lowest
        space, generator = study.parameters.space, self._generator()
        large = space.size > _SMALL
        for place, plan in enumerate(
            itertools.islice(self._draws(), _ESTIMATES if large else None)
        ):
            low = space.choices(generator.choice(lowest)) if large and lowest else {}
            share = place / _ESTIMATES
            mixed = {
                name: low[name] if low and generator.random() < share else value
                for name, value in space.choices(plan).items()
            }
            found = space.plan(mixed)
            if self._is_new(found) and not _surely_over(self._evaluator.estimate(found), study):
                return found
        return None

    def _generator(self) -> random.Random:
        return random.Random(len(self.study.scores))  # noqa: S311 - no secret

    def _draws(self) -> Iterator[Plan]:
        """Yield every plan of a small space in random order, many random ones of a large one."""
        space = self.study.parameters.space
        generator = self._generator()
        choices: Iterable[Sequence[float]]
        if space.size <= _SMALL:
            choices = random_order = list(itertools.product(*space.knobs.values()))
            generator.shuffle(random_order)
        else:
            choices = ([generator.choice(v) for v in space.knobs.values()] for _ in range(_SMALL))
        for values in choices:
            yield space.plan(dict(zip(space.knobs, values, strict=True)))


def _surely_over(estimate: Estimate, study: Study) -> bool:
    """Tell whether a plan is over budget beyond doubt, and all that a sampler is told is known."""
    told = [OBJECTIVES[name].field for name in study.objectives[1:]]
    told += [field for limit, field in LIMITS.items() if getattr(study.budget, limit) is not None]
    known = not any(math.isnan(estimate.expected(name)) for name in told)
    return known and estimate.over(study.budget)
