"""Portable files: they answer alike on every CPU, and as their simulation does."""

from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from autocompress.core.abilities import PORTABLE
from autocompress.core.plan import Plan
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.targets import make_target
from autocompress.transforms.compressor import Compressed, Compressor
from autocompress.transforms.quantize.weights import QuantizedWeight
from tests.targets.support import NETS, network

pytestmark = pytest.mark.kernels


def everywhere(net: Network, bits: int, a_bits: int = 8) -> Plan:
    knobs = (("w_bits", bits), ("a_bits", a_bits))
    return Plan({f"{layer.name}/{knob}": n for layer in net.layers for knob, n in knobs})


def compressed(net: Network, name: str, plan: Plan, *, portable: bool = True) -> Compressed:
    target = make_target(name, portable=portable)
    torch.manual_seed(3)
    batch = tuple(torch.randn(64, *value.shape[1:]) for value in net.example_inputs)
    return Compressor(net, [batch], target.abilities).compress(plan)


def exact(content: bytes, x: Tensor) -> np.ndarray:
    """Run a file as it is written, without integer kernels."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options)
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def gap(found: np.ndarray, wanted: np.ndarray) -> float:
    """The error (RMS) in units of the outputs' deviation."""
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std())


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("kind", "shape"), NETS)
def test_kernels_of_this_host_answer_as_the_simulation(
    kind: type, shape: tuple[int, ...], name: str, tmp_path: Path
) -> None:
    net, target = network(kind, *shape), make_target(name)
    build, x = target.prepare(net).build, torch.randn(100, *shape)
    for bits in (8, 7, 4):
        made = compressed(net, name, everywhere(net, bits))
        assert made.portable
        found = target.open(build(made, tmp_path / "a").path)(x.numpy())
        # a sum on the edge of two codes may take either: one code of a layer, now and then
        assert gap(found, made(x).numpy()) < 0.02


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_the_whole_range_is_for_those_who_ask(name: str) -> None:
    net = network(*NETS[0][:1], *NETS[0][1])
    for a_bits, portable, limit in ((8, True, PORTABLE), (8, False, 127), (32, True, 127)):
        made = compressed(net, name, everywhere(net, 8, a_bits), portable=portable)
        weights = [w for w in made.weights.values() if isinstance(w, QuantizedWeight)]
        assert max(int(np.abs(weight.codes.astype(int)).max()) for weight in weights) >= limit
        assert made.portable == (portable or a_bits == 32)
        if portable and a_bits == 8:
            assert all(np.abs(weight.codes.astype(int)).max() <= PORTABLE for weight in weights)


def hostile(kind: str) -> nn.Sequential:
    """A network with channels that hardly move, before weights of thousands."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU6(), nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU6(), nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 64, 5),
    ).eval()  # fmt: skip
    first, second = model[0], model[2]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert first.bias is not None
    assert second.bias is not None
    with torch.no_grad():
        for channel in (3, 7):
            second.weight[channel] *= 3000
            level = {"nearly": 0.5, "dead": 0.0, "full": 6.0}[kind]
            first.weight[channel] *= 1e-4
            first.bias[channel] = {"nearly": 0.5, "dead": -100.0, "full": 100.0}[kind]
            second.bias[channel] = 0.7 - second.weight[channel].sum() * level
    return model


@cache
def traced(kind: str) -> Network:
    return trace(hostile(kind), (torch.randn(1, 3, 8, 8),))


@pytest.mark.parametrize("kind", ["nearly", "dead", "full"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_biases_are_simulated_as_the_file_rounds_them(kind: str, bits: int) -> None:
    net, target = traced(kind), make_target("onnxruntime")
    made = compressed(net, "onnxruntime", everywhere(net, bits))
    x = torch.randn(100, 3, 8, 8)
    assert gap(exact(target.prepare(net).content(made), x), made(x).numpy()) < 5e-3
    assert gap(made(x).numpy(), net(x).numpy()) < {2: 0.4, 4: 0.1, 8: 0.05}[bits]
