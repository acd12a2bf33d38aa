import json

import optuna
import pytest

from autocompress.core.budget import Budget
from autocompress.core.plan import Plan, Recipe
from autocompress.engine.loop import drive
from autocompress.engine.parameters import Parameters
from autocompress.engine.proposers import make_sampler
from autocompress.engine.store import STUDY_NAME, Place
from autocompress.engine.study import Study, read_study
from autocompress.errors import RunError
from autocompress.run.locks import driver_lock
from tests.engine.fakes import SPACE, FakeEvaluator, size_of


def study_at(path, sampler="random", budget=None, space=SPACE, objectives=("accuracy", "size")):
    return Study(
        Place(path),
        Parameters(space),
        sampler=lambda finished: make_sampler(sampler, finished),
        objectives=objectives,
        budget=budget or Budget(),
    )


def plan_of(*bits, keep=1.0):
    return Plan({"l0/keep": keep} | {f"l{i}/w_bits": b for i, b in enumerate(bits)})


def test_scores_are_read_back_and_never_evaluated_twice(tmp_path):
    path = tmp_path / "study.log"
    first = FakeEvaluator()
    drive(study_at(path), first, 25, lambda _: None)
    second = FakeEvaluator()
    again = study_at(path)
    assert [s.to_json() for s in again.scores] == [s.to_json() for s in read_study(Place(path))[0]]
    drive(again, second, 40, lambda _: None)
    assert len(first.calls) == 25
    assert len(second.calls) == 15
    assert not set(first.calls) & set(second.calls)
    assert [score.trial for score in again.scores] == list(range(40))


@pytest.mark.parametrize("cut", [1, 7, 60])
def test_a_torn_last_line_costs_only_itself(tmp_path, cut):
    path = tmp_path / "study.log"
    drive(study_at(path), FakeEvaluator(), 20, lambda _: None)
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    (tmp_path / "study.log.lock").symlink_to(path)  # of the writer that was killed
    study = study_at(path)
    assert study.completed == 19
    drive(study, FakeEvaluator(), 20, lambda _: None)
    assert read_study(Place(path))[0][-1].trial == 19
    assert len({score.key for score in read_study(Place(path))[0]}) == 20


def test_a_last_line_that_is_torn_but_ended_costs_only_itself(tmp_path):
    path = tmp_path / "study.log"
    drive(study_at(path), FakeEvaluator(), 8, lambda _: None)
    path.write_bytes(path.read_bytes()[:-30] + b"\n")
    study = study_at(path)
    assert study.completed == 7
    drive(study, FakeEvaluator(), 8, lambda _: None)
    assert len(read_study(Place(path))[0]) == 8


def test_the_journal_opens_in_optuna(tmp_path):
    path = tmp_path / "study.log"
    budget = Budget(latency_ms=2)
    evaluator = FakeEvaluator(budget=budget)
    drive(study_at(path, budget=budget), evaluator, 18, lambda _: None)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
    assert len(study.trials) > 18  # plans over budget, which were not built, are trials too
    assert len(evaluator.calls) == 18
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)
    assert study.directions == [
        optuna.study.StudyDirection.MAXIMIZE,
        optuna.study.StudyDirection.MINIMIZE,
    ]
    inside = [trial for trial in study.trials if trial.params]
    assert len(inside) == len(study.trials) - 1  # the uncompressed model is outside the space
    assert set(inside[0].params) == set(SPACE.knobs)
    assert all(set(trial.constraints) == {"latency_ms"} for trial in study.trials)
    assert study.best_trials


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_every_sampler_proposes_plans_of_the_space(tmp_path, sampler):
    budget = Budget(latency_ms=2.0)
    study = study_at(tmp_path / "study.log", sampler, budget)
    evaluator = FakeEvaluator(budget=budget)
    drive(study, evaluator, 24, lambda _: None)
    assert study.completed == 24
    assert len(set(evaluator.calls)) == 24
    assert all(SPACE.contains(plan) for plan in evaluator.calls[1:])
    baselines = {plan for _, plan in SPACE.baselines()}
    assert all(size_of(plan) / 110 <= 2.0 or plan in baselines for plan in evaluator.calls)


def test_failures_are_kept_and_do_not_count(tmp_path):
    path = tmp_path / "study.log"
    evaluator = FakeEvaluator(fail=lambda call: call % 5 == 1)
    drive(study_at(path), evaluator, 20, lambda _: None)
    scores = read_study(Place(path))[0]
    failed = [score for score in scores if score.outcome == "failed"]
    assert len(scores) - len(failed) == 20
    assert failed
    assert all(score.message == "it broke" for score in failed)


def test_fingerprints_say_what_changed(tmp_path):
    study = study_at(tmp_path / "study.log")
    study.check_fingerprints({"model": "a", "data": "b"})
    study.check_fingerprints({"model": "a", "data": "b"})
    with pytest.raises(RunError, match="since then: data"):
        study_at(tmp_path / "study.log").check_fingerprints({"model": "a", "data": "c"})


def test_test_figures_stand_beside_the_score(tmp_path):
    path = tmp_path / "study.log"
    study = study_at(path)
    drive(study, FakeEvaluator(), 5, lambda _: None)
    study.add_test(study.scores[2], (0.9, 0.8, 0.95))
    found = read_study(Place(path))[0]
    assert (found[2].test_accuracy, found[2].test_low, found[2].test_high) == (0.9, 0.8, 0.95)
    assert found[1].test_accuracy != found[1].test_accuracy


@pytest.mark.parametrize("content", ["hello\n", '{"op_code": 99}\n', "[1]\n"])
def test_a_file_that_is_no_study_is_refused(tmp_path, content):
    path = tmp_path / "study.log"
    path.write_text(content * 2)
    with pytest.raises(RunError, match="that autocompress wrote"):
        read_study(Place(path))[0]


def test_a_file_of_one_line_that_is_no_study_is_not_cut(tmp_path):
    path = tmp_path / "study.log"
    path.write_text("garbage\n")
    with pytest.raises(RunError, match="that autocompress wrote"):
        study_at(path)
    assert path.read_text() == "garbage\n"


def test_a_study_of_another_program_is_refused(tmp_path):
    path = tmp_path / "study.log"
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    other = optuna.create_study(study_name=STUDY_NAME, storage=storage)
    other.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(RunError, match="that autocompress wrote"):
        read_study(Place(path))[0]


def test_the_lock_names_its_holder_and_frees_itself(tmp_path):
    with driver_lock(tmp_path), pytest.raises(RunError, match="process"), driver_lock(tmp_path):
        pass
    with driver_lock(tmp_path):
        assert "process" in (tmp_path / "driver.txt").read_text()


def test_parameters_are_ordinal_and_invertible():
    parameters = Parameters(SPACE)
    assert set(parameters.distributions) == set(SPACE.knobs)
    assert (
        "step"
        in json.loads(
            optuna.distributions.distribution_to_json(parameters.distributions["l0/keep"])
        )["attributes"]
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(50):
        trial = study.ask()
        plan = parameters.suggest(trial)
        assert SPACE.contains(plan)
        assert parameters.of(plan) == pytest.approx(trial.params)
        study.tell(trial, 0.0)
    assert parameters.of(Plan()) is None


def test_nsga2_breeds_from_the_baselines(tmp_path):
    study = study_at(tmp_path / "study.log", "nsga2")
    drive(study, FakeEvaluator(), 40, lambda _: None)
    last = study._store._study.get_trials(deepcopy=False)[-1]
    assert last.system_attrs["NSGAIISampler:generation"] == 1


BUDGET = Budget(latency_ms=1.0, max_size_bytes=1000, max_memory_bytes=10_000)


def told_over_budget(study, plan, accuracy=0.7):
    evaluator = FakeEvaluator(budget=study.budget)
    trial, asked = study.ask(plan)
    assert asked == plan
    score = evaluator.over_budget(plan, Recipe(), evaluator.estimate(plan), accuracy)
    return study.add(score, trial)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_a_plan_over_budget_is_told_by_what_was_predicted(tmp_path, sampler):
    path = tmp_path / "study.log"
    study = study_at(path, sampler, BUDGET)
    drive(study, FakeEvaluator(budget=BUDGET), 5, lambda _: None)
    plan = plan_of(8, 8, 6, 6)
    score = told_over_budget(study, plan)
    assert (score.outcome, score.trial, study.completed) == ("over_budget", 5, 5)
    assert score.message == "predicted to exceed latency_ms by 155% at least"
    assert study.answer(score.key) is score
    assert read_study(Place(path))[0][-1].to_json() == score.to_json()
    again = study_at(path, sampler, BUDGET)
    assert again.completed == 5
    for told in (study._store._study, study._memory, again._memory):
        trial = told.get_trials(deepcopy=False)[-1]
        assert trial.state == optuna.trial.TrialState.COMPLETE
        assert trial.values == [0.7, 280.0]
        assert trial.constraints == pytest.approx(
            {"latency_ms": 1.8, "max_size_bytes": -0.72, "max_memory_bytes": -0.944}
        )
        assert len(trial.params) == 5
    again.ask()  # samplers want all constraints of all trials


def test_only_what_was_measured_guesses_accuracies(tmp_path):
    study = study_at(tmp_path / "study.log", budget=BUDGET)
    assert study.nearest_accuracy(plan_of(2, 2, 2, 2)) == 0.0
    evaluator = FakeEvaluator(budget=BUDGET, fail=lambda call: call == 2)
    drive(study, evaluator, 3, lambda _: None)
    measured = [score.accuracy for score in study.scores if score.outcome == "ok"]
    assert len(measured) == 3
    assert len(study.scores) == 4
    told_over_budget(study, plan_of(6, 6, 6, 6), accuracy=123.0)
    near = plan_of(6, 6, 6, 8)
    assert study.nearest_accuracy(near) == pytest.approx(sum(measured) / 3)
    drive(study, evaluator, 20, lambda _: None)

    def away(plan):
        spans = {"w_bits": 6, "keep": 0.5}
        return sum(
            abs(near.get(*name.split("/")) - plan.get(*name.split("/"))) / spans[name[3:]]
            for name in SPACE.knobs
        )

    done = sorted((away(s.plan), s.accuracy) for s in study.scores if s.outcome == "ok")
    assert done[4][0] < done[5][0]  # the five are no matter of taste
    assert study.nearest_accuracy(near) == pytest.approx(sum(a for _, a in done[:5]) / 5)
