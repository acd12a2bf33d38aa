"""One export of a network, and the table that says what in it came from where.

The exporter renames, reshapes, folds and shares, so nothing here goes by name alone. The network is
exported with markers (unique random numbers) for parameters, by which each initializer is
recognised, transposed ones too; which value is which node of the network, onnx_match says.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, fx

from autocompress.errors import TraceError
from autocompress.models.network import Network
from autocompress.models.trace import silence
from autocompress.targets.onnx.match import match_values
from autocompress.targets.onnx.probes import generic, pair
from autocompress.targets.onnx.strip import strip, tensor

__all__ = ["Place", "Template", "fill", "graph_args", "make_template"]

Array = np.ndarray[Any, Any]
_RETRACE = "Interpreter_Interpreter"  # the exporter's first reading of our graph
_POOLS: Mapping[Any, tuple[int, ...]] = {
    torch.ops.aten.adaptive_avg_pool1d.default: (-1,),
    torch.ops.aten.adaptive_avg_pool2d.default: (-2, -1),
    torch.ops.aten.adaptive_avg_pool3d.default: (-3, -2, -1),
}


@dataclass(frozen=True)
class Place:
    """Where a parameter stands in the template: an initializer, and how its axes are permuted."""

    initializer: str
    axes: tuple[int, ...]

    def arrange(self, value: Array) -> Array:
        """Return the parameter as the initializer wants it."""
        return np.ascontiguousarray(value.transpose(self.axes))


@dataclass(frozen=True)
class Template:
    """A stripped ONNX model without the network's parameters; plain data, picklable.

    ``model``: serialised ModelProto. ``places``: by parameter name. ``values``: by node of the
    network, the ONNX value that equals it. ``inner``: by node, indices of the ONNX nodes that
    compute it from its arguments. ``args``: by node, its arguments in plain form. ``baked``:
    parameters that stand in no initializer of their own. ``shapes``: of the parameters.
    """

    model: bytes
    places: Mapping[str, tuple[Place, ...]]
    values: Mapping[str, str]
    inner: Mapping[str, tuple[int, ...]]
    args: Mapping[str, Any]
    baked: Mapping[str, Array]
    opset: int = 18
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def graph_args(graph: fx.Graph) -> dict[str, Any]:
    """Return the arguments of every call in plain form, other nodes as ``"%name"``."""

    def plain(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return f"%{value.name}"
        if isinstance(value, (list, tuple)):
            return tuple(plain(item) for item in value)
        return value if isinstance(value, (int, float, bool, type(None))) else str(value)

    return {
        node.name: plain((node.args, tuple(node.kwargs.values())))
        for node in graph.nodes
        if node.op == "call_function"
    }


def make_template(network: Network, opset: int = 18) -> Template:
    """Export a network; raise TraceError if the exporter fails or computes something else."""
    try:
        return _make(network, opset, optimize=True)
    except TraceError:
        return _make(network, opset, optimize=False)


def _make(network: Network, opset: int, optimize: bool) -> Template:
    markers = _markers(network.params)
    model, origin = _export(network.replace(params=markers), opset, optimize)
    names = strip(model, [n.name for n in network.graph.nodes if n.op == "placeholder"])
    places = _find_places(model, network, markers)
    held = {place.initializer for found in places.values() for place in found}
    baked = {
        name: value.detach().numpy() for name, value in network.params.items() if name not in places
    }
    bare = ModelProto()
    bare.CopyFrom(model)
    del bare.graph.initializer[:]
    bare.graph.initializer.extend(t for t in model.graph.initializer if t.name not in held)
    changed = network.replace(params=generic(network.params, places))
    values = match_values(
        fill(bare, places, network.params),
        network,
        fill(bare, places, changed.params),
        changed,
        _made(origin, network.graph, names),
    )
    if optimize:  # the exporter may fuse what a layer reads into it (padding): no place to round it
        sources = {n.name: n.all_input_nodes[0].name for n in network.graph.nodes if n.args}
        lost = [layer.name for layer in network.layers if sources[layer.node] not in values]
        if lost:
            raise TraceError(f"The input of {lost[0]} must be a value of the exported graph.")
    inner = _inner(bare, network.graph, values)
    return Template(
        bare.SerializeToString(deterministic=True),
        places,
        values,
        inner,
        graph_args(network.graph),
        baked,
        opset,
        {name: tuple(value.shape) for name, value in network.params.items()},
    )


def fill(
    bare: ModelProto, places: Mapping[str, tuple[Place, ...]], params: Mapping[str, Tensor]
) -> ModelProto:
    """Return a copy of the template's model with parameters in their places."""
    filled = ModelProto()
    filled.CopyFrom(bare)
    for name, found in places.items():
        value = params[name].detach().numpy()
        filled.graph.initializer.extend(tensor(p.initializer, p.arrange(value)) for p in found)
    return filled


def _made(origin: fx.Graph, graph: fx.Graph, names: Mapping[str, str]) -> dict[str, list[str]]:
    """Return, by node of ``graph``, the values that the exporter says it made of it, in order.

    ``names``: the values' new names by those of the exporter, which names a value after the node
    of its own graph, whose history ends in ``graph``.
    """
    known = {node.name for node in graph.nodes}
    made: dict[str, list[str]] = {}
    for node in origin.nodes:
        sources = list(node.meta.get("from_node", ()))
        while sources and node.name in names:
            source = sources.pop()
            if source.pass_name == _RETRACE and source.name in known:
                made.setdefault(source.name, []).append(names[node.name])
            sources.extend(source.from_node)
    return made


def _markers(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Random numbers in place of the floating-point parameters."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(value.shape, generator=generator) + 0.5
        for name, value in params.items()
        if value.dtype == torch.float32
    }


def _export(network: Network, opset: int, optimize: bool) -> tuple[ModelProto, fx.Graph]:
    """Return the exported model, and the graph that the exporter made it of."""
    example = pair(network.example_inputs)
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
    try:
        with silence(), torch.no_grad():
            program = torch.onnx.export(
                _plainly_pooled(network).module().eval(),
                example,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic,
                optimize=optimize,
                verbose=False,
            )
        assert program is not None
        model: ModelProto = program.model_proto
        assert program.exported_program is not None
        origin = program.exported_program.graph
    except Exception as error:  # the exporter raises whatever it meets
        first: BaseException = error
        while first.__cause__ is not None:  # the last of them names the operator
            first = first.__cause__
        lines = [line for line in str(first).splitlines() if line.strip()]
        raise TraceError(
            "A network must be exportable with torch.onnx.export. "
            f"{type(first).__name__}: {lines[0] if lines else 'no message'}"
        ) from error
    found = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if model.functions or found != opset:
        raise TraceError(f"The exporter must write opset {opset} without functions, not {found}.")
    return model, origin


def _plainly_pooled(network: Network) -> Network:
    """Return the network with means for pooling to one position.

    The exporter writes such a pooling of a channels-last tensor with strides, which it turns into
    indices that hold the count of channels.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in network.graph.nodes:
        copy = copies[node] = graph.node_copy(node, copies.__getitem__)
        dims = _POOLS.get(node.target)
        if dims is not None and all(size == 1 for size in node.args[1]):
            copy.target = torch.ops.aten.mean.dim
            copy.args = (copy.args[0], list(dims), True)
    return Network(graph, network.params, network.layers, network.example_inputs)


def _find_places(
    model: ModelProto, network: Network, markers: Mapping[str, Tensor]
) -> dict[str, tuple[Place, ...]]:
    """Recognise initializers by content; fold transpositions of parameters."""
    graph = model.graph
    known = _contents(network, markers)
    places: dict[str, list[Place]] = {}
    owner: dict[str, tuple[str, Place]] = {}
    for initializer in graph.initializer:
        array = numpy_helper.to_array(initializer)
        found = {
            name: axes
            for name, axes, value in reversed(known.get(_key(array), []))
            if np.array_equal(value.transpose(axes), array)
        }
        if len(found) == 1:  # of two parameters with the same content, neither is known
            ((name, axes),) = found.items()
            place = Place(initializer.name, axes)
            places.setdefault(name, []).append(place)
            owner[initializer.name] = (name, place)
    uses: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for used in node.input:
            uses.setdefault(used, []).append(node)
    outputs = {info.name for info in graph.output}
    for initializer in list(graph.initializer):
        users = uses.get(initializer.name, [])
        if initializer.name not in owner or len(users) != 1 or users[0].op_type != "Transpose":
            continue
        node = users[0]
        if node.output[0] in outputs:
            continue
        name, place = owner[initializer.name]
        perm = [list(a.ints) for a in node.attribute if a.name == "perm"]
        order = perm[0] if perm else list(reversed(range(len(place.axes))))
        moved = Place(place.initializer, tuple(place.axes[i] for i in order))
        places[name][places[name].index(place)] = moved
        for user in uses.get(node.output[0], []):
            for index, used in enumerate(user.input):
                if used == node.output[0]:
                    user.input[index] = initializer.name
        array = numpy_helper.to_array(initializer).transpose(order)
        initializer.CopyFrom(tensor(initializer.name, np.ascontiguousarray(array)))
        graph.node.remove(node)
    return {name: tuple(found) for name, found in places.items()}


def _contents(
    network: Network, markers: Mapping[str, Tensor]
) -> dict[bytes, list[tuple[str, tuple[int, ...], Array]]]:
    """Return parameters and permutations of their axes by a key of the permuted content."""
    found: dict[bytes, list[tuple[str, tuple[int, ...], Array]]] = {}
    for name, value in network.params.items():
        marker = markers.get(name, value).detach().numpy()
        orders = [tuple(range(marker.ndim))]
        if marker.dtype == np.float32:
            orders = list(itertools.permutations(range(marker.ndim)))
        elif marker.size <= 64:
            continue
        for axes in orders:
            found.setdefault(_key(marker.transpose(axes)), []).append((name, axes, marker))
    return found


def _key(value: Array) -> bytes:
    """A few numbers at fixed places say which array it is, without its copy in memory."""
    flat = value.flat
    step = max(1, value.size // 16)
    some = b"".join(np.asarray(flat[i]).tobytes() for i in range(0, value.size, step))
    return f"{value.dtype} {value.shape} ".encode() + some


def _inner(model: ModelProto, graph: fx.Graph, values: Mapping[str, str]) -> dict[str, Any]:
    """Return, by node, the ONNX nodes between its arguments and its value, the last one last.

    A node without a value of its own (several outputs, sizes) has those of its users.
    """
    makers = {name: i for i, n in enumerate(model.graph.node) for name in n.output}

    def known(node: fx.Node) -> set[str]:
        """The nearest values that the node is computed from."""
        found: set[str] = set()
        for source in node.all_input_nodes:
            found |= {values[source.name]} if source.name in values else known(source)
        return found

    found: dict[str, tuple[int, ...]] = {}
    for node in graph.nodes:
        if node.op != "call_function" or node.name not in values:
            continue
        stops, inside, queue = known(node), set[int](), [values[node.name]]
        while queue:
            name = queue.pop()
            index = makers.get(name)
            if index is not None and index not in inside and name not in stops:
                inside.add(index)
                queue.extend(model.graph.node[index].input)
        found[node.name] = tuple(sorted(inside))
    for node in reversed(graph.nodes):
        if node.op == "call_function" and node.name not in found:
            of_users = {i for user in node.users for i in found.get(user.name, ())}
            found[node.name] = tuple(sorted(of_users))
    return found
