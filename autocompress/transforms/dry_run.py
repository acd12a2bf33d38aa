"""Sketches: a plan carried out in shapes, widths and forms alone, without its values.

What a file weighs and how long it takes depends on these and not on the values, so that cost
models can have them in milliseconds, before anything is compressed.
"""

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from autocompress.core.abilities import Abilities
from autocompress.core.plan import Plan
from autocompress.models.network import Network
from autocompress.transforms.compressor import Compressed
from autocompress.transforms.importance import count_kept
from autocompress.transforms.options import Options
from autocompress.transforms.quantize.placement import integer_layers, rounded_tensors
from autocompress.transforms.quantize.ranges import ActivationRange
from autocompress.transforms.quantize.weights import Grid, QuantizedWeight, full_scale
from autocompress.transforms.reconstruct.layer import LIMIT_COLUMNS, Code

__all__ = ["dry_run"]


def dry_run(
    network: Network,
    plan: Plan,
    abilities: Abilities,
    options: Options | None = None,
    *,
    long: Mapping[str, int] | None = None,
) -> Compressed:
    """Return what compressing would return, with made-up values of the same shapes and forms.

    Kept are the first channels of every unit; codes are random; the range of a rounded tensor is
    what it has in the uncompressed network on the example inputs, since runtimes fuse by it. Biases
    of rounded layers are taken to be stored in float16, but those in ``long`` from so many channels
    on: data decide, since float16 must do no harm (``repair``). The plan must fit
    (``Compressor.check``).
    """
    options, long = options or Options(), long or {}
    seen = network.example_ranges
    kept = {
        unit.name: range(count_kept(plan.get(unit.name, "keep"), unit.channels))
        for unit in network.units
        if plan.get(unit.name, "keep") < 1
    }
    network, _ = network.pruned(kept)
    bits: dict[str, int] = {}
    for layer in network.layers:
        asked = int(plan.get(layer.name, "w_bits"))
        bits[layer.weight] = max(asked, bits.get(layer.weight, 0))
    generator = np.random.default_rng(0)
    readers = {str(n.target): len(n.users) for n in network.graph.nodes if n.op == "get_attr"}
    params: dict[str, Tensor] = {}
    weights: dict[str, Code] = {}
    names = integer_layers(network, plan)
    integer = {layer.weight for layer in network.layers if layer.name in names}
    for layer in network.layers:
        width, value = bits[layer.weight], network.params[layer.weight]
        if width >= 32 or layer.weight in weights:
            continue
        wide = math.prod(value.shape[1:]) > LIMIT_COLUMNS
        shared = readers[layer.weight] > 1
        short = options.bn and not wide and not shared  # what float16 numbers there may be
        if width == 16:
            weights[layer.weight] = "float16"
            params[layer.weight] = value.half().float()
        else:
            limit = abilities.code_limit if layer.weight in integer else 128
            grid = Grid(width, width in options.odd_bits, limit)
            weights[layer.weight] = _codes(value, grid, generator, short)
        if options.bn and not wide:  # biases are set anew
            bias = network.params[layer.bias]
            if short and len(bias) < long.get(layer.bias, math.inf):
                weights[layer.bias] = "float16"
                params[layer.bias] = bias.half().float()
            else:
                params[layer.bias] = bias + 1e-4  # no float16 numbers
    widths = rounded_tensors(network, plan, abilities)
    ranges = {
        node.name: ActivationRange.covering(*seen[node.name], widths[node.name])
        for node in network.graph.nodes
        if node.name in widths
    }
    return Compressed(plan, network.replace(params=params), weights, ranges)


def _codes(
    value: Tensor, grid: Grid, generator: np.random.Generator, short: bool
) -> QuantizedWeight:
    count = (grid.high - grid.low) // grid.step + 1
    digits = generator.integers(0, count, value.shape, dtype=np.int16)
    codes = (digits * grid.step + grid.low).astype(np.int8)
    scale = full_scale(value.reshape(len(value), -1).numpy(), grid)
    limits = np.finfo(np.float16)
    if short and limits.smallest_normal <= scale.min() and scale.max() <= limits.max:
        scale = scale.astype(np.float16).astype(np.float32)
    return QuantizedWeight(codes, scale, grid.bits, grid.odd)
