"""Ranges of activations: from observed values to scale and zero point."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InputError, unknown

__all__ = ["METHODS", "ActivationRange", "observe"]

BINS = 1024


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


def _minmax(value: Tensor, least: float, greatest: float, bits: int) -> tuple[float, float]:
    return least, greatest


def _percentile(value: Tensor, least: float, greatest: float, bits: int) -> tuple[float, float]:
    """The range between the 0.01st and the 99.99th percentile."""
    counts = torch.histc(value, BINS * 16, least, greatest)
    total = counts.cumsum(0)
    edges = torch.linspace(least, greatest, BINS * 16 + 1)
    cut = 1e-4 * float(total[-1])
    first = int(torch.searchsorted(total, cut, right=True))
    last = int(torch.searchsorted(total, float(total[-1]) - cut))
    return float(edges[first]), float(edges[min(last + 1, BINS * 16)])


def _mse(value: Tensor, least: float, greatest: float, bits: int) -> tuple[float, float]:
    """The range with the least squared error, over a histogram and fractions of the full range."""
    counts = torch.histc(value, BINS, least, greatest)
    width = (greatest - least) / BINS
    centres = torch.linspace(least + width / 2, greatest - width / 2, BINS)
    used = counts > 0
    counts, centres = counts[used], centres[used]
    fractions = torch.tensor([1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    lows = (fractions if least < 0 else fractions[:1]) * min(least, 0.0)
    highs = (fractions if greatest > 0 else fractions[:1]) * max(greatest, 0.0)
    low, high = (grid.reshape(-1, 1) for grid in torch.meshgrid(lows, highs, indexing="ij"))
    scale = (high - low) / (2**bits - 1)
    point = torch.round(-low / scale)
    codes = (torch.round(centres / scale) + point).clamp_(0, 2**bits - 1)
    error = ((codes - point) * scale - centres).square_() @ counts
    best = int(error.argmin())
    return float(low[best]), float(high[best])


def _flat(value: Tensor) -> Tensor:
    """Return all values in the order in which they lie in memory, without a copy if dense."""
    by_stride = sorted(range(value.ndim), key=value.stride, reverse=True)
    return value.permute(by_stride).flatten()


#: The ways to choose a range, by name: (values, least, greatest, bits) -> (x_min, x_max).
METHODS: Mapping[str, Callable[[Tensor, float, float, int], tuple[float, float]]] = (
    MappingProxyType({"minmax": _minmax, "mse": _mse, "percentile": _percentile})
)


def observe(value: Tensor, method: str = "mse", bits: int = 8) -> ActivationRange:
    """Return the range of a tensor of any shape by a method of METHODS; raise InputError.

    Values that are never negative get the least code as zero point. Histograms look at every
    n-th value of large tensors; the extremes are always those of all values.
    """
    if method not in METHODS:
        raise InputError(unknown("calibration method", method, METHODS))
    flat = _flat(value.detach())
    if not flat.numel():
        raise InputError("A range needs values: calibration data must not be empty.")
    least, greatest = (float(extreme) for extreme in torch.aminmax(flat))
    if not np.isfinite(least) or not np.isfinite(greatest):
        raise InputError(
            "Activations must be finite on calibration data; some are NaN or infinite."
        )
    if least < greatest:
        stride = max(1, flat.numel() // 2**15) | 1
        least, greatest = METHODS[method](flat[::stride], least, greatest, bits)
    return ActivationRange.covering(least, greatest, bits)
