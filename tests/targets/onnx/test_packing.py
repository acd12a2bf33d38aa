"""Bit planes, unpacked by the real runtime, against the obvious way."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from autocompress.targets.onnx.packing import DOMAIN, Form, pack, place_values

WIDTHS = [(bits, odd) for bits in range(2, 9) for odd in (False, True) if bits < 8 or not odd]


def codes_of(shape: tuple[int, ...], bits: int, odd: bool) -> np.ndarray:
    digits = np.random.default_rng(bits).integers(0, 2**bits, shape)
    return (2 * digits + 1 - 2**bits if odd else digits - 2 ** (bits - 1)).astype(np.int8)


def unpack_slowly(packed: np.ndarray, count: int, bits: int, odd: bool) -> list[int]:
    codes = []
    runs = len(packed)
    for place in range(count):
        run, item = divmod(place, runs)
        digits = [(int(packed[item, bit]) >> run) & 1 for bit in range(bits)]
        if odd:
            codes.append(sum((2 * d - 1) * 2**bit for bit, d in enumerate(digits)))
        else:
            value = sum(d << bit for bit, d in enumerate(digits))
            codes.append(value - 2**bits if digits[-1] else value)
    return codes


@pytest.mark.parametrize(("bits", "odd"), WIDTHS)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 45, 64, 333])
def test_planes_hold_the_codes(bits: int, odd: bool, count: int) -> None:
    codes = codes_of((count,), bits, odd)
    packed = pack(codes, bits, odd)
    assert packed.shape == (-(-count // 8), bits)
    assert unpack_slowly(packed, count, bits, odd) == codes.tolist()


@pytest.mark.parametrize(("bits", "odd"), [w for w in WIDTHS if w[0] < 8])
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (16, 4, 3, 3), (7, 9), (1, 1)])
def test_the_runtime_unpacks_them(bits: int, odd: bool, shape: tuple[int, ...]) -> None:
    codes = codes_of(shape, bits, odd)
    generator = np.random.default_rng(0)
    scale = (generator.random(shape[0]) + 0.5).astype(np.float16)
    bias = generator.standard_normal(shape[0]).astype(np.float16)
    ones = [1] * (len(shape) - 1)
    for integer in (False, True):
        form = Form("planes", integer, True, odd=odd, cut=codes.size % 8 != 0)
        both = np.stack([scale, bias])
        arrays = {
            "p": pack(codes, bits, odd),
            "h": place_values(bits, odd),
            "s": both if integer else both.reshape(2, -1, *ones),
            "x": np.array(0.001, np.float32),
        }
        weight, shift = run(form, arrays, shape)
        np.testing.assert_array_equal(weight, codes * scale.astype(np.float32).reshape(-1, *ones))
        np.testing.assert_allclose(shift, bias, atol=1e-3 if integer else 0)


def run(form: Form, arrays: dict[str, np.ndarray], shape: tuple[int, ...]) -> list[np.ndarray]:
    call = helper.make_node(form.name, form.inputs, ["w", "b"], domain=DOMAIN, s=list(shape))
    graph = helper.make_graph(
        [call],
        "g",
        [],
        [
            helper.make_tensor_value_info("w", 1, list(shape)),
            helper.make_tensor_value_info("b", 1, [shape[0]]),
        ],
        [numpy_helper.from_array(arrays[name], name) for name in form.inputs],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)],
        functions=[form.function(18)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {})


def test_codes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"3 bits must lie in \[-4, 3\]"):
        pack(np.array([4], np.int8), 3)
    with pytest.raises(ValueError, match=r"2 bits must lie in \[-3, 3\]"):
        pack(np.array([5], np.int8), 2, odd=True)


def test_forms_have_names_of_their_own() -> None:
    flags = (False, True)
    forms = [
        Form(source, integer, bias, axis, odd, cut, native)
        for source in ("planes", "int8")
        for integer in flags
        for bias in flags
        for axis in (0, 1)
        for odd in flags
        for cut in flags
        for native in flags
    ]
    assert len({form.name for form in forms}) == len(forms)
