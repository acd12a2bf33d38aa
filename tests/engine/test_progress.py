import math
from dataclasses import replace

import pytest
from optuna.samplers import RandomSampler

from autocompress.core.budget import Budget
from autocompress.engine.loop import drive
from autocompress.engine.parameters import Parameters
from autocompress.engine.progress import best_so_far, to_gain
from autocompress.engine.store import Place
from autocompress.engine.study import Study
from autocompress.errors import TaskError
from tests.engine.fakes import SPACE, FakeEvaluator
from tests.engine.test_study import study_at


def test_baselines_that_failed_are_tried_again(tmp_path):
    path = tmp_path / "study.log"
    with pytest.raises(TaskError):
        drive(study_at(path), FakeEvaluator(fail=lambda _: True), 8, lambda _: None)
    study = study_at(path)
    drive(study, FakeEvaluator(), 8, lambda _: None)
    good = [score.baseline for score in study.scores if score.outcome == "ok"]
    assert good == [name for name, _ in SPACE.baselines()[:8]]
    assert "× smaller" in best_so_far(study)


def test_a_metric_that_is_no_fraction_is_not_in_points(tmp_path):
    study = study_at(tmp_path / "study.log")

    class Percent(FakeEvaluator):
        def __call__(self, *given):
            score = super().__call__(*given)
            return replace(score, accuracy=100 * score.accuracy)

    drive(study, Percent(), 15, lambda _: None)
    assert best_so_far(study).endswith("× smaller, +0.0")


class Outlook(RandomSampler):
    """Expects what it is told to."""

    outlook = 0.0


def outlook_study(path, outlook):
    sampler = Outlook(seed=0)
    sampler.outlook = outlook
    return Study(
        Place(path), Parameters(SPACE), sampler=lambda _: sampler, objectives=("accuracy", "size"),
        budget=Budget(),
    )  # fmt: skip


def test_what_is_still_to_gain_is_what_the_last_proposals_brought(tmp_path):
    study = study_at(tmp_path / "study.log")
    drive(study, FakeEvaluator(), 20, lambda _: None)
    assert math.isnan(to_gain(study))  # few proposals so far
    assert "still to gain" not in best_so_far(study)
    drive(study, FakeEvaluator(), 60, lambda _: None)
    early = to_gain(study)
    assert 0 <= early < 1
    assert f"about {early:.1%} still to gain" in best_so_far(study)
    drive(study, FakeEvaluator(), 200, lambda _: None)
    assert to_gain(study) <= early


def test_what_the_sampler_expects_counts_if_it_is_more(tmp_path):
    study = outlook_study(tmp_path / "study.log", 0.7)
    drive(study, FakeEvaluator(), 60, lambda _: None)
    assert to_gain(study) == 0.7
    study.sampler.outlook = 0.0
    assert to_gain(study) < 0.7
    study.sampler.outlook = math.nan  # it has not looked yet
    assert math.isnan(to_gain(study))


def test_a_search_may_end_when_nothing_is_left_to_gain(tmp_path):
    study = outlook_study(tmp_path / "a.log", 0.0)
    note = drive(study, FakeEvaluator(), 400, lambda _: None, until_converged=True)
    assert note == f"the search has converged after {study.completed} trials"
    assert study.completed < 400
    hopeful = outlook_study(tmp_path / "b.log", 0.5)
    assert drive(hopeful, FakeEvaluator(), 60, lambda _: None, until_converged=True) == ""
    assert hopeful.completed == 60
