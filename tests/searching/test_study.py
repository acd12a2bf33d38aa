import json

import optuna
import pytest

from autocompress.errors import RunError
from autocompress.searching.driver import drive
from autocompress.searching.parameters import Parameters
from autocompress.searching.samplers import make_sampler
from autocompress.searching.study import STUDY_NAME, Study, driver_lock, read_scores
from autocompress.spec.budget import Budget
from autocompress.spec.plan import Plan
from tests.searching.fakes import SPACE, FakeEvaluator


def study_at(path, sampler="random", budget=None, space=SPACE):
    return Study(
        path,
        Parameters(space),
        sampler=lambda finished: make_sampler(sampler, finished),
        objectives=("accuracy", "size"),
        budget=budget or Budget(),
    )


def test_scores_are_read_back_and_never_evaluated_twice(tmp_path):
    path = tmp_path / "study.log"
    first = FakeEvaluator()
    drive(study_at(path), first, 25, lambda _: None)
    second = FakeEvaluator()
    again = study_at(path)
    assert [s.to_json() for s in again.scores] == [s.to_json() for s in read_scores(path)]
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
    assert read_scores(path)[-1].trial == 19
    assert len({score.key for score in read_scores(path)}) == 20


def test_a_last_line_that_is_torn_but_ended_costs_only_itself(tmp_path):
    path = tmp_path / "study.log"
    drive(study_at(path), FakeEvaluator(), 8, lambda _: None)
    path.write_bytes(path.read_bytes()[:-30] + b"\n")
    study = study_at(path)
    assert study.completed == 7
    drive(study, FakeEvaluator(), 8, lambda _: None)
    assert len(read_scores(path)) == 8


def test_the_journal_opens_in_optuna(tmp_path):
    path = tmp_path / "study.log"
    drive(study_at(path, budget=Budget(latency_ms=2)), FakeEvaluator(), 15, lambda _: None)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    study = optuna.load_study(study_name=STUDY_NAME, storage=storage)
    assert len(study.trials) == 15
    assert all(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)
    assert study.directions == [
        optuna.study.StudyDirection.MAXIMIZE,
        optuna.study.StudyDirection.MINIMIZE,
    ]
    inside = [trial for trial in study.trials if trial.params]
    assert len(inside) == 14  # all but the uncompressed model, which is outside the space
    assert set(inside[0].params) == set(SPACE.knobs)
    assert all(set(trial.constraints) == {"latency_ms"} for trial in study.trials)
    assert study.best_trials


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_every_sampler_proposes_plans_of_the_space(tmp_path, sampler):
    budget = Budget(latency_ms=2.0)
    study = study_at(tmp_path / "study.log", sampler, budget)
    evaluator = FakeEvaluator()
    drive(study, evaluator, 30, lambda _: None)
    assert study.completed == 30
    assert len(set(evaluator.calls)) == 30
    assert all(SPACE.contains(plan) for plan in evaluator.calls[1:])


def test_failures_are_kept_and_do_not_count(tmp_path):
    path = tmp_path / "study.log"
    evaluator = FakeEvaluator(fail=lambda call: call % 5 == 1)
    drive(study_at(path), evaluator, 20, lambda _: None)
    scores = read_scores(path)
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
    found = read_scores(path)
    assert (found[2].test_accuracy, found[2].test_low, found[2].test_high) == (0.9, 0.8, 0.95)
    assert found[1].test_accuracy != found[1].test_accuracy


@pytest.mark.parametrize("content", ["hello\n", '{"op_code": 99}\n', "[1]\n"])
def test_a_file_that_is_no_study_is_refused(tmp_path, content):
    path = tmp_path / "study.log"
    path.write_text(content * 2)
    with pytest.raises(RunError, match="journal"):
        read_scores(path)


def test_a_study_of_another_program_is_refused(tmp_path):
    path = tmp_path / "study.log"
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    other = optuna.create_study(study_name=STUDY_NAME, storage=storage)
    other.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(RunError, match="journal"):
        read_scores(path)


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
    last = study._journal.get_trials(deepcopy=False)[-1]
    assert last.system_attrs["NSGAIISampler:generation"] == 1
