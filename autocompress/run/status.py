"""Looking at a run from outside, while a driver works on it or after."""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from autocompress.core.budget import Budget
from autocompress.core.score import Score
from autocompress.engine.executors.heartbeats import marked
from autocompress.engine.progress import best_of, share_of_volume
from autocompress.engine.store import Place, finished
from autocompress.engine.study import scores_of
from autocompress.engine.system import lost
from autocompress.report.status import Running, Status, Step
from autocompress.run.locks import is_driven

__all__ = ["look"]

_LATELY = 30  # trials whose gaps tell the speed
_PAUSE = 10.0  # gaps so many times the median are pauses
_STEPS = 10


def look(
    directory: Path, place: Place, wanted: int, objectives: tuple[str, ...], budget: Budget
) -> Status:
    """Return where a run stands; raise RunError.

    ``wanted``: trials that it is to complete, where its last driver did not say another number.
    """
    now = time.time()
    with contextlib.closing(place):
        study = place.open()
        wanted = wanted if study is None else study.user_attrs.get("wanted", wanted)
        trials = [] if study is None else finished(study)
        scores = scores_of(trials, {}, place)
    ends = {
        trial.user_attrs["score"]["trial"]: trial.datetime_complete.timestamp()
        for trial in trials
        if trial.datetime_complete is not None
    }
    done = [score for score in scores if score.outcome == "ok" and score.trial in ends]
    times = [ends[score.trial] for score in done]
    gaps = _gaps(times)
    lately = [gap for gap in gaps[-_LATELY:] if gap > 0]
    workers = [
        Running(f"process {w.pid} on {w.host}", w.what, now - w.since if w.what else 0.0)
        for w in marked(directory)
    ]
    return Status(
        directory=directory,
        driver=is_driven(directory),
        wanted=wanted,
        outcomes=dict(Counter(score.outcome for score in scores)),
        baselines=sum(bool(score.baseline) for score in done),
        workers=tuple(workers),
        an_hour=3600 * len(lately) / sum(lately) if lately else math.nan,
        silent=now - max(ends.values()) if ends else math.nan,
        best=best_of(scores, objectives, budget),
        steps=_steps(done, (np.cumsum([0.0, *gaps]) / 3600).tolist(), objectives, budget),
        lost=lost(),
    )


def _gaps(times: Sequence[float]) -> list[float]:
    """Return the seconds between one trial's end and the next's, none for pauses."""
    gaps = [max(after - before, 0.0) for before, after in pairwise(times)]
    usual = median(gaps) if gaps else 0.0
    return [gap if gap <= _PAUSE * usual + 60 else 0.0 for gap in gaps]


def _steps(
    done: Sequence[Score], hours: Sequence[float], objectives: tuple[str, ...], budget: Budget
) -> tuple[Step, ...]:
    """Return the hypervolume after about ten equal parts of the trials."""
    within = [place for place, score in enumerate(done) if score.meets(budget)]
    if len(within) < 2:
        return ()
    share = share_of_volume([done[place] for place in within], objectives)
    counts = sorted({round(len(done) * part / _STEPS) for part in range(1, _STEPS + 1)} - {0})
    return tuple(Step(count, hours[count - 1], share(np.array(within) < count)) for count in counts)
