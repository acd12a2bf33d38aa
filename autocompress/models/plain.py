"""A graph as plain data: for files, and for other processes."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from autocompress.errors import ArtifactError

__all__ = ["function", "graph_of", "plain", "whole"]


def plain(node: fx.Node) -> list[Any]:
    """Return name, kind, target, arguments and keyword arguments of a node as plain data."""

    def held(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return {"node": value.name}
        if isinstance(value, tuple):
            return {"tuple": [held(item) for item in value]}
        if isinstance(value, list):
            return [held(item) for item in value]
        if isinstance(value, dict):
            return {"dict": {key: held(item) for key, item in value.items()}}
        if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
            return {"torch": str(value)}
        return value

    function = node.op == "call_function"
    module = getattr(node.target, "__module__", "") if function else ""
    known = f"{module}.{getattr(node.target, '__name__', '')}"
    target = known if module == "_operator" else str(node.target)
    return [node.name, node.op, target, held(node.args), held(dict(node.kwargs))]


def whole(value: Any, values: Mapping[str, Any]) -> Any:
    """Return plain arguments as they were; ``values``: what stands for a node, by its name."""
    if isinstance(value, list):
        return [whole(item, values) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "node":
        return values[held]
    if kind == "tuple":
        return tuple(whole(item, values) for item in held)
    if kind == "torch":
        return torch.device(held) if held.startswith("cpu") else getattr(torch, held[6:])
    return {key: whole(item, values) for key, item in held.items()}


def function(target: str) -> Any:
    """Return an operator by its name: ATen's, or Python's arithmetic; raise ArtifactError."""
    space, name, *overload = target.split(".")
    if space == "aten":
        return getattr(getattr(torch.ops.aten, name), overload[0])
    if space == "_operator":
        return getattr(operator, name)
    raise ArtifactError(f"A graph holds ATen operators and arithmetic alone, not '{target}'.")


def graph_of(nodes: Sequence[Sequence[Any]]) -> fx.Graph:
    """Return the graph of the ``plain`` data of all its nodes, in order."""
    graph, made = fx.Graph(), dict[str, fx.Node]()
    for name, op, target, args, kwargs in nodes:
        found = function(target) if op == "call_function" else target
        given = whole(args, made), whole(kwargs, made)
        made[name] = graph.create_node(op, found, *given, name=name)
    return graph
