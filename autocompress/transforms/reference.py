"""What the uncompressed network computes on the calibration data, sampled once."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from autocompress.errors import InputError
from autocompress.models.layer import Layer
from autocompress.models.network import Network
from autocompress.transforms.reconstruct.gram import Samples

__all__ = ["LayerTarget", "Reference", "gather_inputs"]

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class LayerTarget:
    """What a layer's output ought to be, where it is sampled.

    ``outputs``: [samples, out], of the layer, or of the sum that it is added into when ``other``
    names the other operand: then the layer makes good what the other operand lacks.
    """

    samples: Samples
    outputs: Tensor
    other: str | None


class Reference:
    """The uncompressed network's answers on the calibration inputs; bounded memory.

    ``limit_images``, and the size of the largest activation, bound the inputs that are used, which
    are drawn by ``seed`` from all that are ``given``;
    ``limit_bytes`` bounds the sampled outputs that are kept; ``oversampling`` is how many samples
    a layer gets at least for each of its columns. With ``correct_sums`` a layer that ends in a
    residual sum is to make the sum right, not itself.
    """

    def __init__(
        self,
        network: Network,
        calibration: Iterable[tuple[Tensor, ...]],
        *,
        seed: int = 0,
        limit_images: int = 192,
        limit_bytes: int = 256 * 2**20,
        oversampling: int = 4,
        correct_sums: bool = True,
    ) -> None:
        self.network = network
        self.inputs, self.given = gather_inputs(network, calibration, limit_images, seed)
        batch = len(self.inputs[0])
        generator = torch.Generator().manual_seed(seed)
        nodes = {node.name: node for node in network.graph.nodes}
        order = {name: place for place, name in enumerate(nodes)}
        share = limit_bytes // max(1, 4 * sum(_width(layer) for layer in network.layers))
        layers = {layer.node: layer for layer in network.layers}
        ends = {  # where a layer's output is to be right, and the other operand there
            node: _sum_after(nodes[node], order, network.shapes) if correct_sums else (node, None)
            for node in layers
        }
        waiting: dict[str, list[tuple[str, Samples, str | None]]] = {}
        found: dict[str, LayerTarget] = {}
        shapes: dict[str, Sequence[int]] = {
            name: network.params[str(node.target)].shape
            for name, node in nodes.items()
            if node.op == "get_attr"
        }

        def observe(node: fx.Node, value: Any) -> None:
            if not isinstance(value, Tensor):
                return
            shapes[node.name] = value.shape
            if node.name in layers:
                layer, source = layers[node.name], node.args[0]
                assert isinstance(source, fx.Node)
                weight = network.params[layer.weight]
                columns = math.prod(weight.shape[1:])
                # narrow layers get more than they need: their Gram matrices cost little
                count = max(oversampling * columns, min(4096, 2**20 // columns))
                count = min(count, 16384, max(share, batch))
                samples = Samples.choose(
                    node, weight, shapes[source.name], value.shape, count, generator
                )
                place, other = ends[node.name]
                waiting.setdefault(place, []).append((layer.name, samples, other))
            for name, samples, other in waiting.pop(node.name, ()):
                found[name] = LayerTarget(samples, samples.outputs(value), other)

        outputs = network.run(*self.inputs, observe=observe)
        self.outputs: tuple[Any, ...] = outputs if isinstance(outputs, tuple) else (outputs,)
        self.targets: Mapping[str, LayerTarget] = found

    @property
    def note(self) -> str:
        """How many calibration inputs are used, in words; "" where all are."""
        used = len(self.inputs[0])
        some = f"{used} of the {self.given} calibration inputs are used, drawn over all of them"
        return some if used < self.given else ""

    @property
    def nbytes(self) -> int:
        """Bytes that are held between plans."""
        held = [*self.inputs, *(target.outputs for target in self.targets.values())]
        samples = sum(target.samples.nbytes for target in self.targets.values())
        return samples + sum(value.numel() * value.element_size() for value in held)


def _width(layer: Layer) -> int:
    return layer.out_shape[-1] if layer.kind == "linear" else layer.out_shape[0]


def _sum_after(
    node: fx.Node, order: Mapping[str, int], known: Mapping[str, Sequence[int]]
) -> tuple[str, str | None]:
    """Return the sum that a layer's output goes into, and the operand that is there before."""
    if len(node.users) == 1:
        (user,) = node.users
        others = [used for used in user.all_input_nodes if used is not node]
        if user.target is aten.add.Tensor and len(others) == 1 and not user.kwargs:
            other = others[0]
            if other.op != "get_attr" and order[other.name] < order[node.name]:
                shapes = [known.get(each.name) for each in (node, other)]
                if shapes[0] is not None and shapes[0] == shapes[1]:
                    return user.name, other.name
    return node.name, None


def gather_inputs(
    network: Network, calibration: Iterable[tuple[Tensor, ...]], limit: int, seed: int = 0
) -> tuple[tuple[Tensor, ...], int]:
    """Return up to ``limit`` calibration inputs as one batch, and how many were given.

    Fewer are used if activations are large. They are drawn by ``seed`` over all that are given,
    each as likely as any other, and stay in their order; how they are split into batches does not
    matter. No more than those that are used and one batch are held at a time. Raises InputError.
    """
    largest = max((math.prod(layer.in_shape) for layer in network.layers), default=1)
    count = max(16, min(limit, 2**26 // largest))
    generator = np.random.default_rng(seed)
    taken: tuple[Tensor, ...] = ()
    keys = np.zeros(0)  # those with the least keys stay
    given = 0
    for batch in calibration:
        given += len(batch[0])
        every = np.concatenate([keys, generator.random(len(batch[0]))])
        stay = np.sort(np.argsort(every)[:count])
        fresh = torch.from_numpy(stay[stay >= len(keys)] - len(keys))
        old = torch.from_numpy(stay[stay < len(keys)])
        parts = [value.detach()[fresh] for value in batch]
        if taken and len(fresh):
            parts = [torch.cat(both) for both in zip((t[old] for t in taken), parts, strict=True)]
        if len(fresh):
            taken, keys = tuple(parts), every[stay]
    if not given:
        raise InputError("Calibration needs at least one input, there are none; give 64 or more.")
    return taken, given
