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

from autocompress.errors import ArtifactError
from autocompress.targets.onnxruntime import OnnxRuntime
from autocompress.transforms.compress import ActivationRange
from tests.targets.support import (
    Attention,
    Residual,
    Shuffled,
    builder,
    inputs,
    network,
    optimised,
    pruned,
    residual,
    rounded,
)

UNPACKING = {"BitShift", "BitwiseAnd", "MatMulInteger", "Slice", "Cast", "Gather", "Mul", "Reshape"}
NETS = [(Residual, (3, 8, 8)), (Shuffled, (2, 8, 8)), (Attention, (5, 6))]


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
        types = {i.data_type for i in onnx.load(str(path)).graph.initializer if len(i.dims) == 4}
        kinds[bits] = types & {onnx.TensorProto.INT4, onnx.TensorProto.INT8}
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
