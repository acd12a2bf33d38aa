"""Figures in words: the same units and digits in every table, card and message."""

import math
import re
from collections.abc import Callable, Mapping

from autocompress.core.budget import Budget
from autocompress.core.results import Results
from autocompress.core.score import Score

__all__ = [
    "accuracy",
    "figures",
    "half_width",
    "interval",
    "kilobytes",
    "limits",
    "milliseconds",
    "no_model",
    "on_device",
    "one_line",
    "short_name",
    "smaller",
]


def one_line(text: str) -> str:
    """Return a text as one line of printable characters."""
    return "".join(c for c in " ".join(str(text).split()) if c.isprintable())


def short_name(baseline: str) -> str:
    """Return a baseline's name for a figure: ``uniform 4-bit weights`` becomes ``w4``."""
    name = re.sub(r"(\d+)-bit (w|a)(?:eights|ctivations)", r"\2\1", baseline)
    return one_line(name.removeprefix("uniform ").replace(", ", " "))


def accuracy(value: float) -> str:
    """Return an accuracy as the fraction it is, empty for NaN."""
    return "" if math.isnan(value) else f"{value:.4f}"


def kilobytes(size_bytes: float) -> str:
    """Return a size in kB of 1,000 bytes, empty for NaN."""
    return "" if math.isnan(size_bytes) else f"{size_bytes / 1000:,.1f}"


def milliseconds(value: float) -> str:
    """Return a time with one decimal from 10 ms on, three below and four below 0.1 ms.

    Empty for NaN.
    """
    if math.isnan(value):
        return ""
    return f"{value:.{3 if value >= 0.1 else 4}f}" if value < 10 else f"{value:,.1f}"


def interval(low: float, high: float, write: Callable[[float], str] = accuracy) -> str:
    """Return ``low–high``, empty without an interval."""
    return "" if math.isnan(low) or math.isnan(high) else f"{write(low)}–{write(high)}"


def half_width(low: float, high: float) -> str:
    """Return half of an accuracy's interval, empty without one."""
    return accuracy((high - low) / 2)


def smaller(score: Score, reference: Score | None) -> float:
    """Return how many times smaller a file is than the uncompressed one, NaN without one."""
    return math.nan if reference is None else reference.size_bytes / score.size_bytes


def figures(score: Score) -> str:
    """Return what decides about a file: accuracy, size, latency and its upper end."""
    words = (
        f"accuracy {accuracy(score.accuracy)}, {kilobytes(score.size_bytes)} kB, "
        f"{milliseconds(score.latency_ms)} ms (upper end {milliseconds(score.latency_high_ms)} ms)"
    )
    return words + (f"; {on_device(score)}" if score.device else "")


def on_device(score: Score) -> str:
    """Return what is predicted for the device that a score names."""
    return (
        f"predicted on {one_line(score.device)}: {milliseconds(score.device_latency_ms)} ms, "
        f"{score.energy_mj:.3g} mJ, activations {kilobytes(score.activation_bytes)} kB"
    )


def limits(budget: Budget, min_accuracy: float | None = None) -> str:
    """Return the limits that are set, ``none`` if no one is."""
    parts = []
    if min_accuracy is not None:
        parts.append(f"accuracy at least {min_accuracy:g}")
    if budget.max_size_bytes is not None:
        parts.append(f"size at most {budget.max_size_bytes:,.0f} bytes")
    if budget.latency_ms is not None:
        parts.append(f"latency at most {budget.latency_ms:g} ms")
    if budget.max_energy_mj is not None:
        parts.append(f"energy at most {budget.max_energy_mj:g} mJ")
    if budget.max_memory_bytes is not None:
        parts.append(f"activations at most {budget.max_memory_bytes:,.0f} bytes")
    return ", ".join(parts) or "none"


_FLOORS: Mapping[str, str] = {
    "latency_ms": "latency {:.4g} ms",
    "max_size_bytes": "size {:,.0f} bytes",
    "max_energy_mj": "energy {:.4g} mJ",
    "max_memory_bytes": "activations {:,.0f} bytes",
}


def no_model(what: str, miss: Score | None, floor: Mapping[str, float] | None = None) -> str:
    """Return the sentence for limits that nothing meets, with the closest miss.

    ``floor``: by limit, the least that is predicted over the search space.
    """
    if miss is None:
        return "A front needs at least one completed trial; this study has none. Search first."
    least = ", ".join(_FLOORS[name].format(value) for name, value in (floor or {}).items())
    return (
        f"No model meets the limits ({what}). The closest miss is trial {miss.trial}: "
        f"{figures(miss)}. "
        + (f"The predicted floor of this search space: {least}. " if least else "")
        + "Loosen the limits or search on with more trials."
    )


def no_front(results: Results) -> str:
    """Return the sentence with the closest miss where nothing meets the budget, else ""."""
    if results.feasible:
        return ""
    return no_model(limits(results.budget), results.miss, results.floor)
