"""From a template and a compressed network to the bytes of an ONNX file."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto

from autocompress.core.artifact import Artifact
from autocompress.core.files import write_whole
from autocompress.errors import ArtifactError
from autocompress.targets.onnx.edits import NotPlain, apply_edits, check_shapes
from autocompress.targets.onnx.packing import DOMAIN, Form, pack, place_values
from autocompress.targets.onnx.qdq import PAIR, insert_pairs, pair_function
from autocompress.targets.onnx.strip import tensor
from autocompress.targets.onnx.template import Place, Template, graph_args, make_template
from autocompress.targets.onnx.trust import check_constants
from autocompress.transforms.quantize.weights import Grid, QuantizedWeight, short

if TYPE_CHECKING:
    from autocompress.transforms.compressor import Compressed

__all__ = ["OnnxBuilder", "write"]

Array = np.ndarray[Any, Any]
_INTEGER_KERNELS = frozenset({"Conv", "Gemm", "MatMul"})
_SMALL = 30_000  # bytes
_DIGITS = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True)
class OnnxBuilder:
    """Writes compressed copies of the network that ``template`` was made of.

    ``target``: the name of the target that the files are for. ``limit``: see :func:`write`.
    """

    template: Template
    target: str
    limit: int | None

    def content(self, compressed: "Compressed", *, named: bool = False) -> bytes:
        """Return the file; export afresh in the rare case that the template cannot be edited."""
        try:
            return write(self.template, compressed, limit=self.limit, named=named)
        except NotPlain:
            template = make_template(compressed.network, self.template.opset)
            return write(template, compressed, limit=self.limit, named=named)

    def build(self, compressed: "Compressed", path: Path) -> Artifact:
        """Write the file and describe it."""
        content = self.content(compressed)
        write_whole(path, content)
        return Artifact(path, hashlib.sha256(content).hexdigest(), len(content), self.target)


def write(
    template: Template, compressed: "Compressed", *, limit: int | None, named: bool = False
) -> bytes:
    """Return the serialised model.

    ``limit``: weights of a layer above which its codes are stored in a type of ONNX itself and
    stay so at run time; with None all are, and the file has no functions. ``named``: every ONNX
    node is called after the node of the network that it computes, for profiles. Raises NotPlain
    when the template cannot be edited to the network.
    """
    content = _write(template, compressed, limit, packed=limit is not None, named=named)
    if limit is not None and len(content) < _SMALL:  # unpacking may cost more than packing saves
        plain = _write(template, compressed, limit, packed=False, named=named)
        content = min(content, plain, key=len)
    return content


def _write(
    template: Template, compressed: "Compressed", limit: int | None, *, packed: bool, named: bool
) -> bytes:
    model = ModelProto.FromString(template.model)
    if named:
        for inner, indices in template.inner.items():
            for index in indices:
                node = model.graph.node[index]
                node.name = node.name or f"{inner}/{index}"
    network = compressed.network
    for name, value in template.baked.items():
        if not np.array_equal(network.params[name].detach().numpy(), value):
            raise NotPlain(name)
    sizes = apply_edits(model, template.inner, template.args, graph_args(network.graph))
    if sizes is not None:
        check_shapes(
            model,
            {
                place.initializer: tuple(network.params[name].shape[a] for a in place.axes)
                for name, places in template.places.items()
                for place in places
            },
            sizes,
        )
    check_constants(model, template, network)
    missing = [name for name in compressed.activations if name not in template.values]
    if missing:
        raise ArtifactError(
            "A quantized tensor must be a value of the exported graph: "
            f"'{missing[0]}' is none; set a_bits 32 for the layers that read it."
        )
    ranges: dict[str, Any] = {}
    for name, range_ in compressed.activations.items():
        ranges.setdefault(template.values[name], range_)
    names: dict[str, str] | None = None
    if named:
        names = {template.values[name]: name for name in reversed(list(compressed.activations))}
    elif limit is None:
        names = {}
    constants, scales = insert_pairs(model, ranges, names) if ranges else ([], {})
    writer = _Writer(model, template, compressed, scales, limit, packed)
    if ranges and names is None:
        writer.functions[PAIR] = pair_function(writer.opset)
    writer.parameters()
    if named:  # runtimes make unique names of these
        for function in writer.functions.values():
            for node in function.node:
                node.name = node.output[0]
    model.graph.initializer.extend(constants)
    return writer.finish()


@dataclass
class _Writer:
    model: ModelProto
    template: Template
    compressed: "Compressed"
    scales: Mapping[str, str]
    limit: int | None
    packed: bool
    functions: dict[str, FunctionProto] = field(default_factory=dict)
    calls: list[NodeProto] = field(default_factory=list)
    done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.opset = next(o.version for o in self.model.opset_import if not o.domain)
        self.users: dict[str, list[tuple[NodeProto, int]]] = {}
        for node in self.model.graph.node:
            for position, name in enumerate(node.input):
                self.users.setdefault(name, []).append((node, position))
        self.owner = {
            place.initializer: (name, place)
            for name, places in self.template.places.items()
            for place in places
        }
        sources = {n.name: n.all_input_nodes[0].name for n in self._layer_nodes()}
        integer = self.compressed.integer
        self.inputs = {  # of each integer layer's weight: the scale of the layer's quantized input
            layer.weight: self.scales.get(self.template.values.get(sources[layer.node], ""))
            for layer in self.compressed.network.layers
            if layer.name in integer and sources[layer.node] in self.compressed.activations
        }

    def _layer_nodes(self) -> Iterator[Any]:
        wanted = {layer.node for layer in self.compressed.network.layers}
        return (n for n in self.compressed.network.graph.nodes if n.name in wanted)

    def value(self, name: str) -> Array:
        """Return a parameter as it is stored."""
        params = self.compressed.network.params
        result: Array = self.compressed.stored.get(name, params[name]).detach().numpy()
        return result

    def parameters(self) -> None:
        """Write every parameter that the graph uses."""
        weights = self.compressed.weights
        for name, weight in weights.items():
            if isinstance(weight, QuantizedWeight):
                for place in self.template.places.get(name, ()):
                    self.codes(name, place, weight)
        for name, places in self.template.places.items():
            for place in places:
                if place.initializer not in self.done:
                    value = place.arrange(self.value(name))
                    if weights.get(name) == "float16":
                        self.float16(place, value)
                    else:
                        self.store(place.initializer, value)

    def store(self, name: str, value: Array) -> str:
        """Add an initializer; return its name."""
        if name not in self.done:
            self.model.graph.initializer.append(tensor(name, np.ascontiguousarray(value)))
            self.done.add(name)
        return name

    def float16(self, place: Place, value: Array) -> None:
        """Add an initializer in float16 and its Cast, where that is exact and shorter."""
        half = short(value)
        if half.dtype != np.float16 or value.size < 24:
            self.store(place.initializer, value)
            return
        source = self.store(f"{place.initializer}h", half)
        cast = onnx.helper.make_node("Cast", [source], [place.initializer], to=TensorProto.FLOAT)
        self.calls.append(cast)
        self.done.add(place.initializer)

    def codes(self, name: str, place: Place, weight: Any) -> None:
        """Add a weight's codes and the call of the function that reads them."""
        users = self.users.get(place.initializer, [])
        codes = place.arrange(weight.codes)
        axis = place.axes.index(0)
        scale = np.where(weight.scale > 0, weight.scale, 1).astype(np.float32)
        if self.limit is None:
            self.native(place.initializer, weight, codes, scale, axis)
            return
        step = self.inputs.get(name)
        integer = step is not None and all(
            node.op_type in _INTEGER_KERNELS and at == 1 for node, at in users
        )
        bias = self._bias(users)
        shift = self.value(bias[0]) if bias else None
        large = codes.size > self.limit
        native = large and not integer
        narrow = codes.min() >= -8 and codes.max() <= 7
        four = native and narrow and self.opset >= 21
        planes = self.packed and weight.bits < 8 and not large
        form = Form(
            source="planes" if planes else "int4" if four else "int8",
            integer=integer,
            bias=bias is not None,
            axis=axis,
            odd=planes and weight.odd,
            cut=planes and codes.size % 8 != 0,
            native=native,
        )
        self.functions.setdefault(form.name, form.function(self.opset))
        key = place.initializer
        both = scale if shift is None else np.stack([scale, shift])
        if not integer and not native:
            shape = [1] * codes.ndim
            shape[axis] = -1
            both = both.reshape(*both.shape[:-1], *shape)
        names = {"s": self.store(f"{key}s", short(both)), "x": step or ""}
        if planes:
            names["p"] = self.store(f"{key}p", pack(codes, weight.bits, form.odd))
            places = place_values(weight.bits, form.odd)
            names["h"] = self.store(f"_h{weight.bits}{form.odd:d}", places)
        elif four:
            names["p"] = self._store_int4(f"{key}p", codes)
        else:
            names["p"] = self.store(f"{key}p", codes)
        call = NodeProto(op_type=form.name, domain=DOMAIN, input=[names[n] for n in form.inputs])
        call.output.append(key)
        if bias:
            call.output.append(bias[1].initializer)
            self.done.add(bias[1].initializer)
        if planes:
            call.attribute.append(onnx.helper.make_attribute("s", list(codes.shape)))
        self.calls.append(call)
        self.done.add(key)

    def native(self, key: str, weight: Any, codes: Array, scale: Array, axis: int) -> None:
        """Add a weight's codes in a type of ONNX itself and the DequantizeLinear that reads them.

        Codes in int4 go through int8, for which OpenVINO's integer kernels are.
        """
        grid = Grid(weight.bits, weight.odd)
        node = onnx.helper.make_node
        source = f"{key}p"
        if grid.low >= -8 and grid.high <= 7 and self.opset >= 21:
            four = self._store_int4(f"{key}f", codes)
            self.calls.append(node("Cast", [four], [source], to=TensorProto.INT8))
        else:
            self.store(source, codes)
        self.float16(Place(f"{key}s", (0,)), scale)
        self.calls.append(node("DequantizeLinear", [source, f"{key}s"], [key], axis=axis))
        self.done.add(key)

    def _store_int4(self, name: str, codes: Array) -> str:
        flat = np.zeros(codes.size + codes.size % 2, dtype=np.uint8)
        flat[: codes.size] = codes.reshape(-1).view(np.uint8) & 15
        self.model.graph.initializer.append(
            TensorProto(
                name=name,
                dims=codes.shape,
                data_type=TensorProto.INT4,
                raw_data=(flat[::2] | flat[1::2] << 4).tobytes(),
            )
        )
        return name

    def _bias(self, users: list[tuple[NodeProto, int]]) -> tuple[str, Place] | None:
        """Return the bias that a weight's only consumer adds, if nothing else uses it."""
        if len(users) != 1 or users[0][0].op_type not in ("Conv", "Gemm"):
            return None
        node, _ = users[0]
        if len(node.input) < 3 or any(a.name == "beta" for a in node.attribute):
            return None
        name = node.input[2]
        if name not in self.owner or len(self.users[name]) != 1 or name in self.done:
            return None
        owner, place = self.owner[name]
        if len(place.axes) != 1 or isinstance(self.compressed.weights.get(owner), QuantizedWeight):
            return None
        return owner, place

    def finish(self) -> bytes:
        """Put the parts together under short names."""
        model = self.model
        kept: list[Any] = list(model.graph.node)
        nodes = [NodeProto.FromString(n.SerializeToString()) for n in kept]
        del model.graph.node[:]
        model.graph.node.extend([*self.calls, *nodes])
        if self.functions:
            model.opset_import.append(OperatorSetIdProto(domain=DOMAIN, version=1))
            model.functions.extend(self.functions[name] for name in sorted(self.functions))
        used = {name for node in model.graph.node for name in node.input}
        used.update(info.name for info in model.graph.output)
        initializers = [i for i in model.graph.initializer if i.name in used]
        if len(initializers) < len(model.graph.initializer):
            kept = [TensorProto.FromString(i.SerializeToString()) for i in initializers]
            del model.graph.initializer[:]
            model.graph.initializer.extend(kept)
        _shorten(model)
        content: bytes = model.SerializeToString(deterministic=True)
        return content


def _names() -> Iterator[str]:
    for first in ("", *_DIGITS, *(a + b for a in _DIGITS for b in _DIGITS)):
        for last in _DIGITS:
            yield first + last


def _shorten(model: ModelProto) -> None:
    """Rename all values but inputs and outputs, the most used first."""
    graph = model.graph
    fixed = {info.name for info in (*graph.input, *graph.output)} | {""}
    counts = Counter(name for node in graph.node for name in (*node.input, *node.output))
    counts.update(initializer.name for initializer in graph.initializer)
    short = (name for name in _names() if name not in fixed)
    names = {name: name for name in fixed}
    for name, _ in counts.most_common():  # of equal counts the first met comes first
        if name not in names:
            names[name] = next(short)
    for node in graph.node:
        for which in (node.input, node.output):
            for index, name in enumerate(which):
                which[index] = names[name]
    for initializer in graph.initializer:
        initializer.name = names[initializer.name]
