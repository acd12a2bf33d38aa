"""Shapes: what every node of a graph yields, without computing it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

__all__ = ["Shaped", "shapes_of"]

aten = torch.ops.aten


class Shaped(NamedTuple):
    """A tensor without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype


_CONVOLUTIONS = frozenset({aten.conv1d.default, aten.conv2d.default, aten.conv3d.default})
_UNARY = frozenset(
    {
        aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default,
        aten.hardswish.default, aten.hardsigmoid.default, aten.silu.default, aten.sigmoid.default,
        aten.tanh.default, aten.gelu.default, aten.leaky_relu.default, aten.elu.default,
        aten.clone.default,
    }
)  # fmt: skip
_BINARY = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor})
_LIMIT = 50_000  # remembered calls
_known: dict[Any, Any] = {}


def shapes_of(
    graph: fx.Graph, params: Mapping[str, Tensor], inputs: Sequence[Tensor]
) -> dict[fx.Node, Any]:
    """Return what every node yields: a Shaped, a number, or a tuple of these.

    Frequent operators have a formula; of all others the kernels for PyTorch's meta device are
    asked, once for each combination of shapes. Nodes for which there is no answer are missing.
    """
    found: dict[fx.Node, Any] = {}
    feed = iter(inputs)
    for node in graph.nodes:
        if node.op == "get_attr":
            found[node] = _shaped(params[str(node.target)])
        elif node.op == "placeholder":
            found[node] = _shaped(next(feed))
        elif node.op == "call_function" and all(n in found for n in node.all_input_nodes):
            rule = _RULES.get(node.target)
            answer = rule(node, found) if rule is not None and not node.kwargs else None
            answer = _ask(node, found) if answer is None else answer
            if answer is not None:
                found[node] = answer
    return found


def _shaped(value: Tensor) -> Shaped:
    return Shaped(tuple(value.shape), value.dtype)


def _convolution(node: fx.Node, found: Mapping[fx.Node, Any]) -> Shaped | None:
    """Return ⌊(n + 2p − d(k − 1) − 1)/s⌋ + 1 positions a dimension (torch.nn.Conv2d)."""
    source, weight = found[node.args[0]], found[node.args[1]]  # type: ignore[index]
    given: Any = (*node.args[3:6], *(1, 0, 1)[max(0, len(node.args) - 3) :])
    stride, padding, dilation = given
    if isinstance(padding, str) or len(source.shape) != len(weight.shape):
        return None
    sizes = []
    for place, (size, kernel) in enumerate(zip(source.shape[2:], weight.shape[2:], strict=True)):
        s, p, d = (
            v if isinstance(v, int) else v[place if len(v) > 1 else 0]
            for v in (stride, padding, dilation)
        )
        sizes.append((size + 2 * p - d * (kernel - 1) - 1) // s + 1)
    return Shaped((source.shape[0], weight.shape[0], *sizes), source.dtype)


def _linear(node: fx.Node, found: Mapping[fx.Node, Any]) -> Shaped:
    source, weight = found[node.args[0]], found[node.args[1]]  # type: ignore[index]
    return Shaped((*source.shape[:-1], weight.shape[0]), source.dtype)


def _unary(node: fx.Node, found: Mapping[fx.Node, Any]) -> Shaped | None:
    source = found[node.args[0]]  # type: ignore[index]
    plain = source.dtype.is_floating_point and len(node.all_input_nodes) == 1
    return source if plain else None


def _binary(node: fx.Node, found: Mapping[fx.Node, Any]) -> Shaped | None:
    left, right = (found.get(arg) for arg in node.args[:2])  # type: ignore[arg-type]
    if not isinstance(left, Shaped) or not left.dtype.is_floating_point:
        return None
    if left == right or isinstance(node.args[1], (int, float)):
        return left
    if not isinstance(right, Shaped) or right.dtype != left.dtype:
        return None
    long, short = sorted((left.shape, right.shape), key=len, reverse=True)
    short = (1,) * (len(long) - len(short)) + short
    return Shaped(tuple(b if a == 1 else a for a, b in zip(long, short, strict=True)), left.dtype)


def _cat(node: fx.Node, found: Mapping[fx.Node, Any]) -> Shaped | None:
    parts: Any = [found[n] for n in node.args[0]]  # type: ignore[union-attr, index]
    first = parts[0]
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    if any(p.dtype != first.dtype or len(p.shape) != len(first.shape) for p in parts):
        return None
    dim %= len(first.shape)
    total = sum(part.shape[dim] for part in parts)
    return Shaped((*first.shape[:dim], total, *first.shape[dim + 1 :]), first.dtype)


def _reshape(node: fx.Node, found: Mapping[fx.Node, Any]) -> Shaped:
    source = found[node.args[0]]  # type: ignore[index]
    asked: Any = node.args[1]
    sizes = [found[size] if isinstance(size, fx.Node) else size for size in asked]
    if -1 in sizes:
        rest = -math.prod(sizes)
        sizes[sizes.index(-1)] = math.prod(source.shape) // rest if rest else 0
    return Shaped(tuple(sizes), source.dtype)


def _permute(node: fx.Node, found: Mapping[fx.Node, Any]) -> Shaped:
    source = found[node.args[0]]  # type: ignore[index]
    dims: Any = node.args[1]
    return Shaped(tuple(source.shape[dim] for dim in dims), source.dtype)


_RULES: Mapping[Any, Callable[[fx.Node, Mapping[fx.Node, Any]], Any]] = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    **dict.fromkeys(_UNARY, _unary),
    **dict.fromkeys(_BINARY, _binary),
    aten.linear.default: _linear,
    aten.cat.default: _cat,
    aten.reshape.default: _reshape,
    aten.permute.default: _permute,
}


def _ask(node: fx.Node, found: Mapping[fx.Node, Any]) -> Any:
    """Return what the operator itself yields on the meta device; None if it cannot say."""
    target: Any = node.target
    args, kwargs = fx.map_arg((node.args, node.kwargs), found.__getitem__)
    key: Any = (target, _key(args), _key(kwargs))
    try:
        if key in _known:
            return _known[key]
    except TypeError:  # an argument without a hash
        key = None
    try:
        with torch.no_grad():
            answer = _strip(target(*_empty(args), **_empty(kwargs)))
    except Exception:  # whatever the kernel raises: reported as unknown
        answer = None
    if key is not None:
        if len(_known) >= _LIMIT:
            _known.clear()
        _known[key] = answer
    return answer


def _key(value: Any) -> Any:
    if isinstance(value, Shaped):
        return value
    if isinstance(value, Mapping):
        return tuple((name, _key(item)) for name, item in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(_key, value))
    return value if type(value) is int else (type(value), value)


def _empty(value: Any) -> Any:
    if isinstance(value, Shaped):
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    if isinstance(value, Mapping):
        return {name: "meta" if name == "device" else _empty(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map(_empty, value))
    return value


def _strip(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _shaped(value)
    if isinstance(value, (tuple, list)):
        return tuple(map(_strip, value))
    return value
