"""Tracing: any ``nn.Module`` becomes a Network, exported once, BatchNorm folded."""

import contextlib
import inspect
import io
import logging
import math
import operator
import warnings
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.errors import TraceError
from autocompress.models.answers import refuse_chance, refuse_state, user_outputs
from autocompress.models.channels.moves import canonical
from autocompress.models.layer import Layer
from autocompress.models.network import Network

__all__ = ["LAYER_OPS", "silence", "trace"]

aten = torch.ops.aten


def _overloads(name: str) -> list[Any]:
    packet = getattr(aten, name)
    return [getattr(packet, overload) for overload in packet.overloads()]


#: The operators whose calls become layers, where weight and bias are parameters.
LAYER_OPS = frozenset(
    {
        aten.linear.default,
        *(op for name in ("conv1d", "conv2d", "conv3d") for op in _overloads(name)),
    }
)

# Operators that later floors want to see whole.
_WHOLE = (
    "linear", "conv", "layer_norm", "group_norm", "scaled_dot", "gelu", "hardswish", "hardsig",
    "silu", "relu6", "hardtanh", "adaptive", "softmax", "upsample", "mean", "chunk", "split",
    "pixel", "prelu", "rms_norm",
)  # fmt: skip
_BATCH_NORM = aten._native_batch_norm_legit_no_training.default


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep warnings, log lines and prints of the exporter off the screen."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # torch logs its own traceback as an error
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def trace(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Network:
    """Return the Network of a model in eval mode.

    ``example_inputs`` have batch 1; the batch is the first dimension of every input and output
    and stays dynamic. Raises TraceError when ``torch.export`` cannot take the model.
    """
    pair = tuple(value.repeat(2, *[1] * (value.ndim - 1)) for value in example_inputs)
    try:
        with silence(), torch.no_grad():
            program = torch.export.export(model, pair, dynamic_shapes=_dynamic(model, pair))
            for node in program.graph.nodes:  # with running statistics they are the same
                if node.target is aten.instance_norm.default and not node.args[5]:
                    node.target = aten.batch_norm.default
            table = torch.export.default_decompositions()
            for op in list(table):
                if any(word in str(op) for word in _WHOLE):
                    del table[op]
            program = program.run_decompositions(table)
    except Exception as error:  # the exporter raises whatever the model's code raises
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise TraceError(
            "A model must be exportable with torch.export and a dynamic batch (first dimension "
            f"of every input). {type(error).__name__}: {lines[0] if lines else 'no message'}"
        ) from error
    graph, params = _unlift(program)
    canonical(graph)
    _fold_constants(graph, params)
    _fold_batch_norm(graph, params)
    _give_biases(graph, params)
    graph.eliminate_dead_code()
    used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    frozen = MappingProxyType({name: value for name, value in params.items() if name in used})
    return Network(graph, frozen, _layers(graph, frozen, pair), tuple(example_inputs))


def _dynamic(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Say that every input's first dimension is dynamic, those of ``*args`` in a tuple."""
    shapes: tuple[Any, ...] = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        shapes = (*shapes[:first], shapes[first:])
    return shapes


def _unlift(program: Any) -> tuple[fx.Graph, dict[str, Tensor]]:
    """Copy the exported graph with its lifted parameters as ``get_attr`` nodes."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names.update(signature.inputs_to_lifted_tensor_constants)
    held = {**program.state_dict, **program.constants}
    graph, params, mapping = fx.Graph(), {}, {}
    refuse_state(program)
    refuse_chance(program)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            name = names[node.name]
            params[name] = held[name].detach().clone().contiguous()
            mapping[node] = graph.create_node("get_attr", name, name=node.name)
        elif node.op == "output":
            graph.output(tuple(mapping[value] for value in user_outputs(program, node)))
        elif node.op == "call_function" and not node.users:
            continue  # assertions on shapes
        else:
            mapping[node] = graph.node_copy(node, mapping.__getitem__)
    return graph, params


def _new_param(
    graph: fx.Graph, params: dict[str, Tensor], before: fx.Node, name: str, value: Tensor
) -> fx.Node:
    """Add a parameter under a free name and return its node."""
    free, count = name, 2
    while free in params:
        free, count = f"{name}_{count}", count + 1
    params[free] = value.detach().contiguous()
    with graph.inserting_before(before):
        return graph.create_node("get_attr", free)


def _fold_constants(graph: fx.Graph, params: dict[str, Tensor]) -> None:
    """Compute once what depends on parameters alone (weight norm, masks, tables)."""
    for node in list(graph.nodes):
        sources = node.all_input_nodes
        if node.op != "call_function" or any(s.op != "get_attr" for s in sources):
            continue
        if not sources and not isinstance(node.target, torch._ops.OpOverload):
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: params[str(n.target)])
        value = node.target(*args, **kwargs)
        size = sum(params[str(s.target)].numel() for s in sources)
        small = isinstance(value, Tensor) and value.numel() <= max(4 * size, 65536)
        # a layer that reads no input is a table: nothing of it can be pruned or rounded by inputs
        if isinstance(value, Tensor) and (small or node.target in LAYER_OPS):
            new = _new_param(graph, params, node, _constant_name(node), value.clone())
            node.replace_all_uses_with(new)
            graph.erase_node(node)


def _constant_name(node: fx.Node) -> str:
    """Return the node's name, or its module's where it is the weight of that module's layer."""
    for user in node.users:
        if user.target in LAYER_OPS and user.args[1] is node:
            stack = user.meta.get("nn_module_stack") or {}
            paths = [str(path) for path, _ in stack.values() if path]
            if paths:
                return paths[-1].removeprefix("L['self'].") + ".weight"
    return node.name


def _fold_batch_norm(graph: fx.Graph, params: dict[str, Tensor]) -> None:
    """Fold each BatchNorm into the layer before it, or make it a multiply and an add.

    A layer that is called several times, each time before the same norm, is folded once.
    """
    norms = [
        node
        for node in graph.nodes
        if node.target is _BATCH_NORM
        and all(stat is None or stat.op == "get_attr" for stat in node.args[1:5])
    ]
    before = {norm.args[0]: norm for norm in norms if _foldable(norm)}
    calls: dict[fx.Node, set[Any]] = {}  # by weight, what is done with it
    for layer, norm in before.items():
        calls.setdefault(layer.args[1], set()).add((layer.args[2:3], norm.args[1:]))
    alone = {w for w, made in calls.items() if len(made) == 1 and before.keys() >= set(w.users)}
    folded: dict[fx.Node, fx.Node] = {}
    for norm in norms:
        source, *stats, _, eps = norm.args
        mean, var = (params[str(n.target)].double() for n in stats[2:])
        gamma, beta = (  # None without affine parameters
            default if n is None else params[str(n.target)].double()
            for n, default in zip(
                stats[:2], (torch.ones_like(var), torch.zeros_like(var)), strict=True
            )
        )
        scale = gamma / torch.sqrt(var + eps)
        shift = beta - mean * scale
        result = next(user for user in norm.users if user.target is operator.getitem)
        if source in before:
            weight = source.args[1]
            if weight in folded:
                source.args = (*source.args[:2], folded[weight], *source.args[3:])
            else:
                bias = _fold_into(graph, params, source, scale, shift, alone=weight in alone)
                if weight in alone:
                    folded[weight] = bias
            result.replace_all_uses_with(source)
        else:
            shape = (-1, *[1] * (len(norm.meta["val"][0].shape) - 2))
            name = str(stats[2].target).removesuffix(".running_mean")
            factor = _new_param(graph, params, norm, f"{name}.scale", scale.float().view(shape))
            offset = _new_param(graph, params, norm, f"{name}.shift", shift.float().view(shape))
            with graph.inserting_before(norm):
                product = graph.call_function(aten.mul.Tensor, (source, factor))
                total = graph.call_function(aten.add.Tensor, (product, offset))
            result.replace_all_uses_with(total)
        graph.erase_node(result)
        graph.erase_node(norm)


def _foldable(norm: fx.Node) -> bool:
    """Tell whether a BatchNorm's input is a layer with parameters that nothing else reads."""
    source = norm.args[0]
    if not isinstance(source, fx.Node) or source.target not in LAYER_OPS or len(source.users) > 1:
        return False
    held = [n for n in source.args[1:3] if n is not None]
    rows = len(norm.meta["val"][0].shape) == 2
    return all(isinstance(n, fx.Node) and n.op == "get_attr" for n in held) and (
        rows or source.target is not aten.linear.default
    )


def _fold_into(
    graph: fx.Graph,
    params: dict[str, Tensor],
    layer: fx.Node,
    scale: Tensor,
    shift: Tensor,
    *,
    alone: bool,
) -> fx.Node:
    """Scale a layer's weight, in place if it is this norm's ``alone``; return the new bias."""
    source, weight, bias, *rest = [*layer.args, None][: max(3, len(layer.args))]
    assert isinstance(weight, fx.Node)
    old = params[str(weight.target)].double()
    new = old * scale.view(-1, *[1] * (old.ndim - 1))
    added = params[str(bias.target)].double() * scale if isinstance(bias, fx.Node) else 0.0
    if alone:
        params[str(weight.target)] = new.float()
    else:
        weight = _new_param(graph, params, layer, str(weight.target), new.float())
    name = _bias_name(str(weight.target))
    if isinstance(bias, fx.Node) and (
        len(bias.users) == 1 or (alone and set(bias.users) == set(weight.users))
    ):
        params.pop(str(bias.target))  # and its name is free
    folded = _new_param(graph, params, layer, name, (shift + added).float())
    layer.args = (source, weight, folded, *rest)
    return folded


def _bias_name(weight: str) -> str:
    head, _, tail = weight.rpartition("weight")
    return f"{head}bias{tail}" if head or weight.startswith("weight") else f"{weight}_bias"


def _give_biases(graph: fx.Graph, params: dict[str, Tensor]) -> None:
    """Give every layer a bias of its own: recalibration needs the slot."""
    for node in [n for n in graph.nodes if n.target in LAYER_OPS]:
        source, weight, bias, *rest = [*node.args, None][: max(3, len(node.args))]
        if weight.op != "get_attr":
            continue
        if bias is None:
            zeros = torch.zeros(params[str(weight.target)].shape[0])
        elif isinstance(bias, fx.Node) and bias.op == "get_attr" and len(bias.users) > 1:
            zeros = params[str(bias.target)].clone()
        else:
            continue
        added = _new_param(graph, params, node, _bias_name(str(weight.target)), zeros)
        node.args = (source, weight, added, *rest)


def _layers(
    graph: fx.Graph, params: MappingProxyType[str, Tensor], pair: tuple[Tensor, ...]
) -> tuple[Layer, ...]:
    shapes: dict[str, tuple[int, ...]] = {}

    def observe(node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor):
            shapes[node.name] = tuple(value.shape)

    Network(graph, params, (), pair).run(*pair, observe=observe)
    layers: dict[str, Layer] = {}
    for node in graph.nodes:
        if node.target not in LAYER_OPS or not all(
            isinstance(n, fx.Node) and n.op == "get_attr" for n in node.args[1:3]
        ):
            continue
        source, weight, bias = node.args[:3]
        shape = tuple(params[str(weight.target)].shape)
        out, linear = shapes[node.name], node.target is aten.linear.default
        groups = 1 if linear or len(node.args) < 7 else int(node.args[6])
        positions = math.prod(out[:-1] if linear else (out[0], *out[2:])) // len(pair[0])
        base = name = str(weight.target).removesuffix(".weight")
        count = 2
        while name in layers:
            name, count = f"{base}:{count}", count + 1
        layers[name] = Layer(
            name=name,
            kind="linear" if linear else _kind(groups, shapes[source.name][1]),
            node=node.name,
            weight=str(weight.target),
            bias=str(bias.target),
            groups=groups,
            in_shape=shapes[source.name][1:],
            out_shape=out[1:],
            macs=positions * math.prod(shape),
            parameters=math.prod(shape) + shape[0],
            positions=positions,
        )
    return tuple(layers.values())


def _kind(groups: int, channels: int) -> str:
    if groups == 1:
        return "conv"
    return "depthwise" if groups == channels else "grouped"
