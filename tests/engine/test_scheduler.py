import itertools

import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from autocompress.core.budget import Budget
from autocompress.core.plan import Plan, Recipe
from autocompress.core.space import SearchSpace
from autocompress.engine import scheduler
from autocompress.engine.loop import drive
from autocompress.engine.parameters import Parameters
from autocompress.engine.scheduler import Scheduler, due
from autocompress.engine.store import Place
from autocompress.engine.study import Study, read_study
from autocompress.errors import TaskError
from tests.engine.fakes import SPACE, FakeEvaluator, size_of
from tests.engine.test_study import study_at


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
    assert [score.plan for score in read_study(Place(path))[0]] == seen


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


def test_a_sampler_that_insists_on_a_failed_plan_does_not_end_the_search(tmp_path):
    evaluator = FakeEvaluator(fail=lambda call: call % 4 == 2)
    study = study_at(tmp_path / "study.log", "gp")
    assert drive(study, evaluator, 20, lambda _: None) == ""
    assert study.completed == 20


BASELINES = SPACE.baselines()
LIMIT = Budget(latency_ms=1.5)


def least(plan):
    """What is predicted of a plan's latency, less the prediction's error."""
    return size_of(plan) / 110


def searched(path, budget=LIMIT, trials=30, sampler="random", space=SPACE, **options):
    evaluator = FakeEvaluator(budget=budget, **options)
    study = study_at(path, sampler, budget, space)
    return study, evaluator, drive(study, evaluator, trials, lambda _: None)


def of_outcome(study, outcome):
    return [score for score in study.scores if score.outcome == outcome]


def test_plans_predicted_over_budget_are_told_and_not_built(tmp_path):
    study, evaluator, note = searched(tmp_path / "study.log")
    assert note == ""
    over = of_outcome(study, "over_budget")
    assert len(over) >= 5
    assert study.completed == len(evaluator.calls) == 30  # those do not count
    assert {s.plan for s in over}.isdisjoint(evaluator.calls)
    for score in over:
        assert least(score.plan) > 1.5
        assert score.figure("size_bytes") == size_of(score.plan)
        assert score.constraints(LIMIT)["latency_ms"] > 0
        before = [s.accuracy for s in study.scores[: score.trial] if s.outcome == "ok"]
        assert min(before) <= score.figure("accuracy") <= max(before)
        assert score.artifact == score.sha256 == score.baseline == ""
    for plan in evaluator.calls[len(BASELINES) :]:
        assert least(plan) <= 1.5
    assert [score.trial for score in study.scores] == list(range(len(study.scores)))
    assert study.note("floor") == {"latency_ms": pytest.approx(40 / 110)}
    told = study._memory.get_trials(deepcopy=False)
    assert {trial.state for trial in told} == {TrialState.COMPLETE}  # no zombie repels the sampler


def test_the_doubtful_are_measured(tmp_path):
    """What is predicted over the budget, but within the prediction's error, may yet meet it."""
    study, *_ = searched(tmp_path / "study.log", trials=60)
    doubtful = [s for s in of_outcome(study, "ok") if least(s.plan) <= 1.5 < s.latency_ms]
    assert any(not score.baseline for score in doubtful)


def test_baselines_are_built_whatever_is_predicted(tmp_path):
    _, evaluator, _ = searched(tmp_path / "study.log", Budget(latency_ms=0.5), len(BASELINES))
    assert evaluator.calls == [plan for _, plan in BASELINES]
    assert sum(least(plan) > 0.5 for plan in evaluator.calls) > 5


def test_estimates_stand_beside_the_scores_of_a_search_with_a_budget(tmp_path):
    study, evaluator, _ = searched(tmp_path / "study.log", trials=20)
    for score in of_outcome(study, "ok"):
        assert score.estimates == FakeEvaluator().estimate(score.plan).figures()
    study, evaluator, _ = searched(tmp_path / "other.log", Budget(), trials=20)
    assert evaluator.estimated == []
    assert all(score.estimates == {} for score in study.scores)
    assert study.note("floor") is None


def test_a_hopeless_budget_ends_after_the_baselines(tmp_path):
    budget = Budget(latency_ms=0.1, max_size_bytes=30, max_memory_bytes=1000)
    told = []
    evaluator, study = FakeEvaluator(budget=budget), study_at(tmp_path / "study.log", budget=budget)
    note = drive(study, evaluator, 50, told.append)
    assert evaluator.calls == [plan for _, plan in BASELINES]
    assert of_outcome(study, "over_budget") == []
    assert note == (
        f"the search ended after {len(BASELINES)} trials: no plan is predicted to meet latency_ms "
        "and max_size_bytes"
    )
    assert study.note("floor") == pytest.approx(
        {"latency_ms": 40 / 110, "max_size_bytes": 40 * 0.99, "max_memory_bytes": 80}
    )
    assert [progress.done for progress in told] == list(range(len(BASELINES) + 1))
    # a few trials more change nothing, and nothing is built again
    again, evaluator, second = searched(tmp_path / "study.log", budget, 60)
    assert (second, evaluator.calls) == (note, [])
    assert again.note("floor") == study.note("floor")


def test_fewer_trials_than_baselines_are_enough_of_a_hopeless_budget(tmp_path):
    _, evaluator, note = searched(tmp_path / "study.log", Budget(latency_ms=0.1), 2)
    assert (len(evaluator.calls), note) == (2, "")


class Stubborn(RandomSampler):
    """Proposes the highest value of everything but of the first parameters, which it draws."""

    def __init__(self, seed, drawn):
        super().__init__(seed)
        self.drawn = drawn

    def sample_independent(self, study, trial, name, distribution):
        if name in self.drawn:
            return super().sample_independent(study, trial, name, distribution)
        return distribution.high


def stubborn(path, budget, space=SPACE, drawn=tuple(SPACE.knobs)[:3]):
    return Study(
        Place(path), Parameters(space), sampler=lambda finished: Stubborn(finished, drawn),
        objectives=("accuracy", "size"), budget=budget,
    )  # fmt: skip


def test_a_sampler_that_only_finds_plans_over_budget_is_given_some_that_fit(tmp_path):
    budget = Budget(latency_ms=0.8)
    evaluator, study = FakeEvaluator(budget=budget), stubborn(tmp_path / "study.log", budget)
    assert drive(study, evaluator, len(BASELINES) + 4, lambda _: None) == ""
    given = evaluator.calls[len(BASELINES) :]
    assert len(given) == 4
    assert all(least(plan) <= 0.8 for plan in given)
    outcomes = [score.outcome for score in study.scores[len(BASELINES) :]]
    assert outcomes == (["over_budget"] * scheduler._MISSES + ["ok"]) * 4


def test_it_is_given_none_that_was_scored_before(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "_MISSES", 2)
    space = SearchSpace({f"l{i}/w_bits": (2, 4, 8) for i in range(4)})
    budget = Budget(latency_ms=1.3)  # of 19 plans of the 81
    study = stubborn(tmp_path / "study.log", budget, space, tuple(space.knobs)[:1])
    evaluator = FakeEvaluator(budget=budget)
    drive(study, evaluator, 24, lambda _: None)
    assert len(evaluator.calls) == len(set(evaluator.calls))
    assert len({score.key for score in study.scores}) == len(study.scores)
    given = [plan for plan in evaluator.calls if space.contains(plan) and least(plan) <= 1.3]
    assert len(given) >= 16


def test_a_budget_that_one_plan_alone_meets_ends_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "_ESTIMATES", 50)
    space = SearchSpace({f"l{i}/w_bits": tuple(range(2, 17)) for i in range(4)})
    budget = Budget(latency_ms=8 * 10 / 110)  # of 2 bits in every layer, and of that alone
    evaluator = FakeEvaluator(budget=budget)
    study = stubborn(tmp_path / "study.log", budget, space, tuple(space.knobs)[:3])
    before = len(space.baselines())
    note = drive(study, evaluator, 40, lambda _: None)
    reason = "no other plan is found that may meet the budget"
    assert note == f"the search ended after {before} trials: {reason}"
    assert len(evaluator.calls) == study.completed == before
    assert len(of_outcome(study, "over_budget")) == scheduler._MISSES


def test_plans_near_the_lowest_are_found_where_random_ones_do_not_fit(tmp_path):
    space = SearchSpace({f"l{i}/w_bits": tuple(range(2, 17)) for i in range(4)})
    budget = Budget(latency_ms=11 * 10 / 110)  # up to three bits more than the least in all
    evaluator = FakeEvaluator(budget=budget)
    study = stubborn(tmp_path / "study.log", budget, space, tuple(space.knobs)[:3])
    before = len(space.baselines())
    assert drive(study, evaluator, before + 3, lambda _: None) == ""
    given = evaluator.calls[before:]
    assert len(set(given)) == 3
    assert all(8 < sum(plan.get(f"l{i}", "w_bits") for i in range(4)) <= 11 for plan in given)


def test_a_space_without_another_plan_that_fits_is_gone_through(tmp_path):
    space = SearchSpace({f"l{i}/w_bits": (2, 4, 8) for i in range(4)})
    _, evaluator, note = searched(tmp_path / "study.log", Budget(None, 100), 90, space=space)
    assert "every plan it finds has been scored" in note or "no other plan" in note
    fitting = [
        space.plan(dict(zip(space.knobs, values, strict=True)))
        for values in itertools.product((2, 4, 8), repeat=4)
        if sum(values) * 9.9 <= 100
    ]
    assert set(fitting) < set(evaluator.calls)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_what_was_over_budget_stays_so_when_a_search_goes_on(tmp_path, sampler):
    path = tmp_path / "study.log"
    seen = []
    for stop in (18, 3, 6):
        evaluator = FakeEvaluator(budget=LIMIT, stop=lambda call, stop=stop: call >= stop)
        with pytest.raises(KeyboardInterrupt):
            drive(study_at(path, sampler, LIMIT), evaluator, 40, lambda _: None)
        seen += evaluator.calls
        assert of_outcome(study_at(path, sampler, LIMIT), "over_budget")
    study, evaluator, note = searched(path, trials=40, sampler=sampler)
    assert note == ""
    assert seen + evaluator.calls == [score.plan for score in of_outcome(study, "ok")]
    assert study.completed == 40
    assert len({score.key for score in study.scores}) == len(study.scores)
    assert [s.to_json() for s in read_study(Place(path))[0]] == [s.to_json() for s in study.scores]
    assert study.note("floor") == {"latency_ms": pytest.approx(40 / 110)}


def test_what_cannot_be_predicted_is_built(tmp_path):
    """Plans with 2 bits in the second layer have an operator that the model has not seen."""

    def unknown(plan):
        return plan.get("l1", "w_bits") == 2

    study, evaluator, note = searched(tmp_path / "study.log", Budget(0.9), 50, unknown=unknown)
    assert note == ""
    assert of_outcome(study, "over_budget")
    assert not any(unknown(score.plan) for score in of_outcome(study, "over_budget"))
    built = [plan for plan in evaluator.calls[len(BASELINES) :] if unknown(plan)]
    assert any(least(plan) > 0.9 for plan in built)
    # of the space nothing can be said then: the plans that nobody can predict may be the fastest
    assert study.note("floor") == {}
    study, evaluator, note = searched(tmp_path / "b.log", Budget(0.37), 25, unknown=unknown)
    assert (note, study.completed) == ("", 25)
    assert "aten.odd" in evaluator.estimate(built[0]).unknown


def test_a_plan_of_which_a_limit_is_unknown_is_built_though_another_is_exceeded(tmp_path):
    """Every completed trial sets every constraint."""
    budget = Budget(latency_ms=5.0, max_size_bytes=150)
    study, evaluator, _ = searched(
        tmp_path / "study.log", budget, 40, unknown=lambda plan: plan.get("l1", "w_bits") < 4
    )
    told = of_outcome(study, "over_budget")
    assert told
    assert all(score.plan.get("l1", "w_bits") >= 4 for score in told)
    assert any(size_of(plan) > 160 for plan in evaluator.calls[len(BASELINES) :])
    assert all(set(score.constraints(budget)) == {"latency_ms", "max_size_bytes"} for score in told)


def test_an_objective_that_cannot_be_predicted_is_measured(tmp_path):
    budget = Budget(max_size_bytes=150)
    study = study_at(tmp_path / "study.log", "tpe", budget, objectives=("accuracy", "latency"))
    evaluator = FakeEvaluator(budget=budget, unknown=lambda plan: plan.get("l1", "w_bits") < 4)
    drive(study, evaluator, 40, lambda _: None)
    told = of_outcome(study, "over_budget")
    assert told
    assert all(score.plan.get("l1", "w_bits") >= 4 for score in told)
    for score in told:
        accuracy, ms = score.values(study.objectives)
        assert (0 < accuracy < 1, ms) == (True, size_of(score.plan) / 100)


def test_seeds_are_evaluated_after_the_first_baselines(tmp_path):
    study = study_at(tmp_path / "study.log")
    seeds = [SPACE.plan({"l0/keep": 0.5} | {f"l{i}/w_bits": b for i in range(4)}) for b in (3, 6)]
    study.set_note("seeds", [plan.to_json() for plan in seeds])
    evaluator = FakeEvaluator()
    drive(study, evaluator, 12, lambda _: None)
    assert evaluator.calls[3:5] == seeds
    assert [score.baseline for score in study.scores[3:5]] == ["", ""]
    again = FakeEvaluator()
    drive(study_at(tmp_path / "study.log"), again, 14, lambda _: None)
    assert not set(seeds) & set(again.calls)


def test_baselines_that_failed_are_due_even_where_the_trials_are_done(tmp_path):
    path, count = tmp_path / "study.log", len(BASELINES)
    drive(study_at(path), FakeEvaluator(fail=lambda call: call in (3, 5)), 12, lambda _: None)
    study, evaluator = study_at(path), FakeEvaluator()
    recipe = Recipe()
    assert [label for label, _ in due(study, recipe, "fake")] == [BASELINES[i][0] for i in (3, 5)]
    drive(study, evaluator, 12, lambda _: None)
    assert evaluator.calls == [BASELINES[3][1], BASELINES[5][1]]
    assert due(study, recipe, "fake") == []
    assert study.completed == 14 < count + 12


class Parallel:
    """An executor that holds so many jobs at once, and hands the last one back first."""

    def __init__(self, most):
        self.most, self.held, self.seen = most, [], []

    def run(self, scheduler, evaluator):
        while not scheduler.finished:
            while len(self.held) < self.most and (job := scheduler.next()) is not None:
                self.held.append(job)
            self.seen.append([job.plan for job in self.held])
            if self.held:
                job = self.held.pop()
                scheduler.done(job, evaluator(*job.arguments))


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "gp"])
def test_jobs_that_are_out_are_not_given_out_again(tmp_path, sampler):
    executor, evaluator = Parallel(8), FakeEvaluator()
    study = study_at(tmp_path / "study.log", sampler)
    assert drive(study, evaluator, 40, lambda _: None, executor=executor) == ""
    assert len(evaluator.calls) == len(set(evaluator.calls)) == study.completed == 40
    assert max(map(len, executor.seen)) == 8
    for plans in executor.seen:
        assert len(plans) == len(set(plans))
    assert study.running == []


def test_a_space_is_gone_through_with_jobs_out(tmp_path):
    space = SearchSpace({f"l{i}/w_bits": (2, 4, 8) for i in range(2)})
    evaluator = FakeEvaluator()
    study = study_at(tmp_path / "study.log", space=space)
    note = drive(study, evaluator, 500, lambda _: None, executor=Parallel(4))
    assert "every plan it finds has been scored" in note
    assert len(set(evaluator.calls)) == len(evaluator.calls) == space.size + 1


def test_a_job_whose_worker_was_lost_is_given_out_once_more(tmp_path):
    study = study_at(tmp_path / "study.log")
    scheduler = Scheduler(study, FakeEvaluator(), 3, lambda _: None)
    first = scheduler.next()
    scheduler.lost(first, "the worker was lost")
    assert study.scores == study.running == []
    assert scheduler.next() is first
    scheduler.lost(first, "the worker was lost")
    assert study.scores[0].message == "the worker was lost, twice"
    assert study.scores[0].baseline == "uncompressed"
    assert scheduler.next() is not first
