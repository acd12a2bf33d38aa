"""The driver: baselines first, then what the sampler proposes, until the trials are done."""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optuna.trial import Trial

from autocompress.errors import AutocompressError, TaskError, TrialError
from autocompress.searching.study import Study
from autocompress.spec.pareto import non_dominated
from autocompress.spec.plan import Plan, Recipe
from autocompress.spec.score import Score

if TYPE_CHECKING:
    from autocompress.searching.evaluate import Evaluator

__all__ = ["Progress", "ProgressCallback", "drive", "score_tests"]

# Proposals in a row that the study had already answered before a plan is drawn at random.
_REPEATS = 10
# Spaces up to this size are gone through to the last plan; from larger ones so many are drawn.
_SMALL = 4096
# Failures in a row that end the run, at its start and later.
_FAILURES_AT_START = 3
_FAILURES = 20


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


def drive(study: Study, evaluator: "Evaluator", trials: int, progress: ProgressCallback) -> str:
    """Search until ``trials`` scores exist; return a note why it ended early, or "".

    Completed scores count, baselines among them; failures and repeated plans do not. Raises
    TaskError after three failures in a row at the start, TrialError after twenty later.
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
    failures = 0
    progress(Progress(done, trials, best=best_so_far(study)))
    while done < trials:
        trial: Trial | None
        if waiting:
            (label, plan), trial = waiting.pop(0), None
        else:
            proposal = _propose(study, known)
            if proposal is None:
                return f"the search ended after {done} trials: every plan it finds has been scored"
            label, (trial, plan) = "", proposal
        score = study.add(evaluator(plan, recipe, label), trial)
        if score.outcome == "failed":
            failures += 1
            if done == 0 and failures >= _FAILURES_AT_START:
                raise TaskError(
                    f"The first {failures} trials must not all fail. The last one: {score.message}"
                )
            if failures >= _FAILURES:
                raise TrialError(f"{failures} trials in a row failed. The last: {score.message}")
        else:
            failures = 0
            done += 1
        progress(Progress(done, trials, score, best_so_far(study)))
    return ""


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


def best_so_far(study: Study) -> str:
    """Return the smallest file so far within one point of the uncompressed accuracy, in words."""
    measured = [score for score in study.scores if score.outcome == "ok"]
    good = [score for score in measured if score.meets(study.budget)]
    reference = next((score for score in measured if score.baseline == "uncompressed"), None)
    if reference is None or not good:
        return ""
    close = [s for s in good if s.accuracy >= reference.accuracy - 0.01] or good
    best = min(close, key=lambda score: score.size_bytes)
    gained = round(100 * (best.accuracy - reference.accuracy), 1) + 0.0  # no negative zero
    return f"{reference.size_bytes / best.size_bytes:.1f}× smaller, {gained:+.1f} points"


def score_tests(study: Study, evaluator: "Evaluator", progress: ProgressCallback) -> str:
    """Score the members of the front and the baselines once on the test split.

    Their files are built again where they are missing or damaged. Returns a note about what could
    not be done, or "".
    """
    measured = [score for score in study.scores if score.outcome == "ok"]
    feasible = [score for score in measured if score.meets(study.budget)]
    wanted = {score.trial for score in non_dominated(feasible, study.objectives)}
    wanted |= {score.trial for score in measured if score.baseline}
    note = ""
    for done, number in enumerate(sorted(wanted)):
        score = study.scores[number]
        progress(Progress(done, len(wanted), what="test scores"))
        try:
            evaluator.restore(score)
            if evaluator.task.test is not None and math.isnan(score.test_accuracy):
                study.add_test(score, evaluator.test(score))
        except AutocompressError as error:
            note = note or f"trial {number} has no test score: {error}"
        except Exception as error:  # the user's test raises what it likes
            note = note or f"trial {number} has no test score: {type(error).__name__}: {error}"
    progress(Progress(len(wanted), len(wanted), what="test scores"))
    return note
