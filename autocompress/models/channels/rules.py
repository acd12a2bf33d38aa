"""Rules: what each ATen operator does to channel ids."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from autocompress.models.channels.ids import Book, Ids

__all__ = ["RULES", "Outcome", "Rule", "Walk", "rule", "rule_of", "unknown_operator"]

aten = torch.ops.aten
Outcome = Ids | tuple[Ids, ...]


@dataclass(eq=False)
class Walk:
    """A walk over a graph: the values of one run and the ids beside them."""

    book: Book
    params: Mapping[str, Tensor]
    values: dict[fx.Node, Any] = field(default_factory=dict)
    ids: dict[fx.Node, Outcome] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)  # a layer's node: its input's channels

    def of(self, node: Any) -> Ids:
        """Return the ids of a tensor in a node's arguments."""
        if node not in self.ids and node.op == "get_attr":
            name = str(node.target)
            self.ids[node] = self.book.parameter(name, self.params[name].shape)
        ids = self.ids[node]
        assert isinstance(ids, Ids)
        return ids

    def tensors(self, node: fx.Node) -> list[Ids]:
        """Return the ids of all tensors that enter a node."""
        return [self.of(n) for n in node.all_input_nodes if isinstance(self.values[n], Tensor)]

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Return the shape of a node's tensor."""
        return tuple(self.values[node].shape)

    def argument(self, node: fx.Node, name: str, default: Any = None) -> Any:
        """Return an argument of an ATen call by its name in the schema, as a plain value."""
        value = node.kwargs.get(name, default)
        for place, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            if argument.name == name and place < len(node.args):
                value = node.args[place]
        return fx.map_arg(value, self.values.__getitem__)

    def param(self, node: Any) -> str | None:
        """Return the name of the parameter that an argument is, or None."""
        is_param = isinstance(node, fx.Node) and node.op == "get_attr"
        return str(node.target) if is_param else None


Rule = Callable[[Walk, fx.Node], Outcome]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the operators of these names."""

    def add(found: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, found))
        return found

    return add


def rule_of(target: Any) -> Rule:
    """Return the rule for an operator; what has none of its own freezes what it touches."""
    if not isinstance(target, torch._ops.OpOverload):
        return unknown_operator
    name = target._schema.name.removeprefix("aten::")
    if name in RULES:
        return RULES[name]
    if re.search(r"(pool|upsample|reflection_pad|replication_pad)\w*[123]d", name):
        return _spatial
    return _elementwise if torch.Tag.pointwise in target.tags else unknown_operator


def unknown_operator(walk: Walk, node: fx.Node) -> Outcome:
    """Freeze everything that enters and leaves."""
    reason = f"operator {node.target} is not analysed"
    for ids in walk.tensors(node):
        walk.book.freeze(ids.ids, reason)
    value = walk.values[node]
    if isinstance(value, Tensor):
        return walk.book.stuck(value.shape, reason)
    return tuple(walk.book.stuck(getattr(part, "shape", ()), reason) for part in value)


@rule(
    "_to_copy", "alias", "contiguous", "detach", "dropout", "hardswish", "lift_fresh_copy",
    "log_sigmoid", "threshold", "_prelu_kernel", "zeros_like", "ones_like", "full_like",
)  # fmt: skip
def _elementwise(walk: Walk, node: fx.Node) -> Outcome:
    reason = f"operator {node.target} joins channels along different dimensions"
    return walk.book.meet(walk.shape(node), walk.tensors(node), reason)


@rule("conv1d", "conv2d", "conv3d")
def _conv(walk: Walk, node: fx.Node) -> Outcome:
    book, (source, weight, bias, *rest) = walk.book, (*node.args, None)[: max(3, len(node.args))]
    name, offset = walk.param(weight), walk.param(bias)
    if name is None or (bias is not None and offset is None):
        return unknown_operator(walk, node)
    out, per, *_ = walk.params[name].shape
    ids = walk.of(source)
    if len(ids.shape) != walk.params[name].ndim:
        return unknown_operator(walk, node)
    groups = int(rest[3]) if len(rest) > 3 else 1  # type: ignore[arg-type]
    channels = book.channels(ids, 1, "its channels are convolved as positions")
    walk.inputs[node.name] = channels
    made = book.axis(name, 0, out)
    if offset is not None:
        book.unite(made, book.axis(offset, 0, out))
    if groups == 1:
        book.unite(channels, book.axis(name, 1, per))
    elif per < groups:  # depthwise, or many small groups: whole groups go
        rows = channels.reshape(groups, per)
        book.unite(rows, rows[:, :1])
        book.unite(made.view(groups, -1), rows[:, :1])
        book.constant(node.name, (6,), Ids.along((groups,), 0, rows[:, 0].contiguous()), 0)
    else:  # every group loses the same positions
        rows = channels.reshape(groups, per)
        book.unite(rows, book.axis(name, 1, per))
        book.unite(made.view(groups, -1), made.view(groups, -1)[:1])
    return Ids.along(walk.shape(node), 1, made)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(walk: Walk, node: fx.Node) -> Outcome:
    book, (source, weight) = walk.book, node.args[:2]
    name, bias = walk.param(weight), walk.argument(node, "bias")
    if name is None or walk.argument(node, "groups", 1) != 1:
        return unknown_operator(walk, node)
    channels = book.channels(walk.of(source), 1, "its channels are convolved as positions")
    book.unite(channels, book.axis(name, 0, len(channels)))
    made = book.axis(name, 1, walk.params[name].shape[1])
    if bias is not None:
        book.vector(walk.of(node.args[2]), made, "its bias is not a vector")
    return Ids.along(walk.shape(node), 1, made)


@rule("linear")
def _linear(walk: Walk, node: fx.Node) -> Outcome:
    book, (source, weight, bias) = walk.book, (*node.args, None)[:3]
    name, offset = walk.param(weight), walk.param(bias)
    if name is None or (bias is not None and offset is None):
        return unknown_operator(walk, node)
    out, width = walk.params[name].shape
    shape = walk.shape(node)
    ids = book.solid(walk.of(source), len(shape) - 1)
    made = book.axis(name, 0, out)
    if offset is not None:
        book.unite(made, book.axis(offset, 0, out))
    if ids.dim is not None and ids.dim != len(shape) - 1:  # a layer that mixes positions
        reason = "it mixes positions, not channels"
        book.freeze(made, reason)
        book.freeze(book.axis(name, 1, width), reason)
        return Ids.along(shape, ids.dim, ids.ids)
    walk.inputs[node.name] = ids.ids.expand(width)
    book.unite(walk.inputs[node.name], book.axis(name, 1, width))
    return Ids.along(shape, len(shape) - 1, made)


@rule("embedding")
def _embedding(walk: Walk, node: fx.Node) -> Outcome:
    name = walk.param(node.args[0])
    if name is None:
        return unknown_operator(walk, node)
    shape = walk.shape(node)
    return Ids.along(shape, len(shape) - 1, walk.book.axis(name, 1, shape[-1]))


@rule("layer_norm", "rms_norm")
def _layer_norm(walk: Walk, node: fx.Node) -> Outcome:
    shape, normalized = walk.shape(node), walk.argument(node, "normalized_shape")
    out = walk.book.meet(shape, walk.tensors(node), "its norm has channels in two dimensions")
    for place in range(len(normalized)):
        walk.book.constant(node.name, (1, place), out, len(shape) - len(normalized) + place)
    return out


@rule("group_norm")
def _group_norm(walk: Walk, node: fx.Node) -> Outcome:
    book, ids = walk.book, walk.book.solid(walk.of(node.args[0]), 1)
    groups = int(walk.argument(node, "num_groups"))
    reason = "its group norm runs over another dimension"
    channels = book.channels(ids, 1, reason)
    rows = channels.reshape(groups, -1)
    if rows.shape[1] < groups:  # many small groups: whole groups go
        book.unite(rows, rows[:, :1])
        book.constant(node.name, (1,), Ids.along((groups,), 0, rows[:, 0].contiguous()), 0)
    else:
        book.unite(rows, rows[:1])
    for extra in node.args[2:4]:
        if isinstance(extra, fx.Node):
            book.vector(walk.of(extra), channels, reason)
    return ids


@rule(
    "batch_norm", "prelu", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
)  # fmt: skip
def _per_channel(walk: Walk, node: fx.Node) -> Outcome:
    book, ids = walk.book, walk.book.solid(walk.of(node.args[0]), 1)
    reason = f"operator {node.target} runs over another dimension"
    if len(ids.shape) > 1:
        channels = book.channels(ids, 1, reason)
        for extra in node.args[1:]:
            if isinstance(extra, fx.Node):
                book.vector(walk.of(extra), channels, reason)
    value = walk.values[node]
    return (
        ids
        if isinstance(value, Tensor)
        else tuple(
            ids if part.shape == value[0].shape else book.stuck(part.shape, reason)
            for part in value
        )
    )


def _spatial(walk: Walk, node: fx.Node) -> Outcome:
    """Pooling, resizing and padding of the last one, two or three dimensions."""
    found = re.search(r"([123])d", str(node.target))
    assert found is not None
    ids = walk.book.solid(walk.of(node.args[0]), 1)
    value, reason = walk.values[node], f"operator {node.target} runs over its channels"
    if ids.dim is not None and ids.dim >= len(ids.shape) - int(found.group(1)):
        walk.book.freeze(ids.ids, reason)
        ids = walk.book.stuck(ids.shape, reason)
    parts = (value,) if isinstance(value, Tensor) else value
    outs = tuple(Ids(tuple(part.shape), ids.dim, ids.ids) for part in parts)
    return outs[0] if isinstance(value, Tensor) else outs


@rule(
    "all", "amax", "amin", "any", "argmax", "argmin", "linalg_vector_norm", "logsumexp", "max",
    "mean", "min", "norm", "prod", "std", "std_mean", "sum", "var", "var_mean",
)  # fmt: skip
def _reduce(walk: Walk, node: fx.Node) -> Outcome:
    if len(node.all_input_nodes) > 1:
        return _elementwise(walk, node)  # max(a, b)
    book, ids = walk.book, walk.book.solid(walk.of(node.args[0]))
    ndim, value = len(ids.shape), walk.values[node]
    dims = walk.argument(node, "dim")
    dims = list(range(ndim)) if dims is None or dims == [] else dims
    gone = {dim % ndim for dim in ([dims] if isinstance(dims, int) else dims)}
    parts = (value,) if isinstance(value, Tensor) else tuple(value)
    if ids.dim in gone:
        reason = f"operator {node.target} runs over its channels"
        book.freeze(ids.ids, reason)
        outs = tuple(book.stuck(part.shape, reason) for part in parts)
    else:
        dim = ids.dim
        if dim is not None and parts[0].ndim < ndim:
            dim -= sum(d < dim for d in gone)
        outs = tuple(Ids(tuple(part.shape), dim, ids.ids) for part in parts)
    return outs[0] if isinstance(value, Tensor) else outs


@rule("cumsum", "log_softmax", "_log_softmax", "softmax", "_softmax")
def _normalize(walk: Walk, node: fx.Node) -> Outcome:
    ids = walk.book.solid(walk.of(node.args[0]))
    if ids.dim == walk.argument(node, "dim") % len(ids.shape):
        walk.book.freeze(ids.ids, f"operator {node.target} runs over its channels")
    return ids
