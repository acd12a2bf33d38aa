"""Channel groups: what can be removed from a network, and what goes with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from autocompress.errors import PlanError, unknown
from autocompress.models.channels.solve import Solution, solve
from autocompress.models.channels.walk import walk_graph

if TYPE_CHECKING:
    from autocompress.models.layer import Layer

__all__ = ["Groups", "Slot", "Unit", "find_groups"]


@dataclass(frozen=True)
class Slot:
    """Where a unit's channels live in one parameter.

    ``index[c]`` are the positions along dimension ``dim`` of parameter ``param`` that belong to
    channel class ``c`` of the unit, ascending.
    """

    param: str
    dim: int
    index: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Unit:
    """Channels that live in the same places, each removable without the others.

    ``channels`` is how many classes there are; removing one removes all its positions in all
    slots. ``producers`` are the layers whose output channels belong to the unit, ``consumers``
    those whose input channels do (a depthwise layer is both), in topological order. ``name`` is
    that of the first producer, with ":1", ":2", … for the further units of one layer.
    """

    name: str
    channels: int
    slots: tuple[Slot, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True)
class _Count:
    """An integer in a node's arguments: its new value is ``sign`` × the positions kept."""

    path: tuple[int, ...]
    classes: np.ndarray[Any, np.dtype[np.int64]]
    sign: int
    units: frozenset[int]


@dataclass(frozen=True, eq=False)
class Groups:
    """All units of a network, and why the other layers' channels are fixed.

    ``fixed`` names each layer none of whose output channels belongs to a unit.
    """

    units: tuple[Unit, ...]
    fixed: Mapping[str, str]
    _places: Mapping[tuple[str, int], _Count] = field(default_factory=dict, repr=False)
    _counts: Mapping[str, tuple[tuple[Any, ...], tuple[_Count, ...]]] = field(
        default_factory=dict, repr=False
    )

    def _alive(
        self, kept: Mapping[str, Sequence[int]]
    ) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], frozenset[int]]:
        """Return which classes stay (the first one stands for all that is fixed), and which
        units lose any."""
        known = {unit.name: place for place, unit in enumerate(self.units)}
        starts = np.cumsum([1, *(unit.channels for unit in self.units)])
        alive = np.ones(int(starts[-1]), dtype=np.bool_)
        touched = set()
        for name, classes in kept.items():
            if name not in known:
                raise PlanError(unknown("unit", name, known))
            place = known[name]
            size = self.units[place].channels
            chosen = np.asarray(classes, dtype=np.int64)
            ordered = bool((np.diff(chosen) > 0).all())
            if not len(chosen) or not ordered or chosen[0] < 0 or chosen[-1] >= size:
                raise PlanError(
                    "The channels kept of a unit must be ascending indices, at least one, below "
                    f"its number of channels ({size} in '{name}'); got {list(classes)[:12]}."
                )
            if len(chosen) < size:
                touched.add(place)
                alive[starts[place] : starts[place + 1]] = False
                alive[starts[place] + chosen] = True
        return alive, frozenset(touched)

    def edits(self, kept: Mapping[str, Sequence[int]]) -> dict[str, tuple[Any, ...]]:
        """Return new arguments for every node whose constants count channels, by node name.

        ``kept`` has the ascending channel classes kept of each unit; a unit that is missing
        keeps all. Raises PlanError for an unknown unit or impossible indices.
        """
        alive, touched = self._alive(kept)
        found: dict[str, tuple[Any, ...]] = {}
        for node, (args, counts) in self._counts.items():
            new: list[Any] | None = None
            for count in counts:
                if count.units & touched:
                    new = _copy(args) if new is None else new
                    value = count.sign * int(alive[count.classes].sum())
                    inner: Any = new
                    for step in count.path[:-1]:
                        inner = inner[step]
                    inner[count.path[-1]] = value
            if new is not None:
                found[node] = tuple(new)
        return found

    def slices(self, kept: Mapping[str, Sequence[int]]) -> dict[str, dict[int, Tensor]]:
        """Return the positions kept, by parameter and dimension, of all that loses any.

        Arguments and errors are those of :meth:`edits`.
        """
        alive, touched = self._alive(kept)
        found: dict[str, dict[int, Tensor]] = {}
        for (param, dim), place in self._places.items():
            if place.units & touched:
                positions = torch.from_numpy(np.flatnonzero(alive[place.classes]))
                found.setdefault(param, {})[dim] = positions
        return found


def _copy(args: tuple[Any, ...]) -> list[Any]:
    return [list(arg) if isinstance(arg, (list, tuple)) else arg for arg in args]


def find_groups(
    graph: fx.Graph,
    params: Mapping[str, Tensor],
    layers: Sequence[Layer],
    example_inputs: Sequence[Tensor],
) -> Groups:
    """Find the units of a graph of ATen operators by one walk over it.

    ``params`` are the values of its ``get_attr`` nodes, ``example_inputs`` those of its
    placeholders (batch 1 or more). Every position of every tensor gets an id; operators unite
    the ids that meet, and what they do not understand is left alone and said so in ``fixed``.
    """
    walk = walk_graph(graph, params, example_inputs)
    solution = solve(walk, layers)
    numbers, units = _units(solution, layers)
    in_unit = np.full(len(solution.reasons), 0, dtype=np.int64)
    for label, number in numbers.items():
        in_unit[label] = number
    owner = np.concatenate(
        [[-1], *(np.full(unit.channels, place) for place, unit in enumerate(units))]
    ).astype(np.int64)

    def count(path: tuple[int, ...], labels: Any, whole: Any, sign: int = 1) -> _Count:
        touched = frozenset(np.unique(owner[in_unit[whole]]).tolist()) - {-1}
        return _Count(path, in_unit[labels], sign, touched)

    places = {slot: count((), labels, labels) for slot, labels in solution.slots.items()}
    nodes = {node.name: node for node in graph.nodes}
    counts: dict[str, list[_Count]] = {}
    for name, path, labels, whole, sign in solution.constants:
        made = count(path, labels, whole, sign)
        if made.units:
            counts.setdefault(name, []).append(made)
    return Groups(
        units,
        solution.fixed(layers, set(numbers)),
        {slot: place for slot, place in places.items() if place.units},
        {name: (nodes[name].args, tuple(found)) for name, found in counts.items()},
    )


def _units(solution: Solution, layers: Sequence[Layer]) -> tuple[dict[int, int], tuple[Unit, ...]]:
    """Return the number of each channel class (from 1, unit after unit), and the units."""
    order: dict[int, None] = {}  # labels in the order in which layers produce them
    first: dict[int, str] = {}
    for layer in layers:
        for label in solution.produced(layer).tolist():
            if label in solution.removable:
                order.setdefault(label)
                first.setdefault(label, layer.name)
    bundles: dict[tuple[int, ...], list[int]] = {}
    for label in order:
        bundles.setdefault(solution.signature(label), []).append(label)
    numbers: dict[int, int] = {}
    units: list[Unit] = []
    names = {layer.name for layer in layers}
    for labels in bundles.values():
        if len(labels) < 2:
            continue
        base = name = first[labels[0]]
        suffix = 0
        while any(unit.name == name for unit in units) or (suffix and name in names):
            suffix += 1
            name = f"{base}:{suffix}"
        place = {label: c for c, label in enumerate(labels)}
        for label in labels:
            numbers[label] = len(numbers) + 1
        slots = []
        for param, dim in solution.places[labels[0]]:
            index: list[list[int]] = [[] for _ in labels]
            for position, label in enumerate(solution.slots[param, dim].tolist()):
                if label in place:
                    index[place[label]].append(position)
            slots.append(Slot(param, dim, tuple(map(tuple, index))))
        here = set(labels)
        units.append(
            Unit(
                name=name,
                channels=len(labels),
                slots=tuple(slots),
                producers=tuple(
                    x.name for x in layers if here & set(solution.produced(x).tolist())
                ),
                consumers=tuple(
                    x.name for x in layers if here & set(solution.consumed(x).tolist())
                ),
            )
        )
    return numbers, tuple(units)
