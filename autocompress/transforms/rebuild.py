"""One pass through a network that prunes nothing itself, but repairs and rounds every layer.

Each layer is refitted on the inputs that the compressed layers before it give, towards the
uncompressed network's output, then rounded with the same Gram matrix; what it then really
computes, rounded weights and activations and all, feeds the next one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx

from autocompress.models.network import Layer, Network
from autocompress.spec.plan import Plan
from autocompress.transforms.compensate import compensate
from autocompress.transforms.gram import Moments, moments, outputs_of, rows_of, window_of
from autocompress.transforms.observe import ActivationRange, observe
from autocompress.transforms.refit import match_spread, refit, ridged
from autocompress.transforms.teacher import Target, Teacher
from autocompress.transforms.weights import Grid, QuantizedWeight, best_scale, nearest

__all__ = ["Options", "Rebuilt", "rebuild"]


@dataclass(frozen=True)
class Options:
    """How layers are repaired and rounded.

    ``refit``: refit weights in closed form; ``bn``: refit biases (BatchNorm's shift);
    ``compensate``: round with the Gram matrix, up to ``compensate_bits``; ``ridge``: how strongly
    the refit is drawn to the weights it starts from, in units of the inputs' mean variance;
    ``calibrate``: the way to choose ranges of activations.
    """

    refit: bool = True
    bn: bool = True
    compensate: bool = True
    compensate_bits: int = 8
    ridge: float = 0.01
    sweeps: int = 1
    spread: float = 0.0
    odd_bits: tuple[int, ...] = (2,)
    calibrate: str = "mse"
    signed: bool = False


@dataclass(frozen=True, eq=False)
class Rebuilt:
    """Parameters that differ, their codes, and the ranges of the tensors that are rounded."""

    params: Mapping[str, Tensor]
    weights: Mapping[str, QuantizedWeight | Literal["float16"]]
    activations: Mapping[str, ActivationRange]


@torch.no_grad()
def rebuild(
    teacher: Teacher,
    network: Network,
    plan: Plan,
    tensors: Mapping[str, int],
    slices: Mapping[str, Mapping[int, Tensor]],
    options: Options,
) -> Rebuilt:
    """Repair and round the layers of ``network``, the teacher's sliced copy, in order.

    ``tensors``: bits by name of the node of every tensor that is rounded; ``slices``: what each
    parameter keeps.
    """
    layers = {layer.node: layer for layer in network.layers}
    params: dict[str, Tensor] = dict(network.params)
    changed: dict[str, Tensor] = {}
    weights: dict[str, QuantizedWeight | Literal["float16"]] = {}
    ranges: dict[str, ActivationRange] = {}
    values: dict[fx.Node, Any] = {}
    dirty: set[fx.Node] = set()
    feed = iter(teacher.inputs)
    last = {used: node for node in network.graph.nodes for used in node.all_input_nodes}
    wanted = {target.other for target in teacher.targets.values() if target.other}
    by_name = {node.name: node for node in network.graph.nodes if node.name in wanted}
    stop = max(
        (place for place, node in enumerate(network.graph.nodes) if node.name in layers
         or node.name in tensors), default=-1
    )
    for place, node in enumerate(network.graph.nodes):
        if place > stop:
            break
        if node.op == "get_attr":
            if str(node.target) in slices:
                dirty.add(node)
            continue
        if node.op == "placeholder":
            value: Any = next(feed)
        else:
            layer = layers.get(node.name)
            if layer is not None:
                target = teacher.targets[layer.name]
                other = by_name[target.other] if target.other else None
                spoilt = node.args[0] in dirty or (other is not None and other in dirty)
                bits = int(plan.get(layer.name, "w_bits"))
                if layer.weight in slices or layer.bias in slices or spoilt or bits < 32:
                    new = _layer(
                        layer, node, values, params, target, other, slices, bits, spoilt
                        or layer.weight in slices, options, weights
                    )
                    params.update(new)
                    changed.update(new)
                    dirty.add(node)

            def get(used: fx.Node) -> Any:
                return params[str(used.target)] if used.op == "get_attr" else values[used]

            assert callable(node.target)
            args, kwargs = fx.map_arg((node.args, node.kwargs), get)
            value = node.target(*args, **kwargs)
            if any(used in dirty for used in node.all_input_nodes):
                dirty.add(node)
        if node.name in tensors and isinstance(value, Tensor):
            spec = observe(value, options.calibrate, tensors[node.name], options.signed)
            ranges[node.name] = spec
            value = spec.simulate(value)
            dirty.add(node)
        values[node] = value
        for used in node.all_input_nodes:
            if last[used] is node:
                values.pop(used, None)
    return Rebuilt(changed, weights, ranges)


def _layer(
    layer: Layer,
    node: fx.Node,
    values: Mapping[fx.Node, Any],
    params: Mapping[str, Tensor],
    target: Target,
    other: fx.Node | None,
    slices: Mapping[str, Mapping[int, Tensor]],
    bits: int,
    spoilt: bool,
    options: Options,
    done: dict[str, QuantizedWeight | Literal["float16"]],
) -> dict[str, Tensor]:
    """Return the new weight and bias of one layer; note its codes in ``done``."""
    weight, bias = params[layer.weight], params[layer.bias]
    if target.shared or not (options.refit or options.bn or options.compensate):
        if layer.weight in done:
            return {}
        value, code = _store(weight, bits, None, None, options)
        if code is not None:
            done[layer.weight] = code
        return {layer.weight: value}
    window = window_of(node, layer, weight)
    wanted = target.outputs
    kept = slices.get(layer.weight, {}).get(0)
    if kept is not None:
        wanted = wanted[:, kept]
    if other is not None:
        beside = values[other]
        wanted = wanted - outputs_of(beside, window, target.positions)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    seen = moments(rows_of(values[source], window, target.positions), wanted, window.groups)
    columns = weight.reshape(window.groups, weight.shape[0] // window.groups, -1).transpose(1, 2)
    gram = ridged(seen.gram, options.ridge)
    if options.refit and spoilt:
        fitted = refit(columns, seen, gram)
        if options.spread:
            fitted = _spread(fitted, seen, wanted, options.spread)
    else:
        fitted = columns
    value, code = _store(fitted, bits, seen, gram, options, weight.shape)
    if code is not None:
        done[layer.weight] = code
    back = value.reshape(weight.shape[0], -1)
    back = back.reshape(window.groups, -1, columns.shape[1]).transpose(1, 2)
    new = {layer.weight: value.reshape(weight.shape)}
    new[layer.bias] = seen.bias(back) if options.bn else bias
    return new


def _spread(fitted: Tensor, seen: Moments, wanted: Tensor, power: float) -> Tensor:
    spread = wanted.std(0, correction=0).reshape(fitted.shape[0], fitted.shape[2])
    full = match_spread(fitted, seen, spread)
    return fitted + power * (full - fitted)


def _store(
    weight: Tensor,
    bits: int,
    seen: Moments | None,
    gram: Tensor | None,
    options: Options,
    shape: torch.Size | None = None,
) -> tuple[Tensor, QuantizedWeight | Literal["float16"] | None]:
    """Round a weight; [groups, K, rows] when ``seen`` and ``shape`` are given, else as it is."""
    plain = weight if shape is None else weight.transpose(1, 2).reshape(shape)
    if bits >= 32:
        return plain, None
    if bits == 16:
        return plain.half().float(), "float16"
    grid = Grid(bits, bits in options.odd_bits)
    if options.compensate and bits <= options.compensate_bits and gram is not None and shape is not None:
        rounded = compensate(
            weight.numpy(), gram.numpy(), grid, sweeps=options.sweeps
        )
        codes = rounded.codes.swapaxes(1, 2).reshape(shape)
        scale = rounded.scale.reshape(-1)
    else:
        rows = plain.reshape(len(plain), -1).numpy()
        scale = best_scale(rows, grid)
        codes = nearest(rows, scale[:, None], grid).reshape(plain.shape)
    stored = QuantizedWeight(codes.astype(np.int8), scale.astype(np.float32), bits, grid.odd)
    return torch.from_numpy(stored.values), stored
