import json
import math
import os
import socket
import time
from pathlib import Path

import pytest

from autocompress.core.budget import Budget
from autocompress.engine.executors.heartbeats import Marker, marked, work_folder
from autocompress.engine.loop import drive
from autocompress.engine.store import Place
from autocompress.report.status import Running, Status, Step, status_json, status_text
from autocompress.run.locks import driver_lock
from autocompress.run.status import look
from tests.engine.fakes import FakeEvaluator
from tests.engine.test_study import study_at


def looked(directory, wanted=40, budget=None):
    place = Place(directory / "study.log")
    return look(directory, place, wanted, ("accuracy", "size"), budget or Budget())


def test_a_run_is_looked_at_while_it_is_driven(tmp_path):
    seen, start = [], time.time()

    class Looking(FakeEvaluator):
        def __call__(self, *given):
            seen.append(looked(tmp_path))
            return super().__call__(*given)

    evaluator = Looking(fail=lambda call: call == 7)
    evaluator.directory = tmp_path
    with driver_lock(tmp_path):
        drive(study_at(tmp_path / "study.log"), evaluator, 30, lambda _: None)
    for count, status in enumerate(seen):
        assert sum(status.outcomes.values()) == count
        assert status.driver == f"process {os.getpid()} on {socket.gethostname()}"
        (worker,) = status.workers
        assert worker.worker == status.driver
        assert worker.what
        assert 0 <= worker.seconds <= time.time() - start
    assert seen[0].workers[0].what == "uncompressed"
    end = looked(tmp_path)
    assert (end.driver, end.workers, end.completed, end.wanted) == ("", (), 30, 40)
    assert end.outcomes == {"ok": 30, "failed": 1}
    assert end.an_hour > 0
    assert "× smaller" in end.best
    assert [step.trials for step in end.steps] == list(range(3, 31, 3))
    shares = [step.share for step in end.steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_run_without_trials_has_a_status(tmp_path):
    status = looked(tmp_path)
    assert (status.outcomes, status.steps, status.best) == ({}, (), "")
    assert math.isnan(status.an_hour)
    assert json.loads(status_json(status))["an_hour"] is None
    assert "0 of 40 completed" in status_text(status)
    assert "no driver" in status_text(status)


def test_only_living_workers_are_shown(tmp_path):
    with work_folder(tmp_path) as folder:
        Marker(tmp_path)
        (folder / f"{socket.gethostname()}-999999999.json").write_text("{}")
        (folder / "elsewhere-5.json").write_text('{"what": "x", "since": 1.0}')
        (folder / "elsewhere-6.json").write_text("torn")
        found = {(worker.host, worker.pid, worker.what) for worker in marked(tmp_path)}
        assert found == {("elsewhere", 5, "x"), (socket.gethostname(), os.getpid(), "")}
    assert marked(tmp_path) == []


STATUS = Status(
    directory=Path("runs/one"), driver="process 5 on host", wanted=100,
    outcomes={"ok": 50, "over_budget": 4, "failed": 1}, baselines=21,
    workers=(Running("process 6 on host", "uniform 8-bit weights", 75.0), Running("w", "", 0.0)),
    an_hour=600.0, silent=3.0, best="4.0× smaller, +0.1 points",
    steps=(Step(25, 0.05, 0.5), Step(50, 2.0, 1.0)),
)  # fmt: skip


def test_the_words(tmp_path):
    assert status_text(STATUS).splitlines() == [
        "runs/one: driven by process 5 on host",
        "trials: 50 of 100 completed, 21 of them baselines (50 ok, 4 over budget, 1 failed)",
        "best: 4.0× smaller, +0.1 points",
        "last recorded: 3 s ago",
        "speed: 600 trials an hour, 5 min 0 s to go",
        "workers: 2 alive, 1 evaluate",
        "  process 6 on host: uniform 8-bit weights, for 1 min 15 s",
        "hypervolume, as a share of what it is now:",
        "    50.0% after 25 trials, 3 min 0 s",
        "   100.0% after 50 trials, 2.0 h",
    ]
    data = json.loads(status_json(STATUS))
    assert (data["directory"], data["completed"]) == ("runs/one", 50)
    assert data["steps"][1] == {"trials": 50, "hours": 2.0, "share": 1.0}


@pytest.mark.parametrize("driver", ["", "process 5 on host"])
def test_a_finished_run_has_nothing_to_go(driver):
    from dataclasses import replace

    text = status_text(replace(STATUS, driver=driver, wanted=50))
    assert "to go" not in text
    assert ("alive" in text) == bool(driver)
