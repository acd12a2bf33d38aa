"""Preparing a search: the latency model of this machine, and the guide of its sampler."""

import contextlib
import math
from collections.abc import Mapping

import numpy as np

from autocompress.core.budget import LIMITS
from autocompress.core.score import OBJECTIVES
from autocompress.core.space import SearchSpace
from autocompress.cost.fit_latency import Calibration, calibration_path, load_calibration
from autocompress.cost.fit_latency import calibrate as measure_calibration
from autocompress.cost.latency_terms import terms
from autocompress.cost.workload import workload
from autocompress.engine.evaluator import Evaluator
from autocompress.engine.progress import Progress, ProgressCallback
from autocompress.engine.proposers import GuidedSampler
from autocompress.engine.proposers.guided.cost_tables import cost_tables
from autocompress.engine.proposers.guided.guide import Guide
from autocompress.engine.proposers.guided.sensitivity import (
    companions_of,
    groups_of,
    profile,
    questions,
)
from autocompress.engine.proposers.guided.sensitivity_cache import SensitivityCache
from autocompress.engine.study import Study
from autocompress.errors import AutocompressError
from autocompress.models.network import Network
from autocompress.targets import Target
from autocompress.transforms.dry_run import dry_run

__all__ = ["set_guide", "set_latency_model", "tell_cost"]


def set_guide(
    study: Study, evaluator: Evaluator, progress: ProgressCallback
) -> SensitivityCache | None:
    """Give a study's sampler the means to make its guide, if it is the guided one.

    Returns the cache that the guide asks. The profile, which it wants first, is kept in
    ``profile/`` of the run directory, an answer a line, so that one that was interrupted goes on.
    Without a profile, or costs that are predicted, there is no guide and another sampler proposes;
    progress says why, and the sampler's ``reason``.
    """
    sampler, space = study.sampler, study.parameters.space
    if not isinstance(sampler, GuidedSampler):
        return None
    companions = companions_of(evaluator.network, space)
    cache = SensitivityCache(
        lambda plan: evaluator.effects(plan),
        evaluator.directory / "profile" / "effects.jsonl",
        questions(space, companions),
    )
    limits = {
        field: float(getattr(study.budget, name))
        for name, field in LIMITS.items()
        if getattr(study.budget, name) is not None
    }
    if "latency_limit_ms" in limits:
        limits["latency_figure_ms"] = limits.pop("latency_limit_ms")
    improved = [OBJECTIVES[name].field for name in study.objectives[1:]]
    fields = list(dict.fromkeys([*improved, *limits]))

    def make() -> Guide | str:
        found = _guide(study, evaluator, cache, companions, fields, limits)
        if isinstance(found, str):
            progress(Progress(0, 1, note=f"not guided, tpe proposes: {found}"))
        else:
            progress(Progress(0, 1, note=_cost(study, found)))
        return found

    sampler.attach(make, study, fields)
    return cache


def tell_cost(study: Study, progress: ProgressCallback) -> None:
    """Tell progress what a guided search spent beside its trials."""
    if isinstance(study.sampler, GuidedSampler) and study.sampler.guide is not None:
        progress(Progress(0, 1, note=_cost(study, study.sampler.guide)))


def _cost(study: Study, guide: Guide) -> str:
    """Return what the cache's answers took, in evaluations of the study too."""
    cache = guide.cache
    each = [sum(score.seconds.values()) for score in study.scores if score.outcome == "ok"]
    equal = f", as long as {cache.seconds / np.median(each):.1f} evaluations" if each else ""
    known = f"{len(cache.known)} plans tried on the calibration inputs alone so far"
    return f"{known}, in {cache.seconds:.1f} s{equal}"


def _guide(
    study: Study,
    evaluator: Evaluator,
    cache: SensitivityCache,
    companions: Mapping[str, tuple[str, ...]],
    fields: list[str],
    limits: dict[str, float],
) -> Guide | str:
    """Return a study's guide, or why there is none."""
    if cache.trouble:
        return f"the profile cannot be made ({cache.trouble})"
    space, network = study.parameters.space, evaluator.network
    known = profile(space, cache, companions)
    effects = [effect for values in known.effects.values() for effect in values if effect > 0]
    if effects and not any(effect < math.inf for effect in effects):
        return "the outputs on the calibration inputs contain NaN or infinity"
    if not effects:
        return "no value of the space moves the outputs on the calibration inputs"
    latency = "latency_ms" if evaluator.device is None else "device_latency_ms"
    figures = [latency if field == "latency_figure_ms" else field for field in fields]
    tables = cost_tables(space, evaluator.estimator, figures)
    missing = [figure for figure in figures if figure not in tables]
    if missing:
        return f"nothing predicts {' and '.join(missing)}"
    return Guide(
        space, cache, known, groups_of(network, space), [tables[figure] for figure in figures],
        lambda plan: tuple(evaluator.estimate(plan).expected(field) for field in fields),
        objectives=len(study.objectives) - 1,
        limits=[limits.get(field, math.inf) for field in fields],
        slack=[1.5 if figure == "activation_bytes" else 1.02 for figure in figures],
    )  # fmt: skip


def set_latency_model(study: Study, evaluator: Evaluator, progress: ProgressCallback) -> None:
    """Give an evaluator the latency model of this machine, calibrated where no cache has it.

    What the study has measured so far refines it.
    """
    network, target, space = evaluator.network, evaluator.target, study.parameters.space
    path = calibration_path(network, target)
    found, note = load_calibration(path, target)
    if found is not None and _unseen(found, network, space, target):
        found, note = None, "the latency calibration has not seen all that this space asks for"
    if found is None:
        start = "calibrating the latency model (up to two minutes, once)"
        progress(Progress(0, 1, note="; ".join(part for part in (note, start) if part)))
        found = measure_calibration(network, target, space, builder=evaluator.builder)
        with contextlib.suppress(AutocompressError, OSError):  # a search goes on without a cache
            found.save(path)
    estimator = evaluator.estimator
    measured = [
        (terms(workload(dry_run(network, score.plan, target.abilities), target.abilities)), score)
        for score in study.scores
        if score.outcome == "ok"
    ]
    found.samples += [
        (made, score.latency_ms * found.reference_ms / (evaluator.reference_ms or 1.0))
        for made, score in measured
    ]
    estimator.model = found.model(evaluator.reference_ms)


def _unseen(
    calibration: Calibration, network: Network, space: SearchSpace, target: Target
) -> frozenset[str]:
    """Return the families of operators of a space's baselines that a calibration has not seen."""
    seen = {term.family for made, _ in calibration.samples for term in made}
    wanted = {
        term.family
        for _, plan in space.baselines()
        for term in terms(workload(dry_run(network, plan, target.abilities), target.abilities))
    }
    return frozenset(wanted - seen)
