"""Cost tables: what any plan costs, as a sum over the few knobs that each part depends on.

What an operator takes depends on the channels before and after it and on the formats around it, not
on the rest of the plan. Which knobs these are is seen by changing one at a time; sketches of plans
that set many parts at once then fill the tables. They steer a solver: what it finds is estimated
whole.
"""

import math
from collections.abc import Sequence

import numpy as np

from autocompress.core.plan import Plan, split_name
from autocompress.core.space import SearchSpace
from autocompress.cost.estimate import Estimator
from autocompress.engine.proposers.guided.allocation import Table, total

__all__ = ["cost_tables"]

_LARGEST = 512  # entries of a table; the knobs that matter least to a larger one are averaged over
_SAMPLES = 40  # random plans that a file's overheads are fitted to

Choice = dict[str, int]
Part = tuple[str, str]  # the network's value, and the figure


def cost_tables(
    space: SearchSpace, estimator: Estimator, figures: Sequence[str]
) -> dict[str, list[Table]]:
    """Return tables over the knobs of a space that have several values, by figure.

    ``figures`` are fields of :class:`Estimate`; "latency_ms" is the prediction. What cannot be
    estimated has no tables.
    """
    builder = _Builder(space, estimator)
    return {figure: found for figure in figures if (found := builder.tables(figure))}


class _Builder:
    """``values``: what was seen of each part, by what the knobs that it depends on were."""

    def __init__(self, space: SearchSpace, estimator: Estimator) -> None:
        self.space, self.estimator = space, estimator
        self.generator = np.random.default_rng(0)
        self.sizes = {name: len(v) for name, v in space.knobs.items() if len(v) > 1}
        seen, self.scopes = self._scopes()
        plans = self._covering()
        seen += list(zip(plans, self._parts(plans), strict=True))
        self.values: dict[Part, dict[tuple[int, ...], list[float]]] = {}
        for chosen, parts in seen:
            for part, scope in self.scopes.items():
                place = tuple(chosen[name] for name in scope)
                amount = parts.get(part[0], {}).get(part[1], 0.0)
                self.values.setdefault(part, {}).setdefault(place, []).append(amount)

    def _plan(self, chosen: Choice) -> Plan:
        return self.space.plan({k: self.space.knobs[k][place] for k, place in chosen.items()})

    def _parts(self, choices: Sequence[Choice]) -> list[dict[str, dict[str, float]]]:
        return self.estimator.parts([self._plan(chosen) for chosen in choices])

    def _formats(self, name: str) -> bool:
        """Tell whether a knob can change more than a layer's bytes: narrow weights on a device."""
        wide = split_name(name)[1] != "w_bits" or self.space.knobs[name][-1] > 8
        return wide or self.estimator.device is not None

    def _scopes(
        self,
    ) -> tuple[list[tuple[Choice, dict[str, dict[str, float]]]], dict[Part, tuple[str, ...]]]:
        """Return what was sketched, and the knobs that each part depends on."""
        middle = {name: size // 2 for name, size in self.sizes.items()}
        keep = {name for name in self.sizes if split_name(name)[1] == "keep"}
        bases = [
            {
                name: middle[name] if name in keep else end * (size - 1)
                for name, size in self.sizes.items()
            }
            for end in (0, 1)
        ]
        choices: list[Choice] = []
        changes: list[tuple[int, int, str]] = []
        for base in bases:
            start = len(choices)
            choices.append(base)
            for name, size in self.sizes.items():
                if self._formats(name):
                    for place in {0, size - 1} - {base[name]}:
                        changes.append((start, len(choices), name))
                        choices.append({**base, name: place})
        found = self._parts(choices)
        moved: dict[Part, dict[str, float]] = {}
        for parts in found:
            for value, figures in parts.items():
                for figure in figures:
                    moved.setdefault((value, figure), {})
        for before, after, name in changes:
            for part, known in moved.items():
                value, figure = part
                first, then = (found[i].get(value, {}).get(figure, 0.0) for i in (before, after))
                if first != then:
                    known[name] = max(known.get(name, 0.0), abs(then - first))
        scopes = {}
        for part, known in moved.items():
            scope: list[str] = []
            for name in sorted(known, key=lambda n: (-known[n], n)):
                if math.prod(self.sizes[n] for n in (*scope, name)) <= _LARGEST:
                    scope.append(name)
            scopes[part] = tuple(sorted(scope))
        return list(zip(choices, found, strict=True)), scopes

    def _covering(self) -> list[Choice]:
        """Return choices that together have every combination of the knobs of each part."""
        missing: dict[tuple[str, ...], set[tuple[int, ...]]] = {
            scope: set(np.ndindex(*(self.sizes[name] for name in scope)))
            for scope in set(self.scopes.values())
        }
        found: list[Choice] = []
        while any(missing.values()):
            chosen: Choice = {}
            order = sorted((scope for scope, left in missing.items() if left))
            mixed = [order[place] for place in self.generator.permutation(len(order))]
            for scope in sorted(mixed, key=lambda scope: -len(missing[scope])):
                fits = [
                    place
                    for place in sorted(missing[scope])
                    if all(chosen.get(n, v) == v for n, v in zip(scope, place, strict=True))
                ]
                if fits:
                    chosen.update(zip(scope, fits[self.generator.integers(len(fits))], strict=True))
            for name, size in self.sizes.items():
                chosen.setdefault(name, int(self.generator.integers(size)))
            for scope, left in missing.items():
                left.discard(tuple(chosen[name] for name in scope))
            found.append(chosen)
        return found

    def _table(self, part: Part) -> Table:
        scope = self.scopes[part]
        values = np.zeros([self.sizes[name] for name in scope])
        for place, amounts in self.values[part].items():
            values[place] = np.mean(amounts)
        return Table(scope, values)

    def tables(self, figure: str) -> list[Table]:
        """Return the tables of a figure."""
        if figure == "size_bytes":
            return self._size()
        found = [self._table(part) for part in self.scopes if part[1] == figure]
        if figure == "activation_bytes":  # the most at once: taken to go with all there are
            full = {name: size - 1 for name, size in self.sizes.items()}
            peak = self.estimator(self._plan(full)).activation_bytes
            share = peak / max(total(found, full), 1.0)
            return [Table(table.knobs, table.values * share) for table in found]
        return found if all(np.isfinite(table.values).all() for table in found) else []

    def _size(self) -> list[Table]:
        """Return the bytes of weights and biases, and the overheads that random plans show."""
        layers = {layer.node: f"{layer.name}/w_bits" for layer in self.estimator.network.layers}
        found = []
        for part in self.scopes:
            knob = layers.get(part[0], "")
            table = self._table(part)
            if part[1] == "biases":
                found.append(Table(table.knobs, table.values * 2.0))
            elif part[1] == "weights":
                bits = np.array(self.space.knobs.get(knob, (32,)), dtype=np.float64) / 8
                if knob in self.sizes:
                    values = table.values[..., None] * bits
                    found.append(Table((*table.knobs, knob), values))
                else:
                    found.append(Table(table.knobs, table.values * bits[0]))
        return found + self._overheads(found)

    def _overheads(self, tables: Sequence[Table]) -> list[Table]:
        """Return a file's overheads: what each value of a knob of a kind adds, least squares."""
        kinds = sorted({(split_name(n)[1], v) for n in self.sizes for v in self.space.knobs[n]})
        rows, rest = [], []
        for _ in range(_SAMPLES + len(kinds)):
            chosen = {n: int(self.generator.integers(size)) for n, size in self.sizes.items()}
            size = self.estimator(self._plan(chosen)).size_bytes
            taken = [(split_name(n)[1], self.space.knobs[n][v]) for n, v in chosen.items()]
            rows.append([1.0, *(float(taken.count(kind)) for kind in kinds)])
            rest.append(size - total(tables, chosen))
        found = np.linalg.lstsq(np.array(rows), np.array(rest), rcond=None)[0]
        each = dict(zip(kinds, found[1:].tolist(), strict=True))
        return [
            Table((), np.array(found[0])),
            *(
                Table((n,), np.array([each[split_name(n)[1], v] for v in self.space.knobs[n]]))
                for n in self.sizes
            ),
        ]
