"""Allocation: the plan of least loss at given costs, solved on tables.

Loss and costs are sums of tables, each over the few knobs that it depends on: a layer's bytes, say,
over its width of weights, its input's channels and its own. For given prices of the costs the
cheapest plan is found exactly by eliminating one knob after another (Dechter 1999, "bucket
elimination"); a sweep of prices gives the convex front. What lies between the plans of the convex
front is found by integer programming.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

__all__ = ["Allocation", "Table", "Tables", "solve", "sweep", "total", "totals"]

Floats = NDArray[np.float64]

_WIDEST = 2**22  # entries of a table that is made while solving
_ROUNDS = 40  # of halving the distance between two prices


@dataclass(frozen=True, eq=False)
class Table:
    """A function of a few knobs: ``values`` has one axis a knob, in the order of ``knobs``."""

    knobs: tuple[str, ...]
    values: Floats

    def __post_init__(self) -> None:
        if self.values.ndim != len(self.knobs) or len(set(self.knobs)) != len(self.knobs):
            raise ValueError(f"A table has an axis for each of {self.knobs}, {self.values.shape}.")


Tables = Sequence[Table]
#: By knob the place of the value that was chosen.
Allocation = Mapping[str, int]


def total(tables: Tables, chosen: Allocation) -> float:
    """Return what tables sum up to for a choice."""
    return math.fsum(float(t.values[tuple(chosen[k] for k in t.knobs)]) for t in tables)


def totals(tables: Tables, knobs: Sequence[str], places: NDArray[np.intp]) -> Floats:
    """Return what tables sum up to for many choices, [choices, knobs] in the order of ``knobs``."""
    column = {knob: place for place, knob in enumerate(knobs)}
    found = np.zeros(len(places))
    for table in tables:
        found += table.values[tuple(places[:, column[knob]] for knob in table.knobs)]
    return found


def sweep(
    loss: Tables, costs: Sequence[Tables], prices: Floats, weights: Floats | None = None
) -> list[dict[str, int]]:
    """Return the choice of least loss + Σ price × cost for every row of ``prices``.

    ``prices``: [sets, costs], ≥ 0; ``weights``: [sets, loss tables], what each set multiplies the
    tables of the loss by, 1 by default. Exact where no table that is made on the way has more than
    four million entries; else one knob at a time is improved until none can be.
    """
    weights = np.ones((len(prices), len(loss))) if weights is None else weights
    parts = [(table, weights[:, place]) for place, table in enumerate(loss)]
    for place, tables in enumerate(costs):
        parts += [(table, prices[:, place]) for table in tables]
    merged: dict[tuple[str, ...], Floats] = {}
    for table, weight in parts:
        order: list[int] = np.argsort(table.knobs).tolist()
        knobs = tuple(table.knobs[axis] for axis in order)
        values = np.transpose(table.values, order)
        values = weight.reshape(-1, *[1] * values.ndim) * values
        merged[knobs] = merged[knobs] + values if knobs in merged else values
    try:
        found = _eliminate(merged, len(prices))
    except _TooWideError:
        found = _descend(merged, len(prices))
    names = list(found)
    columns = np.array([found[name] for name in names], dtype=np.intp).reshape(-1, len(prices))
    return [dict(zip(names, row, strict=True)) for row in columns.T.tolist()]


class _TooWideError(Exception):
    """A table that elimination would make is too large."""


def _eliminate(tables: Mapping[tuple[str, ...], Floats], sets: int) -> dict[str, NDArray[np.intp]]:
    """Minimise the sum of tables [sets, *knobs] exactly; return the choices by knob, [sets]."""
    sizes = {
        knob: values.shape[axis + 1]
        for knobs, values in tables.items()
        for axis, knob in enumerate(knobs)
    }
    left = dict(tables)
    by_knob: dict[str, set[tuple[str, ...]]] = {knob: set() for knob in sizes}
    for knobs in left:
        for knob in knobs:
            by_knob[knob].add(knobs)
    steps: list[tuple[str, tuple[str, ...], NDArray[np.intp]]] = []
    width = {knob: _width(by_knob[knob], sizes) for knob in sizes}
    while width:
        knob = min(width, key=lambda name: (width[name], name))
        if width[knob] * sets > _WIDEST:
            raise _TooWideError
        del width[knob]
        scopes = sorted(by_knob.pop(knob))
        rest = sorted({name for scope in scopes for name in scope} - {knob})
        axes = [*rest, knob]
        joint = np.zeros((1, *[1] * len(axes)))
        for scope in scopes:
            values = left.pop(scope)
            joint = joint + _spread(values, scope, axes)
            for name in scope:
                if name != knob:
                    by_knob[name].discard(scope)
        joint = np.broadcast_to(joint, (sets, *(sizes[name] for name in axes)))
        best = joint.argmin(-1)
        steps.append((knob, tuple(rest), best))
        if rest:
            least = np.take_along_axis(joint, best[..., None], -1)[..., 0]
            key = tuple(rest)
            left[key] = left[key] + least if key in left else least
            for name in rest:
                by_knob[name].add(key)
                width[name] = _width(by_knob[name], sizes)
    chosen: dict[str, NDArray[np.intp]] = {}
    every = np.arange(sets)
    for knob, rest_of, best in reversed(steps):
        chosen[knob] = best[(every, *(chosen[name] for name in rest_of))]
    return chosen


def _width(scopes: Iterable[tuple[str, ...]], sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[name] for name in {name for scope in scopes for name in scope})


def _spread(values: Floats, scope: Sequence[str], axes: Sequence[str]) -> Floats:
    """Return values [sets, *scope] with an axis for each of ``axes``."""
    order = [0, *(scope.index(name) + 1 for name in axes if name in scope)]
    shape = [values.shape[0]]
    moved = np.transpose(values, order)
    sizes = iter(moved.shape[1:])
    shape += [next(sizes) if name in scope else 1 for name in axes]
    return moved.reshape(shape)


def _descend(tables: Mapping[tuple[str, ...], Floats], sets: int) -> dict[str, NDArray[np.intp]]:
    """Improve one knob at a time from the best uniform choice until nothing changes."""
    sizes = {k: v.shape[i + 1] for knobs, v in tables.items() for i, k in enumerate(knobs)}
    every = np.arange(sets)

    def value(chosen: Mapping[str, NDArray[np.intp]]) -> Floats:
        parts = (values[(every, *(chosen[k] for k in ks))] for ks, values in tables.items())
        return np.asarray(sum(parts))

    best: dict[str, NDArray[np.intp]] = {}
    least = np.full(sets, np.inf)
    for part in np.linspace(0, 1, 5):
        start = {k: np.full(sets, round(part * (n - 1)), dtype=np.intp) for k, n in sizes.items()}
        found = value(start)
        better = found < least
        least = np.where(better, found, least)
        best = {k: np.where(better, start[k], best.get(k, start[k])) for k in sizes}
    by_knob: dict[str, list[tuple[str, ...]]] = {knob: [] for knob in sizes}
    for knobs in tables:
        for knob in knobs:
            by_knob[knob].append(knobs)
    for _ in range(50):
        changed = False
        for knob, scopes in by_knob.items():
            options = np.zeros((sets, sizes[knob]))
            for scope in scopes:
                index = [every[:, None]]
                for name in scope:
                    own = name == knob
                    index.append(np.arange(sizes[knob])[None] if own else best[name][:, None])
                options += tables[scope][tuple(index)]
            now = options[every, best[knob]]
            new = options.argmin(1)
            better = options[every, new] < now - 1e-12 * np.abs(now)
            changed |= bool(better.any())
            best[knob] = np.where(better, new, best[knob])
        if not changed:
            break
    return best


def solve(
    loss: Tables,
    costs: Sequence[Tables],
    limits: Sequence[float],
    *,
    seconds: float = 5.0,
    gap: float = 1e-3,
) -> dict[str, int] | None:
    """Return the choice of least loss whose costs are within limits, None if there is none.

    Prices are found first whose plan is within the limits; integer programming then looks for a
    better one that no prices lead to, for ``seconds`` at most or until it is proved to be within
    ``gap`` of the best.
    """
    priced = _priced(loss, costs, limits)
    exact = _programme(loss, costs, limits, seconds, gap)
    found = [chosen for chosen in (priced, exact) if chosen is not None]
    return min(found, key=lambda chosen: total(loss, chosen), default=None)


def _priced(
    loss: Tables, costs: Sequence[Tables], limits: Sequence[float]
) -> dict[str, int] | None:
    """Return the best choice within limits that prices lead to: all of one ratio, then halved."""
    scale = np.array([_span(loss) / max(_span(tables), 1e-300) for tables in costs])
    low, high = np.zeros(len(costs)), np.full(len(costs), np.nan)
    best: dict[str, int] | None = None

    def excess(chosen: Allocation) -> Floats:
        return np.array([total(t, chosen) - limit for t, limit in zip(costs, limits, strict=True)])

    if (excess(sweep(loss, costs, low[None])[0]) <= 0).all():
        return sweep(loss, costs, low[None])[0]
    price = scale * 1e-3
    for _ in range(_ROUNDS):
        chosen = sweep(loss, costs, price[None])[0]
        over = excess(chosen) > 0
        if not over.any():
            if best is None or total(loss, chosen) < total(loss, best):
                best = chosen
            high, price = price, (low + price) / 2
        else:  # dearer, what is over its limit
            low = price
            up = np.where(np.isnan(high), price * 2, (price + high) / 2)
            price = np.where(over | np.isnan(high), up, price)
            if np.isnan(high).any() and (price > scale * 1e12).any():
                break
    return best


def _span(tables: Tables) -> float:
    return sum(float(np.ptp(table.values)) for table in tables)


def _programme(
    loss: Tables, costs: Sequence[Tables], limits: Sequence[float], seconds: float, gap: float
) -> dict[str, int] | None:
    """Solve by integer programming: a variable for each value of a knob, one for each entry.

    Entries of a table with several knobs are fractions that must agree with the knobs' values.
    """
    sizes: dict[str, int] = {}
    for table in (*loss, *(table for tables in costs for table in tables)):
        sizes.update(zip(table.knobs, table.values.shape, strict=True))
    start: dict[tuple[str, ...], int] = {}
    count = 0
    for knob, size in sizes.items():
        start[knob,] = count
        count += size
    whole = count
    shapes: dict[tuple[str, ...], tuple[int, ...]] = {(k,): (n,) for k, n in sizes.items()}
    for table in (*loss, *(table for tables in costs for table in tables)):
        if len(table.knobs) > 1 and table.knobs not in start:
            start[table.knobs], shapes[table.knobs] = count, table.values.shape
            count += table.values.size
    rows: list[tuple[NDArray[np.intp], Floats]] = []
    low: list[float] = []
    for knob, size in sizes.items():
        rows.append((start[knob,] + np.arange(size), np.ones(size)))
        low.append(1.0)
    for knobs, first in start.items():
        if len(knobs) > 1:
            index = first + np.arange(math.prod(shapes[knobs])).reshape(shapes[knobs])
            for axis, knob in enumerate(knobs):
                for value in range(sizes[knob]):
                    entries = index.take(value, axis).ravel()
                    columns = np.append(entries, start[knob,] + value)
                    rows.append((columns, np.append(np.ones(len(entries)), -1.0)))
                    low.append(0.0)

    def coefficients(tables: Tables) -> tuple[Floats, float]:
        found, constant = np.zeros(count), 0.0
        for table in tables:
            if not table.knobs:
                constant += float(table.values)
                continue
            first = start[table.knobs]
            found[first : first + table.values.size] += table.values.ravel()
        return found, constant

    matrix = csr_array(
        (
            np.concatenate([values for _, values in rows]),
            np.concatenate([columns for columns, _ in rows]),
            np.cumsum([0, *(len(columns) for columns, _ in rows)]),
        ),
        shape=(len(rows), count),
    )
    constraints = [LinearConstraint(matrix, low, low)]
    for tables, limit in zip(costs, limits, strict=True):
        vector, constant = coefficients(tables)
        constraints.append(LinearConstraint(vector[None], -np.inf, limit - constant))
    integral = np.zeros(count, dtype=np.int64)
    integral[:whole] = 1
    found = milp(
        coefficients(loss)[0],
        constraints=constraints,
        integrality=integral,
        bounds=Bounds(0, 1),
        options={"time_limit": seconds, "mip_rel_gap": gap},
    )
    if found.x is None:
        return None
    chosen = {
        knob: int(np.argmax(found.x[start[knob,] : start[knob,] + size]))
        for knob, size in sizes.items()
    }
    within = all(
        total(tables, chosen) <= limit + 1e-9 * abs(limit)
        for tables, limit in zip(costs, limits, strict=True)
    )
    return chosen if within else None
