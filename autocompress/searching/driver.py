"""The driver: baselines first, then what the sampler proposes, until the trials are done."""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from optuna.trial import Trial

from autocompress.cost.estimate import Estimate
from autocompress.errors import AutocompressError, TaskError
from autocompress.report.front import Front
from autocompress.searching.study import Study
from autocompress.spec.budget import LIMITS
from autocompress.spec.pareto import Volume, floor_of
from autocompress.spec.plan import Plan, Recipe
from autocompress.spec.score import OBJECTIVES, Score

if TYPE_CHECKING:
    from autocompress.searching.evaluate import Evaluator

__all__ = ["Progress", "ProgressCallback", "best_so_far", "drive", "finish"]

# Proposals in a row that the study had already answered before a plan is drawn at random.
_REPEATS = 10
# Spaces up to this size are gone through to the last plan; from larger ones so many are drawn.
_SMALL = 4096
# Failures in a row that end the run, at its start and later.
_FAILURES_AT_START = 3
_FAILURES = 20
# Plans over budget in a row after which one that is not is looked for.
_MISSES = 20
# Trials in a row that must have brought next to nothing before a search has converged, and what
# share of the hypervolume is next to nothing.
_STALL = 30
_LITTLE = 0.001
# Estimates that may be spent on finding a plan within the budget.
_ESTIMATES = 300


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


def drive(
    study: Study,
    evaluator: "Evaluator",
    trials: int,
    progress: ProgressCallback,
    *,
    until_converged: bool = False,
) -> str:
    """Search until ``trials`` scores exist; return a note why it ended early, or "".

    ``until_converged``: or until so little of the hypervolume is still to gain (:func:`to_gain`).

    Completed scores count, baselines among them; failures, repeated plans and plans that are
    predicted to be over budget do not. Baselines are built whatever is predicted, so that there is
    always something to show. Raises TaskError after three failures in a row at the start, or
    twenty later.
    """
    recipe = Recipe(seed=evaluator.seed)

    def known(plan: Plan) -> Score | None:
        return study.answer(recipe.key(plan, evaluator.target.name))

    baselines = study.parameters.space.baselines()
    waiting = [  # those that failed are tried again: a front without them has nothing to beat
        (label, plan)
        for label, plan in baselines
        if (score := known(plan)) is None or score.outcome == "failed"
    ]
    done = study.completed
    own = {plan for _, plan in baselines}
    waiting[3:3] = [("", p) for p in _seeds(study) if known(p) is None and p not in own]
    failures = misses = 0
    hopeless, lowest = "", list[Plan]()
    if study.budget:
        floor, lowest = predicted_floor(study, evaluator)
        study.set_note("floor", floor)
        out = [name for name, least in floor.items() if least > getattr(study.budget, name)]
        if out and not any(score.meets(study.budget) for score in study.scores):
            hopeless = f"no plan is predicted to meet {' and '.join(out)}"
    progress(Progress(done, trials, best=best_so_far(study)))
    while done < trials:
        trial: Trial | None
        if waiting:
            (label, plan), trial = waiting.pop(0), None
        elif until_converged and to_gain(study) < _LITTLE:
            return f"the search has converged after {done} trials"
        elif hopeless:
            return f"the search ended after {done} trials: {hopeless}"
        else:
            proposal, reason = None, "no other plan is found that may meet the budget"
            if misses < _MISSES:
                proposal, reason = _propose(study, known), "every plan it finds has been scored"
            elif fitting := _within_budget(study, evaluator, known, lowest):
                proposal = study.ask(fitting)  # the sampler only finds plans over budget
            if proposal is None:
                return f"the search ended after {done} trials: {reason}"
            label, (trial, plan) = "", proposal
        estimate = evaluator.estimate(plan) if study.budget else None
        if estimate is not None and not label and _surely_over(estimate, study):
            study.add(
                evaluator.over_budget(plan, recipe, estimate, study.nearest_accuracy(plan)), trial
            )
            misses += 1
            continue
        misses = 0
        score = study.add(evaluator(plan, recipe, label, estimate), trial)
        if score.outcome == "failed":
            failures += 1
            if done == 0 and failures >= _FAILURES_AT_START:
                raise TaskError(
                    f"The first {failures} trials must not all fail. The last one: {score.message}"
                )
            if failures >= _FAILURES:
                raise TaskError(
                    f"Trials must not fail {failures} times in a row. The last: {score.message}"
                )
        else:
            failures = 0
            done += 1
        progress(Progress(done, trials, score, best_so_far(study)))
    return ""


def to_gain(study: Study) -> float:
    """Return the share of the hypervolume (accuracy × log costs) that is still to be gained.

    As much as the last thirty proposals have brought, or what the guided sampler expects of all
    plans that it can think of if that is more; NaN before there are so many. What was taken over
    from another run is no proposal.
    """
    scores = [score for score in study.scores if score.meets(study.budget)]
    others, adopted = set(_seeds(study)), study.note("adopted") or 0
    proposed = [
        place
        for place, score in enumerate(scores)
        if not score.baseline and score.trial >= adopted and score.plan not in others
    ]
    expected = getattr(study.sampler, "outlook", 0.0)
    if len(proposed) < _STALL or math.isnan(expected):
        return math.nan
    costs = np.array([score.values(study.objectives)[1:] for score in scores])
    logs = np.log(np.maximum(costs, 1e-12))
    accuracies = [score.accuracy for score in scores]
    volume = Volume(logs.min(0) - 1e-3, logs.max(0), floor=floor_of(accuracies))
    before = np.ones(len(scores), dtype=bool)
    before[proposed[-_STALL:]] = False
    now = volume.of(accuracies, logs)
    then = volume.of([a for a, kept in zip(accuracies, before, strict=True) if kept], logs[before])
    brought = 1 - then / now if now > 0 else 0.0
    return max(brought, expected)


def _seeds(study: Study) -> list[Plan]:
    """Return the plans that another run's front had, to be evaluated first."""
    return [Plan.from_json(text) for text in study.note("seeds") or ()]


def _surely_over(estimate: Estimate, study: Study) -> bool:
    """Tell whether a plan is over budget beyond doubt, and all that a sampler is told is known."""
    told = [OBJECTIVES[name].field for name in study.objectives[1:]]
    told += [field for limit, field in LIMITS.items() if getattr(study.budget, limit) is not None]
    known = not any(math.isnan(estimate.expected(name)) for name in told)
    return known and estimate.over(study.budget)


def predicted_floor(study: Study, evaluator: "Evaluator") -> tuple[dict[str, float], list[Plan]]:
    """Return the least that is predicted over the space for every figure that the budget limits.

    Less the prediction's error, by name of the limit; and the plans of which that is predicted.
    From the lowest uniform plans, one value at a time is changed as long as that lowers the figure,
    within a few hundred estimates. Where nothing is predicted of some of these plans, there is no
    floor.
    """
    space, floor, lowest = study.parameters.space, dict[str, float](), list[Plan]()
    low = {name: values[0] for name, values in space.knobs.items()}
    starts = [
        Plan({**low, **{n: v for n, v in high.settings.items() if not n.endswith("/keep")}})
        for high in (Plan(low), Plan(), *(plan for _, plan in space.baselines()))
    ]
    estimates = [(plan, evaluator.estimate(plan)) for plan in dict.fromkeys(starts)]
    for limit, field in LIMITS.items():
        if getattr(study.budget, limit) is None:
            continue
        plan, best = min(((p, e.least(field)) for p, e in estimates), key=lambda pair: pair[1])
        known = not any(math.isnan(e.least(field)) for _, e in estimates)
        if known and best > getattr(study.budget, limit):
            chosen, left = space.choices(plan), _ESTIMATES
            for name, values in space.knobs.items():
                for value in values:
                    other = space.plan({**chosen, name: value})
                    if value == chosen[name] or left <= 0:
                        continue
                    left -= 1
                    found = evaluator.estimate(other).least(field)
                    known = known and not math.isnan(found)
                    if found < best:
                        best, plan, chosen = found, other, space.choices(other)
        if known:
            floor[limit] = best
            lowest.append(plan)
    return floor, lowest


def _within_budget(
    study: Study,
    evaluator: "Evaluator",
    known: Callable[[Plan], Score | None],
    lowest: Sequence[Plan],
) -> Plan | None:
    """Return a plan without a score that is not surely over budget, None if none is found.

    Of a small space all plans are gone through; from a large one they are drawn at random, later
    ones nearer and nearer to the ``lowest`` plans.
    """
    space, generator = study.parameters.space, random.Random(len(study.scores))  # noqa: S311
    large = space.size > _SMALL
    for place, plan in enumerate(itertools.islice(_draws(study), _ESTIMATES if large else None)):
        low = space.choices(generator.choice(lowest)) if large and lowest else {}
        share = place / _ESTIMATES
        mixed = {
            name: low[name] if low and generator.random() < share else value
            for name, value in space.choices(plan).items()
        }
        found = space.plan(mixed)
        if known(found) is None and not _surely_over(evaluator.estimate(found), study):
            return found
    return None


def _propose(study: Study, known: Callable[[Plan], Score | None]) -> tuple[Trial, Plan] | None:
    """Return a trial whose plan has no score yet, None if none is found.

    The sampler is told the score of what it proposes again; a sampler that insists (GP on a plan
    that failed) is given a plan drawn at random.
    """
    for _ in range(_REPEATS):
        trial, plan = study.ask()
        score = known(plan)
        if score is None:
            return trial, plan
        study.repeat(trial, score)
    new = next((plan for plan in _draws(study) if known(plan) is None), None)
    return None if new is None else study.ask(new)


def _draws(study: Study) -> Iterator[Plan]:
    """Yield every plan of a small space in random order, many random ones of a large one."""
    space, generator = study.parameters.space, random.Random(len(study.scores))  # noqa: S311 - no secret
    choices: Iterable[Sequence[float]]
    if space.size <= _SMALL:
        choices = random_order = list(itertools.product(*space.knobs.values()))
        generator.shuffle(random_order)
    else:
        choices = ([generator.choice(v) for v in space.knobs.values()] for _ in range(_SMALL))
    for values in choices:
        yield space.plan(dict(zip(space.knobs, values, strict=True)))


def _front(study: Study, directory: Path = Path()) -> Front:
    return Front(study.scores, study.objectives, study.budget, directory)


def best_so_far(study: Study) -> str:
    """Return the smallest file so far near the uncompressed accuracy, in words.

    Near is one point of a metric that is a fraction, one percent of any other.
    """
    front = _front(study)
    good = [score for score in front.measured if score.meets(study.budget)]
    if front.reference is None or not good:
        return ""
    goal = front.reference.accuracy
    points = all(0 <= score.accuracy <= 1 for score in front.measured)
    floor = goal - (0.01 if points else 0.01 * abs(goal))
    near = [score for score in good if score.accuracy >= floor] or good
    best = min(near, key=lambda score: score.size_bytes)
    gained = round((best.accuracy - goal) * (100 if points else 1), 1) + 0.0  # no negative zero
    unit = " points" if points else ""
    words = f"{front.reference.size_bytes / best.size_bytes:.1f}× smaller, {gained:+.1f}{unit}"
    left = to_gain(study)
    return words if math.isnan(left) else f"{words}; about {left:.1%} still to gain"


def finish(study: Study, evaluator: "Evaluator", progress: ProgressCallback) -> str:
    """Build again what files are missing or damaged, and score the front on the test split.

    Members of the front, or the closest miss, and the baselines are scored, each once. Returns a
    note about what could not be done, or "".
    """
    front = _front(study, evaluator.directory)
    note = ""
    for pick in front.picks:
        try:
            evaluator.restore(pick)
        except AutocompressError as error:
            note = note or f"trial {pick.score.trial}: {error}"
    if evaluator.task.test is None:
        return note
    picks = {p.score.trial: p for p in (*front.members, *front.baselines)}
    for done, pick in enumerate(picks.values()):
        progress(Progress(done, len(picks), what="test scores"))
        if not math.isnan(pick.score.test_accuracy):
            continue
        try:
            study.add_test(pick.score, evaluator.test(pick))
        except Exception as error:  # the user's test raises what it likes
            kind = "" if isinstance(error, AutocompressError) else f"{type(error).__name__}: "
            note = note or f"trial {pick.score.trial} has no test score: {kind}{error}"
    progress(Progress(len(picks), len(picks), what="test scores"))
    return note
