"""Whole searches: through Python, resumed, refused, and interrupted from outside."""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import optuna
import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress.api import make_task as make_task_of
from autocompress.errors import (
    ArtifactError,
    AutocompressError,
    InputError,
    PlanError,
    RunError,
    SpaceError,
    TaskError,
)
from autocompress.tasks.base import accuracy_of

SPACE = {"*/keep": [0.5, 1.0], "*/w_bits": [2, 4, 8]}


class Transformer(nn.Module):
    """A classifier of 8 tokens of 8 numbers, written by hand."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(torch.randn(1, 8, width) * 0.1)
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 32), nn.Linear(32, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x) + self.place
        y = self.before(x)
        scores = self.query(y) @ self.key(y).transpose(1, 2) / 4
        x = x + self.out(scores.softmax(-1) @ self.value(y))
        x = x + self.down(torch.nn.functional.gelu(self.up(self.after(x))))
        return self.head(x.mean(1))


def make_task(model: nn.Module | None = None, evaluate=None) -> ac.Task:
    """A network agrees with its own answers: no training is needed for a real accuracy."""
    torch.manual_seed(5)
    model = (Transformer() if model is None else model).eval()
    inputs = torch.randn(300, 8, 8)
    with torch.no_grad():
        labels = model(inputs).argmax(1).numpy()
    return ac.Task(
        model=model,
        example_inputs=(inputs[:1],),
        calibration=[(inputs[:64],)],
        evaluate=evaluate or accuracy_of(inputs[64:180].numpy(), labels[64:180]),
        test=accuracy_of(inputs[180:].numpy(), labels[180:]),
        name="transformer",
    )


def run_search(directory: Path, task: ac.Task | None = None, **options) -> ac.Run:
    given = {"space": SPACE, "target": "null", "trials": 8, "sampler": "random", **options}
    return ac.search(task or make_task(), run_dir=directory, **given)


def completed(run: ac.Run) -> int:
    return sum(score.outcome == "ok" for score in run.scores)


def test_a_transformer_through_onnxruntime(tmp_path: Path) -> None:
    task = make_task()
    run = run_search(tmp_path / "run", task, target="onnxruntime", trials=12)
    assert completed(run) == 12
    reference = run.reference
    assert reference is not None
    assert reference.accuracy == 1.0
    baselines = {score.baseline for score in run.scores}
    assert {"uncompressed", "uniform 8-bit weights", "uniform keep 0.5, 8-bit weights"} <= baselines
    table = run.front().to_pandas()
    assert list(table.columns[:4]) == ["trial", "accuracy", "size_bytes", "latency_ms"]
    sizes, accuracies = table["size_bytes"].to_numpy(), table["accuracy"].to_numpy()
    assert len(set(zip(sizes, accuracies, strict=True))) == len(table)
    for name in ("front.csv", "front.png", "front.svg", "config.toml", "study.log"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    pick = run.front().pick(min_accuracy=0.9)
    path = pick.export(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    scores = task.evaluate(lambda array: session.run(None, {name: array})[0])
    assert float(np.mean(scores)) == pick.score.accuracy
    assert path.stat().st_size == pick.score.size_bytes < reference.size_bytes


def test_the_study_opens_in_optuna(tmp_path: Path) -> None:
    run = run_search(tmp_path)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
    storage = optuna.storages.JournalStorage(backend)
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    assert len(study.trials) == len(run.scores)
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}


def test_resume_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = run_search(tmp_path)
    before = (tmp_path / "study.log").read_bytes()
    again = run_search(tmp_path)
    assert again.scores == first.scores
    assert (tmp_path / "study.log").read_bytes() == before
    more = ac.open_run(tmp_path, make_task())
    assert more.resume(trials=1) is more
    assert completed(more) == 9
    more.resume(trials=2)
    assert completed(more) == 11
    assert more.scores[: len(first.scores)] == first.scores
    with pytest.raises(TaskError, match="given in Python"):
        ac.open_run(tmp_path).resume(trials=1)
    for bad in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="trials must be an integer"):
            ac.open_run(tmp_path, make_task()).resume(trials=bad)


def test_a_torn_line_loses_only_itself(tmp_path: Path) -> None:
    run_search(tmp_path)
    log = tmp_path / "study.log"
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])
    run = run_search(tmp_path)
    assert completed(run) == 8
    assert len({score.plan.digest for score in run.scores}) == len(run.scores)


def test_refuses_what_changed_and_names_it(tmp_path: Path) -> None:
    run_search(tmp_path)
    kept = (tmp_path / "study.log").read_bytes()
    torch.manual_seed(9)
    other = make_task(Transformer())
    original = make_task()
    moved = replace(original, calibration=[(torch.ones(64, 8, 8),)])
    for task, options, word in (
        (replace(original, model=Transformer().eval()), {}, "model"),
        (moved, {}, "data"),
        (original, {"space": {"*/w_bits": [4, 8]}}, "space"),
        (original, {"target": "onnxruntime"}, "target"),
        (original, {"seed": 1}, "seed"),
        (other, {"sampler": "tpe"}, "sampler"),
    ):
        with pytest.raises(RunError, match=word):
            run_search(tmp_path, task, **options)
    assert (tmp_path / "study.log").read_bytes() == kept


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    def inside(progress) -> None:
        if progress.done == 1:
            with pytest.raises(RunError):
                run_search(tmp_path)
            seen.append(progress.done)

    seen: list[int] = []
    run_search(tmp_path, progress=inside, trials=3)
    assert seen


def test_three_failures_at_the_start_stop_the_run(tmp_path: Path) -> None:
    for sentence, broken in (
        ("kaputt", lambda predict: 1 / 0 if False else _raise("kaputt")),
        ("nan", lambda predict: math.nan),
    ):
        with pytest.raises(AutocompressError, match=sentence):
            run_search(tmp_path / sentence, make_task(evaluate=broken))


def _raise(text: str) -> float:
    raise ValueError(text)


def test_one_failing_trial_is_kept_with_its_sentence(tmp_path: Path) -> None:
    good = make_task()
    calls: list[int] = []

    def evaluate(predict):
        calls.append(1)
        return _raise("once") if len(calls) == 5 else good.evaluate(predict)

    run = run_search(tmp_path, replace(good, evaluate=evaluate))
    failed = [score for score in run.scores if score.outcome == "failed"]
    assert len(failed) == 1
    assert "once" in failed[0].message
    assert completed(run) == 8


def test_a_truncated_artifact_is_not_exported(tmp_path: Path) -> None:
    run = run_search(tmp_path / "run")
    pick = run.front().pick()
    pick.path.write_bytes(pick.path.read_bytes()[:-5])
    with pytest.raises(ArtifactError, match="sha256"):
        pick.export(tmp_path / "model.bin")
    assert not (tmp_path / "model.bin").exists()


def test_artifacts_that_are_gone_or_damaged_are_built_again(tmp_path: Path) -> None:
    run = run_search(tmp_path)
    front = list(run.front())
    front[0].path.unlink()
    front[-1].path.write_bytes(b"short")
    (tmp_path / "front.png").unlink()
    again = run_search(tmp_path)
    assert [score.key for score in again.scores] == [score.key for score in run.scores]
    for pick in again.front():
        pick.artifact.verify()
    assert (tmp_path / "front.png").exists()


def test_a_test_that_raises_leaves_the_front(tmp_path: Path) -> None:
    run = run_search(tmp_path, replace(make_task(), test=lambda predict: _raise("no labels")))
    assert "no labels" in run.note
    assert completed(run) == 8
    assert (tmp_path / "front.csv").exists()


def test_a_full_disk_is_one_sentence_and_costs_nothing(tmp_path: Path, monkeypatch) -> None:
    add, calls = optuna.Study.add_trial, []

    def full(study, trial):
        calls.append(1)
        if len(calls) == 9:
            raise OSError(28, "No space left on device")
        add(study, trial)

    monkeypatch.setattr(optuna.Study, "add_trial", full)
    with pytest.raises(RunError, match=r"No space left.*are kept"):
        run_search(tmp_path)
    monkeypatch.undo()
    kept = ac.open_run(tmp_path).scores
    assert kept
    run = run_search(tmp_path)
    assert [score.key for score in run.scores[: len(kept)]] == [score.key for score in kept]
    assert completed(run) == 8


def test_factories_of_tasks_that_cannot_be_used(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mine.py").write_text("def broken():\n    raise ValueError('no data')\n")
    (tmp_path / "typo.py").write_text("def broken(:\n")
    monkeypatch.chdir(tmp_path)
    for options, text in (
        ({"name": "mine:broken"}, "ValueError: no data"),
        ({"name": "mine:broken", "size": 3}, "does not take these options"),
        ({"name": "typo:broken"}, "SyntaxError"),
        ({"name": ":"}, "must be importable"),
        ({"name": ".x:y"}, "must be importable"),
        ({"name": "os:sep"}, "must be importable"),
        ({"name": "digit"}, "'digits'"),
        ({"name": "digits", "seed": -1}, "seed must be"),
        ({"name": "digits", "network": ["a"]}, "network"),
    ):
        with pytest.raises(TaskError, match=text):
            make_task_of(options)


def test_bench_needs_files_that_take_the_same_inputs(tmp_path: Path) -> None:
    first = run_search(tmp_path / "a", target="onnxruntime", trials=1).front()[0].path
    assert ac.bench(first, reference=first).latency_ms > 0
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    x = torch.randn(8, 3)
    task = ac.Task(
        model=model, example_inputs=(x[:1],), calibration=[(x,)], evaluate=lambda _: 1.0
    )  # fmt: skip
    space = {"*/w_bits": [8, 32]}
    run = ac.search(task, space=space, trials=1, run_dir=tmp_path / "b")
    with pytest.raises(InputError, match="same inputs"):
        ac.bench(first, reference=run.front()[0].path)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"space": "ptg"}, InputError, "'ptq'"),
        ({"space": {"*/w_bit": [4]}}, SpaceError, "w_bits"),
        ({"space": {"querry/w_bits": [4]}}, SpaceError, "query"),
        ({"space": {"*/w_bits": [4, 9]}}, SpaceError, "9"),
        ({"target": "onnxruntme"}, InputError, "'onnxruntime'"),
        ({"sampler": "tpx"}, InputError, "'tpe'"),
        ({"trials": 0}, InputError, "trials"),
        ({"objectives": [["accuracy"], ["size"]]}, InputError, "objective"),
        ({"objectives": None}, InputError, "list"),
        ({"space": None}, InputError, "NoneType"),
        ({"budget": {"latency_ms": 1}}, InputError, "Budget"),
        ({"compress": {"importance": "enrgy"}}, InputError, "'energy'"),
        ({"compress": {"calibration": "mse"}}, InputError, "'calibrate'"),
        ({"objectives": ["accuracy", "sise"]}, InputError, "'size'"),
    ],
)
def test_bad_input_is_named_with_what_is_near(tmp_path: Path, options, error, text) -> None:
    with pytest.raises(error) as caught:
        run_search(tmp_path, **options)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "study.log").exists()


def test_models_and_data_that_cannot_be_used() -> None:
    good = make_task()
    for change, text in (
        ({"model": Transformer().train()}, "eval"),
        ({"model": Transformer().half().eval()}, "float32"),
        ({"calibration": [(torch.zeros(4, 9, 8),)]}, "calibration"),
        ({"example_inputs": (torch.zeros(2, 8, 8),)}, "batch"),
    ):
        with pytest.raises(TaskError, match=text):
            replace(good, **change)


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(RunError, match="writable"):
        run_search(blocked / "run")


def test_unknown_layers_of_a_plan_name_the_nearest() -> None:
    from autocompress.models.trace import trace

    task = make_task()
    network = trace(task.model, task.example_inputs)
    with pytest.raises(PlanError, match="query"):
        network.layer("quary")


CONFIG = """
[task]
name = "digits"
epochs = 2
[compress]
importance = "l2"
calibrate = "percentile"
[search]
space = "bits"
sampler = "random"
trials = 9
[target]
name = "onnxruntime"
"""


def start(config: Path, run: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "autocompress", "search", str(config), "--run", str(run)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


def rows(run: Path) -> int:
    return sum(score.outcome == "ok" for score in ac.open_run(run).scores)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_killed_and_resumed_is_as_if_never_interrupted(tmp_path: Path, kind: int) -> None:
    config, run = tmp_path / "digits.toml", tmp_path / "run"
    config.write_text(CONFIG)
    process = start(config, run)
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if (run / "config.toml").exists() and rows(run) >= 3:
            process.send_signal(kind)
            break
        time.sleep(0.05)
    process.communicate(timeout=120)
    assert process.returncode == (130 if kind == signal.SIGINT else -signal.SIGKILL)
    before = ac.open_run(run).scores
    assert 3 <= rows(run) < 9
    code = [sys.executable, "-m", "autocompress", "resume", str(run), "--quiet"]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    assert "uncompressed" in done.stdout
    after = ac.open_run(run).scores
    for old, new in zip(before, after, strict=False):
        kept = replace(new, test_accuracy=math.nan, test_low=math.nan, test_high=math.nan)
        assert kept.to_json() == old.to_json()
    assert rows(run) == 9
    assert len({score.plan.digest for score in after}) == len(after)
    with (run / "front.csv").open() as file:
        assert list(csv.DictReader(file))
