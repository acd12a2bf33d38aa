"""Rules for operators that only move data: they are run as they are, on tensors of ids."""

from typing import Any

import torch
from torch import Tensor, fx

from autocompress.models.channels.ids import Ids
from autocompress.models.channels.rules import Outcome, Walk, rule, unknown_operator

__all__ = ["canonical"]

aten = torch.ops.aten
_LARGEST = 1 << 21  # elements of a constant tensor that is followed element by element


def canonical(graph: fx.Graph) -> None:
    """Give operators of an exported graph, in place, the form that later floors can work with.

    ``view`` becomes ``reshape``, which takes any layout in memory; ``split`` and ``chunk`` become
    ``split_with_sizes``, the only form that can cut into pieces that pruning has made unequal. The
    sizes are read from the shapes that the exporter noted; a node without them stays as it is.
    """
    for node in graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
        if node.target in (aten.split.Tensor, aten.chunk.default) and "val" in node.meta:
            dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
            sizes = [part.shape[dim] for part in node.meta["val"]]
            if all(isinstance(size, int) for size in sizes):
                node.target = aten.split_with_sizes.default
                node.args, node.kwargs = (node.args[0], sizes, dim), {}


def _run(walk: Walk, node: fx.Node) -> Any:
    """Run an operator on ids; integers and index tensors are what they were."""

    def feed(source: fx.Node) -> Any:
        moved = isinstance(walk.values[source], Tensor) and source not in fixed
        return walk.of(source).full() if moved else walk.values[source]

    fixed = {n for n in node.all_input_nodes if n is not node.args[0]}
    if isinstance(node.args[0], (list, tuple)):
        fixed = set()
    return node.target(*fx.map_arg(node.args, feed), **fx.map_arg(node.kwargs, feed))  # type: ignore[operator]


@rule(
    "cat", "expand", "flip", "movedim", "permute", "pixel_shuffle", "pixel_unshuffle", "repeat",
    "repeat_interleave", "reshape", "squeeze", "stack", "t", "transpose", "unsqueeze",
    "_unsafe_view", "view",
)  # fmt: skip
def _move(walk: Walk, node: fx.Node) -> Outcome:
    moved, loose = _run(walk, node), all(ids.loose for ids in walk.tensors(node))
    name = node.target._schema.name  # type: ignore[union-attr]
    out = (
        Ids(tuple(moved.shape), None, moved, loose=True)
        if loose
        else walk.book.collapse(moved, 1 if "pixel" in name else None)
    )
    if name in ("aten::reshape", "aten::_unsafe_view", "aten::expand"):
        _sizes(walk, node, 1, out)
    return out


def _sizes(walk: Walk, node: fx.Node, place: int, out: Ids) -> None:
    """Note the sizes that an operator is given as one list."""
    for dim, size in enumerate(node.args[place]):  # type: ignore[arg-type]
        if isinstance(size, fx.Node):
            walk.book.constant(node.name, None, out, dim)
        elif size != -1:
            walk.book.constant(node.name, (place, dim), out, dim)


@rule("split_with_sizes", "split", "chunk", "unbind")
def _split(walk: Walk, node: fx.Node) -> Outcome:
    book, ids = walk.book, walk.book.solid(walk.of(node.args[0]))
    walk.ids[node.args[0]] = ids  # type: ignore[index]
    dim = walk.argument(node, "dim", 0) % len(ids.shape)
    outs = tuple(book.collapse(part) for part in _run(walk, node))
    if ids.dim != dim:
        return outs
    if node.target is aten.split_with_sizes.default:
        for place, out in enumerate(outs):
            book.constant(node.name, (1, place), out, dim)
    elif node.target is not aten.unbind.int and len({out.shape[dim] for out in outs}) == 1:
        for out in outs[1:]:  # equal pieces stay equal
            book.unite(out.ids, outs[0].ids)
        if node.target is aten.split.Tensor:
            book.constant(node.name, (1,), outs[0], dim)
    else:
        book.freeze(ids.ids, f"operator {node.target} cuts its channels into fixed pieces")
    return outs


@rule("slice", "select", "narrow")
def _cut(walk: Walk, node: fx.Node) -> Outcome:
    book, loose = walk.book, walk.of(node.args[0])
    ids = book.solid(loose)
    if loose.loose:
        book.freeze(loose.ids, f"operator {node.target} cuts a parameter")
    dim = walk.argument(node, "dim", 0) % len(ids.shape)
    walk.ids[node.args[0]] = ids  # type: ignore[index]
    out = book.collapse(_run(walk, node))
    if ids.dim != dim:
        return out
    size = ids.shape[dim]
    places = [n for n in node.args[2:4] if isinstance(n, fx.Node)]
    if places or walk.argument(node, "step", 1) != 1 or "narrow" in str(node.target):
        book.freeze(ids.ids, f"operator {node.target} cuts channels in a pattern")
    elif node.target is aten.select.int:
        index = walk.argument(node, "index") % size
        book.freeze(ids.ids[index], f"operator {node.target} takes this one channel")
        book.constant(node.name, (2,), ids, dim, 0, index)
    else:
        for place, bound in enumerate(node.args[2:4], start=2):
            if isinstance(bound, int) and bound < size:
                stop = max(bound + size, 0) if bound < 0 else bound
                book.constant(node.name, (place,), ids, dim, 0, stop)
    return out


@rule("constant_pad_nd", "pad")
def _pad(walk: Walk, node: fx.Node) -> Outcome:
    """Padded channels are channels of their own; padded positions belong to their channel."""
    book, ids = walk.book, walk.book.solid(walk.of(node.args[0]), 1)
    shape, amounts = walk.shape(node), list(node.args[1])  # type: ignore[arg-type]
    if not all(isinstance(amount, int) for amount in amounts):
        return unknown_operator(walk, node)
    dim, vector = ids.dim, ids.ids
    place = 0 if dim is None else 2 * (len(shape) - 1 - dim)
    if dim is None or place >= len(amounts):
        return Ids(shape, dim, vector)
    if "constant_pad_nd" not in str(node.target) and any(amounts[place : place + 2]):
        return unknown_operator(walk, node)
    before, after = (int(amount) for amount in amounts[place : place + 2])
    start, stop = max(-before, 0), len(vector) - max(-after, 0)
    pads = [book.fresh(max(before, 0)), book.fresh(max(after, 0))]
    added = [Ids((len(pad),), 0, pad) for pad in pads]
    for side, (amount, kept) in enumerate(((before, (0, start)), (after, (stop, None)))):
        if amount > 0:
            book.constant(node.name, (1, place + side), added[side], 0)
        elif amount < 0:
            book.constant(node.name, (1, place + side), ids, dim, *kept, sign=-1)
    return Ids.along(shape, dim, torch.cat([pads[0], vector[start:stop], pads[1]]))


@rule("roll", "index", "index_select")
def _shift(walk: Walk, node: fx.Node) -> Outcome:
    """Operators that may move positions, not channels."""
    book, source = walk.book, node.args[0]
    ids = book.solid(walk.of(source))
    name = node.target._schema.name  # type: ignore[union-attr]
    if name == "aten::index":
        dims = {d for d, n in enumerate(node.args[1]) if n is not None}  # type: ignore[arg-type]
    else:
        given = walk.argument(node, "dim" if name == "aten::index_select" else "dims", [])
        given = [given] if isinstance(given, int) else list(given)
        dims = {d % len(ids.shape) for d in given or range(len(ids.shape))}
    if ids.dim in dims or walk.of(source).loose:
        return unknown_operator(walk, node)
    return book.collapse(_run(walk, node))


@rule("channel_shuffle", "native_channel_shuffle")
def _shuffle(walk: Walk, node: fx.Node) -> Outcome:
    book, ids = walk.book, walk.book.solid(walk.of(node.args[0]), 1)
    channels = book.channels(ids, 1, "its channels are shuffled as positions")
    rows = channels.reshape(walk.argument(node, "groups"), -1)
    book.unite(rows, rows[:1])
    return Ids.along(ids.shape, 1, rows.t().reshape(-1))


@rule("glu")
def _glu(walk: Walk, node: fx.Node) -> Outcome:
    """Both halves lose the same channels."""
    book, ids = walk.book, walk.book.solid(walk.of(node.args[0]))
    dim = walk.argument(node, "dim", -1) % len(ids.shape)
    if ids.dim != dim:
        return Ids(walk.shape(node), ids.dim, ids.ids)
    first, second = ids.ids.chunk(2)
    book.unite(first, second)
    return Ids.along(walk.shape(node), dim, first)


@rule(
    "empty", "full", "ones", "zeros", "new_empty", "new_full", "new_ones", "new_zeros",
)  # fmt: skip
def _fill(walk: Walk, node: fx.Node) -> Outcome:
    shape = walk.shape(node)
    if torch.Size(shape).numel() > _LARGEST:
        return walk.book.stuck(shape, f"operator {node.target} makes a constant that large")
    out = walk.book.scatter(shape)
    walk.book.made.append(out)
    _sizes(walk, node, 1 if "new_" in str(node.target) else 0, out)
    return out
