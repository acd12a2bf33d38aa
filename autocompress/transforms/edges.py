"""Which tensors are rounded: the edge rules that make layers integer ones."""

from collections.abc import Iterator

import torch
from torch import fx

from autocompress.models.network import Network
from autocompress.spec.abilities import Abilities
from autocompress.spec.plan import Plan

__all__ = ["chain_end", "rounded_tensors"]

aten = torch.ops.aten

ADDS = frozenset({aten.add.Tensor})
#: Operators through which a layer's wish for a rounded input reaches the tensor before them.
PASSIVE = frozenset(
    {
        aten.view.default,
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


def rounded_tensors(network: Network, plan: Plan, abilities: Abilities) -> dict[str, int]:
    """Return the bits of every tensor that the plan rounds, by the name of its node.

    A layer is an integer layer when its weight has at most 8 bits and its input is rounded; an
    input is rounded when every layer that reads it asks for that, to the widest width asked for.
    Besides inputs: outputs of integer layers whose kernel needs it, and sums of rounded tensors
    that integer layers read.
    """
    nodes = {node.name: node for node in network.graph.nodes}
    source = {layer.name: nodes[layer.node].args[0] for layer in network.layers}
    asked: dict[fx.Node, int] = {}
    for layer in network.layers:
        bits = int(plan.get(layer.name, "a_bits")) if plan.get(layer.name, "w_bits") <= 8 else 32
        tensor = source[layer.name]
        assert isinstance(tensor, fx.Node)
        asked[tensor] = max(asked.get(tensor, 0), bits)
    found = {tensor.name: bits for tensor, bits in asked.items() if bits <= 8}
    for layer in network.layers:
        tensor = source[layer.name]
        assert isinstance(tensor, fx.Node)
        if tensor.name in found and layer.kind in abilities.quantized_outputs:
            found.setdefault(chain_end(nodes[layer.node], abilities).name, asked[tensor])
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
