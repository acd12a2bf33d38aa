"""Adopting: a new search begins with what another run of the same model has learnt."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress.core.plan import Plan
from autocompress.core.results import Results
from autocompress.engine.proposers.guided.sensitivity_cache import SensitivityCache
from autocompress.engine.study import Study
from autocompress.errors import InputError
from autocompress.targets.checkfile import check_path

__all__ = ["adopt", "check_source"]


def check_source(
    study: Study,
    directory: Path,
    source: Path,
    notes: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    *,
    same_rules: bool,
) -> None:
    """Raise InputError unless a run can be taken over: of another model or data it cannot.

    Nor can it by a study that has begun by itself. ``notes``: the other's; ``same_rules``: plans
    are carried out alike in both.
    """
    if study.scores and study.note("adopting") is None:
        raise InputError(
            f"Only a new search can start from another: {directory} has {len(study.scores)} trials "
            "of its own. Name another run directory, or go on without --from."
        )
    theirs = notes.get("fingerprints", {})
    if not theirs:
        raise InputError(
            f"Only a run that has begun can be taken over: {source} has no study. Start without it."
        )
    for what in ("model", "data"):
        if theirs.get(what) != fingerprints[what]:
            raise InputError(
                f"Only a run of the same model and data can be taken over: {source} is of another "
                f"{what}. Start without it."
            )
    if not same_rules:
        raise InputError(
            f"Only a run whose plans are carried out alike can be taken over: {source} has another "
            "[compress] section. Give the same, or start without it."
        )


def adopt(
    study: Study,
    directory: Path,
    results: Results,
    notes: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    *,
    seed: int,
) -> str:
    """Take profile and scores of a run over into a study; return a note of what stays behind.

    ``results`` and ``notes`` are the other run's. On the same target its scores count as they are,
    files and all; on another its front's plans are evaluated first. Plans that are not of the
    study's space stay behind, but for baselines. ``seed``: of the new search.
    """
    source = results.directory
    study.set_note("adopting", str(source.resolve()))
    profile = Path("profile") / "effects.jsonl"
    cache = SensitivityCache(_unknown, directory / profile)
    for plan, loss in SensitivityCache(_unknown, source / profile).known.items():
        cache.learn(plan, loss)
    space = study.parameters.space
    labels = {plan: label for label, plan in space.baselines()}
    theirs = notes.get("fingerprints", {})
    if any(theirs.get(what) != fingerprints.get(what) for what in ("target", "device")):
        plans = [score.plan for score in results.best]
        own = [plan for plan in plans if space.contains(plan)]
        study.set_note("seeds", [plan.to_json() for plan in own])
        study.set_note("adopted", 0)
        return _left(len(plans) - len(own), len(plans))
    study.set_note("reference_ms", notes.get("reference_ms"))
    left = 0
    for score in results.measured:
        if not space.contains(score.plan) and score.plan not in labels:
            left += 1
            continue
        baseline = labels.get(score.plan, score.baseline)
        recipe = replace(score.recipe, seed=seed)
        taken = replace(score, baseline=baseline, recipe=recipe, seed=seed)
        artifacts = [place / "artifacts" / score.artifact for place in (source, directory)]
        for old, new in (artifacts, map(check_path, artifacts)):
            if old.exists() and not new.exists():  # what lacks is built again
                try:
                    os.link(old, new)
                except OSError:  # another file system
                    shutil.copyfile(old, new)
        if study.answer(taken.key) is None:
            study.add(taken)
    study.set_note("adopted", len(study.scores))
    return _left(left, len(results.measured))


def _unknown(plan: Plan) -> float:
    raise AssertionError(f"nothing is computed here, and {plan} was asked")


def _left(count: int, every: int) -> str:
    return f"{count} of {every} plans of the other run are not of this space" if count else ""
