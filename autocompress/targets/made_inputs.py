"""Inputs that are like the calibration data and hold none of it, the same on every machine.

What is kept of the data are statistics; numbers are made from a seed by integer arithmetic
(SplitMix64, Steele et al. 2014) and by single float64 operations, so that no library's generator
and no processor decides about a bit of them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.targets.session import Array

__all__ = ["InputStatistics", "inputs_like", "random_bits", "statistics_of"]

_PLACES = 512  # statistics of all inputs together, at most: 16 kB
_ENOUGH = 32  # values a statistic is made of, at least, so that it tells of no single input
_GRID = 4  # patches along each dimension
# shares of the variance: a level of the whole input, patches, single values
_LEVELS = (0.3, 0.4, 0.3)
_CONTRAST = 2.0  # more of it in every second row: integer kernels saturate at large values


@dataclass(frozen=True, eq=False)
class InputStatistics:
    """What is known of one input of a network.

    ``shape`` is without the batch. ``places``: the shape of the four statistics, which broadcasts
    to ``shape``: each place's own, each channel's, or one for all. Integers have no use for mean
    and deviation.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    least: NDArray[np.float64]
    greatest: NDArray[np.float64]

    @property
    def places(self) -> tuple[int, ...]:
        """The shape of the statistics."""
        return self.mean.shape

    def table(self) -> NDArray[np.float64]:
        """Return the statistics as one array [4, *places]."""
        return np.stack([self.mean, self.deviation, self.least, self.greatest])

    @classmethod
    def of_table(cls, shape: Sequence[int], dtype: str, table: Array) -> "InputStatistics":
        """Read what ``table`` gave; raise ValueError for what it cannot have given."""
        kind = np.dtype(dtype)
        if kind.kind not in "fiub" or table.dtype != np.float64 or not np.isfinite(table).all():
            raise ValueError(f"statistics of {dtype} inputs must be finite numbers in float64")
        if table.shape[:1] != (4,) or np.broadcast_shapes(table.shape[1:], tuple(shape)) != tuple(
            shape
        ):
            raise ValueError(f"statistics of shape {table.shape} do not fit inputs {tuple(shape)}")
        return cls(tuple(shape), kind, *table)


class _Running:
    """Sums over batches of one input, at every place."""

    def __init__(self, first: Array) -> None:
        self.count = 0
        self.distinct: set[bytes] = set()
        # near the mean, so that squares stay small
        self.shift = float(first[:1].astype(np.float64).mean()) if first.size else 0.0
        shape = first.shape[1:]
        self.sums, self.squares = np.zeros(shape), np.zeros(shape)
        self.least, self.greatest = np.full(shape, math.inf), np.full(shape, -math.inf)

    def add(self, batch: Array) -> None:
        """Take a batch in."""
        if not len(batch):
            return
        for row in batch:
            if len(self.distinct) < _ENOUGH:
                self.distinct.add(row.tobytes())
        values = batch.astype(np.float64)
        self.least = np.minimum(self.least, values.min(0))
        self.greatest = np.maximum(self.greatest, values.max(0))
        values -= self.shift
        self.count += len(values)
        self.sums += values.sum(0)
        self.squares += np.square(values).sum(0)

    def merged(self, axes: tuple[int, ...]) -> tuple[Array, Array, Array, Array]:
        """Return mean, deviation, least and greatest over inputs and over some dimensions."""
        mean = (self.sums / self.count).mean(axes, keepdims=True)
        square = (self.squares / self.count).mean(axes, keepdims=True)
        return (
            mean + self.shift,
            np.sqrt(np.maximum(square - mean**2, 0)),
            self.least.min(axes, keepdims=True, initial=math.inf),
            self.greatest.max(axes, keepdims=True, initial=-math.inf),
        )


def statistics_of(calibration: Iterable[Sequence[Array]]) -> tuple[InputStatistics, ...]:
    """Return the statistics of each input over batches of calibration inputs.

    They are as fine as a size of 16 kB allows and as 32 values of different inputs each: of every
    place, else of the channels (the shorter of the first and the last dimension), else of all.
    Raises ValueError without any input.
    """
    running: list[_Running] = []
    for batch in calibration:
        running = running or [_Running(value) for value in batch]
        for each, value in zip(running, batch, strict=True):
            each.add(value)
        dtypes = [value.dtype for value in batch]
    if not running or not running[0].count:
        raise ValueError("statistics need at least one input")
    limit = max(1, _PLACES // len(running))
    return tuple(_choose(each, kind, limit) for each, kind in zip(running, dtypes, strict=True))


def _choose(running: _Running, dtype: np.dtype[Any], limit: int) -> InputStatistics:
    """Return the finest statistics that are allowed."""
    shape = running.sums.shape
    every = tuple(range(len(shape)))
    choices: list[tuple[int, ...]] = [()]
    if len(shape) > 1:
        channel = 0 if shape[0] <= shape[-1] else len(shape) - 1
        choices.append(tuple(axis for axis in every if axis != channel))
    for axes in choices:
        places = math.prod(size for axis, size in enumerate(shape) if axis not in axes)
        each = min(len(running.distinct), _ENOUGH) * math.prod(shape[axis] for axis in axes)
        if places <= limit and each >= _ENOUGH:
            return InputStatistics(shape, dtype, *running.merged(axes))
    return InputStatistics(shape, dtype, *running.merged(every))


def random_bits(seed: int, count: int) -> NDArray[np.uint64]:
    """Return ``count`` numbers of 64 random bits."""
    with np.errstate(over="ignore"):
        bits = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _uniform(seed: int, *shape: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1)."""
    bits = random_bits(seed, math.prod(shape)) >> np.uint64(11)
    return (bits.astype(np.float64) * 2.0**-53).reshape(shape)


def _bell(seed: int, *shape: int) -> NDArray[np.float64]:
    """Return numbers of mean 0 and variance 1: sums of four uniform ones."""
    parts = _uniform(seed, 4, *shape)
    total: NDArray[np.float64] = parts[0] + parts[1]
    total = total + parts[2]
    total = total + parts[3]
    return (total - 2.0) * math.sqrt(3.0)


def inputs_like(
    statistics: Sequence[InputStatistics], rows: int, seed: int = 0
) -> tuple[Array, ...]:
    """Return ``rows`` inputs as one batch an input, made from a seed.

    Floats scatter about the mean by the deviation, between least and greatest: as levels that
    differ between rows, patches and single values, so that networks answer differently. Integers
    are anything from least to greatest.
    """
    return tuple(
        _like(each, rows, (seed * 1_000_003 + place + 1) << 32)
        for place, each in enumerate(statistics)
    )


def _like(known: InputStatistics, rows: int, seed: int) -> Array:
    shape = (rows, *known.shape)
    if known.dtype.kind != "f":
        span = known.greatest - known.least + 1.0
        values = known.least + np.floor(_uniform(seed, *shape) * span)
        return np.minimum(values, known.greatest).astype(known.dtype)
    patches = _bell(seed + 2**30, rows, *(min(_GRID, size) for size in known.shape))
    for axis, size in enumerate(known.shape, 1):
        index = np.arange(size) * patches.shape[axis] // max(size, 1)
        patches = patches.take(index, axis)
    level, middle, fine = map(math.sqrt, _LEVELS)
    noise = _bell(seed + 2**31, rows, *(1 for _ in known.shape)) * level
    noise = noise + patches * middle
    noise = noise + _bell(seed, *shape) * fine
    contrast = 1.0 + _CONTRAST * (np.arange(rows) % 2).reshape(-1, *(1 for _ in known.shape))
    # what never varied does a little: values that are there in every input are data as well
    whole = float(known.deviation.mean()) or float(np.abs(known.mean).max()) or 1.0
    wanted = np.maximum(known.deviation, 1e-3 * whole)
    edge = np.where(known.deviation < wanted, wanted, 0.0)
    values = known.mean + noise * contrast * wanted
    kept: Array = np.clip(values, known.least - edge, known.greatest + edge).astype(known.dtype)
    return kept
