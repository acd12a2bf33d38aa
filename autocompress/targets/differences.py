"""How far outputs are from those wanted, and how far they may be: one measure for every check.

Differences of floats are in units of the wanted output's deviation over all of its values, so that
they mean the same for logits, boxes and pictures. Where each input has one vector of several
numbers, the largest is its class. Integers are answers themselves: their difference is the share
of values that are not equal.

What may differ, and why:

``UNCOMPRESSED``  a float32 file against the torch model. The order of additions moves them far
                  less, unless inputs have a mean of 10⁴ times their deviation.
``SIMULATED``     a compressed file against its simulation, which rounds at the same places. A last
                  bit of a float that lies at a rounding's edge moves one value by a step, and what
                  reads it with it: 0.001 to 0.02 on a ResNet-20 at 4 to 8 bits. ``SAME_CLASSES``
                  is the share of inputs that have the same class (99.5 to 100 % there).
``MACHINES``      the same file on two machines, or in two versions of a runtime: the largest
                  difference of any value. Files with integer layers in onnxruntime with and without
                  its optimisation, which is more than two CPUs differ by, differ by 0.01 to 0.06.
                  Integer outputs may differ in ``MACHINES_UNEQUAL`` of their values.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autocompress.targets.base import Array

__all__ = [
    "MACHINES", "MACHINES_UNEQUAL", "SAME_CLASSES", "SIMULATED", "UNCOMPRESSED", "Difference",
    "classes", "compare", "deviation", "differs", "tuple_of", "worst",
]  # fmt: skip

UNCOMPRESSED = 0.01  # RMS
SIMULATED = 0.05  # RMS
SAME_CLASSES = 0.95
MACHINES = 0.1  # largest
MACHINES_UNEQUAL = 0.02


@dataclass(frozen=True)
class Difference:
    """How far an output is from the one wanted, in units of its deviation.

    ``agree`` of ``total`` inputs have the same class; both are 0 where there are no classes.
    ``rms`` and ``largest`` are infinite where only one of the two is finite.
    """

    rms: float
    largest: float
    agree: int = 0
    total: int = 0


def tuple_of(outputs: Any) -> tuple[Array, ...]:
    """Return what a session gave as a tuple of arrays."""
    return tuple(np.asarray(o) for o in (outputs if isinstance(outputs, tuple) else (outputs,)))


def deviation(values: Array) -> float:
    """Return the unit of an output's differences: never 0, and 1 for integers."""
    if values.dtype.kind != "f":
        return 1.0
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return 1.0
    least = float(np.abs(finite).max()) * 1e-6  # outputs that are all alike
    return max(float(finite.std()), least) or 1.0


def classes(values: Array) -> Array | None:
    """Return the class of every input, None for outputs that have none."""
    if values.dtype.kind == "f" and values.ndim == 2 and values.shape[1] > 1:
        found: Array = values.argmax(1)
        return found
    return None


def differs(found: Array, wanted: Array, unit: float) -> Array:
    """Return the differences of values in a unit; infinite where one of two is not finite."""
    if wanted.dtype.kind != "f":
        unequal: Array = (found != wanted).astype(np.float64)
        return unequal
    one, other = found.astype(np.float64), wanted.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    with np.errstate(invalid="ignore", over="ignore"):
        away = np.where(same, 0.0, np.abs(one - other) / unit)
    return np.where(np.isnan(away), np.inf, away)


def compare(found: Array, wanted: Array) -> Difference:
    """Return how far an output is from the one wanted; they have the same shape."""
    away = differs(found, wanted, deviation(wanted))
    if not away.size:
        return Difference(0.0, 0.0)
    if wanted.dtype.kind != "f":
        return Difference(float(away.mean()), float(away.mean()))
    with np.errstate(over="ignore", invalid="ignore"):
        rms = float(np.sqrt(np.square(away).mean()))
    theirs, ours = classes(wanted), classes(found)
    if theirs is None or ours is None:
        return Difference(rms, float(away.max()))
    return Difference(rms, float(away.max()), int((theirs == ours).sum()), len(theirs))


def worst(differences: Sequence[Difference]) -> tuple[int, Difference]:
    """Return the place of the output that is farthest, and how far it is."""
    place = max(range(len(differences)), key=lambda index: differences[index].rms)
    return place, differences[place]
