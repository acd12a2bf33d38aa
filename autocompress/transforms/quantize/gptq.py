"""Rounding that knows the inputs: errors of one weight are made good by those after it.

The objective is the error of a layer's outputs, tr((Q - W)ᵀ H (Q - W)), with H the Gram matrix of
its inputs. Arrays are batched over the groups of a grouped convolution (one for any other layer):
weights are [groups, K, rows], columns of inputs first, so that the rows that are rounded together
lie together; H is [groups, K, K].
"""

from dataclasses import dataclass

import numpy as np
import torch

from autocompress.transforms.quantize.weights import Array, Grid, full_scale

__all__ = ["Rounded", "compensate", "descend", "feedback", "refit_scale"]

BLOCK = 32


@dataclass(frozen=True)
class Rounded:
    """Codes (as floats) [groups, K, rows] and scales [groups, rows] of one layer."""

    codes: Array
    scale: Array

    @property
    def values(self) -> Array:
        """The weights, [groups, K, rows]."""
        return self.codes * self.scale[:, None]


def feedback(factor: Array) -> tuple[Array, Array]:
    """Write H = R Rᵀ as (I + U) D (I + U)ᵀ with unit diagonals; return (I + U)ᵀ and diag D.

    ``factor``: R, upper triangular. Rounding column k of W to the nearest value of
    W_k + Σ_{j<k} (W_j - Q_j) U_jk is GPTQ (Frantar et al. 2023; Chee et al. 2023, eq. 2, show that
    the two are the same), and needs no inverse.
    """
    pivots = np.diagonal(factor, axis1=1, axis2=2)
    lower = np.ascontiguousarray((factor / pivots[:, None, :]).swapaxes(1, 2), dtype=np.float32)
    return lower, (pivots**2).astype(np.float32)


def _product(left: Array, right: Array) -> Array:
    """Multiply matrices with torch's threads: two pools on the same cores slow each other."""
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    return np.asarray(torch.matmul(torch.from_numpy(left), torch.from_numpy(right)).numpy())


def _units(weights: Array, scale: Array, grid: Grid) -> Array:
    """Return weights in units in which the grid's codes are consecutive integers."""
    offset = grid.low % grid.step
    return np.asarray((weights / scale[:, None] - offset) / grid.step, dtype=np.float32)


def _codes(whole: Array, grid: Grid) -> Array:
    """Return the grid's codes of consecutive integers."""
    return whole * grid.step + grid.low % grid.step


def _sweep(base: Array, coefs: Array, before: Array, grid: Grid, out: Array) -> None:
    """Round the columns of one block in order, each knowing the changes before it.

    The value to round is base_k + Σ_{j<k} coefs_kj changes_j, and changes_k = before_k - out_k.
    """
    if len(base) == 1:  # one group: the products of plain vectors and matrices are quicker
        base, coefs, before, out = base[0], coefs[0], before[0], out[0]
    changes = np.empty(base.shape, base.dtype)
    low, high = (np.float32(code // grid.step) for code in (grid.low, grid.high))
    for k in range(base.shape[-2]):
        code = out[..., k, :]
        if not k:
            np.rint(base[..., k, :], out=code)
        else:
            known = (
                np.dot(coefs[k, :k], changes[:k])
                if base.ndim == 2
                else np.matmul(coefs[:, k : k + 1, :k], changes[:, :k])[:, 0]
            )
            np.add(known, base[..., k, :], out=code)
            np.rint(code, out=code)
        np.minimum(code, high, out=code)
        np.maximum(code, low, out=code)
        np.subtract(before[..., k, :], code, out=changes[..., k, :])


def _forward(weights: Array, lower: Array, grid: Grid) -> Array:
    """One pass of error feedback over all columns, in units of :func:`_units`."""
    size = weights.shape[1]
    whole, errors = np.empty_like(weights), np.empty_like(weights)
    for start in range(0, size, BLOCK):
        block = slice(start, min(start + BLOCK, size))
        base = weights[:, block]
        if start:
            base = base + _product(lower[:, block, :start], errors[:, :start])
        _sweep(base, lower[:, block, block], weights[:, block], grid, whole[:, block])
        np.subtract(weights[:, block], whole[:, block], out=errors[:, block])
    return whole


def descend(weights: Array, gram: Array, rounded: Rounded, grid: Grid) -> Rounded:
    """One sweep of coordinate descent over the columns; the output error never grows.

    Each column is set to its best value given all others (Behdin et al. 2023).
    """
    exact, whole = (_units(part, rounded.scale, grid) for part in (weights, rounded.values))
    whole = np.rint(whole)
    errors = exact - whole
    coefs = gram / np.diagonal(gram, axis1=1, axis2=2)[:, :, None]
    for start in range(0, weights.shape[1], BLOCK):
        block = slice(start, min(start + BLOCK, weights.shape[1]))
        before = whole[:, block].copy()
        base = before + _product(coefs[:, block], errors)
        _sweep(base, coefs[:, block, block], before, grid, whole[:, block])
        np.subtract(exact[:, block], whole[:, block], out=errors[:, block])
    return Rounded(_codes(whole, grid), rounded.scale)


def refit_scale(weights: Array, gram: Array, rounded: Rounded) -> Rounded:
    """Return the codes with the scale of each row that has the least output error."""
    moved = _product(gram, rounded.codes)
    power = np.sum(rounded.codes * moved, axis=1)
    cross = np.sum(weights * moved, axis=1)
    fit = (power > 0) & (cross > 0)
    scale = np.where(fit, cross / np.where(fit, power, 1), rounded.scale)
    return Rounded(rounded.codes, scale.astype(np.float32))


def compensate(
    weights: Array, gram: Array, factor: Array, grid: Grid, *, sweeps: int = 0
) -> Rounded:
    """Round a layer's weights such that its outputs change least.

    Several ratios of the unclipped scale are tried for every row at once, then codes and scale
    take turns for ``sweeps`` rounds. ``weights``: [groups, K, rows]; ``gram``: [groups, K, K],
    positive definite; ``factor``: the upper triangular R with R Rᵀ = gram.
    """
    groups, size, rows = weights.shape
    lower, pivots = feedback(factor)
    gram = gram.astype(np.float32)
    tried = _ratios(grid.bits, size)
    full = full_scale(weights.swapaxes(1, 2).reshape(groups * rows, size), grid)
    scale = (full.reshape(groups, 1, rows) * tried[:, None]).reshape(groups, -1)
    stacked = _units(np.concatenate([weights] * len(tried), axis=2), scale, grid)
    whole = _forward(stacked, lower, grid)
    # tr(E H Eᵀ) with the residuals that the pass leaves
    residuals = _product(lower, stacked - whole)
    cost = np.einsum("gkr,gk->gr", residuals**2, pivots) * scale**2
    pick = cost.reshape(groups, len(tried), rows).argmin(axis=1) * rows + np.arange(rows)
    best = Rounded(
        _codes(np.take_along_axis(whole, pick[:, None, :], axis=2), grid),
        np.take_along_axis(scale, pick, axis=1),
    )
    best = refit_scale(weights, gram, best)
    for _ in range(sweeps):
        best = refit_scale(weights, gram, descend(weights, gram, best, grid))
    return best


# The ratios of the unclipped scale between which the best one of a wide layer lies, by bits.
_SPANS = {2: (0.33, 0.75), 3: (0.48, 0.95), 4: (0.63, 1.0), 5: (0.75, 1.0), 6: (0.85, 1.0)}


def _ratios(bits: int, size: int) -> Array:
    """Return the ratios to try: the wider a layer, the flatter the optimum and the dearer a try."""
    low, high = _SPANS.get(bits, (0.95, 1.0)) if size > 32 else (0.2, 1.0)
    return np.linspace(low, high, min(24, max(4, 768 // size)), dtype=np.float32)
