"""Adopting: a new search begins with what another run of the same model has learnt."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from autocompress.errors import InputError
from autocompress.report.front import Front
from autocompress.searching.study import Study, read_study

__all__ = ["adopt"]


def adopt(
    study: Study,
    directory: Path,
    source: Path,
    front: Front,
    fingerprints: Mapping[str, str],
    *,
    same_rules: bool,
    seed: int,
) -> None:
    """Take profile and scores of a run over into a study that has none yet.

    ``front`` is the other run's. On the same target its scores count as they are, files and all;
    on another its front's plans are evaluated first. ``same_rules``: plans are carried out alike
    in both; ``seed``: of the new search. Raises InputError for a run of another model or other
    data, and for a study that has begun by itself.
    """
    if study.note("adopted") is not None:
        return
    if study.scores and study.note("adopting") is None:
        raise InputError(
            f"Only a new search can start from another: {directory} has {len(study.scores)} trials "
            "of its own. Name another run directory, or go on without --from."
        )
    _, notes = read_study(source / "study.log")
    theirs = notes.get("fingerprints", {})
    for what, known in (("model", theirs.get("model")), ("data", theirs.get("data"))):
        if known != fingerprints[what]:
            raise InputError(
                f"Only a run of the same model and data can be taken over: {source} is of other "
                f"{what}. Start without it."
            )
    if not same_rules:
        raise InputError(
            f"Only a run whose plans are carried out alike can be taken over: {source} has another "
            "[compress] section. Give the same, or start without it."
        )
    profile = directory / "profile" / "effects.jsonl"
    if (source / "profile" / "effects.jsonl").exists() and not profile.exists():
        profile.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "profile" / "effects.jsonl", profile)
    study.set_note("adopting", str(source))
    if any(theirs.get(what) != fingerprints.get(what) for what in ("target", "device")):
        study.set_note("seeds", [pick.plan.to_json() for pick in front.members])
        study.set_note("adopted", 0)
        return
    study.set_note("reference_ms", notes.get("reference_ms"))
    labels = {plan: label for label, plan in study.parameters.space.baselines()}
    for score in front.measured:
        baseline, recipe = labels.get(score.plan, ""), replace(score.recipe, seed=seed)
        taken = replace(score, baseline=baseline, recipe=recipe, seed=seed)
        old, new = (place / "artifacts" / score.artifact for place in (source, directory))
        if old.exists() and not new.exists():  # what lacks is built again
            try:
                os.link(old, new)
            except OSError:  # another file system
                shutil.copyfile(old, new)
        if study.answer(taken.key) is None:
            study.add(taken)
    study.set_note("adopted", len(study.scores))
