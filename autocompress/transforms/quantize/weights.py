"""Weights on a grid: codes, scales, and the rounding of whole tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Array", "Codes", "Grid", "QuantizedWeight", "best_scale", "full_scale", "nearest",
    "saturates", "short",
]  # fmt: skip

Array = NDArray[np.floating[Any]]
Codes = NDArray[np.int8]


@dataclass(frozen=True)
class Grid:
    """The up to 2^bits values that one weight may take, in units of its row's scale.

    The two's complement integers, or, when ``odd``, the odd integers, which lie symmetrically about
    zero and leave it out; of these the ones that are at most ``limit`` in magnitude.
    """

    bits: int
    odd: bool = False
    limit: int = 128

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8 or (self.odd and self.bits > 7):
            raise ValueError(f"bits must be 2 to 8 (7 for odd codes), not {self.bits}.")

    @property
    def low(self) -> int:
        """The least code."""
        if self.odd:
            return -self.high
        return -min(1 << (self.bits - 1), self.limit)

    @property
    def high(self) -> int:
        """The greatest code."""
        if self.odd:
            return min((1 << self.bits) - 1, (self.limit - 1) | 1)
        return min((1 << (self.bits - 1)) - 1, self.limit)

    @property
    def step(self) -> int:
        """The distance of two codes."""
        return 2 if self.odd else 1


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight as integers: ``value = codes * scale``, with one scale per output channel.

    ``codes``: int8, the weight's shape. ``scale``: float32, [out]. With ``odd`` every code is odd
    and ``(codes + 2**bits - 1) // 2`` counts from 0; otherwise codes are ``bits``-bit two's
    complement. Either way there are 2^bits codes. Raises ValueError if a code is off the grid.
    """

    codes: Codes
    scale: NDArray[np.float32]
    bits: int
    odd: bool = False

    def __post_init__(self) -> None:
        grid = Grid(self.bits, self.odd)
        inside = self.codes.min(initial=0) >= grid.low and self.codes.max(initial=0) <= grid.high
        if not inside or (self.odd and not np.all(self.codes & 1)):
            raise ValueError(f"Codes must lie on the {self.bits}-bit grid.")

    @property
    def unsigned(self) -> NDArray[np.uint8]:
        """The codes counted from 0, as they are packed."""
        grid = Grid(self.bits, self.odd)
        return ((self.codes.astype(np.int16) - grid.low) // grid.step).astype(np.uint8)

    @property
    def values(self) -> NDArray[np.float32]:
        """The weight in float32."""
        shape = (-1, *[1] * (self.codes.ndim - 1))
        return self.codes.astype(np.float32) * self.scale.reshape(shape)


def saturates(codes: Codes) -> bool:
    """Return whether two codes of a row [out, ...], each times 255, add up beyond 16 bits."""
    rows = codes.reshape(len(codes), -1).astype(np.int32)
    if rows.shape[1] < 2:
        return False
    ends = np.partition(rows, (1, -2), axis=1)
    least, greatest = ends[:, :2].sum(1).min(), ends[:, -2:].sum(1).max()
    return bool(255 * least < -(2**15) or 255 * greatest >= 2**15)


def short(values: Array) -> Array:
    """Return values as float16 where that is exact for each of them, else as float32."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    exact = np.array_equal(half.astype(np.float32), values)
    return half if exact else values.astype(np.float32)


_FINE = tuple(0.15 + 0.85 * step / 23 for step in range(24))
_COARSE = (0.8, 0.87, 0.94, 1.0)


def nearest(weights: Array, scale: Array, grid: Grid) -> Array:
    """Return the nearest codes, as floats; ``scale`` broadcasts against ``weights``."""
    codes = weights / scale
    if grid.odd:
        codes = 2 * np.floor(codes / 2) + 1
    else:
        np.rint(codes, out=codes)
    np.minimum(codes, np.float32(grid.high), out=codes)
    return np.maximum(codes, np.float32(grid.low), out=codes)


def best_scale(
    weights: Array, grid: Grid, importance: Array | None = None, ratios: Sequence[float] = ()
) -> Array:
    """Return the scale of each row with the least squared rounding error.

    ``weights``: [rows, K]; ``importance``: [rows or 1, K], the weight of each squared error (the
    diagonal of the Gram matrix). ``ratios``: fractions of the scale at which nothing is clipped
    that are tried; the best is refined by the closed form for its codes. Result: [rows].
    """
    weights = np.asarray(weights, dtype=np.float32)
    weigh = np.float32(1) if importance is None else importance.astype(np.float32)
    full = full_scale(weights, grid)
    least = np.full(len(weights), np.inf, dtype=np.float32)
    best = full
    tried = ratios or (_FINE if grid.bits < 5 else _COARSE)
    for ratio in tried:
        scale = full * np.float32(ratio)
        codes = nearest(weights, scale[:, None], grid)
        cross = np.sum(weights * codes * weigh, axis=1)
        power = np.sum(codes * codes * weigh, axis=1)
        # |w - s q|² at the s that suits these codes best: |w|² - (w·q)²/|q|²
        power[power == 0] = 1
        error = -np.square(cross) / power
        better = (error < least) & (cross > 0)
        least = np.where(better, error, least)
        best = np.where(better, cross / power, best)
    return np.asarray(best)


def full_scale(weights: Array, grid: Grid) -> Array:
    """Return the scale of each row [rows] at which no weight of [rows, K] is clipped by much.

    Rows of zeros get the least of the others', since biases may be multiples of it.
    """
    peak = np.abs(weights).max(axis=1, initial=0) / np.float32(grid.high)
    least = peak[peak > 0].min(initial=np.inf)
    return np.where(peak > 0, peak, least if least < np.inf else 1).astype(np.float32)
