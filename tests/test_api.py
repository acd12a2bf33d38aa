"""Whole searches: through Python, resumed, refused, and interrupted from outside."""

import csv
import json
import math
import os
import re
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
from autocompress.cost import fit_latency as calibrating
from autocompress.cost.fit_latency import Calibration
from autocompress.engine import prepare
from autocompress.errors import (
    ArtifactError,
    AutocompressError,
    InputError,
    PlanError,
    RunError,
    SpaceError,
    TaskError,
)
from autocompress.targets.null import Null
from autocompress.tasks.base import accuracy_of

SPACE = {"*/keep": [0.5, 1.0], "*/w_bits": [2, 4, 8]}
# what decides about a predicted latency: the null target's then goes from 0.012 to 0.016 ms
KEEP = {"*/keep": [0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]}
TIGHT = ac.Budget(latency_ms=0.014)


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


class Small(nn.Module):
    """A classifier that is quick to trace and to build."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Linear(8, 32), nn.Linear(32, 24), nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.mid(torch.relu(self.stem(x.mean(1))))))


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
    receipt = run.explain(pick.score.trial)
    layers = {line.name: line for line in receipt.lines if line.after.channels}
    assert set(layers) == {
        layer.partition("/")[0] for layer in pick.plan.settings if "bits" in layer
    }
    assert all(line.after.profiled_ms > 0 for line in layers.values())
    assert receipt.total("size_bytes") < receipt.total("size_bytes", after=False)


def test_a_host_of_the_other_kind_is_told(tmp_path: Path, monkeypatch) -> None:
    run_search(tmp_path)
    said: list[str] = []
    ac.open_run(tmp_path, make_task()).resume(1, lambda progress: said.append(progress.note))
    assert not any("was begun on a CPU" in note for note in said)
    monkeypatch.setattr(Null, "saturates", lambda self: True)
    ac.open_run(tmp_path, make_task()).resume(1, lambda progress: said.append(progress.note))
    (note,) = {note for note in said if "was begun on a CPU" in note}
    assert "this one's add 8-bit products in 16 bits (no VNNI)" in note


def test_a_portable_run_is_another_than_one_that_is_not(tmp_path: Path) -> None:
    run_search(tmp_path)
    with pytest.raises(RunError, match="portable"):
        run_search(tmp_path, portable=False)


@pytest.mark.parametrize("given", [192, 260])
def test_it_says_how_many_calibration_inputs_are_used(tmp_path: Path, given: int) -> None:
    task = make_task()
    task = replace(task, calibration=[(torch.randn(given // 2, 8, 8),)] * 2)
    notes: list[str] = []
    run_search(tmp_path / "run", task, trials=1, progress=lambda p: notes.append(p.note))
    said = [note for note in notes if "calibration inputs are used" in note]
    some = "192 of the 260 calibration inputs are used, drawn over all of them"
    assert said == ([some] if given > 192 else [])


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
        (original, {"budget": ac.Budget(latency_ms=3)}, "budget"),
        (original, {"hardware": "cortex-m7"}, "hardware"),
        (other, {"sampler": "tpe"}, "model"),  # another sampler alone may go on
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


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"space": "ptg"}, InputError, "'ptq'"),
        ({"space": {"*/w_bit": [4]}}, SpaceError, "w_bits"),
        ({"space": {"querry/w_bits": [4]}}, SpaceError, "query"),
        ({"space": {"*/w_bits": [4, 9]}}, SpaceError, "9"),
        ({"target": "onnxruntme"}, InputError, "'onnxruntime'"),
        ({"hardware": "cortex-m8"}, InputError, "'cortex-m7'"),
        ({"hardware": "no/such.toml"}, InputError, "such.toml"),
        ({"objectives": ["accuracy", "energy"]}, InputError, "--hardware"),
        ({"budget": ac.Budget(max_energy_mj=1.0)}, InputError, "--hardware"),
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


def of_outcome(run: ac.Run, outcome: str) -> list[ac.Score]:
    return [score for score in run.scores if score.outcome == outcome]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do without pictures, which take longer than such searches."""
    monkeypatch.setattr(ac.Front, "plot", lambda front, path: path.touch())


def small_task() -> ac.Task:
    torch.manual_seed(5)
    return make_task(Small())


def small_search(directory: Path, **options) -> ac.Run:
    return run_search(directory, small_task(), **options)


def test_a_size_budget_spends_no_trial_on_what_cannot_meet_it(tmp_path: Path, quick) -> None:
    budget = ac.Budget(max_size_bytes=2700)
    run = small_search(tmp_path, budget=budget, trials=30)
    over = of_outcome(run, "over_budget")
    assert len(over) >= 3
    assert completed(run) == 30
    files = {path.name.partition(".")[0] for path in (tmp_path / "artifacts").iterdir()}
    assert files == {score.key for score in of_outcome(run, "ok")}
    assert all(score.figure("size_bytes") > 2700 for score in over)
    searched = [s for s in of_outcome(run, "ok") if not s.baseline]
    assert searched
    for score in searched:
        assert abs(score.estimates["size_bytes"] / score.size_bytes - 1) <= 0.01
        assert score.estimates["size_bytes"] <= 2700 * 1.011
    assert any(s.size_bytes > 2700 for s in of_outcome(run, "ok") if s.baseline)
    front = run.front()
    assert all(pick.score.size_bytes <= 2700 for pick in front)
    assert f"{len(over)} plan" in str(front)
    assert run.floor["max_size_bytes"] < min(score.size_bytes for score in searched)
    again = ac.open_run(tmp_path, small_task())
    assert again.floor == run.floor
    assert [s.to_json() for s in again.scores] == [s.to_json() for s in run.scores]
    again.resume(trials=2)
    assert completed(again) == 32
    assert len({score.key for score in again.scores}) == len(again.scores)


def test_a_hopeless_budget_keeps_the_closest_miss_and_the_floor(tmp_path: Path) -> None:
    run = small_search(tmp_path, budget=ac.Budget(max_size_bytes=100), trials=40)
    assert "no plan is predicted to meet max_size_bytes" in run.note
    assert {score.outcome for score in run.scores} == {"ok"}
    assert all(score.baseline for score in run.scores)
    front = run.front()
    assert not front.feasible
    (miss,) = front
    assert miss.score.size_bytes == min(score.size_bytes for score in run.scores)
    floor = run.floor["max_size_bytes"]
    assert 100 < floor < miss.score.size_bytes
    for message in (front.message, ac.open_run(tmp_path).front().message):
        assert f"closest miss is trial {miss.score.trial}:" in message
        assert f"The predicted floor of this search space: size {floor:,.0f} bytes." in message
    assert not math.isnan(ac.open_run(tmp_path).front()[0].score.test_accuracy)
    assert (tmp_path / "front.png").exists()
    assert miss.export(tmp_path / "model.null").exists()


def test_memory_is_limited_and_improved(tmp_path: Path, quick) -> None:
    space = {"*/keep": [0.25, 0.5, 1.0]}
    options = {"space": space, "objectives": ("accuracy", "memory"), "trials": 10}
    run = run_search(tmp_path / "a", **options)
    used = [score.activation_bytes for score in run.front().measured]
    assert min(used) < max(used) == run.reference.activation_bytes
    best = run.front()[0].score
    limit = int(run.reference.activation_bytes) - 1
    run = run_search(tmp_path / "b", **options, budget=ac.Budget(max_memory_bytes=limit))
    assert all(pick.score.activation_bytes <= limit for pick in run.front())
    assert best.activation_bytes <= limit
    for score in of_outcome(run, "over_budget"):
        assert score.values(("accuracy", "memory"))[1] > limit


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a calibration be of a few plans, and count calibrations."""
    monkeypatch.setattr(calibrating, "_LEAST", 24)
    monkeypatch.setattr(calibrating, "_MOST", 32)
    count: list[int] = []

    def measure(*args, **options):
        count.append(1)
        return calibrating.calibrate(*args, **options)

    monkeypatch.setattr(prepare, "measure_calibration", measure)
    return count


def only_file() -> Path:
    (path,) = (Path(os.environ["AUTOCOMPRESS_CACHE"]) / "latency").iterdir()
    return path


def test_a_latency_budget_calibrates_once_and_holds(tmp_path: Path, few, quick) -> None:
    notes: list[str] = []
    options = {"space": KEEP, "budget": TIGHT}
    first = small_search(
        tmp_path / "a", **options, trials=15, progress=lambda p: notes.append(p.note)
    )
    assert any(note.startswith("calibrating the latency model") for note in notes)
    assert len(few) == 1
    assert len(Calibration.read(only_file()).samples) == 32
    over = of_outcome(first, "over_budget")
    assert over
    assert completed(first) == 15
    for score in over:
        assert score.constraints(TIGHT)["latency_ms"] > 0
        assert score.values(("accuracy", "latency"))[1] == score.estimates["latency_ms"]
        # the null target's latency follows from the size: what was not built can be checked
        assert 0.01 + score.figure("size_bytes") * 1e-6 > 0.014
    for score in of_outcome(first, "ok"):
        assert score.estimates["latency_low_ms"] < score.estimates["latency_high_ms"]
        if not score.baseline:
            assert score.estimates["latency_low_ms"] <= 0.014
    assert any(s.latency_ms > 0.014 for s in of_outcome(first, "ok") if s.baseline)
    assert all(pick.score.latency_high_ms <= 0.014 for pick in first.front())
    written = only_file().read_bytes()
    small_search(tmp_path / "b", **options, trials=3)
    ac.open_run(tmp_path / "a", small_task()).resume(trials=1)
    assert len(few) == 1
    assert only_file().read_bytes() == written


def test_what_is_not_limited_or_improved_is_not_calibrated(tmp_path: Path, few, quick) -> None:
    limited = ac.Budget(max_size_bytes=2700)
    small_search(tmp_path / "a", budget=limited, trials=2)
    small_search(tmp_path / "b", objectives=("accuracy", "latency"), trials=2)
    on_device = {"budget": ac.Budget(latency_ms=9.0), "hardware": "cortex-m7"}
    small_search(tmp_path / "c", **on_device, trials=2)
    assert few == []
    # plans over another limit are told with all objectives, so that these are predicted too
    small_search(tmp_path / "d", budget=limited, objectives=("accuracy", "latency"), trials=2)
    assert len(few) == 1


def test_a_calibration_of_another_version_is_made_again(tmp_path: Path, few, quick) -> None:
    notes: list[str] = []
    options = {"space": KEEP, "budget": TIGHT, "trials": 2}
    small_search(tmp_path / "a", **options)
    path = only_file()
    path.write_text(path.read_text().replace("null 1", "null 0"))
    small_search(tmp_path / "b", **options, progress=lambda p: notes.append(p.note))
    assert len(few) == 2
    assert any("was of null 0, this is null 1: it is measured again" in note for note in notes)
    assert Calibration.read(path).device["version"] == "null 1"


def test_a_search_goes_on_where_its_calibration_cannot_be_kept(
    tmp_path: Path, few, quick, monkeypatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "file"))
    run = small_search(tmp_path / "run", space=KEEP, budget=TIGHT, trials=9)
    assert completed(run) == 9
    assert len(few) == 1


def test_what_a_study_has_measured_refines_the_next_ones_model(
    tmp_path: Path, few, quick, monkeypatch
) -> None:
    run = small_search(tmp_path, space=KEEP, budget=TIGHT, trials=9)
    kept = len(Calibration.read(only_file()).samples)
    made = []
    model = Calibration.model

    def spy(self, reference_ms=None):
        made.append((list(self.samples), reference_ms))
        return model(self, reference_ms)

    monkeypatch.setattr(Calibration, "model", spy)
    run.resume(trials=1)
    ((samples, reference_ms),) = made
    assert reference_ms == run.reference.latency_ms
    assert len(samples) == kept + 9
    measured = [score.latency_ms for score in run.scores if score.outcome == "ok"]
    assert [ms for _, ms in samples[kept:]] == pytest.approx(measured[:9])


def test_hardware_that_is_not_at_hand_is_searched_for(tmp_path: Path, quick) -> None:
    def search(place: str, **options) -> ac.Run:
        return small_search(
            tmp_path / place, hardware="cortex-m7", space=SPACE | {"*/a_bits": [8, 32]},
            objectives=("accuracy", "latency", "energy"), **options,
        )  # fmt: skip

    run = search("a", trials=12)
    reference = run.reference
    assert reference.device == "cortex-m7"
    for score in run.scores:
        assert score.energy_mj > 0
        assert score.latency_limit_ms == score.device_latency_ms != score.latency_ms
    limit = reference.device_latency_ms * 0.88
    run = search("b", trials=14, budget=ac.Budget(latency_ms=limit))
    over = of_outcome(run, "over_budget")
    assert over
    assert all(score.figure("latency_limit_ms") > limit for score in over)
    assert all(pick.score.device_latency_ms <= limit for pick in run.front())
    assert "predicted from its device file, not measured" in str(run.front())
    assert ac.open_run(tmp_path / "b").config.hardware == "cortex-m7"
    hopeless = search("c", trials=40, budget=ac.Budget(max_energy_mj=reference.energy_mj / 1e3))
    assert "no plan is predicted to meet max_energy_mj" in hopeless.note
    assert " mJ. " in hopeless.front().message


class Odd(nn.Module):
    """A network with an operator of which no cost is known."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.atan(x).mean(1))


def test_an_operator_without_a_cost_is_named_where_a_device_needs_it(tmp_path: Path, quick) -> None:
    task = make_task(Odd())
    options = {"hardware": "cortex-m7", "space": {"*/w_bits": [4, 8]}, "trials": 2}
    for needs in (
        {"objectives": ("accuracy", "latency")},
        {"objectives": ("accuracy", "energy")},
        {"budget": ac.Budget(latency_ms=1.0)},
        {"budget": ac.Budget(max_energy_mj=1.0)},
    ):
        with pytest.raises(InputError, match=r"there is none for aten\.atan\.default"):
            run_search(tmp_path / "a", task, **options, **needs)
        assert not (tmp_path / "a" / "study.log").exists()
    run = run_search(tmp_path / "b", task, **options, budget=ac.Budget(max_size_bytes=10**6))
    assert completed(run) == 2
    assert all(math.isnan(score.energy_mj) for score in run.scores)
    assert all(score.macs == 32 for score in run.scores)


def test_a_trial_is_explained_layer_by_layer(tmp_path: Path, few, quick) -> None:
    space = KEEP | {"*/w_bits": [4, 8, 32]}
    run = small_search(tmp_path, space=space, budget=ac.Budget(max_size_bytes=3500), trials=20)
    plan = next(score for score in of_outcome(run, "ok") if not score.baseline)
    over = of_outcome(run, "over_budget")[0]
    for score in (plan, over, run.reference):
        receipt = run.explain(score.trial)
        assert receipt.score is score
        assert receipt.reference is run.reference
        lines = {line.name: line for line in receipt.lines}
        for name in ("stem", "mid", "head"):
            assert lines[name].after.w_bits == score.plan.get(name, "w_bits")
            assert lines[name].before.w_bits == 32
        assert not math.isnan(receipt.total("profiled_ms"))
        assert math.isnan(receipt.total("predicted_ms"))
    assert "fit-latency makes one" in receipt.notes[0]
    ac.calibrate(small_task(), space=KEEP, target="null", seconds=1e-6)
    receipt = ac.open_run(tmp_path, small_task()).explain(plan.trial)
    assert receipt.notes == []
    before = receipt.total("predicted_ms", after=False)
    assert before == pytest.approx(run.reference.latency_ms, rel=0.05)
    assert receipt.total("predicted_ms") < before


def test_what_cannot_be_explained_is_named(tmp_path: Path, quick) -> None:
    calls: list[int] = []
    good = small_task()

    def evaluate(predict):
        calls.append(1)
        return _raise("once") if len(calls) == 2 else good.evaluate(predict)

    run = run_search(tmp_path, replace(good, evaluate=evaluate), trials=3)
    assert run.scores[1].outcome == "failed"
    for trial in (1, 4, -1, 99):
        with pytest.raises(InputError, match=rf"0 to 3, failed ones excluded\), not {trial}\."):
            run.explain(trial)
    with pytest.raises(TaskError, match="given in Python"):
        ac.open_run(tmp_path).explain(0)
    with pytest.raises(RunError, match="on the model of its search; it changed"):
        ac.open_run(tmp_path, make_task()).explain(0)
    assert run.explain(3).score.trial == 3


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
trials = 40
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
    assert 3 <= rows(run) < 40
    code = [sys.executable, "-m", "autocompress", "resume", str(run), "--quiet"]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    assert "uncompressed" in done.stdout
    after = ac.open_run(run).scores
    for old, new in zip(before, after, strict=False):
        kept = replace(new, test_accuracy=math.nan, test_low=math.nan, test_high=math.nan)
        assert kept.to_json() == old.to_json()
    assert rows(run) == 40
    assert len({score.plan.digest for score in after}) == len(after)
    with (run / "front.csv").open() as file:
        assert list(csv.DictReader(file))


def test_guided_profiles_once_and_goes_on_with_what_it_has(tmp_path: Path) -> None:
    notes: list[ac.Progress] = []
    task = make_task(Small())
    run = run_search(tmp_path / "run", task, sampler="guided", trials=14, progress=notes.append)
    assert completed(run) == 14
    profiled = [p for p in notes if p.what == "effects profiled"]
    assert [p.done for p in profiled] == list(range(1, profiled[-1].total + 1))
    told = [p.note for p in notes if "plans tried on the calibration inputs" in p.note]
    form = re.compile(r"^(\d+) plans .* so far, in [\d.]+ s, as long as [\d.]+ evaluations$")
    costs = [form.search(note) for note in told]
    counts = [int(cost[1]) for cost in costs if cost]
    assert len(counts) == 2
    assert counts[0] < counts[1]
    lines = (tmp_path / "run/profile/effects.jsonl").read_text().splitlines()
    assert len(lines) == counts[1]
    assert len(lines) >= profiled[-1].total - 5  # what changes nothing is one plan for all
    stamp = lines[:5]
    run.resume(4)
    again = (tmp_path / "run/profile/effects.jsonl").read_text().splitlines()
    assert again[:5] == stamp
    assert len({json.dumps(json.loads(line)[0]) for line in again}) == len(again)
    assert completed(run) == 18


def test_guided_says_why_it_cannot_guide(tmp_path: Path) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Small()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).argmax(1)

    torch.manual_seed(0)
    model = Counts().eval()
    x = torch.randn(64, 8, 8)
    with torch.no_grad():
        labels = model(x).numpy()
    task = ac.Task(
        model=model, example_inputs=(x[:1],), calibration=[(x,)], name="counts",
        evaluate=lambda predict: float((predict(x.numpy()) == labels).mean()),
    )  # fmt: skip
    notes: list[str] = []
    run = run_search(
        tmp_path / "run", task, sampler="guided", trials=9,
        progress=lambda p: notes.append(p.note),
    )  # fmt: skip
    assert completed(run) == 9
    why = "no value of the space moves the outputs on the calibration inputs"
    assert f"not guided, tpe proposes: {why}" in notes
    assert run.note == f"not guided, tpe proposed: {why}"


def test_another_sampler_goes_on_with_a_study(tmp_path: Path) -> None:
    run = run_search(tmp_path / "run", small_task(), sampler="random", trials=6)
    run.resume(4, sampler="guided")
    assert completed(run) == 10
    assert run.config.sampler == "guided"
    assert (tmp_path / "run/profile/effects.jsonl").exists()
    opened = ac.open_run(tmp_path / "run", small_task())
    assert opened.config.sampler == "guided"
    opened.resume(3, sampler="tpe")
    assert completed(opened) == 13
    assert len({score.plan for score in opened.scores}) == 13
    with pytest.raises(InputError, match="magic"):
        opened.resume(1, sampler="magic")
    again = run_search(tmp_path / "run", small_task(), sampler="random", trials=14)
    assert (again.config.sampler, completed(again)) == ("random", 14)


def test_failed_baselines_are_named_and_tried_again(tmp_path: Path) -> None:
    task, broken = small_task(), [1, 2]

    def evaluate(predict) -> object:
        broken.append(broken[-1] + 1)
        if broken[-1] in (4, 5):
            raise KeyError("labels")
        return task.evaluate(predict)

    flaky = replace(task, evaluate=evaluate)
    run = run_search(tmp_path / "run", flaky, trials=7)
    assert run.note == "2 of the baselines failed and are not on the front; resume tries them again"
    run = run_search(tmp_path / "run", flaky, trials=7)
    assert (run.note, completed(run)) == ("", 9)


def test_a_front_that_cannot_be_drawn_costs_the_picture_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(front, path) -> Path:
        raise ValueError("arange: cannot compute length")

    monkeypatch.setattr(ac.Front, "plot", overflow)
    run = run_search(tmp_path / "run", small_task(), trials=4)
    assert run.note == "no picture of the front: arange: cannot compute length"
    assert (tmp_path / "run" / "front.csv").exists()


@pytest.mark.parametrize("value", ["no", 1, None])
def test_until_converged_is_yes_or_no(tmp_path: Path, value) -> None:
    with pytest.raises(InputError, match="until_converged must be True or False"):
        run_search(tmp_path / "run", small_task(), until_converged=value)


def test_a_study_in_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/team.db"
    run = run_search(tmp_path / "one", small_task(), trials=5, storage=url)
    other = run_search(tmp_path / "two", small_task(), trials=4, storage=url)
    assert run.config.study != other.config.study
    assert run.config.study.startswith("one-")
    assert not (tmp_path / "one" / "study.log").exists()
    again = ac.open_run(tmp_path / "one", small_task())
    assert [s.to_json() for s in again.scores] == [s.to_json() for s in run.scores]
    assert completed(again.resume(2)) == 7
    assert completed(run_search(tmp_path / "one", small_task(), trials=8, storage=url)) == 8
    assert ac.status(tmp_path / "one").completed == 8
    with pytest.raises(RunError, match="is kept in sqlite"):
        ac.open_run(tmp_path / "one", storage="sqlite:///other.db")
    with pytest.raises(RunError, match="these differ: storage"):
        run_search(tmp_path / "one", small_task(), trials=8)


def test_a_password_is_not_written_down(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/team.db?password=secret"
    with pytest.raises((RunError, InputError)):
        run_search(tmp_path / "one", small_task(), storage=url)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"secret" not in path.read_bytes()


def test_a_trial_that_hangs_costs_its_time_alone(tmp_path: Path) -> None:
    """The time is long for a trial on any machine, so one trial hangs, once."""
    task, mark = small_task(), tmp_path / "hung"

    def evaluate(predict) -> object:
        if predict.fixed_ms > 0.015 and not mark.exists():
            mark.touch()
            time.sleep(600)
        return 1.0

    hanging = replace(task, evaluate=evaluate)
    run = run_search(tmp_path / "run", hanging, trials=4, trial_seconds=12)
    (failed,) = (score for score in run.scores if score.outcome == "failed")
    assert failed.message == "a trial may take 12 s, and it took more"
    assert completed(run) == 4


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"workers": 0}, "workers must be an integer of at least 1, not 0"),
        ({"workers": "2"}, "workers must be an integer"),
        ({"trial_seconds": 0}, "trial_seconds must be a number above 0"),
        ({"trial_memory_bytes": -5}, "trial_memory_bytes must be an integer above 0"),
        ({"ray_address": 5}, "ray_address must be text"),
        ({"storage": "nonsense"}, "storage must be a URL"),
    ],
)
def test_how_a_search_is_carried_out_is_checked(tmp_path: Path, options, text) -> None:
    with pytest.raises(InputError, match=text):
        run_search(tmp_path / "run", small_task(), **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"trial_seconds": math.inf}, "trial_seconds must be a number above 0, not inf"),
        ({"trial_memory_bytes": 1e9}, "trial_memory_bytes must be an integer above 0"),
        ({"storage": "sqlite://"}, "a database in memory"),
        ({"storage": "sqlite:///:memory:"}, "a database in memory"),
        ({"storage": "postgresql+psycopg://u:x@127.0.0.1:notaport/x"}, "storage must be a URL"),
    ],
)
def test_what_cannot_be_carried_out_is_one_sentence(tmp_path: Path, options, text) -> None:
    with pytest.raises(InputError, match=text) as caught:
        run_search(tmp_path / "run", small_task(), **options)
    assert "u:x" not in str(caught.value)


def test_a_relative_database_is_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_search(tmp_path / "run", small_task(), trials=4, storage="sqlite:///team.db")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert ac.status(tmp_path / "run").completed == completed(run) == 4
    (tmp_path / "team.db").unlink()
    for read in (ac.status, ac.open_run):
        with pytest.raises(RunError, match="must be in its database"):
            read(tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run"]
    assert list((tmp_path / "other").iterdir()) == []
