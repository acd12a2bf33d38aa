"""What is Ray's own: places, processes that stay, and what a cluster is asked for."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the package ray")

from autocompress.core.execution import Execution
from autocompress.engine.executors import Serial, make_executor, ray_tune
from autocompress.engine.executors.ray_tune import Tuned, _Searcher
from autocompress.engine.scheduler import Scheduler
from autocompress.errors import InputError
from tests.engine.fakes import FakeEvaluator
from tests.engine.test_study import study_at


def test_who_evaluates_is_what_the_execution_says():
    assert isinstance(make_executor(Execution()), Serial)
    assert isinstance(make_executor(Execution(workers=2)), Tuned)
    assert isinstance(make_executor(Execution(workers=0, ray_address="auto")), Tuned)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:many", "local"])
def test_a_cluster_that_is_not_there_is_a_sentence(address: str):
    with pytest.raises(InputError, match=f"must answer at its address: {address} does not"):
        Tuned(Execution(workers=1, ray_address=address))


def test_what_listens_and_is_no_cluster_is_a_sentence(monkeypatch):
    monkeypatch.setattr(ray_tune, "_ANSWER", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match=f"{address} does not"):
            Tuned(Execution(workers=1, ray_address=address))


TASK = """
import numpy as np, torch
import autocompress as ac

def make():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 24), torch.nn.ReLU(), torch.nn.Linear(24, 4))
    x = torch.randn(50, 6)
    return ac.Task(model=net.eval(), example_inputs=(x[:1],), calibration=[(x,)],
                   evaluate=lambda predict: predict(x.numpy()).argmax(1) == 1)
"""
CONFIG = """
[task]
name = "cluster_task:make"
[search]
sampler = "random"
trials = 12
[target]
name = "null"
[space.knobs]
"*/w_bits" = [2, 3, 4, 8]
"""


def test_a_cluster_with_fewer_cpus_than_workers_is_enough_and_stays(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (tmp_path / "cluster_task.py").write_text(TASK)
    (tmp_path / "c.toml").write_text(CONFIG)
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "127.0.0.1:1"}
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--num-cpus=1",
             f"--port={port}", "--include-dashboard=false", "--block"]  # fmt: skip
    search = [sys.executable, "-m", "autocompress"]

    def run(*arguments: str, **settings: str):
        return subprocess.run(
            [*search, *arguments], cwd=tmp_path, env=os.environ | settings, capture_output=True,
            text=True, timeout=240,
        )  # fmt: skip

    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # sockets want short paths
        cluster = subprocess.Popen(
            [*start, f"--temp-dir={folder}"], env=os.environ | {"RAY_AUTH_MODE": "token"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            for _ in range(300):
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                time.sleep(0.2)
            where = ("--ray-address", f"127.0.0.1:{port}")
            closed = run("search", "c.toml", "--run", "r", *where, RAY_AUTH_MODE="disabled")
            assert closed.returncode == 2
            assert "asks for a token: set RAY_AUTH_MODE=token" in closed.stderr
            assert not (tmp_path / "r").exists()
            done = run(
                "search", "c.toml", "--run", "r", "--quiet", *where, "--workers", "4",
                RAY_AUTH_MODE="token",
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, "")
            more = run("resume", "r", "--trials", "1", RAY_AUTH_MODE="token")
            assert more.returncode == 0, more.stderr
            assert cluster.poll() is None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(cluster.pid, signal.SIGKILL)
            cluster.wait()
    gone = run("resume", "r", "--trials", "1")
    assert gone.returncode == 2
    assert "or give --workers N without an address" in gone.stderr
    here = run("resume", "r", "--trials", "1", "--workers", "1", **settings)
    assert here.returncode == 0, here.stderr
    assert "14 of 14 completed" in run("status", "r").stdout


def test_each_place_has_one_job_at_a_time(tmp_path: Path):
    scheduler = Scheduler(study_at(tmp_path / "study.log"), FakeEvaluator(), 5, lambda _: None)
    searcher, evaluator = _Searcher(scheduler, None, 2), FakeEvaluator()
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert {first["place"], second["place"]} == {0, 1}
    assert searcher.suggest("c") is None
    job = searcher.take("b")
    scheduler.done(job, evaluator(*job.arguments))
    assert searcher.take("b") is None
    assert searcher.suggest("c")["place"] == second["place"]
    searcher.on_trial_complete("a", error=True)  # its worker was lost: it comes again
    assert searcher.suggest("d")["place"] == first["place"]
    assert not scheduler.finished


def test_what_the_agenda_raises_ends_the_run_and_is_kept(tmp_path: Path):
    scheduler = Scheduler(study_at(tmp_path / "study.log"), FakeEvaluator(), 5, lambda _: None)
    searcher = _Searcher(scheduler, None, 2)

    def broken():
        raise KeyError("study")

    scheduler.next = broken
    assert searcher.suggest("a") == searcher.FINISHED
    assert isinstance(searcher.error, KeyError)
