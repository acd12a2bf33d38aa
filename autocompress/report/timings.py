"""Measurements in words: one file, runtimes side by side, a calibration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autocompress.targets.timing import Timing

__all__ = ["calibration_text", "side_by_side", "timing_text"]


def timing_text(timing: "Timing", threads: int, *, beside: bool = False) -> str:
    """Return a latency with its interval; ``beside``: next to a reference that is another file."""
    text = (
        f"latency: {timing.latency_ms:.4g} ms (95 %: {timing.low_ms:.4g} to {timing.high_ms:.4g}), "
        f"{_clock(timing)}, threads: {threads}, openings: {timing.openings}, "
        f"{len(timing.blocks)} blocks, {timing.calm:.0%} of them calm"
    )
    if beside:
        ratio = f"the file takes {timing.ratio:.3f} times that"
        text += f"\nreference: {timing.reference_ms:.4g} ms; {ratio}"
    return text


def side_by_side(found: "Mapping[str, Timing | Exception]") -> str:
    """Return a line a runtime: its latency, or why there is none."""
    width = max(len(name) for name in found)
    best = min((t.latency_ms for t in found.values() if not isinstance(t, Exception)), default=0)
    lines = []
    for name, timing in found.items():
        if isinstance(timing, Exception):
            words = " ".join(str(timing).split())
        else:
            words = (
                f"{timing.latency_ms:.4g} ms (95 %: {timing.low_ms:.4g} to {timing.high_ms:.4g}), "
                f"{timing.latency_ms / best:.2f} × the fastest, {_clock(timing)}"
            )
        lines.append(f"{name.ljust(width)}  {words}")
    return "\n".join(lines)


def calibration_text(plans: int, errors: Sequence[float], path: Path) -> str:
    """Return what a latency model was made of, how far it errs, and where it is kept."""
    ordered = sorted(abs(error) for error in errors)
    return (
        f"latency model of {plans} measured plans; held out in turn, half of them are "
        f"predicted within {ordered[len(ordered) // 2]:.1%} and 95 % within "
        f"{ordered[int(len(ordered) * 0.95)]:.1%}\nkept in: {path}"
    )


def _clock(timing: "Timing") -> str:
    name = {"cpu": "CPU clock", "wall": "wall clock"}.get(timing.clock, timing.clock)
    return name if timing.agree else f"{name} (clocks disagree: other threads work too)"
