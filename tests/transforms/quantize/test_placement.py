from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.core.plan import Plan
from autocompress.models.trace import trace
from autocompress.transforms.quantize.placement import integer_layers, rounded_tensors
from tests.transforms.nets import EDGES, PLAIN, Residual, trained

ALL = ("stem", "conv1", "conv2", "depth", "point", "group", "fc")


def names(settings: Mapping[str, tuple[int, int]], edges: bool = True) -> set[str]:
    """Readable names of the tensors that are rounded: those they are outputs of."""
    network = trained(Residual)
    plan = Plan(
        {
            f"{layer}/{knob}": bits
            for layer, both in settings.items()
            for knob, bits in zip(("w_bits", "a_bits"), both, strict=True)
        }
    )
    found = rounded_tensors(network, plan, EDGES if edges else PLAIN)
    assert set(found.values()) <= {8}
    layers = {layer.node: layer.name for layer in network.layers}
    nodes = {node.name: node for node in network.graph.nodes}

    def readable(name: str) -> str:
        node = nodes[name]
        if node.op == "placeholder":
            return "input"
        kind = str(node.target).split(".")[1]
        if kind == "relu":
            return f"relu({readable(node.args[0].name)})"
        return layers.get(name, kind)

    return {readable(name) for name in found}


def test_inputs_alone_where_the_target_asks_no_more() -> None:
    assert names({"conv1": (8, 8)}, edges=False) == {"relu(stem)"}
    assert names({}) == set()


def test_an_integer_layer_gets_its_output_rounded_behind_its_relu() -> None:
    assert names({"conv1": (4, 8)}) == {"relu(stem)", "relu(conv1)"}


@pytest.mark.parametrize("bits", [16, 32])
def test_a_float_layer_keeps_float_activations(bits: int) -> None:
    assert names({"conv1": (bits, 8)}) == set()


def test_the_widest_wins() -> None:
    """relu(add) is read by the depthwise layer alone, relu(stem) by conv1 and the sum."""
    assert "relu(add)" in names({"depth": (8, 8)})
    assert names({"fc": (8, 8)}) == {"mean"}
    assert names({"fc": (8, 32)}) == set()


def test_a_sum_of_rounded_tensors_is_rounded_for_an_integer_reader() -> None:
    three = dict.fromkeys(("conv1", "conv2", "depth"), (8, 8))
    assert names(three) == {
        "relu(stem)", "relu(conv1)", "conv2", "relu(add)", "relu(depth)"
    }  # fmt: skip
    del three["depth"]
    assert "relu(add)" not in names(three)


def test_a_layer_that_asks_for_floats_stays_one() -> None:
    """conv1's kernel wants its output rounded; conv2 reads it and does not become integer."""
    network = trained(Residual)
    plan = Plan({"conv1/w_bits": 8, "conv1/a_bits": 8, "conv2/w_bits": 4})
    assert integer_layers(network, plan) == {"conv1"}
    assert names({"conv1": (8, 8), "conv2": (4, 32)}) == {"relu(stem)", "relu(conv1)"}


def test_all_at_8() -> None:
    found = names(dict.fromkeys(ALL, (8, 8)))
    assert found == {
        "input", "relu(stem)", "relu(conv1)", "conv2", "relu(add)", "relu(depth)",
        "relu(point)", "relu(group)", "mean",
    }  # fmt: skip


class Shared(nn.Module):
    """A weight of a convolution that something else reads: its transpose, or a table's rows."""

    def __init__(self, table: bool) -> None:
        super().__init__()
        self.table = table
        self.weight = nn.Parameter(torch.randn(8, 8) if table else torch.randn(8, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.table:
            return F.linear(F.embedding(x, self.weight), self.weight)
        return F.conv_transpose2d(F.relu(F.conv2d(x, self.weight)), self.weight)


@pytest.mark.parametrize("table", [True, False])
def test_a_weight_that_another_operator_reads_stays_a_float(table: bool) -> None:
    """Runtimes round it anew for a transposed convolution, to another grid."""
    example = torch.zeros(1, 4, dtype=torch.int64) if table else torch.randn(1, 8, 6, 6)
    net = trace(Shared(table).eval(), (example,))
    (layer,) = net.layers
    plan = Plan({f"{layer.name}/w_bits": 8, f"{layer.name}/a_bits": 8})
    assert bool(integer_layers(net, plan)) == table
    assert bool(rounded_tensors(net, plan, PLAIN)) == table
