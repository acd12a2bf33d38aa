"""The front as rows: plain text, HTML, CSV and JSON."""

import csv
import html
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autocompress.core.results import Results
from autocompress.core.score import Score
from autocompress.report import formatting
from autocompress.report.gains import gains_text

__all__ = ["COLUMNS", "WHOLE", "describe", "html_table", "rows", "text_table", "to_csv", "to_json"]

# the columns that are fields of a score
_FIELDS = (
    "trial", "accuracy", "size_bytes", "latency_ms", "accuracy_low", "accuracy_high",
    "latency_low_ms", "latency_high_ms", "test_accuracy", "test_low", "test_high", "load_ms",
    "peak_memory_bytes", "macs", "activation_bytes", "energy_mj", "device_latency_ms", "parameters",
    "difference", "differs", "baseline", "artifact", "sha256",
)  # fmt: skip
COLUMNS = (*_FIELDS, "smaller", "on_front", "meets_budget")
WHOLE = frozenset(
    {"trial", "size_bytes", "peak_memory_bytes", "macs", "activation_bytes", "parameters"}
)
_TEXT = frozenset({"(95 %)", "baseline"})  # headings of columns aligned to the left


def _listed(front: Results, baselines: bool) -> list[tuple[Score, bool]]:
    """Return the front, then the baselines that are not on it, and whether each is."""
    trials = {score.trial for score in front.best}
    others = [score for score in front.uniform if baselines and score.trial not in trials]
    return [(score, True) for score in front.best] + [(score, False) for score in others]


def rows(front: Results, baselines: bool = True) -> list[dict[str, Any]]:
    """Return one mapping of COLUMNS a member, then a baseline; None is not measured.

    ``on_front`` is false for baselines beside the front and for a closest miss.
    """
    found = []
    for score, member in _listed(front, baselines):
        row: dict[str, Any] = {name: getattr(score, name) for name in _FIELDS}
        row["smaller"] = formatting.smaller(score, front.reference)
        row["on_front"] = member and front.feasible
        row["meets_budget"] = score.meets(front.budget)
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                row[name] = None
            elif name in WHOLE:
                row[name] = round(value)
        found.append(row)
    return found


def _cells(score: Score, reference: Score | None) -> dict[str, str]:
    """Return a file's figures by heading; those of a device only where the search was for one."""
    smaller = formatting.smaller(score, reference)
    cells = {
        "trial": f"{'!' * bool(score.differs)}{score.trial}",
        "accuracy": formatting.accuracy(score.accuracy),
        "±": formatting.half_width(score.accuracy_low, score.accuracy_high),
        "test": formatting.accuracy(score.test_accuracy),
        "size kB": formatting.kilobytes(score.size_bytes),
        "× smaller": "" if math.isnan(smaller) else f"{smaller:.2f}",
        "latency ms": formatting.milliseconds(score.latency_ms),
        "(95 %)": formatting.interval(
            score.latency_low_ms, score.latency_high_ms, formatting.milliseconds
        ),
    }
    if score.device:
        cells["device ms"] = formatting.milliseconds(score.device_latency_ms)
        cells["device mJ"] = "" if math.isnan(score.energy_mj) else f"{score.energy_mj:.3g}"
        cells["activations kB"] = formatting.kilobytes(score.activation_bytes)
    return {**cells, "baseline": formatting.one_line(score.baseline)}


def _notes(front: Results) -> list[str]:
    notes = [
        "accuracy: validation split, ± half its 95 % interval; test: a split that neither the "
        "search nor a pick uses"
    ]
    notes += gains_text(front)
    listed = [score for score, _ in _listed(front, baselines=True) if score.differs]
    for differs in dict.fromkeys(score.differs for score in listed):
        trials = ", ".join(f"!{score.trial}" for score in listed if score.differs == differs)
        notes.append(f"{trials}: {formatting.one_line(differs)}")
    if front.budget:
        notes.append(f"budget: {formatting.limits(front.budget)}")
    device = next((score.device for score in front.measured if score.device), "")
    if device:
        notes.append(
            f"on {formatting.one_line(device)}: predicted from its device file, not measured"
        )
    if front.over_budget:
        count = len(front.over_budget)
        notes.append(f"{count} plan{'s' * (count > 1)} predicted over budget, not built")
    failures = front.failures
    if failures:
        last = formatting.one_line(failures[-1].message)
        plural = "s" if len(failures) > 1 else ""
        notes.append(f"{len(failures)} trial{plural} failed, the last one: {last}")
    return notes


def _sections(front: Results) -> list[tuple[str, list[Score]]]:
    listed = _listed(front, baselines=True)
    title = "front" if front.feasible else "closest miss; nothing meets the budget"
    sections = [
        (title, [score for score, member in listed if member]),
        ("baselines beside it", [score for score, member in listed if not member]),
    ]
    return [(name, scores) for name, scores in sections if scores]


def text_table(front: Results) -> str:
    """Return the front, the baselines beside it and notes as aligned plain text."""
    sections = _sections(front)
    if not sections:
        return formatting.no_front(front)
    cells = {
        name: [_cells(score, front.reference) for score in scores] for name, scores in sections
    }
    every = [row for found in cells.values() for row in found]
    widths = {name: max(len(name), *(len(row[name]) for row in every)) for name in every[0]}

    def line(row: Mapping[str, str]) -> str:
        padded = (
            row[name].ljust(width) if name in _TEXT else row[name].rjust(width)
            for name, width in widths.items()
        )
        return "  ".join(padded).rstrip()

    lines = [line({name: name for name in widths})]
    for name, found in cells.items():
        lines += [f"-- {name}", *(line(row) for row in found)]
    return "\n".join([*lines, *_notes(front)])


def html_table(front: Results) -> str:
    """Return the same table as HTML, every text in it escaped."""
    sections = _sections(front)
    if not sections:
        return f"<p>{html.escape(formatting.no_front(front))}</p>"
    headings = list(_cells(sections[0][1][0], front.reference))
    width = len(headings)
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    parts = [f"<table><thead><tr>{heads}</tr></thead>"]
    for name, scores in sections:
        parts.append(f'<tbody><tr><th colspan="{width}">{html.escape(name)}</th></tr>')
        for score in scores:
            cells = _cells(score, front.reference).values()
            body = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            parts.append(f"<tr>{body}</tr>")
        parts.append("</tbody>")
    parts.append("</table>")
    parts += [f"<p><small>{html.escape(note)}</small></p>" for note in _notes(front)]
    return "\n".join(parts)


def to_csv(front: Results, baselines: bool = True) -> str:
    """Return :func:`rows` as CSV with a header; empty is not measured."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(front, baselines))
    return file.getvalue()


def to_json(front: Results, baselines: bool = True) -> str:
    """Return :func:`rows` as a JSON array, each with its plan; null is not measured."""
    plans = [json.loads(score.plan.to_json()) for score, _ in _listed(front, baselines)]
    found: list[Mapping[str, Any]] = [
        {**row, "plan": plan} for row, plan in zip(rows(front, baselines), plans, strict=True)
    ]
    return json.dumps(found, indent=2, allow_nan=False) + "\n"


def describe(score: Score, path: Path, reference: Score | None) -> str:
    """Return the figures of one file as lines of plain text."""
    smaller = formatting.smaller(score, reference)
    latency = formatting.interval(
        score.latency_low_ms, score.latency_high_ms, formatting.milliseconds
    )
    held = formatting.interval(score.accuracy_low, score.accuracy_high)
    test = formatting.interval(score.test_low, score.test_high)
    lines = {
        "trial": f"{score.trial} {formatting.one_line(score.baseline)}".strip(),
        "accuracy (validation)": f"{formatting.accuracy(score.accuracy)}  {held}",
        "accuracy (test)": f"{formatting.accuracy(score.test_accuracy)}  {test}",
        "size": f"{score.size_bytes:,.0f} bytes"
        + ("" if math.isnan(smaller) else f", {smaller:.2f}× smaller than uncompressed"),
        "latency": f"{formatting.milliseconds(score.latency_ms)} ms  {latency}",
        "device": formatting.on_device(score) if score.device else "",
        "beware": formatting.one_line(score.differs),
        "sha256": score.sha256,
        "file": str(path),
    }
    width = max(len(name) for name in lines)
    return "\n".join(
        f"{n.ljust(width)}  {text}".rstrip() for n, text in lines.items() if text.strip()
    )
