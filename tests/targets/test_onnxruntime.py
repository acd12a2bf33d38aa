"""What onnxruntime makes of the files: folded, fused, small, and alone in a process."""

import os
import re
import subprocess
import venv
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from autocompress.core.plan import Plan
from autocompress.errors import ArtifactError
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.targets.onnxruntime import OnnxRuntime
from autocompress.transforms.compressor import ActivationRange, Compressor
from tests.targets.support import (
    NETS,
    Residual,
    builder,
    inputs,
    network,
    optimised,
    pruned,
    residual,
    rounded,
)

UNPACKING = {"BitShift", "BitwiseAnd", "MatMulInteger", "Slice", "Cast", "Gather", "Mul", "Reshape"}


@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8, 16])
def test_float_layers_fold_to_the_plain_graph(bits: int, tmp_path: Path) -> None:
    net = residual()
    build = builder("onnxruntime", net).build
    plain = optimised(build(rounded(net), tmp_path / "a").path, tmp_path / "optimised")
    packed = optimised(build(rounded(net, bits), tmp_path / "b").path, tmp_path / "optimised")
    assert packed == plain
    assert not UNPACKING & set(packed)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_integer_layers_fuse(bits: int, tmp_path: Path) -> None:
    net = residual()
    path = builder("onnxruntime", net).build(rounded(net, bits, 8), tmp_path / "a").path
    found = optimised(path, tmp_path / "optimised")
    assert found["QLinearConv"] == 5
    assert found["QGemm"] == 1
    assert found["QLinearAdd"] == 1
    assert found["Conv"] == found["Gemm"] == found["Relu"] == 0
    assert not UNPACKING & set(found)


def test_a_layer_whose_input_is_float_stays_float(tmp_path: Path) -> None:
    net = residual()
    compressed = rounded(net, 4, 8)
    ranges = {k: v for k, v in compressed.activations.items() if k == "mean"}
    mixed = type(compressed)(compressed.plan, compressed.network, compressed.weights, ranges)
    path = builder("onnxruntime", net).build(mixed, tmp_path / "a").path
    found = optimised(path, tmp_path / "optimised")
    convolutions = found["Conv"] + found["FusedConv"]
    assert (convolutions, found["QGemm"], found["QLinearConv"]) == (5, 1, 0)


@pytest.mark.parametrize(("kind", "shape"), NETS)
@pytest.mark.parametrize(("bits", "a_bits"), [(32, 32), (16, 32), (3, 32), (8, 8), (4, 8)])
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_files_are_valid_and_right(
    kind: type, shape: tuple[int, ...], bits: int, a_bits: int, keep: float, tmp_path: Path
) -> None:
    net = network(kind, *shape)
    compressed = rounded(pruned(net, keep) if keep < 1 else net, bits, a_bits)
    path = builder("onnxruntime", net).build(compressed, tmp_path / "a").path
    onnx.checker.check_model(str(path), full_check=True)
    (x,) = inputs(net)
    expected = compressed(x).numpy()
    found = OnnxRuntime().open(path)(x.numpy())
    tolerance = 2e-3 if a_bits == 32 else 0.08
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def test_nothing_but_the_network_is_in_the_file(tmp_path: Path) -> None:
    net = residual()
    path = builder("onnxruntime", net).build(rounded(net, 4, 8), tmp_path / "a").path
    model = onnx.load(str(path))
    assert [info.name for info in model.graph.input] == ["input"]
    assert [info.name for info in model.graph.output] == ["output"]
    assert not model.producer_name
    assert not model.metadata_props
    assert not model.graph.value_info
    for node in model.graph.node:
        assert not node.name
        assert not node.metadata_props
        assert all(len(name) <= 2 for name in node.input if name != "input")
    assert all(len(initializer.name) <= 2 for initializer in model.graph.initializer)


def test_scaffolding_is_small(tmp_path: Path) -> None:
    """Bytes that are neither codes nor scales nor biases, a layer."""
    net = residual()
    path = builder("onnxruntime", net).build(rounded(net, 4), tmp_path / "a").path
    stored = sum(len(i.raw_data) for i in onnx.load(str(path)).graph.initializer)
    functions = sum(f.ByteSize() for f in onnx.load(str(path)).functions)
    assert path.stat().st_size - stored - functions < 180 * len(net.layers)


def test_bias_larger_than_its_scale_can_say(tmp_path: Path) -> None:
    """A channel of tiny weights and a large bias would overflow the int32 bias."""
    net = residual()
    weight = net.params["a.weight"].clone()
    weight[3] *= 1e-9
    bias = net.params["a.bias"].clone()
    bias[3] = 2.0
    odd_one = net.replace(params={"a.weight": weight, "a.bias": bias})
    compressed = rounded(odd_one, 8, 8)
    path = builder("onnxruntime", net).build(compressed, tmp_path / "a").path
    (x,) = inputs(net)
    expected = compressed(x).numpy()
    error = np.abs(OnnxRuntime().open(path)(x.numpy()) - expected).max()
    assert error <= 0.06 * np.abs(expected).max()


def test_large_layers_use_types_of_onnx(tmp_path: Path) -> None:
    net = residual()
    target = OnnxRuntime(limit=300)
    build = target.prepare(net).build
    (x,) = inputs(net)
    kinds = {}
    for bits in (2, 4, 8):
        compressed = rounded(net, bits)
        path = build(compressed, tmp_path / "a").path
        onnx.checker.check_model(str(path), full_check=True)
        np.testing.assert_allclose(target.open(path)(x.numpy()), compressed(x).numpy(), atol=2e-3)
        large = [i for i in onnx.load(str(path)).graph.initializer if np.prod(i.dims) > 300]
        kinds[bits] = {i.data_type for i in large}
    assert kinds[2] == kinds[4] == {onnx.TensorProto.INT4}
    assert kinds[8] == {onnx.TensorProto.INT8}
    path = build(rounded(net, 4, 8), tmp_path / "a").path
    found = optimised(path, tmp_path / "optimised")
    assert (found["QLinearConv"], found["MatMulInteger"]) == (5, 0)


def test_an_unknown_tensor_cannot_be_rounded(tmp_path: Path) -> None:
    net = residual()
    compressed = rounded(net, 4, 8)
    ranges = {**compressed.activations, "nowhere": ActivationRange(0.1, 0)}
    wrong = type(compressed)(compressed.plan, compressed.network, compressed.weights, ranges)
    with pytest.raises(ArtifactError, match="'nowhere' is none"):
        builder("onnxruntime", net).build(wrong, tmp_path / "a")


ALONE = """
import importlib.util, sys
import numpy as np
import onnxruntime

for name in ("autocompress", "torch", "onnx", "optuna"):
    assert importlib.util.find_spec(name) is None, name
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(info,) = session.get_inputs()
np.save(sys.argv[3], session.run(None, {info.name: np.load(sys.argv[2])})[0])
"""


def _bare_environment(place: Path) -> Path:
    """Return the Python of a new environment with onnxruntime, what it requires, and no more."""
    venv.create(place, symlinks=True)
    (site,) = place.glob("lib/python*/site-packages")
    waiting, seen = ["onnxruntime"], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        found = metadata.distribution(name)
        for top in {Path(file).parts[0] for file in found.files or () if ".." not in file.parts}:
            source = Path(str(found.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
        needed = (requirement for requirement in found.requires or () if "extra" not in requirement)
        waiting += [re.match(r"[\w.-]+", requirement).group() for requirement in needed]
    return place / "bin" / "python"


def test_the_file_runs_with_nothing_of_ours_installed(tmp_path: Path) -> None:
    net = residual()
    path = builder("onnxruntime", net).build(rounded(net, 3, 8), tmp_path / "a.onnx").path
    (x,) = inputs(net)
    np.save(tmp_path / "x.npy", x.numpy())
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    python = _bare_environment(tmp_path / "bare")
    files = [str(tmp_path / name) for name in ("a.onnx", "x.npy", "y.npy")]
    subprocess.run([python, "-I", "-c", ALONE, *files], check=True, cwd=tmp_path, env=environment)
    here = OnnxRuntime().open(path)(x.numpy())
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), here)


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_is_flat(tmp_path: Path) -> None:
    net = network(Residual, 3, 16, 16)
    build, target = builder("onnxruntime", net).build, OnnxRuntime()
    small = pruned(net, 0.5)
    plans = [rounded(net, 4, 8), rounded(small, 3), rounded(net)]
    (x,) = inputs(net)

    def some(count: int) -> int:
        for index in range(count):
            target.open(build(plans[index % 3], tmp_path / "a").path)(x.numpy())
        return _resident()

    some(30)
    before = some(15)
    assert some(60) - before < 4096  # kB; a leak of a session or a model a time would be more


def test_limits_are_positive() -> None:
    with pytest.raises(ValueError, match="limit must be at least 1"):
        OnnxRuntime(limit=0)


def compared(net: Network, plan: dict[str, float], x: torch.Tensor, path: Path) -> float:
    """Return the largest difference of file and simulation, relative to the largest output."""
    target = OnnxRuntime()
    compressed = Compressor(net, [(x,)], target.abilities).compress(Plan(plan))
    found = target.open(target.prepare(net).build(compressed, path).path)(x.numpy())
    expected = compressed(x).numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("scale", [1e4, 1e6])
@pytest.mark.parametrize(("bits", "a_bits"), [(8, 32), (4, 32), (8, 8)])
def test_small_scales_beside_large_biases(
    scale: float, bits: int, a_bits: int, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4)).eval()
    model[0].weight.data.mul_(1 / scale)
    model[0].bias.data.normal_(0, 3)
    x = torch.randn(64, 3, 8, 8) * scale
    plan = {f"{i}/w_bits": bits for i in (0, 2)} | {f"{i}/a_bits": a_bits for i in (0, 2)}
    net = trace(model, (x[:1],))
    assert compared(net, plan, x, tmp_path / "a") < (1e-3 if a_bits == 32 else 0.03)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_biases_that_cancel_a_large_mean(bits: int, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    with torch.no_grad():
        model[0].weight /= 5
        model[0].bias -= model[0].weight.sum(1) * 2000
    x = torch.randn(256, 4) * 5 + 2000
    net = trace(model, (x[:1],))
    assert compared(net, {"0/w_bits": bits, "2/w_bits": bits}, x, tmp_path / "a") < 2e-3


def test_an_input_that_is_always_zero(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    model[0].bias.data.fill_(-100.0)
    x = torch.randn(64, 6)
    assert (
        compared(trace(model, (x[:1],)), {"2/w_bits": 2, "2/a_bits": 8}, x, tmp_path / "a") < 1e-3
    )


def test_padding_before_a_layer_can_be_rounded(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(8, 4, 3)
    ).eval()
    x = torch.randn(16, 3, 8, 8)
    plan = {f"{i}/{knob}": 8 for i in (0, 3) for knob in ("w_bits", "a_bits")}
    assert compared(trace(model, (x[:1],)), plan, x, tmp_path / "a") < 0.03


def test_tiny_files_are_never_larger_for_fewer_bits(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(32, 16)
    net, target = trace(model, (x[:1],)), OnnxRuntime()
    compressor, build = Compressor(net, [(x,)], target.abilities), target.prepare(net).build
    sizes = []
    for bits in (8, 7, 6, 5, 4, 3, 2):
        compressed = compressor.compress(Plan({"0/w_bits": bits, "2/w_bits": bits}))
        sizes.append(build(compressed, tmp_path / "a").size_bytes)
        found = target.open(tmp_path / "a")(x.numpy())
        np.testing.assert_allclose(found, compressed(x).numpy(), atol=1e-4)
    assert sizes == sorted(sizes, reverse=True)


def test_a_float_layer_behind_an_integer_one_stays_float(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)
    ).eval()
    x = torch.randn(16, 3, 10, 10)
    net, target = trace(model, (x[:1],)), OnnxRuntime()
    plan = Plan({"0/w_bits": 8, "0/a_bits": 8, "2/w_bits": 8, "4/w_bits": 8})
    compressed = Compressor(net, [(x,)], target.abilities).compress(plan)
    path = target.prepare(net).build(compressed, tmp_path / "a").path
    found = optimised(path, tmp_path / "optimised")
    assert found["QLinearConv"] == 1
    assert found["Conv"] + found["FusedConv"] == 2
    assert found["DequantizeLinear"] == 1  # of the tensor alone: the weights are folded
    expected = compressed(x).numpy()
    assert np.abs(target.open(path)(x.numpy()) - expected).max() < 0.03 * np.abs(expected).max()


def test_a_dead_channel_of_odd_codes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        model[0].weight[2] *= 1e-9
        model[0].bias[2] = 0.5
    x = torch.randn(32, 3, 8, 8)
    plan = {f"{i}/{knob}": bits for i in (0, 2) for knob, bits in (("w_bits", 2), ("a_bits", 8))}
    assert compared(trace(model, (x[:1],)), plan, x, tmp_path / "a") < 0.05
