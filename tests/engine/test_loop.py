import math

from autocompress.core.budget import Budget
from autocompress.core.pareto import closest_miss, non_dominated
from autocompress.engine.loop import drive, finish
from autocompress.engine.progress import best_so_far
from tests.engine.fakes import FakeEvaluator
from tests.engine.test_scheduler import LIMIT, of_outcome, searched
from tests.engine.test_study import study_at


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


def test_the_closest_miss_is_scored_where_nothing_meets_the_budget(tmp_path):
    study = study_at(tmp_path / "study.log", budget=Budget(latency_ms=1e-3))
    drive(study, FakeEvaluator(), 15, lambda _: None)
    assert finish(study, FakeEvaluator(), lambda _: None) == ""
    miss = closest_miss(study.scores, study.budget)
    assert not math.isnan(miss.test_accuracy)


def test_nothing_over_budget_is_on_the_front_or_tested(tmp_path):
    study, evaluator, _ = searched(tmp_path / "study.log")
    assert finish(study, evaluator, lambda _: None) == ""
    assert of_outcome(study, "over_budget")
    for score in of_outcome(study, "over_budget"):
        assert math.isnan(score.test_accuracy)
        assert math.isnan(score.accuracy)
    assert any(not math.isnan(score.test_accuracy) for score in study.scores)
    best = [score for score in of_outcome(study, "ok") if score.meets(LIMIT)]
    smallest = min(best, key=lambda score: score.size_bytes)
    assert best_so_far(study).startswith(f"{1280 / smallest.size_bytes:.1f}× smaller")
