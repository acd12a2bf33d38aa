"""Which tensors are rounded: the edge rules that make layers integer ones."""

from collections.abc import Iterator

import torch
from torch import fx

from autocompress.core.abilities import Abilities
from autocompress.core.plan import Plan
from autocompress.models.network import Network

__all__ = ["chain_end", "integer_layers", "rounded_tensors"]

aten = torch.ops.aten

ADDS = frozenset({aten.add.Tensor})
#: Operators through which a layer's wish for a rounded input reaches the tensor before them.
PASSIVE = frozenset(
    {
        aten.reshape.default,
        aten.flatten.using_ints,
        aten._unsafe_view.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.permute.default,
        aten.transpose.int,
        aten.clone.default,
        aten.mean.dim,
        aten.adaptive_avg_pool1d.default,
        aten.adaptive_avg_pool2d.default,
        aten.avg_pool2d.default,
        aten.max_pool2d.default,
    }
)


def chain_end(node: fx.Node, abilities: Abilities) -> fx.Node:
    """Return the last node that the target fuses into the kernel of ``node``."""
    while len(node.users) == 1:
        (user,) = node.users
        if str(user.target) not in abilities.fused_activations or user.args[0] is not node:
            break
        node = user
    return node


def _shared(network: Network) -> set[str]:
    """Return the weights that other operators read than layers and tables.

    onnxruntime rounds such a weight anew for them (a transposed convolution), to another grid.
    """
    layers = {layer.node for layer in network.layers}
    return {
        str(node.target)
        for node in network.graph.nodes
        if node.op == "get_attr"
        for user in node.users
        if user.name not in layers and user.target is not aten.embedding.default
    }


def _asked(network: Network, plan: Plan) -> tuple[dict[str, fx.Node], dict[fx.Node, int]]:
    """Return the input of every layer, and the widest width asked for by any that reads it."""
    nodes = {node.name: node for node in network.graph.nodes}
    shared = _shared(network)
    source: dict[str, fx.Node] = {}
    asked: dict[fx.Node, int] = {}
    for layer in network.layers:
        tensor = nodes[layer.node].args[0]
        assert isinstance(tensor, fx.Node)
        source[layer.name] = tensor
        small = plan.get(layer.name, "w_bits") <= 8 and layer.weight not in shared
        bits = int(plan.get(layer.name, "a_bits")) if small else 32
        asked[tensor] = max(asked.get(tensor, 0), bits)
    return source, asked


def integer_layers(network: Network, plan: Plan) -> frozenset[str]:
    """Return the names of the layers that are to run on integers.

    Those whose weight has at most 8 bits and is read by layers (and tables) alone, and whose input
    is rounded because every layer that reads it asks for that. A layer that asks for float32 stays
    a float one even where its input happens to be rounded as the output of another.
    """
    source, asked = _asked(network, plan)
    return frozenset(name for name, tensor in source.items() if asked[tensor] <= 8)


def rounded_tensors(network: Network, plan: Plan, abilities: Abilities) -> dict[str, int]:
    """Return the bits of every tensor that the plan rounds, by the name of its node.

    Rounded are the inputs of integer layers (see :func:`integer_layers`), to the widest width
    asked for; outputs of integer layers, where the target's kernel needs that; and sums of
    rounded tensors that integer layers read.
    """
    nodes = {node.name: node for node in network.graph.nodes}
    source, asked = _asked(network, plan)
    found = {tensor.name: bits for tensor, bits in asked.items() if bits <= 8}
    for layer in network.layers:
        bits = asked[source[layer.name]]
        if bits <= 8 and layer.kind in abilities.quantized_outputs:
            found.setdefault(chain_end(nodes[layer.node], abilities).name, bits)
    for node in network.graph.nodes:
        operands = node.all_input_nodes
        if node.target not in ADDS or len(operands) != 2:
            continue
        end = chain_end(node, abilities)
        wishes = [asked[tensor] for tensor in _reached(end) if tensor in asked]
        if all(operand.name in found for operand in operands) and wishes and max(wishes) <= 8:
            found.setdefault(end.name, max(wishes))
    return found


def _reached(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the tensors that hold no more than what ``node`` does, itself first."""
    yield node
    for user in node.users:
        if user.target in PASSIVE and user.all_input_nodes == [node]:
            yield from _reached(user)
