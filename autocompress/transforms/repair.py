"""One layer made good: refitted to the inputs it now gets, rounded, its bias set right."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from autocompress.transforms.compensate import compensate
from autocompress.transforms.gram import Moments, columns_of, weight_of
from autocompress.transforms.options import Options
from autocompress.transforms.refit import factorise, refit, ridged
from autocompress.transforms.weights import Array, Grid, QuantizedWeight, best_scale, nearest

__all__ = ["LIMIT_COLUMNS", "Code", "Repaired", "repair", "round_weight"]

#: How a parameter is stored that is not float32.
Code = QuantizedWeight | Literal["float16"]

#: A Gram matrix wider than this is not made: such layers are rounded to nearest.
LIMIT_COLUMNS = 5120

# A bias may err by this share of its output's deviation to be stored in float16.
_HARMLESS = 1 / 128


def round_weight(
    weight: Tensor, bits: int, options: Options, *, short_scale: bool = False
) -> tuple[Tensor, Code | None]:
    """Round a weight [out, ...] to the nearest values, each row's scale of least squared error.

    ``short_scale``: scales are float16 numbers where these reach, for a bias that is set after.
    """
    if bits >= 32:
        return weight, None
    if bits == 16:
        most = torch.finfo(torch.float16).max
        return weight.clamp(-most, most).half().float(), "float16"
    grid = Grid(bits, bits in options.odd_bits)
    rows = weight.reshape(len(weight), -1).numpy()
    scale = best_scale(rows, grid)
    codes = nearest(rows, scale[:, None], grid).reshape(weight.shape)
    return _stored(codes, scale, grid, short_scale)


def _stored(
    codes: Array, scale: Array, grid: Grid, short_scale: bool
) -> tuple[Tensor, QuantizedWeight]:
    scale = scale.astype(np.float32).reshape(-1)
    limits = np.finfo(np.float16)
    if short_scale and limits.smallest_normal <= scale.min() and scale.max() <= limits.max:
        scale = scale.astype(np.float16).astype(np.float32)
    stored = QuantizedWeight(codes.astype(np.int8), scale, grid.bits, grid.odd)
    return torch.from_numpy(stored.values), stored


@dataclass(frozen=True, eq=False)
class Repaired:
    """A layer's new weight and bias, and how each is stored (None: float32)."""

    weight: Tensor
    bias: Tensor
    weight_code: Code | None
    bias_code: Code | None


def repair(
    weight: Tensor, bias: Tensor, seen: Moments, bits: int, options: Options, *, spoilt: bool
) -> Repaired:
    """Make a layer good.

    ``weight``: [out, K/groups, ...]; ``seen``: moments of its inputs and of the outputs wanted,
    not centred and the outputs without the bias where ``options.bn`` is off; ``spoilt``: whether
    its inputs are no longer those it was trained for, so that the weight itself is to be refitted
    before it is rounded.
    """
    groups = len(seen.gram)
    columns = columns_of(weight, groups)
    compensated = options.compensate and bits <= options.compensate_bits
    refitted = options.refit and spoilt
    if compensated or refitted:
        gram, strength = ridged(seen.gram, options.ridge)
        factor = factorise(gram)
    if refitted:
        columns = refit(columns, seen.cross, factor, strength)
    code: Code | None
    if compensated:
        grid = Grid(bits, bits in options.odd_bits)
        sweeps = options.sweeps if bits == 2 else 0
        rounded = compensate(columns.numpy(), gram.numpy(), factor.numpy(), grid, sweeps=sweeps)
        codes = weight_of(torch.from_numpy(rounded.codes), weight.shape)
        value, code = _stored(codes.numpy(), rounded.scale, grid, options.bn)
    else:
        whole = weight_of(columns, weight.shape)
        value, code = round_weight(whole, bits, options, short_scale=options.bn)
    if not options.bn:
        return Repaired(value, bias, code, None)
    bias = seen.bias(columns_of(value, groups))
    half = bias.half().float()
    harmless = bool(((half - bias).abs() <= seen.spread * _HARMLESS).all())
    if code is not None and harmless:
        return Repaired(value, half, code, "float16")
    return Repaired(value, bias, code, None)
