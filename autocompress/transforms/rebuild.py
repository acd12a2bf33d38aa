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

from autocompress.models.network import Layer, Network
from autocompress.spec.plan import Plan
from autocompress.transforms.gram import moments
from autocompress.transforms.observe import ActivationRange, observe
from autocompress.transforms.options import Options
from autocompress.transforms.repair import LIMIT_COLUMNS, Code, repair, round_weight
from autocompress.transforms.teacher import Teacher

__all__ = ["Rebuilt", "rebuild"]

Slices = Mapping[str, Mapping[int, Tensor]]


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """Parameters that differ, their codes, and the ranges of the tensors that are rounded.

    ``outputs``: what the network then computes on the calibration inputs, if that was asked for.
    """

    params: Mapping[str, Tensor]
    weights: Mapping[str, Code]
    activations: Mapping[str, ActivationRange]
    outputs: tuple[Any, ...] = ()


@torch.no_grad()
def rebuild(
    teacher: Teacher,
    network: Network,
    plan: Plan,
    tensors: Mapping[str, int],
    slices: Slices,
    options: Options,
    *,
    known: Mapping[str, Any] | None = None,
) -> Rebuilt:
    """Repair and round the layers of ``network``, the teacher's sliced copy, in order.

    ``tensors``: bits by name of the node of every tensor that is rounded; ``slices``: what each
    parameter keeps. Layers before the first change stay as they are, to the bit. ``known``: the
    teacher's values by node, which are not computed again there; with it, outputs are returned.
    """
    return _Pass(teacher, network, plan, tensors, slices, options).run(known)


def _last(value: Tensor) -> Tensor:
    """Return a tensor with channels last in memory: convolutions and samples are faster so."""
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


class _Pass:
    """The state of one pass: values by node, and which of them differ from the teacher's."""

    def __init__(
        self,
        teacher: Teacher,
        network: Network,
        plan: Plan,
        tensors: Mapping[str, int],
        slices: Slices,
        options: Options,
    ) -> None:
        self.teacher, self.plan, self.tensors = teacher, plan, tensors
        self.slices, self.options = slices, options
        self.nodes = list(network.graph.nodes)
        self.layers = {layer.node: layer for layer in network.layers}
        self.params = {name: _last(value) for name, value in network.params.items()}
        self.changed: dict[str, Tensor] = {}
        self.weights: dict[str, Code] = {}
        self.ranges: dict[str, ActivationRange] = {}
        self.values: dict[str, Any] = {}
        self.dirty: set[str] = set()
        # a weight that several layers share is stored at the widest width asked for
        self.bits: dict[str, int] = {}
        for layer in network.layers:
            asked = int(plan.get(layer.name, "w_bits"))
            self.bits[layer.weight] = max(asked, self.bits.get(layer.weight, 0))

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
        feed = iter(self.teacher.inputs)
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
        return Rebuilt(self.changed, self.weights, self.ranges, outputs)

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
                value, code = round_weight(self.params[name], self.bits[name], self.options)
                self._change(name, value, code)
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

    def _visit(self, layer: Layer, node: fx.Node) -> None:
        """Give a layer its new parameters, if anything before it or in it changes."""
        target, source = self.teacher.targets[layer.name], node.args[0]
        assert isinstance(source, fx.Node)
        assert isinstance(node.args[1], fx.Node)
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
            self._change(layer.weight, *round_weight(weight, bits, on))
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
        good = repair(weight, bias, seen, bits, on, spoilt=spoilt)
        if not fixed:
            self._change(layer.weight, good.weight, good.weight_code)
        self._change(layer.bias, good.bias, good.bias_code)
