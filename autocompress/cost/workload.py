"""Workloads: what a compressed network asks of a device, operator by operator, from shapes alone.

All cost models read the same list. Costs are integer functions of shapes; an operator without a
rule is named in ``unknown``, never counted as zero.
"""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, fx

from autocompress.core.abilities import Abilities
from autocompress.cost.shapes import Shaped, shapes_of
from autocompress.models.layer import Layer
from autocompress.transforms.compressor import Compressed, QuantizedWeight
from autocompress.transforms.quantize.placement import chain_end

__all__ = ["Op", "Value", "Workload", "workload"]

aten = torch.ops.aten

_KINDS: Mapping[str, str] = {
    name: kind
    for kind, names in {
        # no work: another name for the same storage, or a constant
        "view": "alias clone contiguous detach dropout flatten getitem lift_fresh_copy reshape "
        "squeeze unflatten unsqueeze _unsafe_view view arange full zeros ones scalar_tensor empty",
        "move": "cat channel_shuffle chunk constant_pad_nd copy embedding expand flip gather index "
        "index_select movedim pad permute pixel_shuffle pixel_unshuffle repeat repeat_interleave "
        "roll select slice split split_with_sizes stack t transpose unbind upsample_bilinear2d "
        "upsample_nearest1d upsample_nearest2d _to_copy",
        "elementwise": "abs add addcmul celu clamp clamp_max clamp_min cos div elu eq erf exp "
        "floor full_like ge gelu gt hardsigmoid hardswish hardtanh le leaky_relu log log1p "
        "logical_not lt masked_fill maximum minimum mish mul ne neg ones_like pow prelu "
        "reciprocal relu relu6 round rsqrt rsub selu sigmoid silu sin softplus sqrt square sub "
        "tanh where zeros_like",
        "reduction": "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "adaptive_max_pool2d amax amin argmax argmin avg_pool1d avg_pool2d avg_pool3d "
        "linalg_vector_norm logsumexp max max_pool1d max_pool2d max_pool2d_with_indices max_pool3d "
        "mean min prod std sum var var_mean",
        "norm": "batch_norm cumsum group_norm instance_norm layer_norm log_softmax "
        "_log_softmax _native_batch_norm_legit_no_training native_group_norm native_layer_norm "
        "rms_norm softmax _softmax",
        "matmul": "addmm baddbmm bmm matmul mm scaled_dot_product_attention",
    }.items()
    for name in names.split()
}


@dataclass(frozen=True)
class Value:
    """A tensor that passes between operators; ``bits`` is the width at which it is stored.

    ``positions``: pixels of images, tokens of sequences, else 1; the rest are channels.
    """

    name: str
    elements: int
    bits: int
    positions: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes, elements packed."""
        return -(-self.elements * self.bits // 8)


@dataclass(frozen=True)
class Op:
    """One operator of a compressed network with what is fused into it.

    ``name`` is the layer's, or the node's where it is no layer; ``kind`` that of the layer, or
    "view", "move", "elementwise", "reduction", "norm", "matmul", "unknown"; ``type`` the ATen
    operator. ``inputs`` and ``output`` name values. ``cin``, ``cout`` and ``groups`` are of a
    layer; ``pixels`` are its output positions, ``taps`` its weights for one input and output
    channel, ``stride`` the steps between positions (the longest). ``weights`` counts the
    parameters it reads; ``weight_bytes`` are their packed codes, biases at 32 bits, scales left
    out; ``shared`` of these an earlier operator has read too. ``blocked``: in float32 it runs in
    the runtime's own layout (``Abilities.float_block``). ``w_bits`` is the stored width of a
    layer's weights, ``a_bits`` that of its input where it runs on integers, else 32.
    """

    name: str
    node: str
    kind: str
    type: str
    inputs: tuple[str, ...]
    output: str
    macs: int = 0
    weights: int = 0
    weight_bytes: int = 0
    w_bits: int = 32
    a_bits: int = 32
    cin: int = 0
    cout: int = 0
    groups: int = 1
    pixels: int = 0
    taps: int = 1
    stride: int = 1
    shared: int = 0
    blocked: bool = True

    @property
    def layer(self) -> bool:
        """Whether it is a convolution or linear layer."""
        return self.kind in ("conv", "depthwise", "grouped", "linear")


@dataclass(frozen=True, eq=False)
class Workload:
    """The operators of a compressed network in order, and the values between them.

    Values that no operator makes are the network's inputs.
    """

    ops: tuple[Op, ...]
    values: Mapping[str, Value]
    outputs: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Multiply-adds for one input, matrix products without weights included."""
        return sum(op.macs for op in self.ops)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, each counted once."""
        return sum(op.weight_bytes - op.shared for op in self.ops)

    @cached_property
    def unknown(self) -> tuple[str, ...]:
        """The operators that no rule knows, by their ATen names."""
        return tuple(sorted({op.type for op in self.ops if op.kind == "unknown"}))


def workload(compressed: Compressed, abilities: Abilities) -> Workload:
    """Return the workload of a compressed network (or of its dry_run) on a target, for batch 1.

    Nothing is computed and no values are read. Parts of a split are views of one value, of which
    only those that are read count. A view is stored like its source unless it is itself rounded.
    """
    network = compressed.network
    found = shapes_of(network.graph, network.params, network.example_inputs)
    layers = {layer.node: layer for layer in network.layers}
    integer = compressed.integer
    fused: dict[str, str] = {}  # by node: the value that holds its result
    values: dict[str, Value] = {}
    read: set[str] = set()  # parameters
    ops: list[Op] = []
    outputs: tuple[str, ...] = ()

    def made(node: fx.Node, source: str | None = None) -> str:
        if node.name not in values:
            elements, bits, positions = _extent(node, found.get(node))
            ranged = compressed.activations.get(node.name)
            if ranged:
                bits = ranged.bits
            elif source is not None and source in values:
                bits = values[source].bits
            values[node.name] = Value(node.name, elements, bits, positions)
        return node.name

    for node in network.graph.nodes:
        if node.op == "get_attr" or node.name in fused:
            continue
        if node.op == "placeholder":
            made(node)
            continue
        sources = node.all_input_nodes
        if node.op == "output":
            outputs = tuple(fused.get(n.name, n.name) for n in sources)
            continue
        if node in found and not isinstance(found[node], (Shaped, tuple)):
            continue  # a number
        inputs = tuple(
            dict.fromkeys(
                name
                for n in sources
                if n.op != "get_attr" and (name := fused.get(n.name, n.name)) in values
            )
        )
        layer, kind = layers.get(node.name), _kind(node.target)
        kind = kind if node in found else "unknown"
        end = chain_end(node, abilities) if layer or kind == "elementwise" else node
        step = node
        while step is not end:
            (step,) = step.users
            fused[step.name] = end.name
        fused[node.name] = end.name
        made(end, inputs[0] if kind == "view" and inputs else None)
        params = [str(n.target) for n in sources if n.op == "get_attr"]
        if layer is not None and node in found:
            out: Any = found[node]
            a_bits = values[inputs[0]].bits if layer.name in integer else 32
            op = _layer(node, layer, compressed, inputs, end.name, out.shape, a_bits)
            few = op.kind == "conv" and op.cin < 4 * abilities.float_block
            blocked = op.kind == "linear" or few or op.cin % abilities.float_block == 0
            op = replace(op, blocked=blocked)
            sizes = {layer.weight: op.weight_bytes - 4 * op.cout, layer.bias: 4 * op.cout}
        else:
            macs = _matmul_macs(node, found) if kind == "matmul" else 0
            kind = "unknown" if macs < 0 else kind
            sizes = {name: _stored(name, compressed) for name in params}
            op = Op(
                node.name, node.name, kind, _type(node.target), inputs, end.name, max(macs, 0),
                weights=sum(network.params[name].numel() for name in params),
                weight_bytes=sum(sizes.values()),
            )  # fmt: skip
        shared = sum(size for name, size in sizes.items() if name in read)
        if shared:
            op = replace(op, shared=shared)
        read.update(sizes)
        ops.append(op)
    return Workload(tuple(ops), values, outputs)


@cache
def _type(target: Any) -> str:
    return str(target) if "aten" in str(target) else getattr(target, "__name__", str(target))


@cache
def _kind(target: Any) -> str:
    name = _type(target).removeprefix("aten.").split(".")[0].rstrip("_")
    return _KINDS.get(name, "unknown")


def _extent(node: fx.Node, shape: Any) -> tuple[int, int, int]:
    """Return elements of a node's result, bits and positions; of several tensors, those read."""
    parts = [shape] if isinstance(shape, Shaped) else [p for p in shape or () if p is not None]
    if isinstance(shape, tuple) and all(u.target is operator.getitem for u in node.users):
        parts = [shape[index] for index in sorted({int(u.args[1]) for u in node.users})]  # type: ignore[arg-type]
    elements = sum(math.prod(part.shape) for part in parts)
    if not parts:
        return elements, 32, 1
    first = parts[0].shape
    positions = math.prod(first[-2:]) if len(first) > 3 else first[1] if len(first) == 3 else 1
    return elements, 8 * parts[0].dtype.itemsize, max(1, positions)


def _bits(name: str, compressed: Compressed) -> int:
    """Return the width at which a parameter is stored."""
    form = compressed.weights.get(name)
    if isinstance(form, QuantizedWeight):
        return form.bits
    return 16 if form else 8 * compressed.network.params[name].element_size()


def _stored(name: str, compressed: Compressed) -> int:
    return -(-compressed.network.params[name].numel() * _bits(name, compressed) // 8)


def _layer(
    node: fx.Node,
    layer: Layer,
    compressed: Compressed,
    inputs: tuple[str, ...],
    output: str,
    out: tuple[int, ...],
    a_bits: int,
) -> Op:
    weight: Tensor = compressed.network.params[layer.weight]
    shape, linear = tuple(weight.shape), layer.kind == "linear"
    count, channels = math.prod(shape), shape[0]
    pixels = math.prod(out) // channels
    rest = () if linear else node.args[3:]
    steps: Any = rest[0] if rest else 1
    groups: Any = rest[3] if len(rest) > 3 else 1
    w_bits = _bits(layer.weight, compressed)
    return Op(
        name=layer.name,
        node=layer.node,
        kind=layer.kind,
        type=layer.kind,
        inputs=inputs,
        output=output,
        macs=pixels * count,
        weights=count + channels,
        weight_bytes=-(-count * w_bits // 8) + 4 * channels,
        w_bits=w_bits,
        a_bits=a_bits,
        cin=shape[1] * groups,
        cout=channels,
        groups=groups,
        pixels=pixels,
        taps=math.prod(shape[2:]),
        stride=steps if isinstance(steps, int) else max(steps),
    )


def _matmul_macs(node: fx.Node, found: Mapping[fx.Node, Any]) -> int:
    """Return multiply-adds of a product of two tensors, -1 where its form is not understood."""
    name = _type(node.target)
    first = 1 if "addmm" in name or "baddbmm" in name else 0
    tensors: list[Any] = [
        found.get(arg) if isinstance(arg, fx.Node) else None for arg in node.args[first : first + 3]
    ]
    attention = "scaled_dot_product" in name
    needed = tensors[: 3 if attention else 2]
    out = found.get(node)
    if not isinstance(out, Shaped) or not all(isinstance(t, Shaped) for t in needed):
        return -1
    if attention:  # scores, then their product with the values
        query, key, value = (t.shape for t in needed)
        return int(math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))
    return int(math.prod(out.shape) * needed[0].shape[-1])
