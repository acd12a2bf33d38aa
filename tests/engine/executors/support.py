"""A small search on the null target, for any executor."""

from pathlib import Path

from autocompress.core.budget import Budget
from autocompress.core.space import SearchSpace
from autocompress.engine.loop import drive
from autocompress.engine.parameters import Parameters
from autocompress.engine.proposers import make_sampler
from autocompress.engine.store import Place
from autocompress.engine.study import Study
from tests.engine.test_evaluator import make_evaluator

SPACE = SearchSpace({"0/keep": (0.5, 0.75, 1.0), "0/w_bits": (2, 4, 8), "2/w_bits": (2, 4, 8)})


def searched(
    directory: Path,
    executor,
    trials: int,
    evaluate=None,
    progress=lambda _: None,
    cache=None,
):
    """Search and return the study; the evaluator's task has ``evaluate``."""
    (directory / "artifacts").mkdir(parents=True, exist_ok=True)
    study = Study(
        Place(directory / "study.log"),
        Parameters(SPACE),
        sampler=lambda finished: make_sampler("random", finished),
        objectives=("accuracy", "size"),
        budget=Budget(),
    )
    evaluator = make_evaluator(directory, evaluate=evaluate)
    drive(study, evaluator, trials, progress, executor=executor, cache=cache)
    return study
