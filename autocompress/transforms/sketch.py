"""Sketches: a plan carried out in shapes, widths and forms alone, without its values.

What a file weighs and how long it takes depends on these and not on the values, so that cost
models can have them in milliseconds, before anything is compressed.
"""

import numpy as np
from torch import Tensor

from autocompress.models.network import Network
from autocompress.spec.abilities import Abilities
from autocompress.spec.plan import Plan
from autocompress.transforms.compress import Compressed
from autocompress.transforms.edges import rounded_tensors
from autocompress.transforms.observe import ActivationRange
from autocompress.transforms.options import Options
from autocompress.transforms.prune import count_kept
from autocompress.transforms.repair import Code
from autocompress.transforms.weights import Grid, QuantizedWeight

__all__ = ["sketch"]


def sketch(
    network: Network, plan: Plan, abilities: Abilities, options: Options | None = None
) -> Compressed:
    """Return what compressing would return, with made-up values of the same shapes and forms.

    Kept are the first channels of every unit; codes are random ones of the weight's own spread;
    the range of a rounded tensor is what it has in the uncompressed network on the example inputs,
    since runtimes fuse by it. The plan must fit (``Compressor.check``).
    """
    options = options or Options()
    seen = network.example_ranges
    kept = {
        unit.name: range(count_kept(plan.get(unit.name, "keep"), unit.channels))
        for unit in network.units
        if plan.get(unit.name, "keep") < 1
    }
    kept = {unit.name: kept[unit.name] for unit in network.units if unit.name in kept}
    sliced: dict[str, Tensor] = {}
    if kept:
        for name, cuts in network.groups.slices(kept).items():
            value = network.params[name]
            for dim, index in cuts.items():
                value = value.index_select(dim, index)
            sliced[name] = value
        network = network.replace(params=sliced, edits=network.groups.edits(kept))
    bits: dict[str, int] = {}
    for layer in network.layers:
        asked = int(plan.get(layer.name, "w_bits"))
        bits[layer.weight] = max(asked, bits.get(layer.weight, 0))
    generator = np.random.default_rng(0)
    params: dict[str, Tensor] = {}
    weights: dict[str, Code] = {}
    for layer in network.layers:
        width = bits[layer.weight]
        if width >= 32 or layer.weight in weights:
            continue
        if width == 16:
            weights[layer.weight] = "float16"
            params[layer.weight] = network.params[layer.weight].half().float()
        else:
            weights[layer.weight] = _codes(
                network.params[layer.weight], Grid(width, width in options.odd_bits), generator
            )
        if options.bn:  # biases are set anew then, and are float16 numbers
            weights[layer.bias] = "float16"
            params[layer.bias] = network.params[layer.bias].half().float()
    ranges = {
        name: ActivationRange.covering(*seen[name], width)
        for name, width in rounded_tensors(network, plan, abilities).items()
    }
    return Compressed(plan, network.replace(params=params), weights, ranges)


def _codes(value: Tensor, grid: Grid, generator: np.random.Generator) -> QuantizedWeight:
    digits = generator.integers(0, 2**grid.bits, value.shape, dtype=np.int16)
    codes = (digits * grid.step + grid.low).astype(np.int8)
    spread = float(value.std()) if value.numel() > 1 else 1.0
    scale = np.float16(max(spread / max(float(codes.std()), 1.0), 1e-4))
    return QuantizedWeight(codes, np.full(len(codes), scale, np.float32), grid.bits, grid.odd)
