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

from typing import Any

import numpy as np

from autocompress.targets.session import Array

__all__ = [
    "MACHINES", "MACHINES_UNEQUAL", "SIMULATED", "UNCOMPRESSED", "classes", "deviation", "differs",
    "rms", "tuple_of",
]  # fmt: skip

UNCOMPRESSED = 0.01  # RMS
SIMULATED = 0.05  # RMS
MACHINES = 0.1  # largest
MACHINES_UNEQUAL = 0.02


def tuple_of(outputs: Any) -> tuple[Array, ...]:
    """Return what a session gave as a tuple of arrays."""
    return tuple(np.asarray(o) for o in (outputs if isinstance(outputs, tuple) else (outputs,)))


def deviation(values: Array) -> float:
    """Return the unit of an output's differences, 1 for integers.

    It is a thousandth of the largest value at least: outputs that are all alike differ by float32's
    rounding alone, and that is nothing.
    """
    if values.dtype.kind != "f":
        return 1.0
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return 1.0
    least = float(np.abs(finite).max()) * 1e-3
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


def rms(found: Array, wanted: Array) -> float:
    """Return how far an output is from the one wanted, of the same shape.

    The root of the mean square of :func:`differs`, infinite where only one of the two is finite; of
    integers the share that is not equal.
    """
    away = differs(found, wanted, deviation(wanted))
    if not away.size:
        return 0.0
    if wanted.dtype.kind != "f":
        return float(away.mean())
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.square(away).mean()))
