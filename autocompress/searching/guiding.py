"""Guiding: what the guided sampler needs, made for a search that uses it."""

import math
from collections.abc import Callable

from autocompress.errors import AutocompressError, RunError
from autocompress.searching.evaluate import Evaluator
from autocompress.searching.guide import Guide, Observed, groups_of, profile
from autocompress.searching.oracle import Oracle
from autocompress.searching.samplers import GuidedSampler
from autocompress.searching.study import Study
from autocompress.searching.tables import cost_tables
from autocompress.spec.budget import LIMITS
from autocompress.spec.score import OBJECTIVES
from autocompress.transforms.effect import Effects

__all__ = ["set_guide"]


def set_guide(study: Study, evaluator: Evaluator, progress: Callable[[int, int], None]) -> str:
    """Give a study's sampler its guide, if it is the guided one; return why it has none, or "".

    The profile is kept in ``profile/`` of the run directory, an answer a line, so that one that was
    interrupted goes on. ``progress`` is told how many of how many effects are known.
    """
    if not isinstance(study.sampler, GuidedSampler):
        return ""
    space = study.parameters.space
    oracle = Oracle(
        Effects(evaluator.compressor), evaluator.directory / "profile" / "effects.jsonl"
    )
    try:
        effects = profile(space, oracle, progress)
    except RunError:  # nothing can be written
        raise
    except AutocompressError as error:
        return f"the profile cannot be made ({error})"
    if not any(0 < value < math.inf for values in effects.values() for value in values):
        return "no value of the space moves the outputs on the calibration inputs"
    latency = "latency_ms" if evaluator.device is None else "device_latency_ms"
    limits = {
        field: float(getattr(study.budget, name))
        for name, field in LIMITS.items()
        if getattr(study.budget, name) is not None
    }
    if "latency_limit_ms" in limits:
        limits["latency_figure_ms"] = limits.pop("latency_limit_ms")
    improved = [OBJECTIVES[name].field for name in study.objectives[1:]]
    fields = list(dict.fromkeys([*improved, *limits]))
    figures = [latency if field == "latency_figure_ms" else field for field in fields]
    tables = cost_tables(space, evaluator.estimator, figures)
    missing = [figure for figure in figures if figure not in tables]
    if missing:
        return f"nothing predicts {' and '.join(missing)}"
    guide = Guide(
        space, oracle, effects, groups_of(evaluator.network, space),
        [tables[figure] for figure in figures],
        lambda plan: tuple(evaluator.estimate(plan).expected(field) for field in fields),
        objectives=len(improved), limits=[limits.get(field, math.inf) for field in fields],
    )  # fmt: skip

    def observed() -> list[Observed]:
        return [
            Observed(score.plan, score.accuracy, tuple(score.figure(field) for field in fields))
            for score in study.scores
            if score.outcome == "ok"
        ]

    study.sampler.attach(guide, study.parameters, observed)
    return ""
