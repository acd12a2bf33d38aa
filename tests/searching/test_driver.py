import math
from dataclasses import replace

import pytest

from autocompress.errors import TaskError
from autocompress.searching.driver import best_so_far, drive, finish
from autocompress.searching.study import read_scores
from autocompress.spec.budget import Budget
from autocompress.spec.pareto import closest_miss, non_dominated
from autocompress.spec.plan import Plan
from autocompress.spec.space import SearchSpace
from tests.searching.fakes import SPACE, FakeEvaluator
from tests.searching.test_study import study_at


def test_baselines_come_first(tmp_path):
    evaluator = FakeEvaluator()
    study = study_at(tmp_path / "study.log")
    drive(study, evaluator, 3, lambda _: None)
    assert evaluator.calls == [plan for _, plan in SPACE.baselines()[:3]]
    assert [score.baseline for score in study.scores] == [n for n, _ in SPACE.baselines()[:3]]
    assert evaluator.calls[0] == Plan()


@pytest.mark.parametrize("stops", [[4], [0, 1, 2], [17, 18, 19], [5, 5, 11]])
def test_interrupting_and_resuming_loses_and_repeats_nothing(tmp_path, stops):
    path = tmp_path / "study.log"
    seen: list[Plan] = []
    for stop in stops:
        left = max(stop - len(seen), 0)
        evaluator = FakeEvaluator(stop=lambda call, left=left: call >= left)
        with pytest.raises(KeyboardInterrupt):
            drive(study_at(path, "tpe"), evaluator, 30, lambda _: None)
        seen += evaluator.calls
    evaluator = FakeEvaluator()
    drive(study_at(path, "tpe"), evaluator, 30, lambda _: None)
    seen += evaluator.calls
    assert len(seen) == len(set(seen)) == 30
    assert [score.plan for score in read_scores(path)] == seen


def test_three_failures_at_the_start_stop_the_run(tmp_path):
    evaluator = FakeEvaluator(fail=lambda _: True)
    with pytest.raises(TaskError, match="it broke"):
        drive(study_at(tmp_path / "study.log"), evaluator, 30, lambda _: None)
    assert len(evaluator.calls) == 3


def test_many_failures_later_stop_the_run(tmp_path):
    evaluator = FakeEvaluator(fail=lambda call: call > 4)
    with pytest.raises(TaskError, match="20 times in a row"):
        drive(study_at(tmp_path / "study.log"), evaluator, 60, lambda _: None)
    assert len(evaluator.calls) == 25


def test_a_small_space_is_gone_through_to_its_last_plan(tmp_path):
    evaluator = FakeEvaluator()
    space = SearchSpace({f"l{i}/w_bits": (2, 4, 8) for i in range(3)})
    note = drive(study_at(tmp_path / "study.log", space=space), evaluator, 5000, lambda _: None)
    assert "every plan it finds has been scored" in note
    assert len(set(evaluator.calls)) == len(evaluator.calls) == space.size + 1  # uncompressed


def test_progress_tells_done_total_and_best(tmp_path):
    told = []
    drive(study_at(tmp_path / "study.log"), FakeEvaluator(), 12, told.append)
    assert [p.done for p in told] == list(range(13))
    assert all(p.total == 12 for p in told)
    assert "× smaller" in told[-1].best


def test_front_and_baselines_are_scored_on_the_test_split_once(tmp_path):
    study = study_at(tmp_path / "study.log")
    evaluator = FakeEvaluator()
    drive(study, evaluator, 20, lambda _: None)
    told = []
    assert finish(study, evaluator, told.append) == ""
    assert told[-1].done == told[-1].total == len(told) - 1
    front = {score.trial for score in non_dominated(study.scores, study.objectives)}
    for score in study.scores:
        measured = score.test_accuracy == score.test_accuracy
        assert measured == (score.trial in front or bool(score.baseline))
    before = list(study.scores)
    evaluator.test = None  # calling it again would raise
    assert finish(study, evaluator, told.append) == ""
    assert study.scores == before


def test_a_test_that_raises_is_a_note_and_no_score(tmp_path):
    study = study_at(tmp_path / "study.log")
    evaluator = FakeEvaluator()
    drive(study, evaluator, 5, lambda _: None)

    def broken(pick):
        raise KeyError("labels")

    evaluator.test = broken
    assert "KeyError: 'labels'" in finish(study, evaluator, lambda _: None)
    assert all(math.isnan(score.test_accuracy) for score in study.scores)


def test_baselines_that_failed_are_tried_again(tmp_path):
    path = tmp_path / "study.log"
    with pytest.raises(TaskError):
        drive(study_at(path), FakeEvaluator(fail=lambda _: True), 8, lambda _: None)
    study = study_at(path)
    drive(study, FakeEvaluator(), 8, lambda _: None)
    good = [score.baseline for score in study.scores if score.outcome == "ok"]
    assert good == [name for name, _ in SPACE.baselines()[:8]]
    assert "× smaller" in best_so_far(study)


def test_a_sampler_that_insists_on_a_failed_plan_does_not_end_the_search(tmp_path):
    evaluator = FakeEvaluator(fail=lambda call: call % 4 == 2)
    study = study_at(tmp_path / "study.log", "gp")
    assert drive(study, evaluator, 20, lambda _: None) == ""
    assert study.completed == 20


def test_the_closest_miss_is_scored_where_nothing_meets_the_budget(tmp_path):
    study = study_at(tmp_path / "study.log", budget=Budget(latency_ms=1e-3))
    drive(study, FakeEvaluator(), 15, lambda _: None)
    assert finish(study, FakeEvaluator(), lambda _: None) == ""
    miss = closest_miss(study.scores, study.budget)
    assert not math.isnan(miss.test_accuracy)


def test_a_metric_that_is_no_fraction_is_not_in_points(tmp_path):
    study = study_at(tmp_path / "study.log")

    class Percent(FakeEvaluator):
        def __call__(self, plan, recipe, baseline=""):
            score = super().__call__(plan, recipe, baseline)
            return replace(score, accuracy=100 * score.accuracy)

    drive(study, Percent(), 15, lambda _: None)
    assert best_so_far(study).endswith("× smaller, +0.0")
