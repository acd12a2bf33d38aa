"""Receipts: what a trial costs, operator by operator, before and after, as text or JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from autocompress.core.score import Score
from autocompress.report import formatting

__all__ = ["Line", "Receipt", "Side", "receipt_json", "receipt_text"]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One operator in one of the two networks; what is not known is NaN.

    ``channels``: into and out of a layer, "" elsewhere. ``w_bits``: stored width of the weights;
    ``a_bits``: of the input. ``size_bytes`` of codes and biases, but for those that an earlier
    operator reads too. Milliseconds: ``predicted_ms`` by the latency model and ``device_ms`` by a
    device file, ``profiled_ms`` by the runtime's own profiler, which slows what it measures;
    conversions of formats count with who makes what they convert.
    """

    channels: str = ""
    w_bits: int = 32
    a_bits: int = 32
    size_bytes: int = 0
    predicted_ms: float = math.nan
    profiled_ms: float = math.nan
    device_ms: float = math.nan


@dataclass(frozen=True, kw_only=True)
class Line:
    """An operator before and after; ``before`` is None where it only exists after.

    ``step``: where the layer's channels stand among the kernel's tiles. ``conversion``: the changes
    of format that its result needs and the milliseconds that they are predicted to take.
    """

    name: str
    kind: str
    before: Side | None
    after: Side
    step: str = ""
    conversion: str = ""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The receipt of a trial. ``notes`` say what could not be told and why."""

    score: Score
    reference: Score | None
    lines: Sequence[Line]
    notes: Sequence[str] = ()

    def total(self, name: str, after: bool = True) -> float:
        """Return the sum of a figure over the lines, NaN where none has it."""
        sides = [line.after if after else line.before for line in self.lines]
        values = [getattr(side, name) for side in sides if side is not None]
        known = [value for value in values if not math.isnan(value)]
        return sum(known) if known else math.nan


def _pair(before: str, after: str) -> str:
    return after if before in ("", after) else f"{before} → {after or '?'}"


def _ms(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def _cells(line: Line, device: bool) -> dict[str, str]:
    b, a = line.before or Side(), line.after
    layer, weights = bool(a.channels), b.size_bytes or a.size_bytes
    cells = {
        "layer": formatting.one_line(line.name),
        "kind": line.kind,
        "channels": _pair(b.channels, a.channels),
        "weight bits": _pair(f"{b.w_bits}", f"{a.w_bits}") if layer else "",
        "input bits": _pair(f"{b.a_bits}", f"{a.a_bits}") if layer else "",
        "bytes": _pair(f"{b.size_bytes:,}", f"{a.size_bytes:,}") if weights else "",
        "predicted ms": _pair(_ms(b.predicted_ms), _ms(a.predicted_ms)),
        "profiled ms": _pair(_ms(b.profiled_ms), _ms(a.profiled_ms)),
    }
    if device:
        cells["device ms"] = _pair(_ms(b.device_ms), _ms(a.device_ms))
    return {**cells, "step": line.step, "conversion": line.conversion}


def receipt_text(receipt: Receipt) -> str:
    """Return a receipt as an aligned table with sums and notes below."""
    device = any(not math.isnan(line.after.device_ms) for line in receipt.lines)
    rows = [_cells(line, device) for line in receipt.lines]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    wide = [name for name in widths if any(row[name] for row in rows)]
    lines = ["  ".join(name.ljust(widths[name]) for name in wide).rstrip()]
    lines += ["  ".join(row[name].ljust(widths[name]) for name in wide).rstrip() for row in rows]
    score, reference = receipt.score, receipt.reference
    before = None if reference is None else reference.latency_ms
    lines.append("-- sums, before → after")
    for title, name in (
        ("bytes of weights", "size_bytes"), ("predicted ms", "predicted_ms"),
        ("profiled ms", "profiled_ms"), ("device ms", "device_ms"),
    ):  # fmt: skip
        first, last = receipt.total(name, after=False), receipt.total(name)
        if not math.isnan(last):
            write = (lambda v: f"{v:,.0f}") if name == "size_bytes" else _ms
            lines.append(f"{title}: {_pair(write(first), write(last))}")
    if not math.isnan(score.latency_ms):
        between = formatting.interval(
            score.latency_low_ms, score.latency_high_ms, formatting.milliseconds
        )
        lines.append(
            f"measured end to end, ms: {'' if before is None else _ms(before) + ' → '}"
            f"{_ms(score.latency_ms)} ({between})"
        )
        lines += _against(receipt)
    built = "" if score.outcome == "ok" else " (predicted, not built)"
    lines.append(
        f"file, bytes{built}: {'' if reference is None else f'{reference.size_bytes:,.0f} → '}"
        f"{score.figure('size_bytes'):,.0f}"
    )
    return "\n".join([*lines, *receipt.notes])


def _against(receipt: Receipt) -> list[str]:
    measured, found = receipt.score.latency_ms, []
    for title, name in (("predicted", "predicted_ms"), ("profiled", "profiled_ms")):
        total = receipt.total(name)
        if not math.isnan(total):
            found.append(f"the {title} sum is {total / measured - 1:+.1%} of that")
    return found


def receipt_json(receipt: Receipt) -> str:
    """Return a receipt as JSON; null is not known."""

    def clean(value: Any) -> Any:
        if isinstance(value, float) and math.isnan(value):
            return None
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        return value

    document = {
        "trial": receipt.score.trial,
        "outcome": receipt.score.outcome,
        "lines": [clean(asdict(line)) for line in receipt.lines],
        "predicted_ms": clean(receipt.total("predicted_ms")),
        "profiled_ms": clean(receipt.total("profiled_ms")),
        "latency_ms": clean(receipt.score.latency_ms),
        "size_bytes": receipt.score.figure("size_bytes"),
        "notes": list(receipt.notes),
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"
