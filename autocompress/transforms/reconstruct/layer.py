"""One layer made good: refitted to the inputs it now gets, rounded, its bias set right."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from autocompress.transforms.options import Options
from autocompress.transforms.quantize.gptq import compensate
from autocompress.transforms.quantize.weights import (
    Array,
    Grid,
    QuantizedWeight,
    best_scale,
    nearest,
)
from autocompress.transforms.reconstruct.gram import Moments, columns_of, weight_of
from autocompress.transforms.reconstruct.least_squares import factorise, refit, ridged

__all__ = [
    "LIMIT_COLUMNS", "Code", "Kernel", "Repaired", "repair", "round_weight", "rounded_bias",
    "widened",
]  # fmt: skip

#: How a parameter is stored that is not float32.
Code = QuantizedWeight | Literal["float16"]

#: A Gram matrix wider than this is not made: such layers are rounded to nearest.
LIMIT_COLUMNS = 5120

# A bias may err by this share of its output's deviation to be stored in float16.
_HARMLESS = 1 / 128
# The step of an integer bias is at most this share of its output's deviation, or, of an output that
# hardly moves, of this share of the other outputs' mean deviation.
_BIAS_STEP, _QUIET = 1 / 8, 1 / 64
# An input that moves by less than this share of its mean is constant: float32 tells no more.
_CONSTANT = 1e-5
# A bias is stored in an int32; half of it is left for what is added.
_MOST = 2**30


@dataclass(frozen=True)
class Kernel:
    """What the kernel of an integer layer asks of its parameters.

    ``code_limit``: the greatest magnitude of a code. ``step``: the scale of the layer's input where
    biases are whole multiples of it times the weight's scale, None where they are floats.
    """

    code_limit: int
    step: float | None = None


def widened(weight: QuantizedWeight, bias: Tensor, step: float) -> QuantizedWeight:
    """Return a weight whose scale times ``step`` is a unit in which the bias fits an int32."""
    least = np.abs(bias.numpy()) / np.float32(step * _MOST)
    if not (weight.scale < least).any():
        return weight
    scale = np.maximum(weight.scale, least).astype(np.float32)
    rows = weight.values.reshape(len(scale), -1)
    codes = nearest(rows, scale[:, None], Grid(weight.bits, weight.odd))
    return replace(weight, codes=codes.reshape(weight.codes.shape).astype(np.int8), scale=scale)


def rounded_bias(weight: QuantizedWeight, bias: Tensor, step: float) -> Tensor:
    """Return the bias that an integer kernel adds, by its float32 arithmetic.

    It is a whole multiple, of 32 bits, of ``step`` times the weight's scale.
    """
    unit = weight.scale * np.float32(step)
    whole = np.rint(bias.numpy() / unit).clip(-(2.0**31), 2.0**31 - 128)
    return torch.from_numpy(whole.astype(np.int32).astype(np.float32) * unit)


def round_weight(
    weight: Tensor, bits: int, options: Options, *, limit: int = 128, short_scale: bool = False
) -> tuple[Tensor, Code | None]:
    """Round a weight [out, ...] to the nearest values, each row's scale of least squared error.

    ``limit``: the greatest magnitude of a code.

    ``short_scale``: scales are float16 numbers where these reach, for a bias that is set after.
    """
    if bits >= 32:
        return weight, None
    if bits == 16:
        most = torch.finfo(torch.float16).max
        return weight.clamp(-most, most).half().float(), "float16"
    grid = Grid(bits, bits in options.odd_bits, limit)
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
    weight: Tensor,
    bias: Tensor,
    seen: Moments,
    bits: int,
    options: Options,
    kernel: Kernel | None = None,
    *,
    spoilt: bool,
) -> Repaired:
    """Refit one layer and quantize it.

    ``weight``: [out, K/groups, ...]; ``seen``: moments of its inputs and of the outputs wanted,
    not centred and the outputs without the bias where ``options.bn`` is off; ``spoilt``: whether
    its inputs are no longer those it was trained for, so that the weight itself is to be refitted
    before it is rounded; ``kernel``: that of an integer layer.
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
    limit = kernel.code_limit if kernel is not None else 128
    if bits <= 8 and options.bn:
        grid = Grid(bits, bits in options.odd_bits, limit)
        columns = _bounded(columns, seen, grid.high, kernel.step if kernel is not None else None)
    code: Code | None
    if compensated:
        grid = Grid(bits, bits in options.odd_bits, limit)
        sweeps = options.sweeps if bits == 2 else 0
        rounded = compensate(columns.numpy(), gram.numpy(), factor.numpy(), grid, sweeps=sweeps)
        codes = weight_of(torch.from_numpy(rounded.codes), weight.shape)
        value, code = _stored(codes.numpy(), rounded.scale, grid, options.bn)
    else:
        whole = weight_of(columns, weight.shape)
        value, code = round_weight(whole, bits, options, limit=limit, short_scale=options.bn)
    if not options.bn:
        return Repaired(value, bias, code, None)
    bias = seen.bias(columns_of(value, groups))
    half = bias.half().float()
    harmless = bool(((half - bias).abs() <= seen.spread * _HARMLESS).all())
    if code is not None and harmless:
        return Repaired(value, half, code, "float16")
    return Repaired(value, bias, code, None)


def _bounded(columns: Tensor, seen: Moments, high: int, step: float | None) -> Tensor:
    """Return weights [groups, K, rows] without those that would make their row's scale too coarse.

    A weight whose input is constant does what the bias does, so it gets no larger than the largest
    of the others. With biases in units of ``step`` times the scale, no weight is larger than the
    unit allows; what that takes away, the input's own rounding has drowned.
    """
    moving = seen.gram.diagonal(dim1=1, dim2=2) > (_CONSTANT * seen.mean_in).square()
    peak = (columns.abs() * moving[:, :, None]).amax(1, keepdim=True)
    some = moving.any(1)[:, None, None]
    free = moving[:, :, None] | ~some
    bounded = torch.where(free, columns, columns.clamp(-peak, peak))
    if step is not None:
        spread = seen.spread.clamp_min(float(seen.spread.mean()) * _QUIET)
        most = (spread * (_BIAS_STEP * high / step)).reshape(len(columns), 1, -1)
        bounded = bounded.clamp(-most, most)
    return bounded
