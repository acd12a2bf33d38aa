"""Searches that start from another run, through the Python interface."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import autocompress as ac
from autocompress.core.score import Score
from autocompress.core.space import SpaceTemplate
from autocompress.engine.study import Study
from autocompress.errors import InputError, RunError
from autocompress.models.trace import trace
from autocompress.registry import find_space, resolve_space
from autocompress.targets import make_target
from tests.test_api import completed, make_task, run_search, small_task


def test_a_new_budget_starts_from_an_old_run(tmp_path: Path) -> None:
    old = run_search(tmp_path / "old", small_task(), sampler="guided", trials=14)
    limit = int(np.quantile([score.size_bytes for score in old.scores], 0.8))
    calls: list[int] = []
    task = small_task()

    def evaluate(predict) -> object:
        calls.append(1)
        return old_evaluate(predict)

    old_evaluate = task.evaluate
    task = replace(task, evaluate=evaluate)
    budget = ac.Budget(max_size_bytes=limit)
    new = run_search(
        tmp_path / "new", task, sampler="guided", trials=14, budget=budget, start_from=old.directory
    )
    assert calls == []  # all of it was known
    assert [s.plan for s in new.scores] == [s.plan for s in old.scores if s.outcome == "ok"]
    assert new.reference is not None
    assert all(pick.score.size_bytes <= limit for pick in new.front())
    for pick in new.front():
        pick.artifact.verify()
    more = new.resume(3)
    assert completed(more) == 17
    assert len(calls) == 3
    with pytest.raises(InputError, match="has 14 trials of its own"):
        run_search(old.directory, small_task(), sampler="guided", start_from=new.directory)


def test_another_target_evaluates_the_old_front_first(tmp_path: Path) -> None:
    old = run_search(tmp_path / "old", small_task(), sampler="guided", trials=14)
    lines = (tmp_path / "old/profile/effects.jsonl").read_text().splitlines()
    new = run_search(
        tmp_path / "new", small_task(), sampler="guided", trials=8, target="onnxruntime",
        start_from=old.directory,
    )  # fmt: skip
    taken = (tmp_path / "new/profile/effects.jsonl").read_text().splitlines()[: len(lines)]
    assert [json.loads(line) for line in taken] == [[*json.loads(line)[:2], 0.0] for line in lines]
    assert {score.target for score in new.scores} == {"onnxruntime"}
    first = {score.plan for score in new.scores[:8]}
    front = [pick.plan for pick in old.front()]
    baselines = [score.plan for score in new.scores[:3]]
    assert next(plan for plan in front if plan not in baselines) in first


@pytest.mark.parametrize("other", ["model", "data", "rules", "nothing"])
def test_only_a_run_of_the_same_can_be_taken_over(tmp_path: Path, other: str) -> None:
    task = small_task()
    run_search(tmp_path / "old", task, trials=4)
    options, source = {}, tmp_path / "old"
    if other == "model":
        task = make_task()
    elif other == "data":
        task = replace(task, calibration=[(torch.zeros(8, 8, 8),)])
    elif other == "rules":
        options = {"compress": {"refit": False}}
    else:
        source = tmp_path / "none"
    said = {"model": "is of another model", "data": "is of another data", "rules": "[compress]"}
    with pytest.raises(InputError, match=re.escape(said.get(other, "has a config.toml"))):
        run_search(tmp_path / "new", task, trials=4, start_from=source, **options)
    # nothing of what was refused is left behind
    assert completed(run_search(tmp_path / "new", small_task(), trials=4)) == 4


def test_plans_of_another_space_stay_behind(tmp_path: Path) -> None:
    old = run_search(tmp_path / "old", small_task(), sampler="guided", trials=16)
    notes: list[str] = []
    narrow = {"*/w_bits": [4, 8], "*/keep": [1.0]}
    new = ac.search(
        small_task(), space=narrow, target="null", trials=9, start_from=old.directory,
        run_dir=tmp_path / "new", progress=lambda p: notes.append(p.note),
    )  # fmt: skip
    task = small_task()
    network = trace(task.model, task.example_inputs)
    space = resolve_space(find_space(SpaceTemplate.of(narrow)), network, make_target("null"))
    named = {plan: label for label, plan in space.baselines()}
    assert all(space.contains(s.plan) or s.plan in named for s in new.scores)
    assert {s.plan for s in new.scores if s.baseline} >= set(named)
    left = [s for s in old.scores if not space.contains(s.plan) and s.plan not in named]
    assert left
    assert f"{len(left)} of 16 plans of the other run are not of this space" in notes


def test_a_search_starts_from_one_run_and_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_search(tmp_path / name, small_task(), trials=4)
    new = run_search(tmp_path / "new", small_task(), trials=5, start_from=tmp_path / "a")
    assert completed(new) == 5
    with pytest.raises(InputError, match="A search starts from one run"):
        run_search(tmp_path / "new", small_task(), trials=6, start_from=tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    again = run_search(tmp_path / "new", small_task(), trials=6, start_from=tmp_path / "a")
    assert completed(again) == 6
    with pytest.raises(InputError, match="start_from must be a run directory's path, not 5"):
        run_search(tmp_path / "other", small_task(), trials=4, start_from=5)


def test_an_interrupted_adoption_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = run_search(tmp_path / "old", small_task(), trials=6)
    added, add = [], Study.add

    def interrupted(self: Study, *args: Any) -> Score:
        if len(added) == 3:
            raise KeyboardInterrupt
        added.append(1)
        return add(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Study, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_search(tmp_path / "new", small_task(), trials=6, start_from=old.directory)
    with pytest.raises(RunError, match="was interrupted while it took over"):
        ac.open_run(tmp_path / "new", small_task()).resume()
    whole = run_search(tmp_path / "new", small_task(), trials=6, start_from=old.directory)
    assert [s.plan for s in whole.scores] == [s.plan for s in old.scores]
    other = run_search(tmp_path / "another", small_task(), trials=6)
    with pytest.raises(InputError, match="has started from"):
        run_search(tmp_path / "new", small_task(), trials=6, start_from=other.directory)


def test_baselines_that_only_the_new_space_has_are_scored_after_all(tmp_path: Path) -> None:
    narrow, wide = ({"*/w_bits": bits, "*/keep": [0.5, 1.0]} for bits in ([4, 8], [3, 4, 8]))
    old = run_search(tmp_path / "old", small_task(), space=narrow, trials=9)
    new = run_search(tmp_path / "new", small_task(), space=wide, trials=9, start_from=old.directory)
    assert "uniform 3-bit weights" in {score.baseline for score in new.scores}
    assert completed(new) == 10
    assert completed(run_search(tmp_path / "new", small_task(), space=wide, trials=9)) == 10


def test_a_directory_without_a_study_cannot_be_taken_over(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"A search starts from a run \(--from, start_from\)"):
        run_search(tmp_path / "new", small_task(), start_from=tmp_path / "none")
    old = run_search(tmp_path / "old", small_task(), trials=4)
    (old.directory / "study.log").unlink()
    with pytest.raises(InputError, match="has no study"):
        run_search(tmp_path / "new", small_task(), start_from=old.directory)
    with pytest.raises(InputError, match="start_from must be a run directory's path, not ''"):
        run_search(tmp_path / "new", small_task(), start_from="")
