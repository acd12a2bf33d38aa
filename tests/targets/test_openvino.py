"""What OpenVINO makes of the files: integer kernels, exact float layers, one clock."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from autocompress.core.plan import Plan
from autocompress.errors import ArtifactError, ConfigError
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.targets import make_target
from autocompress.targets.timing import measure
from autocompress.transforms.compressor import Compressor
from tests.targets.support import (
    NETS,
    Residual,
    builder,
    inputs,
    network,
    pruned,
    residual,
    rounded,
)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "autocompress.targets.openvino", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"pip install 'autocompress\[openvino\]'"):
        make_target("openvino")


def test_other_targets_do_not_import_it() -> None:
    code = (
        "import sys; from autocompress.targets import make_target; "
        "make_target('onnxruntime'); make_target('null'); "
        "sys.exit('openvino' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


pytest.importorskip("openvino", reason="needs the package openvino")
import openvino  # noqa: E402

from autocompress.targets.openvino import OpenVino  # noqa: E402


def kernels(net: Network, compressed: object, path: Path) -> dict[str, str]:
    """Return the kinds of the operators that compute each layer, by its name."""
    path.write_bytes(builder("openvino", net).content(compressed, named=True))
    target = OpenVino()
    ops = target.profile(path, target.open(path).example_inputs(), runs=1)
    found = {layer.name: "" for layer in net.layers}
    names = {layer.node: layer.name for layer in net.layers}
    for op in ops:
        if op.node in names and op.kind.startswith(("Convolution", "FullyConnected", "MatMul")):
            found[names[op.node]] += op.kind
    return found


@pytest.mark.parametrize(("kind", "shape"), NETS)
@pytest.mark.parametrize("bits", [2, 4, 7, 8])
def test_layers_of_rounded_inputs_run_on_integers(
    kind: type, shape: tuple[int, ...], bits: int, tmp_path: Path
) -> None:
    """But a strided 1×1 convolution that alone reads its input, whose stride OpenVINO moves."""
    net = network(kind, *shape)
    compressed = rounded(net, bits, 8, OpenVino.abilities)
    found = kernels(net, compressed, tmp_path / "a")
    if kind is Residual:
        assert found.pop("down").startswith("Convolution")
    assert set(found.values()) <= {"Convolution.i8", "FullyConnected.i8"}


def test_other_layers_do_not(tmp_path: Path) -> None:
    net = residual()
    x = torch.randn(16, 3, 8, 8)
    settings = {f"{layer.name}/w_bits": 8 for layer in net.layers}
    plan = Plan(settings | {"a/a_bits": 8, "deep/a_bits": 8})
    compressed = Compressor(net, [(x,)], OpenVino.abilities).compress(plan)
    found = kernels(net, compressed, tmp_path / "a")
    integer = {name for name, kind in found.items() if kind.endswith(".i8")}
    assert integer == {"a", "deep"} == compressed.integer
    session = OpenVino().open(tmp_path / "a")
    np.testing.assert_allclose(session(x.numpy()), compressed(x).numpy(), atol=0.02)


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-1, 1.5), nn.Hardswish(), nn.SiLU(), nn.Sigmoid(),
    nn.GELU(), nn.GELU(approximate="tanh"), nn.Tanh(), nn.LeakyReLU(0.1), nn.ELU(),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_the_activations_it_declares_fuse(activation: nn.Module, tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), activation, nn.Conv2d(16, 16, 3, groups=16), activation,
        nn.Conv2d(16, 16, 3, groups=4), activation, nn.Conv2d(16, 8, 1),
    ).eval()  # fmt: skip
    net = trace(model, (torch.randn(1, 8, 8, 8),))
    fused = OpenVino.abilities.fused_activations
    names = {node.name for node in net.graph.nodes if str(node.target) in fused}
    assert len(names) == 3
    x = torch.randn(32, 8, 8, 8)
    settings = {f"{layer.name}/{knob}": 8 for layer in net.layers for knob in ("w_bits", "a_bits")}
    target = OpenVino()
    compressed = Compressor(net, [(x,)], target.abilities).compress(Plan(settings))
    path = tmp_path / "a"
    path.write_bytes(target.prepare(net).content(compressed, named=True))
    session = target.open(path)
    ops = target.profile(path, session.example_inputs(), runs=1)
    own = {layer.node for layer in net.layers}
    kinds = [op.kind for op in ops if op.node in own]
    assert kinds.count("Convolution.i8") == len(own)
    assert not names & {op.node for op in ops}
    expected = compressed(x).numpy()
    assert np.abs(session(x.numpy()) - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize(("kind", "shape"), NETS)
@pytest.mark.parametrize(("bits", "a_bits"), [(32, 32), (16, 32), (3, 32), (8, 8), (4, 8)])
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_files_are_valid_and_right(
    kind: type, shape: tuple[int, ...], bits: int, a_bits: int, keep: float, tmp_path: Path
) -> None:
    net = network(kind, *shape)
    small = pruned(net, keep) if keep < 1 else net
    compressed = rounded(small, bits, a_bits, OpenVino.abilities)
    path = builder("openvino", net).build(compressed, tmp_path / "a").path
    onnx.checker.check_model(str(path), full_check=True)
    (x,) = inputs(net)
    expected = compressed(x).numpy()
    found = OpenVino().open(path)(x.numpy())
    tolerance = 1e-5 if a_bits == 32 else 0.08
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("bits", "kept"), [(2, "INT4"), (4, "INT4"), (5, "INT8"), (8, "INT8")])
def test_codes_are_in_types_of_onnx(bits: int, kept: str) -> None:
    net = residual()
    model = onnx.load_from_string(builder("openvino", net).content(rounded(net, bits, 8)))
    assert not model.functions
    assert not any(node.name for node in model.graph.node)
    sizes = {net.params[layer.weight].numel() for layer in net.layers}
    types = {i.data_type for i in model.graph.initializer if np.prod(i.dims) in sizes}
    assert types == {getattr(onnx.TensorProto, kept)}


def test_float_layers_of_stored_codes_do_not_round_their_inputs(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 32)).eval()
    x = torch.randn(64, 256)
    net, target = trace(model, (x[:1],)), OpenVino()
    compressed = Compressor(net, [(x,)], target.abilities).compress(
        Plan({"0/w_bits": 8, "2/w_bits": 4})
    )
    session = target.open(target.prepare(net).build(compressed, tmp_path / "a").path)
    np.testing.assert_allclose(session(x.numpy()), compressed(x).numpy(), atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_small_scales_beside_large_biases(bits: int, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4)).eval()
    model[0].weight.data.mul_(1e-6)
    model[0].bias.data.normal_(0, 3)
    x = torch.randn(64, 3, 8, 8) * 1e6
    net, target = trace(model, (x[:1],)), OpenVino()
    plan = Plan({f"{i}/{knob}": n for i in (0, 2) for knob, n in (("w_bits", bits), ("a_bits", 8))})
    compressed = Compressor(net, [(x,)], target.abilities).compress(plan)
    found = target.open(target.prepare(net).build(compressed, tmp_path / "a").path)(x.numpy())
    expected = compressed(x).numpy()
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


class Two(nn.Module):
    """Two inputs, one of them integers, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 6)
        self.left = nn.Linear(6, 4)
        self.right = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x + self.table(index)
        return self.left(y), self.right(y)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_several_inputs_and_outputs(batch_size: int, tmp_path: Path) -> None:
    net = trace(Two().eval(), (torch.randn(1, 6), torch.tensor([3])))
    target = OpenVino(batch_size=batch_size)
    session = target.open(target.prepare(net).build(rounded(net), tmp_path / "a").path)
    for count in (4, 1, 3):
        x, index = torch.randn(count, 6), torch.randint(0, 10, (count,))
        found = session(x.numpy(), index.numpy())
        assert isinstance(found, tuple)
        for ours, expected in zip(found, net(x, index), strict=True):
            np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)
    example = session.example_inputs(2)
    assert [array.dtype for array in example] == [np.float32, np.int64]
    assert [array.shape for array in example] == [(2, 6), (2,)]


@pytest.mark.parametrize("bits", [8, 32])
def test_a_batch_of_any_size_gives_the_same(bits: int, tmp_path: Path) -> None:
    net = residual()
    compressed = rounded(net, bits, bits, OpenVino.abilities)
    path = builder("openvino", net).build(compressed, tmp_path / "a").path
    one, five = OpenVino().open(path), OpenVino(batch_size=5).open(path)
    x = inputs(net, 5)[0].numpy()
    singly = np.concatenate([one(x[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(one(x), singly, atol=1e-5)
    np.testing.assert_allclose(five(x), singly, atol=1e-5)


def test_one_thread_is_the_calling_one(tmp_path: Path) -> None:
    net = residual()
    path = builder("openvino", net).build(rounded(net, 8, 8), tmp_path / "a").path
    session = OpenVino().open(path)
    (x,) = session.example_inputs()
    timing = measure(session, session, (x,), max_seconds=0.3)
    assert (timing.clock, timing.agree) == ("cpu", True)


def unknown_operator(path: Path) -> None:
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Nothing", ["x"], ["y"], domain="nowhere")
    graph = onnx.helper.make_graph(
        [node], "g", [value("x", 1, ["N", 2])], [value("y", 1, ["N", 2])]
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("nowhere", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))


def test_files_that_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    unknown_operator(path)
    with pytest.raises(ArtifactError, match="must load in OpenVINO") as caught:
        OpenVino().open(path)
    assert "\n" not in str(caught.value)
    net = residual()
    builder("openvino", net).build(rounded(net), path)

    def refuse(*arguments: object) -> None:
        raise RuntimeError("no kernel\nfor this")

    monkeypatch.setattr(openvino.Core, "compile_model", refuse)
    with pytest.raises(ArtifactError, match="no kernel for this"):
        OpenVino().open(path)


def test_arguments_are_positive() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        OpenVino(batch_size=0)
