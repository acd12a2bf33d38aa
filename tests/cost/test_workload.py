import functools
import random
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autocompress.core.abilities import Abilities
from autocompress.core.plan import Plan
from autocompress.cost import shapes as module
from autocompress.cost.workload import Workload, workload
from autocompress.models.network import Network
from autocompress.models.students import STUDENTS
from autocompress.models.trace import trace
from autocompress.targets import TARGETS
from autocompress.transforms.dry_run import dry_run
from tests.targets.support import Attention, Residual, Shuffled, network

ORT = TARGETS["onnxruntime"]().abilities
BLOCKS = {"residual": (Residual, 3, 8, 8), "shuffled": (Shuffled, 2, 8, 8)}
NETS = [*STUDENTS, *BLOCKS, "attention"]


@functools.cache
def net_of(name: str) -> Network:
    if name == "attention":
        return network(Attention, 5, 6)
    if name in BLOCKS:
        return network(*BLOCKS[name])
    torch.manual_seed(0)
    model = STUDENTS[name](in_channels=2, num_classes=10).eval()
    return trace(model, (torch.randn(1, 2, 20, 28),))


def settings(net: Network, keep: float = 1, w: int = 32, a: int = 32) -> Plan:
    chosen: dict[str, float] = {f"{u.name}/keep": keep for u in net.units if keep < 1}
    for layer in net.layers:
        chosen |= {f"{layer.name}/w_bits": w} if w < 32 else {}
        chosen |= {f"{layer.name}/a_bits": a} if a < 32 else {}
    return Plan(chosen)


def work(net: Network, plan: Plan | None = None, abilities: Abilities = ORT) -> Workload:
    return workload(dry_run(net, plan or Plan(), abilities), abilities)


@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("name", NETS)
def test_macs_are_those_that_torch_counts(name: str, keep: float) -> None:
    net = net_of(name)
    compressed = dry_run(net, settings(net, keep), ORT)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernel is not counted
        compressed.network.run(*net.example_inputs)
    found = workload(compressed, ORT)
    assert found.macs == counter.get_total_flops() / 2 > 0
    assert found.unknown == ()


@pytest.mark.parametrize("name", NETS)
def test_shapes_are_those_of_a_run(name: str) -> None:
    for keep in (1.0, 0.4):
        compressed = dry_run(net_of(name), settings(net_of(name), keep), ORT)
        sizes: dict[str, int] = {}

        def observe(node: torch.fx.Node, value: object, sizes: dict[str, int] = sizes) -> None:
            if isinstance(value, Tensor):
                sizes[node.name] = value.numel()

        compressed.network.run(*net_of(name).example_inputs, observe=observe)
        for value in workload(compressed, ORT).values.values():
            assert sizes.get(value.name, value.elements) == value.elements, value


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_layers_are_described_as_their_parameters_say(name: str, keep: float) -> None:
    net = net_of(name)
    compressed = dry_run(net, settings(net, keep, 4, 8), ORT)
    ops = {op.name: op for op in workload(compressed, ORT).ops if op.layer}
    assert set(ops) == {layer.name for layer in net.layers}
    nodes = {node.name: node for node in compressed.network.graph.nodes}
    for layer in net.layers:
        op, weight = ops[layer.name], compressed.network.params[layer.weight]
        assert op.kind == layer.kind
        assert op.macs == layer.positions * weight.numel()
        assert (op.cout, op.pixels) == (len(weight), layer.positions)
        assert op.cin == weight.shape[1] * op.groups
        assert op.cout % op.groups == 0
        assert op.weights == weight.numel() + len(weight)
        assert op.weight_bytes == -(-weight.numel() // 2) + 4 * len(weight)
        assert (op.w_bits, op.a_bits) == (4, 8)
        if layer.kind != "linear":
            args = nodes[layer.node].args
            assert op.stride == (args[3][0] if len(args) > 3 else 1)
            assert op.taps == weight[0, 0].numel()
    assert {op.kind for op in ops.values()} <= {"conv", "depthwise", "grouped", "linear"}


class Branches(nn.Module):
    """Two strides, groups, a weight read twice, a free parameter, a pool that returns indices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, (3, 5), stride=(1, 2), padding=(1, 2))
        self.grouped = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.scale = nn.Parameter(torch.rand(1, 6, 1, 1))
        self.head = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        x = torch.sigmoid(self.grouped(x)) * self.scale
        x = x.mean((2, 3))
        return self.head(F.relu(self.head(x)))


@pytest.fixture(scope="module")
def branches() -> Network:
    torch.manual_seed(0)
    return trace(Branches().eval(), (torch.randn(1, 1, 8, 12),))


def test_kinds_values_and_fusion_of_a_small_network(branches: Network) -> None:
    found = work(branches)
    assert [op.kind for op in found.ops] == [
        "conv", "reduction", "view", "grouped", "elementwise", "elementwise", "reduction",
        "linear", "linear",
    ]  # fmt: skip
    stem, pool, view, grouped, _, scaled, mean, first, second = found.ops
    assert stem.output == "relu"  # fused
    assert (stem.stride, stem.pixels, stem.taps, stem.groups) == (2, 48, 15, 1)
    assert (grouped.groups, grouped.cin, grouped.cout) == (2, 4, 6)
    assert found.values[pool.output].nbytes == 4 * 4 * 4 * 3  # without the indices
    assert found.values[view.output].elements == 4 * 4 * 3
    assert (scaled.weights, scaled.weight_bytes) == (6, 24)
    assert found.values[mean.output].elements == 6
    assert (first.shared, second.shared) == (0, 4 * 36)
    held = sum(v.numel() * 4 for v in branches.params.values())
    assert found.weight_bytes == held


def test_rounded_tensors_are_stored_at_their_bits_and_views_like_their_source() -> None:
    net = network(Shuffled, 2, 8, 8)
    compressed = dry_run(net, settings(net, 1, 8, 8), ORT)
    found = workload(compressed, ORT)
    sources = {op.output: op.inputs[0] for op in found.ops if op.kind == "view" and op.inputs}
    for value in found.values.values():
        ranged = compressed.activations.get(value.name)
        if ranged is not None:
            assert value.bits == ranged.bits
        elif value.name in sources:
            assert value.bits == found.values[sources[value.name]].bits
        else:
            assert value.bits == 32
    assert {value.bits for value in found.values.values()} == {8, 32}


def test_a_float_layer_with_small_weights_computes_in_float(branches: Network) -> None:
    for bits in (4, 16):
        ops = [op for op in work(branches, settings(branches, 1, bits)).ops if op.layer]
        assert {(op.w_bits, op.a_bits) for op in ops} == {(bits, 32)}


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.lgamma(torch.sinh(self.fc(x)).abs() + 1)


def test_an_operator_without_a_rule_is_named() -> None:
    found = work(trace(Odd().eval(), (torch.randn(1, 4),)))
    assert found.unknown == ("aten.lgamma.default", "aten.sinh.default")
    assert found.macs == 16


def test_what_follows_a_tensor_of_unknown_shape_is_unknown(
    branches: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ask", lambda node, found: None)
    found = work(branches)
    assert "aten.max_pool2d_with_indices.default" in found.unknown
    assert "aten.linear.default" in found.unknown


def test_formulas_agree_with_the_operators() -> None:
    chance = random.Random(0)
    for _ in range(40):
        g, k = chance.choice([1, 2]), chance.randint(1, 3)
        stride, pad, dilation = chance.randint(1, 3), chance.randint(0, 2), chance.randint(1, 2)
        conv = nn.Conv2d(4, 6, (k, 3), (stride, 1), (pad, 1), dilation, g)
        graph = torch.fx.Graph()
        x, w, b, row = graph.placeholder("x"), *map(graph.get_attr, ("w", "b", "row"))
        first = graph.call_function(
            torch.ops.aten.conv2d.default,
            (x, w, b, [stride, 1], [pad, 1], [dilation, dilation], g),
        )
        scaled = graph.call_function(torch.ops.aten.mul.Tensor, (first, row))
        flat = graph.call_function(torch.ops.aten.reshape.default, (first, [1, -1]))
        graph.output((first, scaled, flat))
        sample = torch.randn(1, 4, chance.randint(6, 9), 6 if dilation == 1 else 8)
        out = conv(sample)
        params = {"w": conv.weight, "b": torch.zeros(6), "row": torch.zeros(out.shape[-1])}
        found = module.shapes_of(graph, params, (sample,))
        assert found[first].shape == found[scaled].shape == tuple(out.shape)
        assert found[flat].shape == (1, out.numel())


def test_a_workload_takes_few_calls() -> None:
    for name in ("resnet", "shufflenetv2"):
        compressed, calls = dry_run(net_of(name), settings(net_of(name), 0.5), ORT), list[str]()
        sys.setprofile(lambda frame, event, what, calls=calls: calls.append(event))
        try:
            workload(compressed, ORT)
        finally:
            sys.setprofile(None)
        assert 0 < calls.count("call") < 20_000
