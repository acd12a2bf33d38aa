"""The driver: baselines first, then what the sampler proposes, until the trials are done."""

import math
import re

from autocompress.core.results import Results
from autocompress.engine.evaluator import Evaluator
from autocompress.engine.executors import Executor, Serial
from autocompress.engine.executors.heartbeats import work_folder
from autocompress.engine.progress import Progress, ProgressCallback
from autocompress.engine.proposers.guided.sensitivity_cache import SensitivityCache
from autocompress.engine.scheduler import Scheduler
from autocompress.engine.study import Study
from autocompress.errors import AutocompressError

__all__ = ["drive", "finish", "tidy"]


def drive(
    study: Study,
    evaluator: Evaluator,
    trials: int,
    progress: ProgressCallback,
    *,
    executor: Executor | None = None,
    until_converged: bool = False,
    cache: SensitivityCache | None = None,
) -> str:
    """Search until ``trials`` scores exist (:class:`Scheduler`); return why it ended early, or "".

    ``executor``: what evaluates the plans, by default this process, one after another;
    ``cache``: what the sampler asks.
    """
    tidy(study, evaluator)
    scheduler = Scheduler(
        study,
        evaluator,
        trials,
        progress,
        until_converged=until_converged,
        cache=cache,
    )
    with work_folder(evaluator.directory):
        (executor or Serial()).run(scheduler, evaluator)
    return scheduler.note


def tidy(study: Study, evaluator: Evaluator) -> None:
    """Remove what a killed driver left among the artifacts: drafts, and files without a score."""
    known = {score.artifact for score in study.scores} | {evaluator.reference_path.name}
    for path in (evaluator.directory / "artifacts").glob("*"):
        own = re.fullmatch(r"([0-9a-f]{16}\.\w+)(\.check\.npz)?", path.name)
        if (own and own.group(1) not in known) or re.fullmatch(
            r"\.[0-9a-f]{16}\..*\.tmp", path.name
        ):
            path.unlink(missing_ok=True)


def finish(study: Study, evaluator: "Evaluator", progress: ProgressCallback) -> str:
    """Build again what files are missing or damaged, and score the front on the test split.

    Members of the front, or the closest miss, and the baselines are scored, each once. Returns a
    note about what could not be done, or "".
    """
    results = Results(study.scores, study.objectives, study.budget, evaluator.directory)
    note = ""
    for score in results.measured:
        try:
            evaluator.restore(score)
        except AutocompressError as error:
            note = note or f"trial {score.trial}: {error}"
    if evaluator.task.test is None:
        return note
    scores = {score.trial: score for score in (*results.best, *results.uniform)}
    for done, score in enumerate(scores.values()):
        progress(Progress(done, len(scores), what="test scores"))
        if not math.isnan(score.test_accuracy):
            continue
        try:
            study.add_test(score, evaluator.test(score))
        except Exception as error:  # the user's test raises what it likes
            kind = "" if isinstance(error, AutocompressError) else f"{type(error).__name__}: "
            note = note or f"trial {score.trial} has no test score: {kind}{error}"
    progress(Progress(len(scores), len(scores), what="test scores"))
    return note
