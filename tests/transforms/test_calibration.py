"""How much and which calibration data there is: more is never worse, order does not matter."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)
from torch import Tensor, nn

from autocompress.core.plan import Plan
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.transforms.compressor import Compressor
from autocompress.transforms.options import Options
from tests.transforms.nets import EDGES


def biased(network: nn.Module) -> nn.Module:
    """Return a network in which the biases of layers are 0, 2 and -2 in turn."""
    layers = [m for m in network.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear))]
    for layer in layers[:-1]:
        turn = torch.tensor([0.0, 2.0, -2.0]).repeat(len(layer.bias))[: len(layer.bias)]
        layer.bias.data.copy_(turn)
    return network.eval()


class Chunked(nn.Module):
    """Two halves of the channels, one of them through an activation, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, 1)
        return self.second(nn.functional.leaky_relu(left) + right)


def convolutions(width: int) -> nn.Module:
    first, second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 5, 1)
    return nn.Sequential(first, nn.LeakyReLU(), second)


NETWORKS = {
    "12 channels": (lambda: convolutions(12), (3, 16, 16)),
    "20 channels": (lambda: convolutions(20), (3, 16, 16)),
    "signals": (
        lambda: nn.Sequential(nn.Conv1d(3, 15, 3, padding=1), nn.GELU(), nn.Conv1d(15, 5, 1)),
        (3, 256),
    ),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(3, 18), nn.LeakyReLU(), nn.Linear(18, 5)),
        (256, 3),
    ),
    "chunked": (Chunked, (3, 16, 16)),
}


def made(name: str) -> tuple[Network, Tensor]:
    """Return a network with random weights, and 256 inputs."""
    make, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = biased(make())
    inputs = torch.randn(256, *shape, generator=torch.Generator().manual_seed(1))
    return trace(network, (inputs[:1],)), inputs


def error(network: Network, given: Tensor, fresh: Tensor, method: str = "mse") -> float:
    """Return the RMS error of 8 bits, in units of the outputs' deviation."""
    compressor = Compressor(network, [(given,)], EDGES, Options(calibrate=method))
    knobs = {f"{layer.name}/{knob}": 8 for layer in network.layers for knob in ("w_bits", "a_bits")}
    found, wanted = compressor.compress(Plan(knobs))(fresh), network(fresh)
    return float((found - wanted).square().mean().sqrt() / wanted.std())


@pytest.mark.parametrize("method", ["mse", "percentile"])
@pytest.mark.parametrize("name", NETWORKS)
def test_any_number_of_inputs_will_do(name: str, method: str) -> None:
    network, inputs = made(name)
    given, fresh = inputs[:128], inputs[192:]
    few, some, more, many = (error(network, given[:n], fresh, method) for n in (16, 31, 100, 128))
    assert max(few, some, more, many) < 0.03
    assert many < 1.2 * some  # from four times as many
    if given.ndim == 4:
        last = given.contiguous(memory_format=torch.channels_last)
        assert error(network, last, fresh, method) == pytest.approx(many, rel=0.1)


@pytest.mark.parametrize("name", ["12 channels", "tokens", "chunked"])
def test_sorted_inputs_are_as_good_as_shuffled_ones(name: str) -> None:
    network, inputs = made(name)
    generator = torch.Generator().manual_seed(2)
    bright = 4 * torch.rand(512, *[1] * (inputs.ndim - 1), generator=generator)
    given, fresh = torch.cat([inputs[:192]] * 3)[:512] * bright, inputs[192:] * bright[:64]
    ordered = given[bright.flatten().argsort()]
    assert error(network, ordered, fresh) < 1.2 * error(network, given, fresh)


class Reader(CalibrationDataReader):
    """Inputs one by one, as the quantizer wants them."""

    def __init__(self, inputs: Tensor) -> None:
        self._left = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        value = next(self._left, None)
        return None if value is None else {"x": value[None].numpy()}


def chunked_model(network: Network) -> onnx.ModelProto:
    """Return the chunked network as an ONNX model."""
    names = [part for layer in network.layers for part in (layer.weight, layer.bias)]
    nodes = [
        helper.make_node("Conv", ["x", *names[:2]], ["y"], pads=[1, 1, 1, 1]),
        helper.make_node("Split", ["y"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("LeakyRelu", ["left"], ["active"], alpha=0.01),
        helper.make_node("Add", ["active", "right"], ["sum"]),
        helper.make_node("Conv", ["sum", *names[2:]], ["out"]),
    ]
    constants = [numpy_helper.from_array(network.params[n].numpy(), n) for n in names]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width, 16, 16])
        for name, width in (("x", 3), ("out", 5))
    ]
    graph = helper.make_graph(nodes, "chunked", ends[:1], ends[1:], constants)
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9)


def test_a_chunked_network_is_as_good_as_by_stock_quantization(tmp_path) -> None:
    network, inputs = made("chunked")
    given, fresh = inputs[:128], inputs[192:]
    plain, ready, small = (tmp_path / f"{name}.onnx" for name in ("plain", "ready", "small"))
    onnx.save(chunked_model(network), plain)
    quant_pre_process(plain, ready)
    quantize_static(
        ready, small, Reader(given), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    options = onnxruntime.SessionOptions()  # exact arithmetic on any processor
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    stock = onnxruntime.InferenceSession(str(small), options, providers=["CPUExecutionProvider"])
    wanted = network(fresh)
    (found,) = stock.run(None, {"x": fresh.numpy()})
    theirs = float((torch.from_numpy(found) - wanted).square().mean().sqrt() / wanted.std())
    assert error(network, given, fresh) < 1.1 * theirs
