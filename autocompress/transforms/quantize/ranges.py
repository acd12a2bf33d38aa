"""Ranges of activations: from observed values to scale and zero point."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autocompress.errors import InputError, unknown

__all__ = ["METHODS", "ActivationRange", "observe"]

BINS = 1024
# Tensors of more values than WHOLE are looked at through DRAWN of them, and their tails.
WHOLE, DRAWN = 2**17, 2**15

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ActivationRange:
    """How a tensor is rounded: ``x ~ (q - zero_point) * scale`` with q in [low, high].

    q is an unsigned integer of ``bits`` bits. Zero is always
    exactly representable. Raises ValueError when scale or zero point cannot be.
    """

    scale: float
    zero_point: int
    bits: int = 8

    def __post_init__(self) -> None:
        if not (0 < self.scale < np.inf and 2 <= self.bits <= 8):
            raise ValueError(f"A range needs a positive scale and 2 to 8 bits, not {self}.")
        if not 0 <= self.zero_point <= self.high:
            raise ValueError(f"A zero point must be one of the codes, not {self.zero_point}.")

    @property
    def high(self) -> int:
        """The greatest code; the least is 0."""
        return (1 << self.bits) - 1

    @classmethod
    def covering(cls, least: float, greatest: float, bits: int = 8) -> "ActivationRange":
        """Return the range that reaches from ``least`` to ``greatest`` and has an exact zero.

        x_int = round((x - x_min) / (x_max - x_min) (2^n - 1)), with x_min moved to a multiple of
        the scale.
        """
        least, greatest = min(least, 0.0), max(greatest, 0.0)
        scale = float(np.float32((greatest - least) / (2**bits - 1)))
        if not 0 < scale < np.inf:  # nothing but zeros; a bias is stored in units of the scale
            scale = 2.0**-20
        point = round(-least / scale)
        return cls(scale, min(max(point, 0), 2**bits - 1), bits)

    def simulate(self, value: Tensor) -> Tensor:
        """Return the values as they are after rounding, float32."""
        low, high = -self.zero_point, self.high - self.zero_point
        return value.mul(1 / self.scale).round_().clamp_(low, high).mul_(self.scale)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What is known of a tensor's values: some drawn at random, and all beyond those.

    ``least`` and ``greatest`` are the extremes of all values; each of ``drawn`` stands for
    ``weight`` values, each of ``tails`` for itself.
    """

    least: float
    greatest: float
    drawn: Array
    weight: float
    tails: Array

    def counts(self, bins: int) -> Array:
        """Return how many values lie in each of ``bins`` equal parts of the range."""
        scale = bins / (self.greatest - self.least)

        def count(values: Array) -> Array:
            places = ((values.astype(np.float64) - self.least) * scale).astype(np.int64)
            return np.bincount(np.minimum(places, bins - 1), minlength=bins)

        return count(self.drawn) * self.weight + count(self.tails)


def _look(value: Tensor) -> _Seen:
    """Look at all values of a small tensor; of a large one at some, and at all in its tails.

    One value is drawn from each of DRAWN equal stretches of the tensor, at a random place, so that
    no period meets that of channels, and wherever the values lie in memory. What lies beyond
    nearly all that is drawn is looked at whole: what is rare and large is never missed.
    """
    every = _flat(value)
    least, greatest = (float(extreme) for extreme in torch.aminmax(every))
    flat, total = every.numpy(), every.numel()
    if total <= WHOLE or not least < greatest:
        return _Seen(least, greatest, flat, 1.0, flat[:0])
    jitter = np.random.default_rng(0).random(DRAWN)
    places = ((np.arange(DRAWN) + jitter) * (total / DRAWN)).astype(np.int64)
    drawn = value.numpy()[np.unravel_index(places, value.shape)]
    outside = max(32, DRAWN * DRAWN // (4 * total))
    low, high = np.partition(drawn, (outside, DRAWN - 1 - outside))[[outside, -1 - outside]]
    tails = flat[np.flatnonzero((flat < low) | (flat > high))]
    drawn = drawn[(drawn >= low) & (drawn <= high)]
    return _Seen(least, greatest, drawn, (total - len(tails)) / len(drawn), tails)


def _minmax(seen: _Seen, bits: int) -> tuple[float, float]:
    return seen.least, seen.greatest


def _percentile(seen: _Seen, bits: int) -> tuple[float, float]:
    """The range between the 0.01st and the 99.99th percentile."""
    total = seen.counts(BINS * 16).cumsum()
    edges = np.linspace(seen.least, seen.greatest, BINS * 16 + 1)
    cut = 1e-4 * total[-1]
    first = int(np.searchsorted(total, cut, side="right"))
    last = int(np.searchsorted(total, total[-1] - cut))
    return float(edges[first]), float(edges[min(last + 1, BINS * 16)])


def _mse(seen: _Seen, bits: int) -> tuple[float, float]:
    """The range with the least squared error, over a histogram and fractions of the full range."""
    least, greatest = seen.least, seen.greatest
    counts = seen.counts(BINS)
    centres = least + (np.arange(BINS) + 0.5) * ((greatest - least) / BINS)
    used = counts > 0
    counts, centres = counts[used], centres[used]
    fractions = np.array([1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    lows = (fractions if least < 0 else fractions[:1]) * min(least, 0.0)
    highs = (fractions if greatest > 0 else fractions[:1]) * max(greatest, 0.0)
    low, high = (grid.reshape(-1, 1) for grid in np.meshgrid(lows, highs, indexing="ij"))
    scale = (high - low) / (2**bits - 1)
    point = np.rint(-low / scale)
    codes = (np.rint(centres / scale) + point).clip(0, 2**bits - 1)
    error = np.square((codes - point) * scale - centres) @ counts
    best = int(error.argmin())
    return float(low[best, 0]), float(high[best, 0])


def _flat(value: Tensor) -> Tensor:
    """Return all values in the order in which they lie in memory, without a copy if dense."""
    by_stride = sorted(range(value.ndim), key=value.stride, reverse=True)
    return value.permute(by_stride).flatten()


#: The ways to choose a range, by name: (what is seen of the values, bits) -> (x_min, x_max).
METHODS: Mapping[str, Callable[[_Seen, int], tuple[float, float]]] = MappingProxyType(
    {"minmax": _minmax, "mse": _mse, "percentile": _percentile}
)


def observe(value: Tensor, method: str = "mse", bits: int = 8) -> ActivationRange:
    """Return the range of a tensor of any shape by a method of METHODS; raise InputError.

    Values that are never negative get the least code as zero point. The range does not depend on
    how the tensor lies in memory. The extremes, and the tails of histograms, are those of all
    values; between the tails of a large tensor some stand for the others.
    """
    if method not in METHODS:
        raise InputError(unknown("calibration method", method, METHODS))
    if not value.numel():
        raise InputError("A range needs values: calibration data must not be empty.")
    seen = _look(value.detach())
    least, greatest = seen.least, seen.greatest
    if not np.isfinite(least) or not np.isfinite(greatest):
        raise InputError(
            "Activations must be finite on calibration data; some are NaN or infinite."
        )
    if least < greatest:
        least, greatest = METHODS[method](seen, bits)
    return ActivationRange.covering(least, greatest, bits)
