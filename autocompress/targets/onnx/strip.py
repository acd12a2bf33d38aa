"""Stripping: an exported model reduced to what a runtime needs, under plain names."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

__all__ = ["strip", "tensor"]

Array = np.ndarray[Any, Any]


def tensor(name: str, value: Array) -> onnx.TensorProto:
    """Return an array as an initializer."""
    return onnx.TensorProto(
        name=name,
        dims=value.shape,
        data_type=onnx.helper.np_dtype_to_tensor_dtype(value.dtype),
        raw_data=value.tobytes(),
    )


_DEFAULTS: Mapping[str, Any] = {"dilations": 1, "strides": 1, "pads": 0}


def strip(model: ModelProto, placeholders: list[str]) -> dict[str, str]:
    """Drop all that a runtime does not need, and give inputs and outputs readable names.

    Returns the new name of every value by its old one.
    """
    graph = model.graph
    for field in ("producer_name", "producer_version", "domain", "doc_string", "model_version"):
        model.ClearField(field)
    model.ClearField("metadata_props")
    model.ir_version = 10 if model.opset_import[0].version > 20 else 8
    graph.name = "g"
    for field in ("doc_string", "value_info", "metadata_props", "quantization_annotation"):
        graph.ClearField(field)
    names: dict[str, str] = {"": ""}
    values = itertools.chain(
        (info.name for info in graph.input),
        (initializer.name for initializer in graph.initializer),
        (name for node in graph.node for name in node.output),
    )
    lead = "_"
    while any(name.startswith(lead) for name in placeholders):
        lead += "_"
    for name in values:
        names.setdefault(name, f"{lead}{len(names)}")
    for node in graph.node:
        for which in (node.input, node.output):
            for index, name in enumerate(which):
                which[index] = names[name]
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)
        if node.domain == "ai.onnx":
            node.ClearField("domain")
        _drop_defaults(node)
    for initializer in graph.initializer:
        array = numpy_helper.to_array(initializer)
        initializer.CopyFrom(tensor(names[initializer.name], array))
    for info in (*graph.input, *graph.output):
        info.name = names[info.name]
        for field in ("doc_string", "metadata_props"):
            info.ClearField(field)
        for dim in info.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_param = "N"
    _gather_constants(graph)
    ends = _name_ends(graph, placeholders)
    return {old: ends.get(new, new) for old, new in names.items()}


def _gather_constants(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, each content once."""
    for node in [n for n in graph.node if n.op_type == "Constant"]:
        array = _constant(node)
        if array is not None:
            graph.initializer.append(tensor(node.output[0], array))
            graph.node.remove(node)
    first: dict[bytes, str] = {}
    same: dict[str, str] = {}
    ends = {info.name for info in graph.output}
    for initializer in list(graph.initializer):
        content = f"{initializer.data_type} {list(initializer.dims)} ".encode()
        known = first.setdefault(content + initializer.raw_data, initializer.name)
        if known != initializer.name and initializer.name not in ends:
            same[initializer.name] = known
            graph.initializer.remove(initializer)
    small = {i.name: i for i in graph.initializer if i.data_type == onnx.TensorProto.INT64}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)
        shape = small.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is not None and numpy_helper.to_array(shape).all():
            del node.attribute[:]  # allowzero, of no account


def _constant(node: NodeProto) -> Array | None:
    """Return the value of a Constant node, None for kinds that are not numbers."""
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return numpy_helper.to_array(value)
    if attribute.name in ("value_int", "value_ints"):
        return np.array(value, dtype=np.int64)
    if attribute.name in ("value_float", "value_floats"):
        return np.array(value, dtype=np.float32)
    return None


def _name_ends(graph: onnx.GraphProto, placeholders: list[str]) -> dict[str, str]:
    """Name inputs and outputs: "input" and "output", or as traced and "output0", …

    Returns the new names by the old ones.
    """
    inputs = ["input"] if len(graph.input) == 1 else placeholders
    count = len(graph.output)
    outputs = ["output"] if count == 1 else [f"output{i}" for i in range(count)]
    while set(outputs) & set(inputs):
        outputs = [f"{name}_" for name in outputs]
    names = dict(zip([info.name for info in graph.input], inputs, strict=True))
    made = {name for node in graph.node for name in node.output}
    copies = []
    for info, name in zip(graph.output, outputs, strict=True):
        if info.name in made and info.name not in names:
            names[info.name] = name
        else:
            copies.append((info.name, name))
    for node in graph.node:
        for which in (node.input, node.output):
            for index, name in enumerate(which):
                which[index] = names.get(name, name)
    for source, name in copies:
        graph.node.add(op_type="Identity", input=[names.get(source, source)], output=[name])
    for infos, ends in ((graph.input, inputs), (graph.output, outputs)):
        for info, name in zip(infos, ends, strict=True):
            info.name = name
    return names


def _drop_defaults(node: NodeProto) -> None:
    """Drop attributes that say what a runtime assumes anyway."""
    schema = onnx.defs.get_schema(node.op_type, node.domain) if not node.domain else None
    kept = []
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        default = schema.attributes.get(attribute.name) if schema else None
        if default is not None and default.default_value.name:
            if onnx.helper.get_attribute_value(default.default_value) == value:
                continue
        elif attribute.name in _DEFAULTS and all(v == _DEFAULTS[attribute.name] for v in value):
            continue
        if attribute.name == "kernel_shape" and node.op_type == "Conv":
            continue
        attribute.ClearField("doc_string")
        kept.append(attribute)
    del node.attribute[:]
    node.attribute.extend(kept)
