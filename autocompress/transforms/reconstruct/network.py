"""One pass through a network that repairs and rounds every layer in order.

Each layer is refitted on the inputs that the compressed layers before it give, towards the
uncompressed network's output, then rounded with the same Gram matrix; what it then really
computes, rounded weights and activations and all, feeds the next one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from autocompress.core.abilities import Abilities
from autocompress.core.plan import Plan
from autocompress.models.layer import Layer
from autocompress.models.network import Network
from autocompress.transforms.options import Options
from autocompress.transforms.quantize.placement import integer_layers
from autocompress.transforms.quantize.ranges import ActivationRange, observe
from autocompress.transforms.quantize.weights import QuantizedWeight
from autocompress.transforms.reconstruct.gram import moments
from autocompress.transforms.reconstruct.layer import (
    LIMIT_COLUMNS,
    Code,
    Kernel,
    repair,
    round_weight,
    rounded_bias,
    widened,
)  # fmt: skip
from autocompress.transforms.reference import Reference

__all__ = ["Rebuilt", "rebuild"]

Slices = Mapping[str, Mapping[int, Tensor]]


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """Parameters that differ, their codes, and the ranges of the tensors that are rounded.

    ``stored``: biases that a file holds finer than its integer kernels, and ``params``, have them.
    ``outputs``: what the network then computes on the calibration inputs, if that was asked for.
    """

    params: Mapping[str, Tensor]
    weights: Mapping[str, Code]
    activations: Mapping[str, ActivationRange]
    stored: Mapping[str, Tensor]
    outputs: tuple[Any, ...] = ()


@torch.no_grad()
def rebuild(
    reference: Reference,
    network: Network,
    plan: Plan,
    tensors: Mapping[str, int],
    slices: Slices,
    options: Options,
    abilities: Abilities,
    *,
    known: Mapping[str, Any] | None = None,
) -> Rebuilt:
    """Repair and round the layers of ``network``, the reference's sliced copy, in order.

    ``tensors``: bits by name of the node of every tensor that is rounded; ``slices``: what each
    parameter keeps. Layers before the first change stay as they are, to the bit. ``known``: the
    reference's values by node, which are not computed again there; with it, outputs are returned.
    """
    return _Pass(reference, network, plan, tensors, slices, options, abilities).run(known)


def _last(value: Tensor) -> Tensor:
    """Return a tensor with channels last in memory: convolutions and samples are faster so."""
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


class _Pass:
    """The state of one pass: values by node, and which of them differ from the reference's."""

    def __init__(
        self,
        reference: Reference,
        network: Network,
        plan: Plan,
        tensors: Mapping[str, int],
        slices: Slices,
        options: Options,
        abilities: Abilities,
    ) -> None:
        self.reference, self.tensors = reference, tensors
        self.slices, self.options, self.abilities = slices, options, abilities
        self.nodes = list(network.graph.nodes)
        self.layers = {layer.node: layer for layer in network.layers}
        self.params = {name: _last(value) for name, value in network.params.items()}
        self.changed: dict[str, Tensor] = {}
        self.weights: dict[str, Code] = {}
        self.ranges: dict[str, ActivationRange] = {}
        self.stored: dict[str, Tensor] = {}
        self.values: dict[str, Any] = {}
        self.dirty: set[str] = set()
        # a weight that several layers share is stored at the widest width asked for
        self.bits: dict[str, int] = {}
        for layer in network.layers:
            asked = int(plan.get(layer.name, "w_bits"))
            self.bits[layer.weight] = max(asked, self.bits.get(layer.weight, 0))
        self.integer = integer_layers(network, plan)
        integer = {layer.weight for layer in network.layers if layer.name in self.integer}
        self.limits = dict.fromkeys(integer, abilities.code_limit)

    def run(self, known: Mapping[str, Any] | None = None) -> Rebuilt:
        shared = self._round_shared()
        last = {used.name: node for node in self.nodes for used in node.all_input_nodes}
        for node in self.nodes:
            if node.op == "get_attr" and str(node.target) in {*self.slices, *shared}:
                self.dirty.add(node.name)
        changes = [place for place, node in enumerate(self.nodes) if self._changes(node)]
        first = 0
        if known is not None:
            changes += [
                place
                for place, node in enumerate(self.nodes)
                if node.op in ("placeholder", "call_function") and node.name not in known
            ]
            first = min(changes, default=len(self.nodes) - 1)
            self.values = dict(known)
        feed = iter(self.reference.inputs)
        outputs: tuple[Any, ...] = ()
        for place, node in enumerate(self.nodes):
            value = next(feed) if node.op == "placeholder" else None
            if node.op == "output":
                outputs = tuple(fx.map_arg(node.args[0], self._get))
            elif node.op != "get_attr" and place >= first:
                value = self._compute(node) if value is None else value
                if node.name in self.tensors:
                    value = self._round(node, value)
                self.values[node.name] = value
            for used in node.all_input_nodes:
                if last[used.name] is node:
                    self.values.pop(used.name, None)
        return Rebuilt(self.changed, self.weights, self.ranges, self.stored, outputs)

    def _changes(self, node: fx.Node) -> bool:
        """Tell whether a node is where something of the plan begins."""
        if node.op == "get_attr":
            return False
        layer = self.layers.get(node.name)
        narrow = layer is not None and self.bits[layer.weight] < 32
        parts = {used.name for used in node.all_input_nodes}
        return node.name in self.tensors or narrow or bool(parts & self.dirty)

    def _round_shared(self) -> set[str]:
        """Round the weights with several readers, whoever reads them first; return their names."""
        found = set()
        for node in self.nodes:
            name = str(node.target)
            if node.op == "get_attr" and len(node.users) > 1 and self.bits.get(name, 32) < 32:
                limit = self.limits.get(name, 128)
                good = round_weight(self.params[name], self.bits[name], self.options, limit=limit)
                self._change(name, *good)
                found.add(name)
        return found

    def _change(self, name: str, value: Tensor, code: Code | None) -> None:
        """Give a parameter its new value."""
        self.changed[name] = value.contiguous()
        self.params[name] = _last(value)
        if code is not None:
            self.weights[name] = code

    def _compute(self, node: fx.Node) -> Any:
        if node.name in self.layers:
            self._visit(self.layers[node.name], node)

        assert callable(node.target)
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._get)
        if any(used.name in self.dirty for used in node.all_input_nodes):
            self.dirty.add(node.name)
        return node.target(*args, **kwargs)

    def _get(self, used: fx.Node) -> Any:
        return self.params[str(used.target)] if used.op == "get_attr" else self.values[used.name]

    def _round(self, node: fx.Node, value: Tensor) -> Tensor:
        chosen = observe(value, self.options.calibrate, self.tensors[node.name])
        self.ranges[node.name] = chosen
        self.dirty.add(node.name)
        return chosen.simulate(value)

    def _kernel(self, layer: Layer, source: fx.Node) -> Kernel | None:
        """Return what an integer layer's kernel asks for, None for a layer that is none.

        Runtimes add the bias of a product of more than two dimensions on its own, as floats.
        """
        if layer.name not in self.integer:
            return None
        whole = layer.kind != "linear" or len(layer.in_shape) == 1
        rounds = self.abilities.integer_biases and whole
        return Kernel(self.abilities.code_limit, self.ranges[source.name].scale if rounds else None)

    def _visit(self, layer: Layer, node: fx.Node) -> None:
        """Give a layer its new parameters, and its bias the value that its kernel adds."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        kernel = self._kernel(layer, source)
        self._repair(layer, node, source, kernel)
        weight = self.weights.get(layer.weight)
        assert isinstance(node.args[1], fx.Node)
        assert isinstance(node.args[2], fx.Node)
        if kernel is None or kernel.step is None or len(node.args[2].users) > 1:
            return
        assert isinstance(weight, QuantizedWeight)
        bias = self.params[layer.bias]
        if len(node.args[1].users) == 1:  # what is shared stays as it is for all
            weight = widened(weight, bias, kernel.step)
            self._change(layer.weight, torch.from_numpy(weight.values), weight)
        rounded = rounded_bias(weight, bias, kernel.step)
        if not torch.equal(rounded, bias):
            self.stored[layer.bias] = bias
            self._change(layer.bias, rounded, None)

    def _repair(self, layer: Layer, node: fx.Node, source: fx.Node, kernel: Kernel | None) -> None:
        """Give a layer its new parameters, if anything before it or in it changes."""
        target = self.reference.targets[layer.name]
        assert isinstance(node.args[1], fx.Node)
        assert isinstance(node.args[2], fx.Node)
        fixed = len(node.args[1].users) > 1  # what it is for one, it is for all
        bits = 32 if fixed else self.bits[layer.weight]
        parts = {used.name for used in node.all_input_nodes} | {target.other}
        spoilt = bool(parts & self.dirty)
        if not spoilt and bits >= 32:
            return
        self.dirty.add(node.name)
        weight, bias = self.params[layer.weight], self.params[layer.bias]
        on = replace(self.options, refit=False) if fixed else self.options
        entered, samples = self._get(source), target.samples
        # rows are others where pruned channels are rows: a linear layer over positions
        aligned = entered.numel() // entered.shape[samples.dim] == samples.rows
        wide = math.prod(weight.shape[1:]) > LIMIT_COLUMNS
        if wide or not aligned or not (on.refit or on.bn or on.compensate):
            limit = self.limits.get(layer.weight, 128)
            self._change(layer.weight, *round_weight(weight, bits, on, limit=limit))
            return
        wanted, kept = target.outputs, self.slices.get(layer.weight, {}).get(0)
        if kept is not None:
            wanted = wanted[:, kept]
        if target.other is not None:
            wanted = wanted - samples.outputs(self.values[target.other])
        if not on.bn:
            wanted = wanted - bias
        groups = entered.shape[samples.dim] // weight.shape[1]
        seen = moments(samples.inputs(entered), wanted, groups, centred=on.bn)
        good = repair(weight, bias, seen, bits, on, kernel, spoilt=spoilt)
        if not fixed:
            self._change(layer.weight, good.weight, good.weight_code)
        if len(node.args[2].users) == 1:
            self._change(layer.bias, good.bias, good.bias_code)
