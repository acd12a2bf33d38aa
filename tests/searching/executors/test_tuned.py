"""What is Ray's own: places, processes that stay, and what a cluster is asked for."""

from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the package ray")

from autocompress.errors import InputError
from autocompress.searching.agenda import Agenda
from autocompress.searching.driver import drive
from autocompress.searching.executors import Serial, make_executor
from autocompress.searching.executors.tuned import Tuned, _Searcher
from autocompress.spec.execution import Execution
from tests.searching.fakes import FakeEvaluator
from tests.searching.test_study import study_at


def test_who_evaluates_is_what_the_execution_says():
    assert isinstance(make_executor(Execution()), Serial)
    assert isinstance(make_executor(Execution(workers=2)), Tuned)
    assert isinstance(make_executor(Execution(workers=0, ray_address="auto")), Tuned)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:many"])
def test_a_cluster_that_is_not_there_is_a_sentence(tmp_path: Path, address: str):
    study = study_at(tmp_path / "study.log")
    executor = Tuned(Execution(workers=1, ray_address=address))
    evaluator = FakeEvaluator()
    evaluator.directory = tmp_path
    with pytest.raises(InputError, match=f"must answer at its address: {address} does not"):
        drive(study, evaluator, 3, lambda _: None, executor=executor)


def test_each_place_has_one_job_at_a_time(tmp_path: Path):
    agenda = Agenda(study_at(tmp_path / "study.log"), FakeEvaluator(), 5, lambda _: None)
    searcher, evaluator = _Searcher(agenda, None, 2), FakeEvaluator()
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert {first["place"], second["place"]} == {0, 1}
    assert searcher.suggest("c") is None
    job = searcher.take("b")
    agenda.done(job, evaluator(*job.arguments))
    assert searcher.take("b") is None
    assert searcher.suggest("c")["place"] == second["place"]
    searcher.on_trial_complete("a", error=True)  # its worker was lost: it comes again
    assert searcher.suggest("d")["place"] == first["place"]
    assert not agenda.finished


def test_what_the_agenda_raises_ends_the_run_and_is_kept(tmp_path: Path):
    agenda = Agenda(study_at(tmp_path / "study.log"), FakeEvaluator(), 5, lambda _: None)
    searcher = _Searcher(agenda, None, 2)

    def broken():
        raise KeyError("study")

    agenda.next = broken
    assert searcher.suggest("a") == searcher.FINISHED
    assert isinstance(searcher.error, KeyError)
