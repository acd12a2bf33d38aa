"""The front as a picture: size, and latency where it counts, against accuracy."""

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.core.files import write_whole
from autocompress.core.results import Results
from autocompress.core.score import Score
from autocompress.errors import InputError
from autocompress.report.formatting import one_line, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot"]

_FRONT, _BASE, _FAINT, _LIMIT = "#0b5cad", "#c2570c", "#b8c0c8", "#b3261e"
_BASE_LABEL = "baselines (w: weight bits, a: input bits)"
_WINDOW = 0.12  # of the best accuracy: how far down the axis reaches
_SUFFIXES = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}


def plot(front: Results, path: Path) -> Path:
    """Draw a front into a .png or .svg file and return its path; the same front, the same file.

    Raises InputError for another suffix or a path that cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(f"A picture ends in {' or '.join(_SUFFIXES)}, not '{path.name}'.")
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "autocompress", "text.parse_math": False}):
        figure = _figure(front)
        figure.savefig(buffer, format=suffix[1:], dpi=150, metadata=_SUFFIXES[suffix])
    write_whole(path, buffer.getvalue())
    return path


@dataclass(frozen=True)
class _Panel:
    """What a panel has on its horizontal axis: fields of a score, unit and limit."""

    value: str
    low: str
    high: str
    scale: float
    label: str
    limit: float | None
    limit_text: str

    def x(self, score: Score) -> float:
        return float(getattr(score, self.value)) * self.scale


def _panels(front: Results) -> list[_Panel]:
    size, latency = front.budget.max_size_bytes, front.budget.latency_ms
    kb = None if size is None else size / 1000
    panels = [
        _Panel(
            "size_bytes", "size_bytes", "size_bytes", 1e-3, "size of the file (kB, log scale)",
            kb, "" if kb is None else f"budget {kb:,.4g} kB",
        )
    ]  # fmt: skip
    if latency is None and "latency" not in front.objectives:
        return panels
    device = next((score.device for score in front.measured if score.device), "")
    if device:
        name = "device_latency_ms"
        panels.append(
            _Panel(
                name, name, name, 1.0, f"predicted latency on {one_line(device)} (ms, log scale)",
                latency, "" if latency is None else f"budget {latency:g} ms",
            )
        )  # fmt: skip
    else:
        panels.append(
            _Panel(
                "latency_ms", "latency_low_ms", "latency_high_ms", 1.0, "latency (ms, log scale)",
                latency, "" if latency is None else f"budget {latency:g} ms (upper end)",
            )
        )  # fmt: skip
    return panels


def _figure(front: Results) -> "Figure":
    from matplotlib.figure import Figure

    panels = _panels(front)
    figure = Figure(figsize=(7.6 if len(panels) == 1 else 12.4, 4.8), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    fractions = all(0 <= score.accuracy <= 1 for score in front.measured)
    unit = 100.0 if fractions else 1.0
    low, high = _range(front, unit)
    for axis, panel in zip(axes, panels, strict=True):
        _draw(axis, front, panel, unit, low)
        axis.set_ylim(low, high)
        axis.set_xlabel(panel.label)
        axis.grid(color="#e6e9ec", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy (%)" if fractions else "accuracy")
    if not front.feasible:
        title = "nothing meets the budget: the closest miss" if front.best else "no trials yet"
        axes[0].set_title(title, loc="left", fontsize=10, color=_LIMIT)
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        order = sorted(range(len(labels)), key=lambda i: ("validation" not in labels[i], -i))
        figure.legend(
            [handles[i] for i in order], [labels[i] for i in order],
            loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8.5,
            handletextpad=0.4, columnspacing=1.4,
        )  # fmt: skip
    for axis, panel in zip(axes, panels, strict=True):
        _label(figure, axis, front, panel, unit)
    return figure


def _range(front: Results, unit: float) -> tuple[float, float]:
    """Return the accuracies that the axis shows: the best, and what is near enough to matter."""
    if not front.measured:
        return 0.0, 1.0
    shown = [*front.best, *front.uniform]
    best = max(score.accuracy for score in front.measured)
    worst = min(score.accuracy for score in shown) if shown else best
    window = _WINDOW * abs(best) or 1.0
    floor = min(max(worst, best - window), *(s.accuracy for s in front.best[-1:]))
    tops = [v for s in shown for v in (s.accuracy_high, s.test_accuracy) if not math.isnan(v)]
    top = max([best, *tops])
    lows = [
        s.accuracy_low for s in shown if s.accuracy >= floor and s.accuracy_low >= best - window
    ]
    bottom = min([floor, *lows])
    margin = 0.06 * (top - bottom) or 0.01 * abs(top) or 1.0
    return (bottom - margin) * unit, (top + margin) * unit


def _draw(axis: "Axes", front: Results, panel: _Panel, unit: float, low: float) -> None:
    members = sorted(front.best, key=panel.x)
    on_front = {score.trial for score in members}
    plain = [s for s in front.measured if s.trial not in on_front and not s.baseline]
    bases = [s for s in front.uniform if s.trial not in on_front]
    if plain:
        axis.scatter(
            [panel.x(s) for s in plain], [s.accuracy * unit for s in plain],
            s=13, color=_FAINT, linewidths=0, label="other trials", zorder=1,
        )  # fmt: skip
    if members:
        if panel.value == "size_bytes" and len(front.objectives) == 2 and len(members) > 1:
            axis.plot(
                [panel.x(s) for s in members], [s.accuracy * unit for s in members],
                color=_FRONT, linewidth=1.4, drawstyle="steps-post", zorder=2,
            )  # fmt: skip
        name = "front, validation (95 % interval)" if front.feasible else "closest miss, validation"
        axis.errorbar(
            [panel.x(s) for s in members], [s.accuracy * unit for s in members],
            yerr=_errors(members, "accuracy", "accuracy_low", "accuracy_high", unit),
            xerr=_errors(members, panel.value, panel.low, panel.high, panel.scale),
            fmt="o", markersize=5, color=_FRONT, ecolor=_FRONT, elinewidth=0.7, alpha=0.95,
            label=name, zorder=4,
        )  # fmt: skip
    if bases:
        axis.scatter(
            [panel.x(s) for s in bases], [s.accuracy * unit for s in bases],
            s=30, marker="D", color=_BASE, linewidths=0, label=_BASE_LABEL, zorder=3,
        )  # fmt: skip
    tested = [s for s in members if not math.isnan(s.test_accuracy)]
    if tested:
        axis.scatter(
            [panel.x(s) for s in tested], [s.test_accuracy * unit for s in tested],
            s=26, facecolors="white", edgecolors=_FRONT, linewidths=1.0, label="the same, test",
            zorder=3.5,
        )  # fmt: skip
    marked = [s for s in (*members, *bases) if s.differs]
    if marked:
        axis.scatter(
            [panel.x(s) for s in marked], [s.accuracy * unit for s in marked],
            s=60, marker="x", color=_LIMIT, label="not what it should be (see the table)", zorder=5,
        )  # fmt: skip
    if panel.limit is not None:
        axis.axvline(panel.limit, color=_LIMIT, linestyle="--", linewidth=1.1, zorder=2)
        axis.annotate(
            panel.limit_text, (panel.limit, 0.02), xycoords=("data", "axes fraction"),
            xytext=(-3, 0), textcoords="offset points", rotation=90, ha="right", va="bottom",
            fontsize=8, color=_LIMIT,
        )  # fmt: skip
    _ticks(axis, [panel.x(s) for s in front.measured], panel.limit)
    below = sum(s.accuracy * unit < low for s in front.measured)
    if below:
        axis.annotate(
            f"{below} trial{'s' if below > 1 else ''} below this range", (0.99, 0.015),
            xycoords="axes fraction", ha="right", va="bottom", fontsize=7.5, color="#6b7680",
        )  # fmt: skip


def _errors(
    scores: Sequence[Score], value: str, low: str, high: str, scale: float
) -> list[list[float]] | None:
    """Return the lengths of error bars below and above, None where no score has an interval."""
    if value == low:
        return None

    def length(one: float, other: float) -> float:
        return 0.0 if math.isnan(one) or math.isnan(other) else max(0.0, one - other) * scale

    below = [length(getattr(s, value), getattr(s, low)) for s in scores]
    above = [length(getattr(s, high), getattr(s, value)) for s in scores]
    return [below, above] if any(below) or any(above) else None


def _ticks(axis: "Axes", values: Sequence[float], limit: float | None) -> None:
    """Give a log axis a handful of round numbers, whether it spans a decade or a tenth of one."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    known = [v for v in (*values, *([] if limit is None else [limit])) if 0 < v < math.inf]
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    if not known:
        return
    low, high = min(known) / 1.12, max(known) * 1.12
    axis.set_xlim(low, high)
    places = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices: list[list[float]] = []
    for steps in (
        [1],
        [1, 3],
        [1, 2, 5],
        [1, 1.5, 2, 3, 4, 5, 7],
        [n / 10 for n in range(10, 100)],
    ):
        grid = [step * 10.0**place for place in places for step in steps]
        choices.append([tick for tick in grid if low <= tick <= high])
    ticks = next((found for found in choices if len(found) >= 4), choices[-1])
    axis.xaxis.set_major_locator(FixedLocator(ticks[:: math.ceil(len(ticks) / 9) or 1]))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))


def _label(figure: "Figure", axis: "Axes", front: Results, panel: _Panel, unit: float) -> None:
    """Write the baselines' names beside their marks, where they cover neither marks nor names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw_without_rendering()  # settles where the axes are
    to_pixels = axis.transData.transform
    shown = {s.trial: s for s in (*front.best, *front.uniform)}
    marks = [to_pixels((panel.x(s), s.accuracy * unit)) for s in shown.values()]
    tested = [s for s in front.best if not math.isnan(s.test_accuracy)]
    marks += [to_pixels((panel.x(s), s.test_accuracy * unit)) for s in tested]
    frame = axis.get_window_extent()
    taken = [_Box(x - 4, y - 4, x + 4, y + 4) for x, y in marks]
    if panel.value == "size_bytes":
        line = [to_pixels((panel.x(s), s.accuracy * unit)) for s in front.best]
        for (x, y), (x_next, y_next) in itertools.pairwise(line):
            taken += [_Box(x, y - 1, x_next, y + 1), _Box(x_next - 1, y, x_next + 1, y_next)]
    leader = {"arrowstyle": "-", "color": _BASE, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
    pixel = figure.dpi / 72
    named = sorted(front.uniform, key=lambda score: score is not front.reference)
    for score in named:
        name = short_name(score.baseline)
        x, y = to_pixels((panel.x(score), score.accuracy * unit))
        if not (frame.x0 <= x <= frame.x1 and frame.y0 <= y <= frame.y1):
            continue
        for dx, dy in _PLACES:
            note = axis.annotate(
                one_line(name), (panel.x(score), score.accuracy * unit), xytext=(dx, dy),
                textcoords="offset points", fontsize=7.5, color=_BASE,
                ha="left" if dx > 0 else "right" if dx < 0 else "center", va="center", zorder=5,
                bbox={"facecolor": "white", "alpha": 0.5, "linewidth": 0, "pad": 0.6},
                arrowprops=leader if math.hypot(dx, dy) > 14 else None,
            )  # fmt: skip
            extent = Text.get_window_extent(note, renderer)  # without its leader
            width, height = extent.width, extent.height
            left = x + dx * pixel - (0 if dx > 0 else width if dx < 0 else width / 2)
            box = _Box(left, y + dy * pixel - height / 2, left + width, y + dy * pixel + height / 2)
            if box.within(frame) and not any(box.meets(other) for other in taken):
                taken.append(box)
                break
            note.remove()


# offsets of a name from its mark in points, nearest first
_PLACES = [(7, 0), (-7, 0), (0, 10), (0, -10), (7, 9), (-7, 9), (7, -9), (-7, -9)] + [
    (dx, dy) for r in (18, 27, 38, 50) for dx in (r, -r, 0) for dy in (0, -r, r) if dx or dy
]


@dataclass(frozen=True)
class _Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: "_Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top

    def within(self, frame: Any) -> bool:
        across = frame.x0 <= self.left and self.right <= frame.x1
        return bool(across and frame.y0 <= self.bottom and self.top <= frame.y1)
