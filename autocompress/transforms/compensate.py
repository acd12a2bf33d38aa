"""Rounding that knows the inputs: errors of one weight are made good by those after it.

The objective is the error of a layer's outputs, tr((Q - W)ᵀ H (Q - W)), with H the Gram matrix of
its inputs. Arrays are batched over the groups of a grouped convolution (one for any other layer):
weights are [groups, K, rows], columns of inputs first, so that the rows that are rounded together
lie together; H is [groups, K, K].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from autocompress.transforms.weights import Array, Grid, full_scale

__all__ = ["Rounded", "compensate", "descend", "feedback", "output_error", "refit_scale"]

BLOCK = 32


@dataclass(frozen=True)
class Rounded:
    """Codes (as floats) [groups, K, rows] and scales [groups, rows] of one layer."""

    codes: Array
    scale: Array


def feedback(gram: Array) -> tuple[Array, Array]:
    """Factor H = (I + U) D (I + U)ᵀ with U strictly upper triangular; return Uᵀ and diag D.

    H must be positive definite. Rounding column k of W to the nearest value of
    W_k + Σ_{j<k} (W_j - Q_j) U_jk is GPTQ (Frantar et al. 2023; Chee et al. 2023, eq. 2, show that
    the two are the same), and needs no inverse.
    """
    flipped = torch.from_numpy(gram[:, ::-1, ::-1].copy())
    factor = torch.linalg.cholesky(flipped).numpy()[:, ::-1, ::-1]
    pivots = np.diagonal(factor, axis1=1, axis2=2)
    upper = np.swapaxes(factor / pivots[:, None, :], 1, 2)
    upper = np.ascontiguousarray(upper, dtype=np.float32)
    return np.tril(upper, -1), (pivots**2).astype(np.float32)


def _product(left: Array, right: Array) -> Array:
    """Multiply matrices with torch's threads: two pools on the same cores slow each other."""
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    return np.asarray(torch.matmul(torch.from_numpy(left), torch.from_numpy(right)).numpy())


def _sweep(base: Array, coefs: Array, before: Array, scale: Array, grid: Grid, out: Array) -> None:
    """Round the columns of one block in order, each knowing the changes before it.

    The value to round is base_k + Σ_{j<k} coefs_kj changes_j, and changes_k = before_k - Q_k scale.
    """
    size = base.shape[1]
    changes = np.empty_like(base)
    inverse = 1 / scale
    half = grid.odd
    if half:
        inverse = inverse / 2
    low, high = np.float32(grid.low), np.float32(grid.high)
    two, one = np.float32(2), np.float32(1)
    for k in range(size):
        code = out[:, k]
        if k:
            value = np.matmul(coefs[:, k : k + 1, :k], changes[:, :k])[:, 0]
            value += base[:, k]
            np.multiply(value, inverse, out=code)
        else:
            np.multiply(base[:, k], inverse, out=code)
        if half:
            np.floor(code, out=code)
            np.multiply(code, two, out=code)
            np.add(code, one, out=code)
        else:
            np.rint(code, out=code)
        np.minimum(code, high, out=code)
        np.maximum(code, low, out=code)
        np.multiply(code, scale, out=changes[:, k])
        np.subtract(before[:, k], changes[:, k], out=changes[:, k])


def _forward(weights: Array, lower: Array, scale: Array, grid: Grid) -> Array:
    """One pass of error feedback over all columns; return the codes."""
    size = weights.shape[1]
    codes = np.empty_like(weights)
    errors = np.empty_like(weights)
    for start in range(0, size, BLOCK):
        block = slice(start, min(start + BLOCK, size))
        base = weights[:, block]
        if start:
            base = base + _product(lower[:, block, :start], errors[:, :start])
        _sweep(base, lower[:, block, block], weights[:, block], scale, grid, codes[:, block])
        errors[:, block] = weights[:, block] - codes[:, block] * scale[:, None]
    return codes


def descend(weights: Array, gram: Array, rounded: Rounded, grid: Grid) -> Rounded:
    """One sweep of coordinate descent over the columns; the output error never grows.

    Each column is set to its best value given all others (Behdin et al. 2023).
    """
    codes, scale = rounded.codes.copy(), rounded.scale
    size = weights.shape[1]
    errors = weights - codes * scale[:, None]
    coefs = gram / np.diagonal(gram, axis1=1, axis2=2)[:, :, None]
    for start in range(0, size, BLOCK):
        block = slice(start, min(start + BLOCK, size))
        rest = _product(coefs[:, block], errors)
        old = errors[:, block]
        base = weights[:, block] - old + rest
        # changes_k = (W_k - Q_k scale) - old_k enters the columns after it
        _sweep(base, coefs[:, block, block], weights[:, block] - old, scale, grid, codes[:, block])
        errors[:, block] = weights[:, block] - codes[:, block] * scale[:, None]
    return Rounded(codes, scale)


def output_error(weights: Array, gram: Array, rounded: Rounded) -> Array:
    """Return the squared output error of each row, [groups, rows]."""
    errors = weights - rounded.codes * rounded.scale[:, None]
    return np.asarray(np.sum(errors * _product(gram, errors), axis=1))


def refit_scale(weights: Array, gram: Array, rounded: Rounded) -> Rounded:
    """Return the codes with the scale of each row that has the least output error."""
    moved = _product(gram, rounded.codes)
    power = np.sum(rounded.codes * moved, axis=1)
    cross = np.sum(weights * moved, axis=1)
    fit = (power > 0) & (cross > 0)
    scale = np.where(fit, cross / np.where(fit, power, 1), rounded.scale)
    return Rounded(rounded.codes, scale.astype(np.float32))


def compensate(
    weights: Array,
    gram: Array,
    grid: Grid,
    *,
    ratios: Sequence[float] = (),
    sweeps: int = 1,
) -> Rounded:
    """Round a layer's weights such that its outputs change least.

    Every ratio of the unclipped scale is tried for every row at once, then scale and codes take
    turns for ``sweeps`` rounds. ``weights``: [groups, K, rows]; ``gram``: [groups, K, K],
    positive definite.
    """
    weights = np.ascontiguousarray(weights, dtype=np.float32)
    groups, size, rows = weights.shape
    lower, pivots = feedback(gram)
    gram = gram.astype(np.float32)
    tried = np.asarray(ratios or _RATIOS[grid.bits], dtype=np.float32)
    flat = weights.swapaxes(1, 2).reshape(groups * rows, size)
    full = full_scale(flat, grid).reshape(groups, rows)
    scale = (full[:, None, :] * tried[None, :, None]).reshape(groups, -1)
    stacked = np.tile(weights, (1, 1, len(tried)))
    codes = _forward(stacked, lower, scale, grid)
    # tr(E H Eᵀ) with the rounding residuals of the feedback pass
    errors = stacked - codes * scale[:, None]
    residuals = errors + _product(lower, errors)
    cost = np.einsum("gkr,gk->gr", residuals**2, pivots).reshape(groups, len(tried), rows)
    pick = cost.argmin(axis=1)
    columns = pick * rows + np.arange(rows)
    best = Rounded(
        np.take_along_axis(codes, columns[:, None, :], axis=2),
        np.take_along_axis(scale, columns, axis=1),
    )
    best = refit_scale(weights, gram, best)
    for _ in range(sweeps):
        best = refit_scale(weights, gram, descend(weights, gram, best, grid))
    return best


_RATIOS: dict[int, tuple[float, ...]] = {
    2: (0.3, 0.4, 0.5, 0.6, 0.7, 0.85),
    3: (0.45, 0.55, 0.65, 0.75, 0.85, 1.0),
    4: (0.6, 0.7, 0.8, 0.9, 1.0),
    5: (0.75, 0.85, 0.95, 1.0),
    6: (0.85, 0.95, 1.0),
    7: (0.95, 1.0),
    8: (1.0,),
}
