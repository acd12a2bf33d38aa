"""Every executor evaluates what the scheduler gives out, once, whatever trials do to it."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from autocompress.core.execution import Execution
from autocompress.core.plan import Plan
from autocompress.engine.executors import Serial, make_executor, worker
from autocompress.engine.proposers.guided.sensitivity import questions
from autocompress.engine.proposers.guided.sensitivity_cache import SensitivityCache
from autocompress.errors import TaskError
from autocompress.targets.checkfile import Check, check_path
from autocompress.transforms.sensitivity import Effects
from tests.engine.executors.support import SPACE, searched
from tests.engine.test_evaluator import make_evaluator
from tests.waiting import FAR, until

LARGE = 0.0122  # made-up milliseconds of the uncompressed file alone


@pytest.fixture(scope="module")
def cluster():
    """One cluster for all tests of this file: to start one takes seconds."""
    ray = pytest.importorskip("ray", reason="needs the package ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


NAMES = ("here", "child", "ray")
AWAY = NAMES[1:]


@pytest.fixture
def make(request):
    """Return a maker of the executor that a test is parametrised by, from its limits."""

    def made(name: str, **limits):
        if name == "ray":
            request.getfixturevalue("cluster")
            return make_executor(Execution(workers=2, **limits))
        return Serial(Execution(**({"trial_seconds": FAR} if name == "child" else {}) | limits))

    return made


def once(folder: Path) -> bool:
    """Tell whether this is the first call, in any process."""
    try:
        (folder / "called").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@pytest.mark.parametrize("name", NAMES)
def test_all_is_evaluated_once_and_as_anywhere(tmp_path, make, name):
    study = searched(tmp_path / "run", make(name), 20)
    assert study.completed == len(study.scores) == 20
    assert len({score.key for score in study.scores}) == 20
    assert study.running == []
    assert [score.trial for score in study.scores] == list(range(20))
    names = {path.name for path in (tmp_path / "run" / "artifacts").iterdir()}
    files = {score.artifact for score in study.scores}
    assert names == files | {f"{file}.check.npz" for file in files}
    for score in study.scores:
        path = tmp_path / "run" / "artifacts" / score.artifact
        assert hashlib.sha256(path.read_bytes()).hexdigest() == score.sha256
        assert Check.read(check_path(path)).sha256 == score.sha256
    known = {score.plan: score for score in searched(tmp_path / "here", Serial(), 20).scores}
    shared = [score for score in study.scores if score.plan in known]
    assert len(shared) >= len(SPACE.baselines())
    for score in shared:
        other = known[score.plan]
        assert (score.accuracy, score.sha256) == (other.accuracy, other.sha256)
        assert (score.baseline, score.macs) == (other.baseline, other.macs)
    assert not (tmp_path / "run" / "work").exists()


@pytest.mark.parametrize("name", NAMES)
def test_questions_are_answered_before_the_sampler_is_asked(tmp_path, make, name):
    cache, told = SensitivityCache(None, wanted=questions(SPACE, {})), []
    study = searched(tmp_path, make(name), 20, progress=told.append, cache=cache)
    assert study.completed == 20
    direct = Effects(make_evaluator(tmp_path).compressor)
    assert cache.known == {plan: pytest.approx(direct(plan)) for plan in cache.wanted}
    assert cache.seconds > 0
    steps = [(step.done, step.total) for step in told if step.what == "effects profiled"]
    assert steps == [(done, len(cache.wanted)) for done in range(1, len(cache.wanted) + 1)]
    proposed = [step.score for step in told if step.score and not step.score.baseline]
    last = max(place for place, step in enumerate(told) if step.what == "effects profiled")
    assert told.index(next(s for s in told if s.score is proposed[0])) > last


@pytest.mark.parametrize("name", NAMES)
def test_a_question_that_has_no_answer_ends_the_asking(tmp_path, make, name):
    wanted = [Plan({"nobody/keep": tenths / 10}) for tenths in range(1, 9)]
    cache = SensitivityCache(None, wanted=wanted)
    assert searched(tmp_path, make(name), 20, cache=cache).completed == 20
    assert "nobody" in cache.trouble
    assert not cache.known


@pytest.mark.parametrize("name", NAMES)
def test_a_failure_is_a_score_and_the_search_goes_on(tmp_path, make, name):
    def evaluate(predict):
        answers = predict(np.zeros((3, 6), np.float32))
        if predict.fixed_ms > 0.0118:  # the larger files
            raise KeyError("labels")
        return np.ones(len(answers))

    study = searched(tmp_path, make(name), 6, evaluate)
    failed = [score for score in study.scores if score.outcome == "failed"]
    assert study.completed == 6
    assert failed
    assert all(score.message.startswith("KeyError: 'labels' (") for score in failed)
    assert all(score.size_bytes <= 1800 for score in study.scores if score.outcome == "ok")


@pytest.mark.parametrize("name", NAMES)
def test_a_search_that_cannot_work_ends(tmp_path, make, name):
    def evaluate(predict):
        raise ValueError("never")

    with pytest.raises(TaskError, match="never"):
        searched(tmp_path, make(name), 6, evaluate)


class Locked:
    """Labels that go into a payload and do not come out."""

    def __call__(self, predict):
        return np.ones(3)

    def __reduce__(self):
        return unlock, ()


def unlock():
    raise RuntimeError("needs the licence server")


@pytest.mark.parametrize("name", AWAY)
def test_a_task_that_cannot_be_made_elsewhere_says_why(tmp_path, make, name):
    with pytest.raises(TaskError, match=r"usable in another process.*the licence server"):
        searched(tmp_path, make(name), 4, Locked())


def test_a_job_that_waits_for_a_cpu_is_given_room(tmp_path, make, monkeypatch):
    executor = make("ray")
    import ray

    monkeypatch.setattr("autocompress.engine.executors.ray_tune._STARVED", 1.0)
    holder = ray.remote(num_cpus=1)(Locked).remote()
    ray.get(holder.__ray_ready__.remote())
    try:
        assert searched(tmp_path, executor, 4).completed == 4
    finally:
        ray.kill(holder)


@pytest.mark.parametrize("name", AWAY)
def test_a_lost_worker_costs_nothing_but_its_time(tmp_path, make, name):
    def evaluate(predict):
        if predict.fixed_ms > LARGE and once(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
        return np.ones(3)

    study = searched(tmp_path / "run", make(name), 8, evaluate)
    assert [score.outcome for score in study.scores] == ["ok"] * 8
    assert len({score.key for score in study.scores}) == 8


@pytest.mark.parametrize("name", AWAY)
def test_what_loses_two_workers_is_a_failure(tmp_path, make, name):
    def evaluate(predict):
        if predict.fixed_ms > LARGE:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.ones(3)

    study = searched(tmp_path, make(name), 4, evaluate)
    failed = [score for score in study.scores if score.outcome == "failed"]
    assert [score.baseline for score in failed] == ["uncompressed"]
    assert "the worker was lost" in failed[0].message
    assert failed[0].message.endswith("twice")


def out_of_time(search):
    """Search under limits until one that this machine's other trials keep; return that and scores.

    ``search`` makes a study from a limit; one of its trials takes more than any.
    """
    for seconds in (2.0, 8.0, 32.0, 128.0, 512.0):
        with contextlib.suppress(TaskError):  # too many at the start
            failed = [score for score in search(seconds).scores if score.outcome == "failed"]
            if len(failed) == 1:
                return seconds, failed
    raise AssertionError(f"other trials take more than {seconds} s")


@pytest.mark.parametrize("name", AWAY)
def test_a_trial_has_its_time(tmp_path, make, name):
    def evaluate(predict):
        if predict.fixed_ms > LARGE:
            time.sleep(2 * FAR)
        return np.ones(3)

    seconds, failed = out_of_time(
        lambda most: searched(tmp_path / f"{most}", make(name, trial_seconds=most), 4, evaluate)
    )
    assert [score.baseline for score in failed] == ["uncompressed"]
    assert failed[0].message == f"a trial may take {seconds:g} s, and it took more"


def test_what_a_trial_started_ends_with_it(tmp_path, make):
    def evaluate(predict):
        if predict.fixed_ms > LARGE:
            started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
            (tmp_path / "pid").write_text(str(started.pid))
            time.sleep(2 * FAR)
        return np.ones(3)

    out_of_time(
        lambda most: searched(tmp_path / f"{most}", make("child", trial_seconds=most), 4, evaluate)
    )
    stat = Path("/proc", (tmp_path / "pid").read_text(), "stat")
    assert until(lambda: not stat.exists() or " Z " in stat.read_text())


@pytest.mark.parametrize("name", AWAY)
def test_a_trial_has_its_memory(tmp_path, make, name):
    def evaluate(predict):
        if predict.fixed_ms > LARGE:
            np.ones(200_000_000)
        return np.ones(3)

    study = searched(tmp_path, make(name, trial_memory_bytes=400_000_000), 4, evaluate)
    failed = [score for score in study.scores if score.outcome == "failed"]
    assert [score.baseline for score in failed] == ["uncompressed"]
    assert failed[0].message.startswith("out of memory, a trial may take 400,000,000 bytes: ")


@pytest.mark.parametrize("name", AWAY)
def test_a_file_that_cannot_be_written_is_a_failure(tmp_path, make, name, monkeypatch):
    whole = worker.write_whole

    def full(path, content):
        if len(content) > 2000:
            raise worker.RunError("A file must be writable: No space left on device.")
        whole(path, content)

    monkeypatch.setattr(worker, "write_whole", full)
    study = searched(tmp_path, make(name), 4)
    failed = [score for score in study.scores if score.outcome == "failed"]
    assert [score.baseline for score in failed] == ["uncompressed"]
    assert "No space left" in failed[0].message


@pytest.mark.parametrize("name", NAMES)
def test_ctrl_c_once_finishes_what_is_running(tmp_path, make, name):
    told = []

    def progress(step):
        told.append(step)
        if step.done == 2 and not any(t.note for t in told):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path, make(name), 18, progress=progress)
    done = max(step.done for step in told)
    assert 2 <= done <= 4  # two workers may each have one more
    assert any("Ctrl-C once more leaves at once" in step.note for step in told)
    study = searched(tmp_path, make(name), 8)
    assert len(study.scores) == len({score.key for score in study.scores}) == 8


@pytest.mark.parametrize("name", AWAY)
def test_ctrl_c_twice_leaves_at_once(tmp_path, make, name):
    def progress(step):
        if step.done == 1 or step.note:
            os.kill(os.getpid(), signal.SIGINT)

    def evaluate(predict):
        if not once(tmp_path):
            time.sleep(FAR)
            (tmp_path / "waited for").touch()
        return np.ones(3)

    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "run", make(name), 18, evaluate, progress)
    assert not (tmp_path / "waited for").exists()
