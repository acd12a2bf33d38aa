"""One layer made good: refitted to the inputs it now gets, rounded, its bias set right."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from autocompress.transforms.compensate import compensate
from autocompress.transforms.gram import Moments, columns_of, weight_of
from autocompress.transforms.options import Options
from autocompress.transforms.refit import factorise, refit, ridged
from autocompress.transforms.weights import Array, Grid, QuantizedWeight, best_scale, nearest

__all__ = ["Code", "repair", "round_weight"]

#: How a parameter is stored that is not float32.
Code = QuantizedWeight | Literal["float16"]

#: A Gram matrix wider than this is not made: such layers are rounded to nearest.
LIMIT_COLUMNS = 5120


def round_weight(weight: Tensor, bits: int, options: Options) -> tuple[Tensor, Code | None]:
    """Round a weight [out, ...] to the nearest values, each row's scale of least squared error."""
    if bits >= 32:
        return weight, None
    if bits == 16:
        return weight.half().float(), "float16"
    grid = Grid(bits, bits in options.odd_bits)
    rows = weight.reshape(len(weight), -1).numpy()
    scale = best_scale(rows, grid)
    return _stored(nearest(rows, scale[:, None], grid).reshape(weight.shape), scale, grid)


def _stored(codes: Array, scale: Array, grid: Grid) -> tuple[Tensor, QuantizedWeight]:
    stored = QuantizedWeight(
        codes.astype(np.int8), scale.astype(np.float32).reshape(-1), grid.bits, grid.odd
    )
    return torch.from_numpy(stored.values), stored


def repair(
    weight: Tensor, bias: Tensor, seen: Moments, bits: int, options: Options, *, spoilt: bool
) -> tuple[Tensor, Tensor, Code | None]:
    """Return a layer's new weight, bias and the weight's codes.

    ``weight``: [out, K/groups, ...]; ``seen``: moments of its inputs and of the outputs wanted;
    ``spoilt``: whether its inputs are no longer those it was trained for, so that the weight
    itself is to be refitted before it is rounded.
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
        value, code = _stored(codes.numpy(), rounded.scale, grid)
    else:
        value, code = round_weight(weight_of(columns, weight.shape), bits, options)
    if options.bn:
        bias = seen.bias(columns_of(value, groups))
    return value, bias, code
