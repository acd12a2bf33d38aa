import pickle
import threading

import numpy as np
import pytest
import torch

from autocompress.core.plan import Plan, Recipe
from autocompress.engine import system
from autocompress.engine.executors.worker import (
    Worker,
    memory_limited,
    pack,
    receive,
    threads_limited,
)
from autocompress.engine.scheduler import Job
from autocompress.errors import ConfigError, TaskError
from tests.engine.test_evaluator import make_evaluator

JOB = Job(Plan({"0/w_bits": 4}), Recipe())


def test_a_worker_answers_with_the_file_and_writes_nothing(tmp_path):
    evaluator = make_evaluator(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    answer = Worker(pack(evaluator))(JOB)
    assert sorted(tmp_path.rglob("*")) == before
    score = receive(evaluator, JOB, pickle.loads(pickle.dumps(answer)))
    assert evaluator.path(JOB.plan, JOB.recipe).read_bytes() == answer.content
    assert score.size_bytes == len(answer.content)
    assert evaluator.estimator._long or evaluator.estimator._short  # the driver has learnt


def test_a_run_on_another_machine_needs_nothing_of_this_one(tmp_path):
    evaluator = make_evaluator(tmp_path / "here")
    payload = pack(evaluator)
    evaluator.reference_path.unlink()
    (tmp_path / "here" / "artifacts").rmdir()
    (tmp_path / "here").rmdir()
    assert Worker(payload)(JOB).found.outcome == "ok"
    assert not (tmp_path / "here").exists()


def test_a_folder_that_someone_removed_is_a_failure(tmp_path):
    home = tmp_path / "run"

    def evaluate(predict):
        for path in home.glob("work/*/artifacts/*"):
            path.unlink()
        return np.ones(3)

    evaluator = make_evaluator(home, evaluate=evaluate)
    (home / "work").mkdir()
    found = Worker(pack(evaluator))(JOB).found
    assert found.outcome == "failed"
    assert found.message.startswith("A worker's folder must be writable: ")


def test_what_cannot_be_sent_is_a_sentence(tmp_path):
    lock = threading.Lock()

    def evaluate(predict):
        with lock:
            return np.ones(3)

    with pytest.raises(TaskError, match=r"must go through pickle.*lock"):
        pack(make_evaluator(tmp_path, evaluate=evaluate))


def test_threads_are_limited_and_given_back():
    before = torch.get_num_threads()
    with threads_limited(3):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before


def test_memory_that_cannot_be_limited_is_refused(tmp_path, monkeypatch):
    payload = pack(make_evaluator(tmp_path), 1000)
    monkeypatch.setattr(system, "mapped_bytes", lambda: None)
    with pytest.raises(ConfigError, match=r"trial_memory_bytes = 1,000 cannot be kept"):
        Worker(payload)


def test_memory_is_limited_and_given_back():
    with memory_limited(100_000_000), pytest.raises(MemoryError):
        np.ones(50_000_000)
    assert np.ones(50_000_000).nbytes == 400_000_000
    with memory_limited(None):
        assert np.ones(50_000_000).nbytes == 400_000_000
