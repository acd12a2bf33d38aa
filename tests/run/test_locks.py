import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from autocompress.engine.store import Place
from autocompress.errors import RunError
from autocompress.run import locks
from autocompress.run.locks import driver_lock, is_driven, study_lock
from tests.waiting import until

HOLDER = """
import sys, time
from pathlib import Path
from autocompress.run.locks import driver_lock, study_lock
from autocompress.engine.store import Place
with driver_lock(Path(sys.argv[1])), study_lock(Place(Path("x"), sys.argv[2], "one")):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def place(tmp_path):
    """Return makers of places, each with connections of its own, as drivers have."""
    opened = []

    def made(name="one"):
        opened.append(Place(tmp_path / "x", f"sqlite:///{tmp_path}/study.db", name))
        return opened[-1]

    yield made
    for each in opened:
        each.close()


@pytest.fixture
def holder(tmp_path):
    """A process that holds directory and study."""
    url = f"sqlite:///{tmp_path}/study.db"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run"), url],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_directory_names_its_holder_and_is_taken_over_when_that_dies(holder, tmp_path):
    directory = tmp_path / "run"
    assert is_driven(directory).startswith(f"process {holder.pid} on ")
    with (
        pytest.raises(RunError, match=f"held by process {holder.pid} on"),
        driver_lock(directory),
    ):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert is_driven(directory) == ""
    with driver_lock(directory):
        assert is_driven(directory).startswith(f"process {os.getpid()} on ")
    assert is_driven(directory) == is_driven(tmp_path / "none") == ""


def test_a_directory_that_cannot_be_written_is_looked_at(tmp_path, monkeypatch):
    def refused(self, timeout=None):
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "driver.lock").touch()
    with driver_lock(tmp_path):
        monkeypatch.setattr(locks.FileLock, "acquire", refused)
        assert is_driven(tmp_path).startswith(f"process {os.getpid()} on ")
    assert is_driven(tmp_path) == ""


def test_a_study_names_its_holder_and_is_taken_over_when_that_dies(holder, place):
    with pytest.raises(RunError, match=f"held by process {holder.pid} on"), study_lock(place()):
        pass
    with study_lock(place("another")):
        pass  # one of many studies
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with study_lock(place()) as confirm:
        confirm()
    with study_lock(place()):
        pass


def test_a_holder_elsewhere_is_dead_after_a_silent_minute(place, monkeypatch):
    monkeypatch.setattr(locks, "time", SimpleNamespace(time=lambda: 1000.0))
    monkeypatch.setattr(locks, "_BEAT", 3600.0)
    engine = sa.create_engine(place().url)
    with study_lock(place()) as confirm:
        with engine.begin() as connection:
            change = "update autocompress_drivers set holder = 'process 1 on elsewhere', beat = "
            connection.execute(sa.text(f"{change}970"))
        with (
            pytest.raises(RunError, match="process 1 on elsewhere"),
            study_lock(place()),
        ):
            pass
        with engine.begin() as connection:
            connection.execute(sa.text("update autocompress_drivers set beat = 910"))
        with study_lock(place()) as other:
            other()
            with pytest.raises(RunError, match="another has taken"):
                confirm()
    engine.dispose()


def test_signs_of_life_are_given(place, monkeypatch):
    monkeypatch.setattr(locks, "_BEAT", 0.05)
    engine = sa.create_engine(place().url)
    with study_lock(place()):
        with engine.begin() as connection:
            connection.execute(sa.text("update autocompress_drivers set beat = 0"))

        def given():
            with engine.begin() as connection:
                beats = connection.execute(sa.text("select beat from autocompress_drivers"))
                return beats.scalar() > 0

        assert until(given)
    engine.dispose()


def test_a_journal_needs_no_second_lock():
    with study_lock(Place(Path(tempfile.gettempdir()) / "none.log")) as confirm:
        confirm()
