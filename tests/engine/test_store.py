"""Every kind of store keeps finished trials and notes, each once, whatever fails meanwhile."""

import contextlib
import shutil
import sqlite3
import tempfile
import threading
from pathlib import Path

import optuna
import pytest
from optuna.study import StudyDirection

from autocompress.core.budget import Budget
from autocompress.engine import store as module
from autocompress.engine.loop import drive
from autocompress.engine.parameters import Parameters
from autocompress.engine.proposers import make_sampler
from autocompress.engine.store import Place, Store, public_url
from autocompress.engine.study import Study, read_study
from autocompress.errors import ConfigError, RunError
from tests.engine.fakes import SPACE, FakeEvaluator
from tests.engine.postgres import Server, binaries

DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
KINDS = ("journal", "sqlite", "postgresql")


@pytest.fixture(scope="module")
def server():
    if binaries() is None:
        pytest.skip("needs the binaries of a PostgreSQL server")
    pytest.importorskip("psycopg", reason="needs the package psycopg")
    made = Server(Path(tempfile.gettempdir()))
    made.start()
    yield made
    made.close()


@pytest.fixture
def place(request, tmp_path):
    """Return a place of the kind that a test is parametrised by."""

    opened = []

    def made(kind: str) -> Place:
        path = tmp_path / "study.log"
        if kind == "journal":
            return Place(path)
        if kind == "sqlite":
            opened.append(Place(path, f"sqlite:///{tmp_path}/study.db", "one"))
        else:
            opened.append(Place(path, request.getfixturevalue("server").url, tmp_path.name))
        return opened[-1]

    yield made
    for each in opened:
        each.close()


def trial(number: int) -> optuna.trial.FrozenTrial:
    return optuna.trial.create_trial(values=[number, 1.0], user_attrs={"number": number})


def study_in(place: Place) -> Study:
    return Study(
        place, Parameters(SPACE), sampler=lambda n: make_sampler("random", n),
        objectives=("accuracy", "size"), budget=Budget(),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_goes_on_from_any_store(kind, place):
    evaluator = FakeEvaluator()
    drive(study_in(place(kind)), evaluator, 12, lambda _: None)
    again = study_in(place(kind))
    assert again.completed == 12
    again.add_test(again.scores[3], (0.5, 0.4, 0.6))
    drive(again, evaluator, 20, lambda _: None)
    scores, notes = read_study(place(kind))
    assert [s.to_json() for s in scores] == [s.to_json() for s in again.scores]
    assert len(set(evaluator.calls)) == 20
    assert scores[3].test_high == 0.6
    assert notes["test:" + scores[3].key] == [0.5, 0.4, 0.6]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_there_before_it_is_made(kind, place):
    assert read_study(place(kind)) == ([], {})


@pytest.mark.parametrize("kind", KINDS)
def test_what_fails_is_written_once_when_it_can_be(kind, place, monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0.01)
    store = Store(place(kind), DIRECTIONS)
    real, calls = store._study.add_trial, []

    def flaky(frozen):
        calls.append(frozen)
        if len(calls) % 3 == 1:
            raise OSError(28, "No space left on device")
        real(frozen)
        if len(calls) % 3 == 2:
            raise OSError("the connection broke after the commit")

    monkeypatch.setattr(store._study, "add_trial", flaky)
    for number in range(4):
        store.add(trial(number))
    assert [t.user_attrs["number"] for t in store.trials] == list(range(4))
    assert [t.user_attrs["number"] for t in place(kind).open().get_trials()] == list(range(4))


def test_a_journal_is_mended_where_a_line_was_torn(place, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_PAUSE", 0.01)
    store = Store(place("journal"), DIRECTIONS)
    store.add(trial(0))
    real, torn = store._study.add_trial, []

    def full(frozen):
        if not torn:
            torn.append(frozen)
            with (tmp_path / "study.log").open("ab") as file:
                file.write(b'{"op_code":4,"work')
            raise OSError(28, "No space left on device")
        real(frozen)

    monkeypatch.setattr(store._study, "add_trial", full)
    store.add(trial(1))
    found = place("journal").open().get_trials()
    assert [t.user_attrs["number"] for t in found] == [0, 1]


def test_what_cannot_be_written_for_long_is_an_error(place, monkeypatch):
    monkeypatch.setattr(module, "_PAUSE", 0.01)
    told = []
    store = Store(place("journal"), DIRECTIONS, patience=0.05, tell=told.append)

    def full(frozen):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._study, "add_trial", full)
    with pytest.raises(RunError, match=r"must be writable.*No space left"):
        store.add(trial(0))
    assert len(told) == 1
    assert "No space left" in told[0]


def test_a_folder_that_is_gone_is_not_waited_for(tmp_path):
    (tmp_path / "run").mkdir()
    store = Store(Place(tmp_path / "run" / "study.log"), DIRECTIONS)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunError, match=r"run is gone, and what was in it\. Start in another"):
        store.add(trial(0))


def test_a_driver_that_was_taken_over_writes_no_more(place):
    def confirm():
        raise RunError("another has taken it over")

    store = Store(place("sqlite"), DIRECTIONS, confirm=confirm)
    with pytest.raises(RunError, match="taken it over"):
        store.add(trial(0))
    assert store.trials == []


def test_a_server_that_dies_and_comes_back_costs_nothing(server, place):
    store = Store(place("postgresql"), DIRECTIONS)
    store.add(trial(0))
    server.kill()
    later = threading.Timer(1.5, server.start)
    later.start()
    store.add(trial(1))
    later.join()
    store.set_note("one", [1, 2])
    assert [t.user_attrs["number"] for t in place("postgresql").open().get_trials()] == [0, 1]
    assert place("postgresql").open().user_attrs["one"] == [1, 2]


def test_a_trial_stored_twice_counts_once(place):
    drive(study_in(place("sqlite")), FakeEvaluator(), 5, lambda _: None)
    study = place("sqlite").open()
    study.add_trial(study.get_trials()[-1])
    scores, _ = read_study(place("sqlite"))
    assert [score.trial for score in scores] == list(range(5))
    assert study_in(place("sqlite")).completed == 5


@pytest.mark.parametrize(
    ("url", "error", "text"),
    [
        ("nonsense", ConfigError, "must be a URL such as postgresql"),
        ("cache+nothing://a@b/c", RunError, "must answer: cache"),
        ("postgresql+pg8000://me:secret@127.0.0.1:9/x", ConfigError, "needs a package"),
        ("sqlite:////nowhere/at/all/x.db", RunError, "must answer: sqlite"),
    ],
)
def test_a_database_that_is_not_to_be_had_is_a_sentence(tmp_path, url, error, text):
    with pytest.raises(error, match=text) as caught:
        Place(tmp_path / "study.log", url).open()
    assert "secret" not in str(caught.value)


def test_no_password_is_shown():
    assert public_url("postgresql+psycopg://me:pw@host:5/db") == "postgresql+psycopg://me@host:5/db"
    assert public_url("") == ""
    assert "hush" not in public_url("postgresql://me@host/db?sslpassword=hush&sslmode=require")
    assert "pw" not in str(Place(Path("x"), "postgresql+psycopg://me:pw@host/db"))


def test_a_file_that_is_no_database_is_a_sentence(tmp_path):
    (tmp_path / "x.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(RunError, match="must answer"):
        Place(tmp_path / "study.log", f"sqlite:///{tmp_path}/x.db").open()


def test_a_busy_database_is_waited_for(tmp_path):
    told = []

    def tell(text):
        told.append(text)
        other.rollback()

    place = Place(tmp_path / "study.log", f"sqlite:///{tmp_path}/study.db?timeout=0.1", "one")
    store = Store(place, DIRECTIONS, tell=tell)
    store.add(trial(0))
    with (
        contextlib.closing(place),
        contextlib.closing(sqlite3.connect(tmp_path / "study.db")) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        store.add(trial(1))
        assert len(store.trials) == 2
    (text,) = told
    assert "database is locked" in text
