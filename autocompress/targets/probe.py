"""A question to a runtime: do its integer kernels overflow on this host?

Where the CPU has no VNNI, products of u8 activations and s8 weights are added in pairs in 16 bits,
and saturate: vpmaddubsw of (255, 255) and (127, 127) gives 32767, not 64770. The file asked has two
convolutions and a product of which every pair of products is such a one.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from autocompress.targets.onnx.strip import tensor

__all__ = ["SATURATES", "overflows"]

#: What stands among a score's CPU features where the runtime's kernels overflow.
SATURATES = "u8s8-saturates"

_CHANNELS, _SIDE = 32, 6
_FULL = 255 * 127


def overflows(open_file: Callable[[Path], Any]) -> bool:
    """Return whether a runtime's kernels overflow; ``open_file`` opens an ONNX file in it."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "probe.onnx"
        path.write_bytes(_model())
        found = open_file(path)(np.full((1, _CHANNELS, _SIDE, _SIDE), 255, np.float32))
    wanted = (_FULL * _CHANNELS * 9, _FULL * _CHANNELS, _FULL * _CHANNELS)
    return any(
        abs(float(value.max()) / want - 1) > 0.02 for value, want in zip(found, wanted, strict=True)
    )


def _model() -> bytes:
    """Return a file of a 3 × 3 and a 1 × 1 convolution of an image, and a product of its mean."""
    nodes: list[NodeProto] = []
    constants = [tensor("one", np.array(1, np.float32)), tensor("zero", np.array(0, np.uint8))]

    def add(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"v{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    def constant(name: str, value: Any) -> str:
        constants.append(tensor(name, np.ascontiguousarray(value)))
        return name

    def rounded(value: str, scale: str) -> str:
        codes = add("QuantizeLinear", value, scale, "zero")
        return add("DequantizeLinear", codes, scale, "zero")

    def layer(kind: str, value: str, shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"{kind}{len(nodes)}"
        scales = constant(f"{name}s", np.ones(_CHANNELS, np.float32))
        zeros = constant(f"{name}z", np.zeros(_CHANNELS, np.int8))
        codes = constant(f"{name}w", np.full(shape, 127, np.int8))
        weight = add("DequantizeLinear", codes, scales, zeros, axis=0)
        whole = constant(f"{name}b", np.zeros(_CHANNELS, np.int32))
        bias = add("DequantizeLinear", whole, scales, axis=0)
        result = add(kind, value, weight, bias, **attributes)
        peak = _FULL * np.prod(shape[1:])
        return rounded(result, constant(f"{name}o", np.array(peak / 200, np.float32)))

    image = rounded("input", "one")
    flat = rounded(add("Flatten", add("GlobalAveragePool", image)), "one")
    outputs = [
        layer("Conv", image, (_CHANNELS, _CHANNELS, 3, 3), pads=[1, 1, 1, 1]),
        layer("Conv", image, (_CHANNELS, _CHANNELS, 1, 1)),
        layer("Gemm", flat, (_CHANNELS, _CHANNELS), transB=1),
    ]
    size: list[str | int | None] = ["N", _CHANNELS, _SIDE, _SIDE]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, size)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, size if rank == 4 else size[:2])
            for name, rank in zip(outputs, (4, 4, 2), strict=True)
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    content: bytes = model.SerializeToString()
    return content
