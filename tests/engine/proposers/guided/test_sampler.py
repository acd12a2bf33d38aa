"""The guided sampler in studies: with its guide, without one, and after other samplers."""

import math
from pathlib import Path

import numpy as np
import optuna

from autocompress.engine.loop import drive
from autocompress.engine.proposers import GuidedSampler, make_sampler
from autocompress.engine.proposers.guided.allocation import Table
from autocompress.engine.proposers.guided.guide import Guide
from autocompress.engine.proposers.guided.sensitivity import profile
from autocompress.engine.proposers.guided.sensitivity_cache import SensitivityCache
from autocompress.engine.scheduler import Scheduler
from autocompress.engine.study import Study
from tests.engine.fakes import SPACE, FakeEvaluator, size_of
from tests.engine.test_study import study_at


def loss_of(plan) -> float:
    """What the fake evaluator's accuracy falls with: small files are bad."""
    return 10 / size_of(plan)


def guided(study: Study) -> GuidedSampler:
    sampler = study.sampler
    assert isinstance(sampler, GuidedSampler)
    cache = SensitivityCache(loss_of)
    tables = [
        Table((n, "l0/keep"), 10 * np.outer(SPACE.knobs[n], SPACE.knobs["l0/keep"]))
        for n in SPACE.knobs
        if n != "l0/keep"
    ]
    guide = Guide(
        SPACE, cache, profile(SPACE, cache, {}), dict.fromkeys(SPACE.knobs, "all"), [tables],
        lambda plan: (size_of(plan),), objectives=1, limits=[math.inf],
    )  # fmt: skip
    sampler.attach(lambda: guide, study, ["size_bytes"])
    return sampler


def test_it_follows_the_guide(tmp_path: Path) -> None:
    study, evaluator = study_at(tmp_path / "study.log", "guided"), FakeEvaluator()
    sampler = guided(study)
    assert math.isnan(sampler.outlook)
    drive(study, evaluator, 40, lambda _: None)
    assert len(set(evaluator.calls)) == 40
    assert 0 <= sampler.outlook < 1
    others = {plan for _, plan in SPACE.baselines()}
    assert all(SPACE.contains(plan) for plan in evaluator.calls if plan not in others)


def test_the_guide_is_told_what_is_running(tmp_path: Path, monkeypatch) -> None:
    study, evaluator = study_at(tmp_path / "study.log", "guided"), FakeEvaluator()
    guided(study)
    drive(study, evaluator, 20, lambda _: None)
    told, propose = [], Guide.propose

    def spy(self, observed, generator, tried, running):
        told.append(list(running))
        return propose(self, observed, generator, tried, running)

    monkeypatch.setattr(Guide, "propose", spy)
    scheduler = Scheduler(study, evaluator, 30, lambda _: None)
    plans = [scheduler.next().plan for _ in range(4)]
    assert [told[0], told[-1]] == [[], plans[:3]]
    assert len(set(plans)) == 4


def test_studies_mix_and_resume_across_samplers(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    drive(study_at(path, "tpe"), FakeEvaluator(), 24, lambda _: None)
    study, evaluator = study_at(path, "guided"), FakeEvaluator()
    guided(study)
    drive(study, evaluator, 32, lambda _: None)
    assert len(evaluator.calls) == 8
    for name in ("nsga2", "gp", "random", "tpe"):
        study = study_at(path, name)
        drive(study, FakeEvaluator(), study.completed + 2, lambda _: None)
    parameters = {frozenset(trial.params) for trial in study._memory.get_trials(deepcopy=False)}
    assert parameters == {frozenset(study.parameters.distributions)}


def test_plans_that_failed_are_not_proposed_again(tmp_path: Path) -> None:
    study = study_at(tmp_path / "study.log", "guided")
    guided(study)
    evaluator = FakeEvaluator(fail=lambda call: call > 14 and call % 2)
    drive(study, evaluator, 30, lambda _: None)
    assert len(evaluator.calls) == len(set(evaluator.calls)) > 36


def test_why_there_is_no_guide_is_kept(tmp_path: Path) -> None:
    study = study_at(tmp_path / "study.log", "guided")
    sampler, asked = study.sampler, []
    assert isinstance(sampler, GuidedSampler)

    def make() -> str:
        asked.append(1)
        return "a reason"

    sampler.attach(make, study, ["size_bytes"])
    drive(study, FakeEvaluator(), 3, lambda _: None)
    assert (asked, sampler.reason) == ([], "")  # baselines need none
    drive(study, FakeEvaluator(), 20, lambda _: None)
    assert (asked, sampler.reason) == ([1], "not guided, tpe proposed: a reason")
    assert sampler.outlook == 0


def test_without_a_guide_it_is_the_other_sampler(tmp_path: Path) -> None:
    calls = []
    for name in ("guided", "tpe"):
        evaluator = FakeEvaluator()
        drive(study_at(tmp_path / f"{name}.log", name), evaluator, 30, lambda _: None)
        calls.append(evaluator.calls)
    assert calls[0] == calls[1]


def test_in_a_study_of_another_space_the_other_sampler_answers() -> None:
    study = optuna.create_study(sampler=make_sampler("guided", 0))
    trial = study.ask()
    assert 0 <= trial.suggest_float("x", 0, 1) <= 1
    study.sampler.reseed_rng()
    study.tell(trial, 1.0)
