"""The walk over a graph that gives every tensor its channel ids."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from autocompress.models.channels.ids import Book
from autocompress.models.channels.moves import canonical  # its rules join the table
from autocompress.models.channels.rules import Outcome, Walk, rule_of, unknown_operator

__all__ = ["canonical", "walk_graph"]


@torch.no_grad()
def walk_graph(
    graph: fx.Graph, params: Mapping[str, Tensor], example_inputs: Sequence[Tensor]
) -> Walk:
    """Run a graph on its example inputs (repeated to a batch of 2) and on ids beside them."""
    walk = Walk(Book(), params)
    nodes = list(graph.nodes)
    last = {source: node for node in nodes for source in node.all_input_nodes}
    feed = iter(x if x.shape[0] > 1 else x.repeat(2, *[1] * (x.ndim - 1)) for x in example_inputs)
    for node in nodes:
        if node.op == "placeholder":
            walk.values[node] = value = next(feed)
            walk.ids[node] = walk.book.stuck(value.shape, "it meets the network's input")
        elif node.op == "get_attr":
            walk.values[node] = params[str(node.target)]
        elif node.op == "output":
            for source in node.all_input_nodes:
                walk.book.freeze(walk.of(source).ids, "its channels reach the network's output")
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), walk.values.__getitem__)
            walk.values[node] = node.target(*args, **kwargs)
            if _has_tensors(walk.values[node]):
                walk.ids[node] = _follow(walk, node)
        for source in node.all_input_nodes:
            if last[source] is node and isinstance(walk.values[source], Tensor):
                walk.values[source] = walk.values[source].new_empty(0)  # no longer needed
    return walk


def _has_tensors(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, (tuple, list)) and any(isinstance(part, Tensor) for part in value)
    )


def _follow(walk: Walk, node: fx.Node) -> Outcome:
    if node.target is operator.getitem:
        source, place = node.args
        parts = walk.ids[source]  # type: ignore[index]
        assert isinstance(parts, tuple)
        assert isinstance(place, int)
        return parts[place]
    try:
        return rule_of(node.target)(walk, node)
    except (RuntimeError, IndexError, NotImplementedError, TypeError, ValueError):
        return unknown_operator(walk, node)  # a form of the operator that the rule cannot take
