"""Quantized tensors: one QuantizeLinear/DequantizeLinear pair for all consumers of a value."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import FunctionProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, helper

from autocompress.targets.onnx.packing import DOMAIN
from autocompress.targets.onnx.strip import tensor

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
    model: ModelProto, ranges: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> tuple[list[TensorProto], dict[str, str]]:
    """Round values in place: every consumer, a graph output too, sees the rounded one.

    ``ranges``: ActivationRange by name of the ONNX value. ``names``: write two nodes a pair
    instead of a call of the function, called ``<name of the value>/q`` and ``.../d``. Returns the
    constants to add, and the name of the scale constant by value. The runtime fuses the pairs into
    the kernels around them.
    """
    constants: dict[tuple[str, float], TensorProto] = {}

    def constant(kind: str, value: float) -> str:
        if (kind, value) not in constants:
            array = np.array(value, dtype=np.float32 if kind == "s" else np.uint8)
            constants[kind, value] = tensor(f"_{kind}{len(constants)}", array)
        return constants[kind, value].name

    scales: dict[str, str] = {}
    rounded: dict[str, str] = {}
    pairs: dict[str, list[NodeProto]] = {}
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
        step = [scales[value], zero]
        if names is None:
            call = helper.make_node(PAIR, [source, *step], [result], domain=DOMAIN)
            pairs[value] = [call]
        else:
            codes = f"_c{value}"
            name = names.get(value)
            pairs[value] = [
                helper.make_node("QuantizeLinear", [source, *step], [codes], name and f"{name}/q"),
                helper.make_node(
                    "DequantizeLinear", [codes, *step], [result], name and f"{name}/d"
                ),
            ]
    nodes = [node for i in model.graph.input for node in pairs.pop(i.name, ())]
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name in rounded:
                node.input[index] = rounded[name]
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in pairs:
                node.output[index] = raw.get(name, name)
                nodes.extend(pairs.pop(name))
    assert not pairs
    copies = [_copy(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return list(constants.values()), scales


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy
