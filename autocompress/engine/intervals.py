"""The mean of an evaluation and its 95 % interval."""

import math
from typing import Any, NamedTuple

import numpy as np

from autocompress.errors import TrialError

__all__ = ["Mean", "mean_of"]

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


class Mean(NamedTuple):
    """A mean and the ends of its 95 % interval, NaN where there is no interval."""

    mean: float
    low: float
    high: float


def mean_of(result: Any, function: str = "evaluate") -> Mean:
    """Return the mean of what a task's function, ``evaluate`` or ``test``, returned.

    A number has no interval. Per-example scores of 0 and 1 get Wilson's interval (Wilson 1927),
    others the normal one. Raises TrialError for anything that is not finite numbers.
    """
    if result is None:
        raise TrialError(f"{function} must return numbers; it returned None: is a return missing?")
    try:
        values = np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TrialError(f"{function} must return numbers, not {type(result).__name__}.") from error
    if values.ndim > 1 or values.size == 0:
        raise TrialError(
            f"{function} must return one number or a 1-d array of per-example scores, not an array "
            f"of shape {values.shape}."
        )
    if not np.isfinite(values).all():
        raise TrialError(
            f"{function} must return finite numbers; it returned {float(values.sum())}."
        )
    mean = float(values.mean())
    n = values.size
    if values.ndim == 0:
        return Mean(mean, math.nan, math.nan)
    if np.isin(values, (0.0, 1.0)).all():
        centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n * n))
        return Mean(mean, max(0.0, centre - half), min(1.0, centre + half))
    half = _Z * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Mean(mean, mean - half, mean + half)
