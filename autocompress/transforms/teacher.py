"""What the uncompressed network computes on the calibration data, sampled once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from autocompress.errors import InputError
from autocompress.models.network import Layer, Network
from autocompress.transforms.gram import Window, choose_positions, outputs_of, window_of

__all__ = ["Target", "Teacher", "gather_inputs"]

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Target:
    """What a layer's output ought to be, at sampled positions.

    ``outputs``: [samples, out], of the layer, or of the sum that it is added into when ``other``
    names the other operand: then the layer makes good what the other operand lacks.
    """

    window: Window
    positions: Tensor | None
    outputs: Tensor
    other: str | None
    shared: bool


class Teacher:
    """The uncompressed network's answers on the calibration inputs; bounded memory.

    ``limit_bytes`` bounds the samples that are kept, ``limit_images`` and the size of the largest
    activation the inputs that are used.
    """

    def __init__(
        self,
        network: Network,
        calibration: Sequence[tuple[Tensor, ...]],
        *,
        seed: int = 0,
        limit_images: int = 256,
        limit_bytes: int = 256 * 2**20,
        oversampling: int = 8,
        correct_sums: bool = True,
    ) -> None:
        self.network = network
        self.inputs = gather_inputs(network, calibration, limit_images)
        batch = len(self.inputs[0])
        generator = torch.Generator().manual_seed(seed)
        nodes = {node.name: node for node in network.graph.nodes}
        order = {name: place for place, name in enumerate(nodes)}
        readers: dict[str, int] = {}
        for node in network.graph.nodes:
            for used in node.all_input_nodes:
                if used.op == "get_attr":
                    readers[str(used.target)] = readers.get(str(used.target), 0) + len(
                        [a for a in node.args if a is used]
                    )
        budget = limit_bytes / max(1, 4 * sum(_width(layer) for layer in network.layers))
        plans: dict[str, tuple[Layer, Window, Tensor | None, str | None]] = {}
        for layer in network.layers:
            weight = network.params[layer.weight]
            window = window_of(nodes[layer.node], layer, weight)
            columns = math.prod(weight.shape[1:])
            count = int(min(max(4096, oversampling * columns), 16384, max(budget, batch)))
            spatial = layer.out_shape[1:] if window.kernel else layer.out_shape[:-1]
            positions = choose_positions(spatial, batch, count, generator)
            place, other = layer.node, None
            if correct_sums:
                place, other = _sum_after(nodes[layer.node], order)
            plans[layer.name] = (layer, window, positions, other)
            self._places = getattr(self, "_places", {})
            self._places.setdefault(place, []).append(layer.name)
        self.targets: Mapping[str, Target] = {}
        found: dict[str, Target] = {}

        def observe(node: fx.Node, value: Tensor) -> None:
            for name in self._places.get(node.name, ()):
                layer, window, positions, other = plans[name]
                outputs = outputs_of(value, window, positions).clone()
                shared = readers[layer.weight] > 1
                found[name] = Target(window, positions, outputs, other, shared)

        self.outputs = network.run(*self.inputs, observe=observe)
        self.targets = found

    @property
    def nbytes(self) -> int:
        """Bytes that are held between plans."""
        return sum(
            tensor.numel() * tensor.element_size()
            for target in self.targets.values()
            for tensor in (target.outputs, target.positions)
            if tensor is not None
        )


def _width(layer: Layer) -> int:
    return layer.out_shape[-1] if layer.kind == "linear" else layer.out_shape[0]


def _sum_after(node: fx.Node, order: Mapping[str, int]) -> tuple[str, str | None]:
    """Return the sum that a layer's output goes into, and the operand that is there before."""
    if len(node.users) == 1:
        (user,) = node.users
        if user.target is aten.add.Tensor and len(user.all_input_nodes) == 2 and not user.kwargs:
            (other,) = [n for n in user.all_input_nodes if n is not node]
            if other.op != "get_attr" and order[other.name] < order[node.name]:
                same = "val" not in other.meta or "val" not in node.meta
                if same or other.meta["val"].shape == node.meta["val"].shape:
                    return user.name, other.name
    return node.name, None


def gather_inputs(
    network: Network, calibration: Sequence[tuple[Tensor, ...]], limit: int
) -> tuple[Tensor, ...]:
    """Return up to ``limit`` calibration inputs as one batch, fewer if activations are large."""
    largest = max((math.prod(layer.in_shape) for layer in network.layers), default=1)
    count = max(16, min(limit, 2**26 // largest))
    taken: list[tuple[Tensor, ...]] = []
    held = 0
    for batch in calibration:
        taken.append(tuple(value[: count - held].detach() for value in batch))
        held += len(taken[-1][0])
        if held >= count:
            break
    if not held:
        raise InputError("Calibration needs at least one input, there are none; give 64 or more.")
    return tuple(torch.cat(parts) for parts in zip(*taken, strict=True))
