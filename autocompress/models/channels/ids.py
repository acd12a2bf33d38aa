"""Channel ids: which positions of which tensors can only be removed together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Book", "Constant", "Ids"]


@dataclass(frozen=True, eq=False)
class Ids:
    """The channel id of every element of one tensor.

    Three forms: along a dimension (``dim`` and a vector ``ids`` of that length), uniform
    (``dim`` None, ``ids`` of one element), and loose (``ids`` of the full shape: a parameter or a
    constant that has not met a channel dimension yet).
    """

    shape: tuple[int, ...]
    dim: int | None
    ids: Tensor
    loose: bool = False

    @classmethod
    def along(cls, shape: Sequence[int], dim: int, ids: Tensor) -> "Ids":
        """Ids that vary along one dimension; uniform when that dimension has one position."""
        return cls(tuple(shape), dim if len(ids) > 1 else None, ids)

    def full(self) -> Tensor:
        """Return the ids as a tensor of the full shape."""
        if self.loose:
            return self.ids
        view = [1] * len(self.shape)
        if self.dim is not None:
            view[self.dim] = self.shape[self.dim]
        return self.ids.view(view).expand(self.shape)


@dataclass(frozen=True, eq=False)
class Constant:
    """An integer in a node's arguments that counts positions ``start:stop`` along ``dim``.

    ``path`` is where it stands in the arguments; None says that the size cannot be edited there,
    so that nothing along this dimension may be removed. Its new value is ``sign`` times the
    number of positions kept.
    """

    node: str
    path: tuple[int, ...] | None
    ids: Ids
    dim: int
    start: int = 0
    stop: int | None = None
    sign: int = 1


@dataclass(eq=False)
class Book:
    """What the walk over a graph has learnt: ids that belong together, ids that must stay."""

    count: int = 0
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    frozen: list[tuple[Tensor, str]] = field(default_factory=list)
    axes: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    loose: dict[str, Ids] = field(default_factory=dict)
    made: list[Ids] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)

    def fresh(self, count: int) -> Tensor:
        """Return ids that nothing has yet."""
        self.count += count
        return torch.arange(self.count - count, self.count)

    def unite(self, first: Tensor, second: Tensor) -> None:
        """Say that ids at the same place, after broadcasting, can only be removed together."""
        if first is not second:
            first, second = torch.broadcast_tensors(first, second)  # type: ignore[no-untyped-call]
            self.pairs.append((first.reshape(-1), second.reshape(-1)))

    def freeze(self, ids: Tensor, reason: str) -> None:
        """Say that ids must stay, and why in plain words."""
        self.frozen.append((ids.reshape(-1), reason))

    def stuck(self, shape: Sequence[int], reason: str) -> Ids:
        """Return ids for a tensor of which nothing may be removed."""
        ids = self.fresh(1)
        self.freeze(ids, reason)
        return Ids(tuple(shape), None, ids)

    def axis(self, param: str, dim: int, size: int) -> Tensor:
        """Return the ids of a parameter's positions along one dimension."""
        if (param, dim) not in self.axes:
            self.axes[param, dim] = self.fresh(size)
        return self.axes[param, dim]

    def parameter(self, param: str, shape: Sequence[int]) -> Ids:
        """Return the ids of a parameter's elements, each its own until it meets channels."""
        if param not in self.loose:
            self.loose[param] = self.scatter(shape)
        return self.loose[param]

    def scatter(self, shape: Sequence[int]) -> Ids:
        """Return loose ids of a shape."""
        numel = torch.Size(shape).numel()
        return Ids(tuple(shape), None, self.fresh(numel).view(tuple(shape)), loose=True)

    def collapse(self, full: Tensor, prefer: int | None = None) -> Ids:
        """Make ids vary along one dimension only, uniting across the others.

        The dimension kept is ``prefer`` if ids vary along it, else the one with most different
        ids, else the innermost.
        """
        shape = tuple(full.shape)
        for dim in range(full.ndim):
            step = full.narrow(dim, 0, 1)
            if full.stride(dim) == 0 or bool((full == step).all()):
                full = step
        varying = [dim for dim, size in enumerate(full.shape) if size > 1]
        if not varying:
            return Ids(shape, None, full.reshape(-1)[:1])
        best = varying[0]
        if len(varying) > 1:
            rows = {dim: full.movedim(dim, -1).reshape(-1, shape[dim])[0] for dim in varying}
            best = max(varying, key=lambda dim: (dim == prefer, len(set(rows[dim].tolist())), dim))
        lines = full.movedim(best, -1).reshape(-1, shape[best])
        if len(lines) > 1:
            self.unite(lines, lines[:1])
        return Ids.along(shape, best, lines[0].clone())

    def solid(self, ids: Ids, prefer: int | None = None) -> Ids:
        """Return ids that are not loose."""
        return self.collapse(ids.ids, prefer) if ids.loose else ids

    def channels(self, ids: Ids, dim: int, reason: str) -> Tensor:
        """Return the ids along a dimension; where they vary along another, freeze them."""
        ids = self.solid(ids, dim)
        if ids.dim == dim:
            return ids.ids
        if ids.dim is not None:
            self.freeze(ids.ids, reason)
            return self.stuck((), reason).ids.expand(ids.shape[dim])
        return ids.ids.expand(ids.shape[dim])

    def meet(self, shape: Sequence[int], operands: Sequence[Ids], reason: str) -> Ids:
        """Return the ids of an elementwise result, uniting those that meet.

        An operand that is broadcast along the channels is used by all of them and must stay.
        """
        ndim, out = len(shape), tuple(shape)
        lead: tuple[int, Tensor] | None = None
        clash = False
        for ids in operands:
            if ids.dim is not None and not ids.loose:
                dim = ids.dim + ndim - len(ids.shape)
                clash |= lead is not None and lead[0] != dim
                lead = lead or (dim, ids.ids)
        if clash:
            for ids in operands:
                self.freeze(ids.ids, reason)
            return self.stuck(shape, reason)
        if lead is None:
            return self._meet_flat(out, operands)
        dim, vector = lead
        for ids in operands:
            own = dim - ndim + len(ids.shape)
            if own < 0 or ids.shape[own] != out[dim]:
                self.freeze(ids.ids, "its channel is used by all channels of another layer")
            elif ids.loose:
                self.unite(ids.ids.movedim(own, -1), vector)
            else:
                self.unite(ids.ids, vector)
        return Ids.along(out, dim, vector)

    def _meet_flat(self, shape: tuple[int, ...], operands: Sequence[Ids]) -> Ids:
        solid = [ids for ids in operands if not ids.loose]
        loose = [ids for ids in operands if ids.loose]
        if not solid:
            first = max(loose, key=lambda ids: ids.ids.numel())
            for ids in loose:
                self.unite(ids.ids, first.ids)
            return Ids(shape, None, first.ids.expand(shape), loose=True)
        for ids in (*solid, *loose):
            self.unite(ids.ids, solid[0].ids)
        return Ids(shape, None, solid[0].ids)

    def vector(self, ids: Ids, vector: Tensor, reason: str) -> None:
        """Unite a one-dimensional tensor, such as a norm's weight, with the channels it scales."""
        if len(ids.shape) == 1 and ids.shape[0] == len(vector):
            self.unite(ids.ids, vector)
        else:
            self.freeze(ids.ids, reason)

    def constant(
        self,
        node: str,
        path: tuple[int, ...] | None,
        ids: Ids,
        dim: int,
        start: int = 0,
        stop: int | None = None,
        sign: int = 1,
    ) -> None:
        """Note an integer among a node's arguments that counts channels."""
        if ids.loose or ids.dim == dim:
            self.constants.append(Constant(node, path, ids, dim, start, stop, sign))
