"""Small networks and plain rounding, so that targets are tested apart from the transforms."""

import functools
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.core.abilities import PORTABLE, Abilities
from autocompress.core.plan import Plan
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.targets import TARGETS
from autocompress.targets.base import Builder
from autocompress.transforms.compressor import ActivationRange, Compressed, QuantizedWeight
from autocompress.transforms.quantize.placement import rounded_tensors


class Residual(nn.Module):
    """Plain, strided, depthwise and 1×1 convolutions, a residual sum, a linear layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.a = nn.Conv2d(width, width, 3, padding=1)
        self.b = nn.Conv2d(width, width, 3, padding=1)
        self.down = nn.Conv2d(width, 11, 1, stride=2)
        self.deep = nn.Conv2d(11, 11, 3, padding=1, groups=11)
        self.head = nn.Linear(11, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        x = F.relu(self.deep(F.relu(self.down(x))))
        return self.head(x.mean((2, 3)))


class Shuffled(nn.Module):
    """Split, shuffle, concatenation, group convolution, padding, flatten: constants to edit."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 12, 3, padding=1)
        self.left = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.mix = nn.Conv2d(12, 16, 1)
        self.wide = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(16 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        left, right = x.chunk(2, 1)
        x = torch.cat([F.relu(self.left(left)), right], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = F.relu(self.mix(x)) + F.pad(self.wide(x), (0, 0, 0, 0, 2, 2))
        return self.head(F.max_pool2d(x, 2).flatten(1))


class Attention(nn.Module):
    """One attention block: parameters that the exporter transposes or splits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.place = nn.Parameter(torch.randn(1, 5, 16) * 0.1)
        self.block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, activation="gelu")
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embed(x) + self.place).mean(1))


#: Networks of all kinds of layers, with the shapes of their inputs.
NETS = [(Residual, (3, 8, 8)), (Shuffled, (2, 8, 8)), (Attention, (5, 6))]


@functools.cache
def network(kind: type[nn.Module], *shape: int) -> Network:
    torch.manual_seed(0)
    return trace(kind().eval(), (torch.randn(1, *shape),))


def residual() -> Network:
    return network(Residual, 3, 8, 8)


@functools.cache
def wide() -> Network:
    """The same with enough weights that packing them pays."""
    torch.manual_seed(0)
    return trace(Residual(48).eval(), (torch.randn(1, 3, 8, 8),))


@functools.cache
def builder(target: str, net: Network) -> Builder:
    return TARGETS[target]().prepare(net)


def inputs(net: Network, count: int = 6) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return tuple(
        torch.randn(count, *value.shape[1:])
        if value.is_floating_point()
        else torch.randint(0, 5, (count, *value.shape[1:]))
        for value in net.example_inputs
    )


def rounded(
    net: Network, bits: int = 32, a_bits: int = 32, abilities: Abilities | None = None
) -> Compressed:
    """Round every layer to the nearest codes; 2 bits use odd codes."""
    settings = {f"{layer.name}/w_bits": bits for layer in net.layers if bits < 32}
    settings |= {f"{layer.name}/a_bits": a_bits for layer in net.layers if a_bits < 32}
    plan = Plan(settings)
    weights: dict[str, QuantizedWeight | str] = {}
    params: dict[str, torch.Tensor] = {}
    for layer in net.layers:
        value = net.params[layer.weight]
        if bits == 16:
            weights[layer.weight] = "float16"
            params[layer.weight] = value.half().float()
        elif bits <= 8:
            limit = PORTABLE if a_bits == 8 else 127
            weight = nearest(value.numpy(), bits, odd=bits == 2, limit=limit)
            weights[layer.weight] = weight
            params[layer.weight] = torch.from_numpy(weight.values)
    ranges: dict[str, ActivationRange] = {}
    if a_bits == 8:
        names = rounded_tensors(net, plan, abilities or TARGETS["onnxruntime"]().abilities)

        def observe(node: torch.fx.Node, value: object) -> None:
            if node.name in names and isinstance(value, torch.Tensor):
                least, greatest = min(0.0, value.min().item()), max(0.0, value.max().item())
                ranges[node.name] = ActivationRange.covering(least, greatest)

        net.run(*inputs(net, 32), observe=observe)
    return Compressed(plan, net.replace(params=params), weights, ranges)


def nearest(value: np.ndarray, bits: int, odd: bool = False, limit: int = 127) -> QuantizedWeight:
    peak = np.abs(value).reshape(len(value), -1).max(1) + 1e-9
    high = min(limit, 2**bits - 1 if odd else 2 ** (bits - 1) - 1)
    scale = (peak / high).astype(np.float32)
    codes = value / scale.reshape(-1, *[1] * (value.ndim - 1))
    if odd:
        codes = np.clip(2 * np.floor(codes / 2) + 1, 1 - 2**bits, 2**bits - 1)
    else:
        codes = np.clip(np.rint(codes), -min(limit, 2 ** (bits - 1)), high)
    return QuantizedWeight(codes.astype(np.int8), scale, bits, odd)


def pruned(net: Network, keep: float) -> Network:
    """Keep a random part of every unit's channels."""
    generator = np.random.default_rng(0)
    kept = {
        unit.name: sorted(
            generator.choice(unit.channels, max(1, int(unit.channels * keep)), replace=False)
        )
        for unit in net.units
    }
    params = {}
    for name, dims in net.groups.slices(kept).items():
        value = net.params[name]
        for dim, positions in dims.items():
            value = value.index_select(dim, positions)
        params[name] = value
    return net.replace(params=params, edits=net.groups.edits(kept))


def optimised(path: Path, into: Path) -> Counter[str]:
    """Return how often each operator is in the graph that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(into)
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(str(into)).graph.node)
