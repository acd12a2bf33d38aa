"""Which channels go first: an order of removal for every unit."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, fx

from autocompress.models.channels.groups import Unit
from autocompress.models.layer import Layer
from autocompress.models.network import Network
from autocompress.transforms.reconstruct.gram import columns_of, moments
from autocompress.transforms.reconstruct.least_squares import ridged
from autocompress.transforms.reference import Reference

__all__ = [
    "IMPORTANCES", "Consumer", "count_kept", "energy_orders", "magnitude_order", "removal_order",
]  # fmt: skip

#: The order of removal of every unit's channels, by unit.
Orders = Mapping[str, tuple[int, ...]]

LIMIT_COLUMNS = 3072
LIMIT_BYTES = 2**28
STEPS = 32


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer that reads a unit: weights [K, rows], Gram matrix [K, K], columns of each class."""

    weights: Tensor
    gram: Tensor
    columns: Sequence[Tensor]


def count_kept(keep: float, channels: int) -> int:
    """Return how many of a unit's channels stay: the nearest to ``keep``, at least one."""
    return max(1, min(channels, math.floor(keep * channels + 0.5)))


def magnitude_order(unit: Unit, network: Network, power: int) -> tuple[int, ...]:
    """Return the unit's channels, least first, by the sum of \\|w\\|^power of their producers."""
    weights = {layer.weight for layer in network.layers if layer.name in unit.producers}
    slots = [slot for slot in unit.slots if slot.param in weights and slot.dim == 0]
    scores = torch.zeros(unit.channels, dtype=torch.float64)
    for slot in slots or unit.slots:
        value = network.params[slot.param].detach().double().abs() ** power
        mass = value.transpose(0, slot.dim).flatten(1).sum(1) if value.ndim > 1 else value
        for channel, index in enumerate(slot.index):
            scores[channel] += mass[list(index)].sum()
    return tuple(scores.argsort(stable=True).tolist())


def removal_order(consumers: Sequence[Consumer], channels: int) -> tuple[tuple[int, ...], Tensor]:
    """Return channels in the order in which they are best removed, and the error after each.

    Backward elimination: each step removes what the consumers, refitted to what is left, miss
    least. With P = G⁻¹, removing columns c costs tr(W_cᵀ (P_cc)⁻¹ W_c) and leaves
    W - P_:c (P_cc)⁻¹ W_c and P - P_:c (P_cc)⁻¹ P_c: (Hassibi & Stork 1993, eq. 5, for groups of
    columns). Errors are summed over consumers, each relative to its output's energy.
    """
    alive = list(range(channels))
    removed: list[int] = []
    errors: list[float] = []
    total = 0.0
    weights: list[Tensor] = []
    inverses: list[Tensor] = []
    units: list[float] = []
    for consumer in consumers:
        gram = ridged(consumer.gram.double().unsqueeze(0), 1e-3)[0][0]
        start = consumer.weights.double()
        weights.append(start)
        inverses.append(torch.cholesky_inverse(torch.linalg.cholesky(gram)))
        units.append(1 / max(float((start * (gram @ start)).sum()), 1e-30))
    at_once = max(1, channels // STEPS)
    while len(alive) > 1:
        costs = torch.zeros(len(alive), dtype=torch.float64)
        for place, consumer in enumerate(consumers):
            columns = [consumer.columns[c] for c in alive]
            costs += units[place] * _costs(weights[place], inverses[place], columns)
        order = costs.argsort(stable=True)[: min(at_once, len(alive) - 1)].tolist()
        gone = [alive[rank] for rank in order]
        for place, consumer in enumerate(consumers):
            cut = torch.cat([consumer.columns[c] for c in gone])
            block = inverses[place][:, cut]
            inner = torch.linalg.cholesky(block[cut])
            lost = weights[place][cut]
            moved = torch.cholesky_solve(lost, inner)
            total += units[place] * float((lost * moved).sum())
            weights[place] = weights[place] - block @ moved
            inverses[place] = inverses[place] - block @ torch.cholesky_solve(block.T, inner)
            weights[place][cut] = 0
            inverses[place][cut] = 0
            inverses[place][:, cut] = 0
        alive = [c for c in alive if c not in set(gone)]
        removed.extend(gone)
        errors.extend([total] * len(gone))
    return (*removed, *alive), torch.tensor(errors)


def _costs(weights: Tensor, inverse: Tensor, columns: Sequence[Tensor]) -> Tensor:
    """Return the cost of removing each set of columns alone."""
    if len({len(index) for index in columns}) == 1:
        index = torch.stack(list(columns))
        inner = inverse[index[:, :, None], index[:, None, :]]
        lost = weights[index]
        each: Tensor = (lost * torch.linalg.solve(inner, lost)).sum((1, 2))
        return each
    found = [(weights[i] * torch.linalg.solve(inverse[i][:, i], weights[i])).sum() for i in columns]
    return torch.stack(found)


def energy_orders(reference: Reference) -> dict[str, tuple[int, ...]]:
    """Return the order of removal of every unit by what its consumers' outputs lose.

    Units without a consumer that can be refitted are ordered by the squares of their weights.
    """
    network = reference.network
    grams = _grams(reference)
    weights = {layer.weight: layer for layer in network.layers}
    orders: dict[str, tuple[int, ...]] = {}
    for unit in network.units:
        consumers = []
        for slot in unit.slots:
            layer = weights.get(slot.param)
            if layer is None or slot.dim != 1 or layer.name not in grams:
                continue
            weight = network.params[slot.param]
            cells = math.prod(weight.shape[2:])
            columns = [
                (torch.tensor(index) + torch.arange(cells)[:, None] * weight.shape[1]).flatten()
                for index in slot.index
            ]
            consumers.append(Consumer(columns_of(weight, 1)[0], grams[layer.name], columns))
        if consumers:
            orders[unit.name] = removal_order(consumers, unit.channels)[0]
        else:
            orders[unit.name] = magnitude_order(unit, network, 2)
    return orders


def _grams(reference: Reference) -> Mapping[str, Tensor]:
    """Return the Gram matrices of the inputs of all ungrouped layers that read a unit."""
    network = reference.network
    read = {name for unit in network.units for name in unit.consumers}
    wanted: dict[str, list[Layer]] = {}
    nodes = {node.name: node for node in network.graph.nodes}
    held = 0
    for layer in network.layers:
        columns = math.prod(network.params[layer.weight].shape[1:])
        size = 4 * columns**2
        if layer.name not in read or layer.groups > 1 or columns > LIMIT_COLUMNS:
            continue
        if held + size <= LIMIT_BYTES:
            held += size
            source = nodes[layer.node].args[0]
            assert isinstance(source, fx.Node)
            wanted.setdefault(source.name, []).append(layer)
    grams: dict[str, Tensor] = {}

    def observe(node: fx.Node, value: Tensor) -> None:
        for layer in wanted.get(node.name, ()):
            target = reference.targets[layer.name]
            grams[layer.name] = moments(target.samples.inputs(value), target.outputs).gram[0]

    network.run(*reference.inputs, observe=observe)
    return grams


def _magnitude_orders(reference: Reference, power: int) -> Orders:
    network = reference.network
    return {unit.name: magnitude_order(unit, network, power) for unit in network.units}


#: The ways to choose which channels go, by name.
IMPORTANCES: Mapping[str, Callable[[Reference], Orders]] = MappingProxyType(
    {
        "energy": energy_orders,
        "l1": functools.partial(_magnitude_orders, power=1),
        "l2": functools.partial(_magnitude_orders, power=2),
    }
)
