"""Weights of 2 to 8 bits in a stock ONNX file: bit planes that the graph itself unpacks.

A layer's codes are two's complement integers of n bits. The flat, zero-padded codes are cut into
8 equal runs of M codes; byte (m, j) of the packed tensor holds bit j of the m-th code of every
run, so that n bits cost n/8 of a byte whatever n is, and one function unpacks every width:
BitShift by 0..7, BitwiseAnd with 1, and MatMulInteger with the place values 1, 2, 4, …, -2^(n-1).
It depends on constants alone, so the runtime folds it while loading. The result is int8 with zero
point 0, for which the runtimes' u8×s8 kernels are the fast ones.

Each weight (with its bias) is one call of a function local to the file. Functions exist once per
form in use, not per layer; they are inlined by the runtime.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto, TensorProto, helper

__all__ = ["DOMAIN", "Form", "pack", "place_values"]

DOMAIN = "p"  # the domain of the functions local to the file; in every call, so short

Array = np.ndarray[Any, Any]


def pack(codes: Array, bits: int, odd: bool = False) -> Array:
    """Pack signed codes into bit planes.

    ``codes``: int8 of any shape, within [-2^(bits-1), 2^(bits-1) - 1], or, if ``odd``, odd and
    within [1 - 2^bits, 2^bits - 1]. Returns uint8 of shape (ceil(size / 8), bits). Raises
    ValueError if a code does not fit.
    """
    flat = np.ascontiguousarray(codes).reshape(-1).astype(np.int16)
    low = 1 - (1 << bits) if odd else -(1 << (bits - 1))
    high = (1 << bits) - 1 if odd else -low - 1
    if flat.size and (
        int(flat.min()) < low or int(flat.max()) > high or (odd and (~flat & 1).any())
    ):
        kind = "Odd codes" if odd else "Codes"
        raise ValueError(f"{kind} of {bits} bits must lie in [{low}, {high}].")
    runs = np.zeros((8, -(-flat.size // 8)), dtype=np.uint8)
    # odd: code = sum of ±2^bit, so that (code - low) / 2 has the digits; else two's complement
    digits = (flat - low) >> 1 if odd else flat
    runs.reshape(-1)[: flat.size] = digits.astype(np.uint8)
    packed = np.empty((runs.shape[1], bits), dtype=np.uint8)
    for bit in range(bits):
        packed[:, bit] = np.packbits((runs >> bit) & 1, axis=0, bitorder="little")[0]
    return packed


def place_values(bits: int, odd: bool = False) -> Array:
    """Return what each digit of a code is worth: int8 of shape (bits, 1)."""
    values = [1 << bit for bit in range(bits)]
    if not odd:
        values[-1] = -values[-1]
    return np.array(values, dtype=np.int8).reshape(-1, 1)


@dataclass(frozen=True)
class Form:
    """One way in which a layer's weight is written, and the function that reads it.

    ``source``: "planes", "int8" or "int4" (plain codes). ``integer``: for a kernel of 8-bit
    activations (DequantizeLinear stays, to be fused) or for float32 ones (folds into a float32
    constant). ``bias``: the function also gives the bias. ``axis``: where the output channels
    are in the weight as the node wants it. ``odd``: the planes' digits are worth ±2^bit instead
    of two's complement. ``cut``: the planes end in padding. ``native``: the weight stays as it is
    stored until it is used, to bound memory (large layers).
    """

    source: str
    integer: bool
    bias: bool
    axis: int = 0
    odd: bool = False
    cut: bool = False
    native: bool = False

    @property
    def name(self) -> str:
        """The function's name, short since every call repeats it."""
        flags = (self.integer, self.bias, self.odd, self.cut, self.native, self.source == "planes")
        number = sum(flag << place for place, flag in enumerate(flags)) + 64 * self.axis
        return np.base_repr(number, 36).lower()

    @property
    def inputs(self) -> list[str]:
        """Names of the function's inputs.

        p: codes or planes; h: place values; s: scales, or (scales, biases) stacked, with the
        shape (…, channels, 1, …) for float32 and (…, channels) for integer kernels; x: the scale
        of the layer's input.
        """
        wanted = [("p", True), ("h", self.source == "planes"), ("s", True)]
        return [n for n, yes in [*wanted, ("x", self.integer and self.bias)] if yes]

    def function(self, opset: int) -> FunctionProto:
        """Return the function."""
        body = _Body()
        codes = self._codes(body)
        if self.bias:
            scale = body.add("Cast", body.add("Gather", "s", body.integer(0)), to=TensorProto.FLOAT)
            bias = body.add("Cast", body.add("Gather", "s", body.integer(1)), to=TensorProto.FLOAT)
        else:
            scale = body.add("Cast", "s", to=TensorProto.FLOAT)
            bias = ""
        if self.integer:  # with zero points, all 0: onnxruntime's Gemm is not fused without
            zero = body.add("Cast", body.add("Sub", scale, scale), to=TensorProto.INT8)
            body.add("DequantizeLinear", codes, scale, zero, out="w", axis=self.axis)
        elif self.native:
            body.add("DequantizeLinear", codes, scale, out="w", axis=self.axis)
        else:
            body.add("Mul", body.add("Cast", codes, to=TensorProto.FLOAT), scale, out="w")
        if self.bias:
            if self.integer:
                step = body.add("Mul", scale, "x")
                whole = body.add("Round", body.add("Div", bias, step))
                whole = body.add("Cast", whole, to=TensorProto.INT32)
                body.add("DequantizeLinear", whole, step, out="b", axis=0)
            else:
                body.add("Reshape", bias, body.integers(-1), out="b")
        return FunctionProto(
            domain=DOMAIN,
            name=self.name,
            input=self.inputs,
            output=["w", "b"] if self.bias else ["w"],
            attribute=["s"] if self.source == "planes" else [],
            node=body.nodes,
            opset_import=[OperatorSetIdProto(domain="", version=opset)],
        )

    def _codes(self, body: "_Body") -> str:
        """Add the nodes that give the int8 codes in the weight's shape; return their name."""
        if self.source != "planes":
            return "p"
        shifts = body.add(
            "Constant",
            value=TensorProto(
                data_type=TensorProto.UINT8, dims=[8, 1, 1], raw_data=bytes(range(8))
            ),
        )
        one = body.add("Constant", value=TensorProto(data_type=TensorProto.UINT8, raw_data=b"\1"))
        digits = body.add("BitwiseAnd", body.add("BitShift", "p", shifts, direction="RIGHT"), one)
        if self.odd:  # 0 and 2 with zero point 1: ±1
            digits = body.add("BitShift", digits, one, direction="LEFT")
            codes = body.add("MatMulInteger", digits, "h", one)
        else:
            codes = body.add("MatMulInteger", digits, "h")
        codes = body.add("Cast", codes, to=TensorProto.INT8)
        shape = body.shape()
        if self.cut:
            codes = body.add("Reshape", codes, body.integers(-1))
            size = body.add("ReduceProd", shape)
            codes = body.add("Slice", codes, body.integers(0), size)
        return body.add("Reshape", codes, shape)


class _Body:
    """Nodes of a function, with short names for what they compute."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self._known: dict[str, str] = {}

    def add(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Append a node; return its output's name."""
        name = out or chr(ord("A") + len(self.nodes))
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def integer(self, value: int) -> str:
        """Return the name of a scalar int64 constant."""
        return self._once(f"i{value}", value_int=value)

    def integers(self, *values: int) -> str:
        """Return the name of an int64 vector."""
        return self._once(f"v{values}", value_ints=list(values))

    def shape(self) -> str:
        """Return the name of the call's attribute s, the weight's shape."""
        name = chr(ord("A") + len(self.nodes))
        node = helper.make_node("Constant", [], [name])
        node.attribute.append(
            AttributeProto(name="value_ints", ref_attr_name="s", type=AttributeProto.INTS)
        )
        self.nodes.append(node)
        return name

    def _once(self, key: str, **attributes: Any) -> str:
        if key not in self._known:
            self._known[key] = self.add("Constant", **attributes)
        return self._known[key]
