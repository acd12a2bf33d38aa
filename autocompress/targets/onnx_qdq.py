"""Quantized tensors: one QuantizeLinear/DequantizeLinear pair for all consumers of a value."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, helper

from autocompress.targets.onnx_packing import DOMAIN
from autocompress.targets.onnx_strip import tensor

__all__ = ["PAIR", "insert_pairs", "pair_function"]

PAIR = "q"  # the name of the function that rounds a tensor


def pair_function(opset: int) -> FunctionProto:
    """Return the function that rounds v to multiples of s about the zero point z."""
    return FunctionProto(
        domain=DOMAIN,
        name=PAIR,
        input=["v", "s", "z"],
        output=["b"],
        node=[
            helper.make_node("QuantizeLinear", ["v", "s", "z"], ["a"]),
            helper.make_node("DequantizeLinear", ["a", "s", "z"], ["b"]),
        ],
        opset_import=[OperatorSetIdProto(domain="", version=opset)],
    )


def insert_pairs(
    model: ModelProto, ranges: Mapping[str, Any]
) -> tuple[list[TensorProto], dict[str, str]]:
    """Round values in place: every consumer, a graph output too, sees the rounded one.

    ``ranges``: ActivationRange by name of the ONNX value. Returns the constants to add, and the
    name of the scale constant by value. The runtime fuses the pairs into the kernels around them.
    """
    constants: dict[tuple[str, float], TensorProto] = {}

    def constant(kind: str, value: float) -> str:
        if (kind, value) not in constants:
            array = np.array(value, dtype=np.float32 if kind == "s" else np.uint8)
            constants[kind, value] = tensor(f"_{kind}{len(constants)}", array)
        return constants[kind, value].name

    scales: dict[str, str] = {}
    rounded: dict[str, str] = {}
    pairs: dict[str, NodeProto] = {}
    outputs = {info.name for info in model.graph.output}
    raw: dict[str, str] = {}
    for value, range_ in ranges.items():
        scales[value] = constant("s", float(np.float32(range_.scale)))
        zero = constant("z", int(range_.zero_point))
        source, result = value, f"_q{value}"
        if value in outputs:
            source, result = f"_r{value}", value
            raw[value] = source
        rounded[value] = result
        pairs[value] = NodeProto(
            op_type=PAIR, domain=DOMAIN, input=[source, scales[value], zero], output=[result]
        )
    nodes = [pairs.pop(i.name) for i in model.graph.input if i.name in pairs]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in rounded:
                node.input[index] = rounded[name]
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in pairs:
                node.output[index] = raw.get(name, name)
                nodes.append(pairs.pop(name))
    assert not pairs
    copies = [_copy(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return list(constants.values()), scales


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
