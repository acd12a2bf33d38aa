"""Files in runtimes, and latency models, without a search; nothing here asserts how fast."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import autocompress as ac
from autocompress.cost import fit_latency as calibrating
from autocompress.cost.fit_latency import Calibration
from autocompress.errors import ArtifactError, ConfigError, InputError, TaskError
from autocompress.run import bench as benchmarks
from autocompress.run.bench import bench, bench_all, fit_latency, fit_latency_config
from autocompress.targets.timing import Timing
from autocompress.tasks.base import Task

SHORT = {"seconds": 0.02}


def write(path: Path, op: str = "Relu", shape=("n", 2, 2), out=("n", 2, 2), kind=1) -> Path:
    """Write a file of one operator on floats, or with ``kind`` on something else."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, out)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Keep what is measured and how; each measurement finds one millisecond more."""
    calls: list[dict] = []

    def measure(candidate, reference, inputs, **how) -> Timing:
        calls.append({"same": candidate[0] is reference[0], "inputs": inputs, **how})
        ms = float(len(calls))
        base = how.get("reference_ms") or ms
        return Timing(ms, ms, ms, base, ms / base, "cpu", True, 1.0, ())

    monkeypatch.setattr(benchmarks, "measure", measure)
    return calls


def test_a_file_is_timed_beside_itself_or_a_reference(tmp_path: Path, asked) -> None:
    first, second = write(tmp_path / "a.onnx"), write(tmp_path / "b.onnx", "Sqrt")
    assert bench(first, threads=2, seconds=3.0).latency_ms == 1.0
    (alone,) = asked
    assert (alone["same"], alone["threads"], alone["max_seconds"]) == (True, 2, 3.0)
    assert alone["reference_ms"] is None
    assert [x.shape for x in alone["inputs"]] == [(1, 2, 2)]
    found = bench(str(first), reference=second)
    assert (found.latency_ms, found.reference_ms) == (3.0, 2.0)
    _, own, beside = asked
    assert own["same"]
    assert not beside["same"]
    assert beside["reference_ms"] == 2.0
    assert own["max_seconds"] < beside["max_seconds"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_every_runtime_is_really_run(tmp_path: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    found = bench(write(tmp_path / "a.onnx"), runtime=runtime, **SHORT)
    assert 0 < found.low_ms <= found.latency_ms <= found.high_ms
    assert len(found.blocks) >= 3
    json.dumps(found.to_json(), allow_nan=False)


def test_the_null_target_makes_its_latency_up(tmp_path: Path) -> None:
    run = ac.search(
        make_task(), space={"*/w_bits": [4, 8]}, target="null", trials=1, run_dir=tmp_path
    )
    path = run.front()[0].path
    assert bench(path, runtime="null").latency_ms == 0.01 + path.stat().st_size * 1e-6


def test_both_files_must_take_the_same_inputs(tmp_path: Path) -> None:
    first = write(tmp_path / "a.onnx")
    for other in (
        write(tmp_path / "shape.onnx", shape=("n", 3), out=("n", 3)),
        write(tmp_path / "type.onnx", kind=TensorProto.DOUBLE),
    ):
        for one, two in ((first, other), (other, first)):
            with pytest.raises(InputError, match="same inputs, of shapes") as caught:
                bench(one, reference=two, **SHORT)
            assert f"{two} does not (" in str(caught.value)
            assert "\n" not in str(caught.value)


def test_what_cannot_be_opened_or_run_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ArtifactError, match=r"must load in onnxruntime: .*text\.onnx"):
        bench(tmp_path / "text.onnx")
    good = write(tmp_path / "a.onnx")
    with pytest.raises(ConfigError, match="'onnxruntime'"):
        bench(good, runtime="onnxruntme")
    with pytest.raises(ConfigError, match="at least 1"):
        bench(good, threads=0)


def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "autocompress.targets.openvino", raising=False)


def test_all_runtimes_side_by_side(tmp_path: Path, asked, monkeypatch) -> None:
    pytest.importorskip("openvino")
    found = bench_all(write(tmp_path / "a.onnx"), threads=2, seconds=1.5)
    assert list(found) == ["onnxruntime", "openvino"]  # null reads files of its own
    assert [timing.latency_ms for timing in found.values()] == [1.0, 2.0]
    assert {(how["threads"], how["max_seconds"]) for how in asked} == {(2, 1.5)}


@pytest.mark.parametrize(
    ("op", "out", "refuses"), [("Det", ("n",), "openvino"), ("Mish", ("n", 2, 2), "onnxruntime")]
)
def test_a_runtime_that_refuses_the_file_says_so_beside_the_others(
    tmp_path: Path, op, out, refuses
) -> None:
    pytest.importorskip("openvino")
    found = bench_all(write(tmp_path / "a.onnx", op, out=out), **SHORT)
    error = found.pop(refuses)
    assert isinstance(error, ArtifactError)
    (timing,) = found.values()
    assert isinstance(timing, Timing)


def test_a_runtime_that_is_not_installed_says_what_to_install(
    tmp_path: Path, asked, monkeypatch
) -> None:
    without_openvino(monkeypatch)
    path = write(tmp_path / "a.onnx")
    found = bench_all(path)
    assert isinstance(found["openvino"], ConfigError)
    assert "pip install 'autocompress[openvino]'" in str(found["openvino"])
    assert found["onnxruntime"].latency_ms == 1.0
    with pytest.raises(ConfigError, match="pip install"):
        bench(path, runtime="openvino")


def test_a_file_that_no_runtime_opens_has_an_error_a_runtime(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    found = bench_all(tmp_path / "text.onnx")
    assert all(isinstance(error, ac.AutocompressError) for error in found.values())
    assert len(found) == 2


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 24), nn.Linear(24, 12), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(torch.relu(self.two(torch.relu(self.one(x)))))


def make_task() -> Task:
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    return Task(
        model=Small().eval(), example_inputs=(x[:1],), calibration=[(x,)], evaluate=lambda _: 1.0
    )


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a calibration be of a few plans, however quick they are measured."""
    monkeypatch.setattr(calibrating, "_LEAST", 20)
    monkeypatch.setattr(calibrating, "_MOST", 30)


def test_a_calibration_is_cached_with_its_errors(few, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    parts: list[float] = []
    made = fit_latency(make_task(), target="null", progress=parts.append, seconds=60.0)
    assert made.path.is_file()
    assert made.path.is_relative_to(tmp_path)
    assert made.plans == len(made.errors) == 30
    assert np.isfinite(made.errors).all()
    assert made.note == ""
    assert parts == sorted(parts)
    assert 0 <= parts[0] < parts[-1] <= 1
    kept = Calibration.read(made.path)
    assert (len(kept.samples), kept.device["target"]) == (30, "null")
    assert kept.device["threads"] == kept.device["batch_size"] == 1
    assert repr(made).count("\n") == 0
    assert ac.fit_latency is ac.calibrate is fit_latency


def test_time_that_is_up_ends_a_calibration(few) -> None:
    made = fit_latency(make_task(), target="null", seconds=1e-6)
    assert 20 <= made.plans < 30


def test_threads_and_batches_have_calibrations_of_their_own(few) -> None:
    task = make_task()
    paths = {
        fit_latency(task, target="null", threads=threads, batch_size=batch, seconds=1e-6).path
        for threads, batch in ((1, 1), (2, 1), (1, 2))
    }
    assert len(paths) == 3
    devices = [Calibration.read(path).device for path in paths]
    assert {(d["threads"], d["batch_size"]) for d in devices} == {(1, 1), (2, 1), (1, 2)}


def test_an_older_calibration_that_is_not_kept_is_named(few) -> None:
    task = make_task()
    first = fit_latency(task, target="null", seconds=1e-6)
    document = json.loads(first.path.read_text())
    document["device"]["version"] = "null 0"
    first.path.write_text(json.dumps(document))
    again = fit_latency(task, target="null", seconds=1e-6)
    assert "was of null 0, this is null 1" in again.note
    again.path.write_text("{")
    assert "cannot be read" in fit_latency(task, target="null", seconds=1e-6).note
    assert fit_latency(task, target="null", seconds=1e-6).note == ""


def test_a_calibration_needs_a_place_and_a_space_that_fits(few, tmp_path, monkeypatch) -> None:
    task = make_task()
    with pytest.raises(InputError, match="'ptq'"):
        fit_latency(task, space="ptg", target="null")
    with pytest.raises(InputError, match="'one'"):
        fit_latency(task, space={"oen/w_bits": [4]}, target="null")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="writable"):
        fit_latency(task, target="null", seconds=1e-6)


CONFIG = """
[task]
name = "tests.run.test_bench:make_task"
[search]
space = "bits"
[target]
name = "null"
threads = 2
batch_size = 3
"""


def test_a_configuration_says_what_is_calibrated(few, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG)
    made = fit_latency_config(path, seconds=1e-6)
    device = Calibration.read(made.path).device
    assert (device["target"], device["threads"], device["batch_size"]) == ("null", 2, 3)
    families = {term.family for terms, _ in Calibration.read(made.path).samples for term in terms}
    assert any("int8" in family for family in families)  # of the space's 8-bit activations
    other = fit_latency_config(str(path), threads=1, seconds=1e-6)
    assert Calibration.read(other.path).device["threads"] == 1
    with pytest.raises(ConfigError, match="'onnxruntime'"):
        fit_latency_config(path, target="onnx")
    path.write_text('[search]\nspace = "bits"\n')
    with pytest.raises(ConfigError, match=r"a \[task\] section"):
        fit_latency_config(path)
    path.write_text('[task]\nname = "digit"\n')
    with pytest.raises(TaskError, match="'digits'"):
        fit_latency_config(path)


def test_a_calibration_with_a_runtime(few) -> None:
    made = fit_latency(make_task(), space={"*/w_bits": [4, 8]}, seconds=1e-6)
    kept = Calibration.read(made.path)
    assert kept.device["version"].startswith("onnxruntime ")
    assert kept.rates  # profiled
    assert all(ms > 0 and math.isfinite(ms) for _, ms in kept.samples)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_empty_file_is_no_model(tmp_path: Path, runtime: str) -> None:
    pytest.importorskip(runtime)
    (tmp_path / "a.onnx").touch()
    with pytest.raises(ArtifactError, match="must load in"):
        bench(tmp_path / "a.onnx", runtime=runtime, **SHORT)


def test_what_is_no_file_is_not_measured(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(InputError, match="must be a file"):
            bench(path)
    with pytest.raises(InputError, match="must be a file"):
        bench(write(tmp_path / "a.onnx"), reference=tmp_path)


def test_threads_are_those_that_a_machine_may_have(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most"):
        bench(write(tmp_path / "a.onnx"), threads=99_999)
