"""Channel classes: from what a walk has learnt to which channels stand and fall together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from autocompress.models.channels.ids import Book, Constant, Ids
from autocompress.models.channels.rules import Walk

if TYPE_CHECKING:
    from autocompress.models.layer import Layer

__all__ = ["Solution", "solve"]

Labels = np.ndarray[Any, np.dtype[np.int64]]
_NONE = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Solution:
    """The class (label) of every position that may be removed.

    ``slots`` has the labels along each parameter's dimension, ``activations`` those along each
    activation, ``inputs`` those of each layer's input by node name, ``constants`` those counted
    by each integer (node, path, labels counted, labels of the whole dimension, sign);
    ``reasons`` says of each label why it must stay, or None.
    """

    slots: Mapping[tuple[str, int], Labels]
    activations: Sequence[Labels]
    inputs: Mapping[str, Labels]
    constants: Sequence[tuple[str, tuple[int, ...], Labels, Labels, int]]
    reasons: Sequence[str | None]

    def produced(self, layer: Layer) -> Labels:
        """Return the labels of a layer's output channels."""
        return self.slots.get((layer.weight, 0), _NONE)

    def consumed(self, layer: Layer) -> Labels:
        """Return the labels of a layer's input channels."""
        return self.inputs.get(layer.node, _NONE)

    @cached_property
    def removable(self) -> frozenset[int]:
        """The labels that nothing holds fast."""
        return frozenset(np.flatnonzero([reason is None for reason in self.reasons]).tolist())

    @cached_property
    def places(self) -> Mapping[int, tuple[tuple[str, int], ...]]:
        """The parameters and dimensions in which each removable label lives."""
        found: dict[int, list[tuple[str, int]]] = {}
        for slot, labels in self.slots.items():
            for label in np.unique(labels).tolist():
                if label in self.removable:
                    found.setdefault(label, []).append(slot)
        return {label: tuple(slots) for label, slots in found.items()}

    @cached_property
    def _signatures(self) -> Mapping[int, tuple[int, ...]]:
        found: dict[int, list[int]] = {}
        tables: list[Iterable[Labels]] = [self.slots.values(), self.activations]
        tables.append(self.inputs.values())
        for number, labels in enumerate(labels for table in tables for labels in table):
            for label, times in zip(*np.unique(labels, return_counts=True), strict=True):
                if label in self.removable:
                    found.setdefault(int(label), []).extend((number, int(times)))
        return {label: tuple(parts) for label, parts in found.items()}

    def signature(self, label: int) -> tuple[int, ...]:
        """Say where and how often a label occurs; a unit is all labels with the same one.

        Activations count too: of two channels in one unit neither is ever the last one of any
        tensor that does not hold the other.
        """
        return self._signatures[label]

    def fixed(self, layers: Sequence[Layer], taken: set[int]) -> Mapping[str, str]:
        """Say why the channels of each layer without a unit are fixed."""
        found: dict[str, str] = {}
        for layer in layers:
            labels = self.produced(layer)
            if taken.isdisjoint(labels.tolist()):
                reasons = [self.reasons[label] for label in labels.tolist()]
                alone = (
                    "its channels are coupled so that they can only be removed all at once"
                    if len(set(labels.tolist())) == 1
                    else "no two of its channels occur in the same places"
                )
                found[layer.name] = next((reason for reason in reasons if reason), alone)
        return MappingProxyType(found)


def solve(walk: Walk, layers: Sequence[Layer]) -> Solution:
    """Turn the pairs of a walk into classes."""
    book = walk.book
    for name, ids in book.loose.items():  # a vector used in two ways is one vector
        if len(ids.shape) == 1 and (name, 0) in book.axes:
            book.unite(ids.ids, book.axes[name, 0])
    label = _labels(book)
    reasons: list[str | None] = [None] * (int(label.max(initial=-1)) + 1)

    def freeze(labels: Labels, reason: str) -> None:
        for found in np.unique(labels).tolist():
            reasons[found] = reasons[found] or reason

    def of(ids: Tensor) -> Labels:
        found: Labels = label[ids.numpy()]
        return found

    def spread(ids: Ids) -> dict[int, Labels]:
        """Return the labels of a loose tensor along the dimension they vary along."""
        full = of(ids.ids)
        fast = np.array([reason is not None for reason in reasons])
        full = np.where(fast[full], -1, full)
        varying = [
            dim
            for dim, size in enumerate(full.shape)
            if size > 1 and (full != full.take([0], axis=dim)).any()
        ]
        if len(varying) > 1:
            freeze(of(ids.ids), "a parameter that it meets has channels in two dimensions")
        if len(varying) != 1:
            return {}
        lines = np.moveaxis(of(ids.ids), varying[0], -1)
        return {varying[0]: lines.reshape(-1, lines.shape[-1])[0]}

    def along(constant: Constant) -> dict[int, Labels]:
        ids = constant.ids
        return spread(ids) if ids.loose else {constant.dim: of(ids.ids)}

    for held, reason in book.frozen:
        freeze(of(held), reason)
    for name, ids in book.loose.items():
        axes = [axis for axis in book.axes if axis[0] == name]
        if axes and len(ids.shape) > 1:
            for used in (ids.ids, *(book.axes[axis] for axis in axes)):
                freeze(of(used), "its weight is also used in another way")
    flat = [*book.loose.values(), *book.made]
    flat += [constant.ids for constant in book.constants if constant.ids.loose]
    for loose in flat:
        spread(loose)
    for constant in book.constants:  # sizes that cannot be edited
        labels = along(constant).get(constant.dim)
        if constant.path is None and labels is not None:
            freeze(labels, "its channels are counted by a computed size")

    slots = {axis: of(ids) for axis, ids in book.axes.items()}
    for name, ids in book.loose.items():
        for dim, labels in spread(ids).items():
            slots.setdefault((name, dim), labels)
    constants = []
    for constant in book.constants:
        whole = along(constant).get(constant.dim)
        if constant.path is not None and whole is not None:
            part = whole[constant.start : constant.stop]
            constants.append((constant.node, constant.path, part, whole, constant.sign))
    seen: dict[int, Tensor] = {}
    for outcome in walk.ids.values():
        for output in outcome if isinstance(outcome, tuple) else (outcome,):
            if not output.loose:
                seen[id(output.ids)] = output.ids
    return Solution(
        slots=slots,
        activations=[of(vector.reshape(-1)) for vector in seen.values()],
        inputs={node: of(vector) for node, vector in walk.inputs.items()},
        constants=constants,
        reasons=reasons,
    )


def _labels(book: Book) -> Labels:
    """Return the class of every id: the connected components of the pairs."""
    if not book.count:
        return _NONE
    first, second = (
        torch.cat([pair[side] for pair in book.pairs]).numpy() if book.pairs else _NONE
        for side in (0, 1)
    )
    links = coo_matrix((np.ones(len(first)), (first, second)), (book.count,) * 2)
    return connected_components(links, directed=False)[1].astype(np.int64)
