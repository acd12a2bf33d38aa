"""Stripped models compute what they did, with fewer bytes."""

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from autocompress.targets.onnx.strip import strip, tensor


def wordy() -> onnx.ModelProto:
    """Constants as nodes and twice, defaults spelled out, a value that is two outputs."""
    shape = helper.make_node("Constant", [], ["s"], value_ints=[-1, 4])
    again = helper.make_node("Constant", [], ["s2"], value_ints=[-1, 4])
    conv = helper.make_node(
        "Conv", ["output", "w"], ["c"], name="layer/conv", doc_string="…", group=1,
        kernel_shape=[1, 1], strides=[1, 1], pads=[0] * 4, dilations=[1, 1], auto_pad="NOTSET",
    )  # fmt: skip
    first = helper.make_node("Reshape", ["c", "s"], ["r"], allowzero=1)
    second = helper.make_node("Reshape", ["r", "s2"], ["input"], allowzero=1)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [shape, again, conv, first, second],
        "a graph with a long name",
        [info("output", 1, ["batch", 2, 2, 2])],
        [info("input", 1, ["n", 4]), info("r", 1, ["n", 4])],
        [tensor("w", np.arange(6, dtype=np.float32).reshape(3, 2, 1, 1))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    model.producer_name = "somebody"
    return model


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: x})


def test_stripping_keeps_what_is_computed() -> None:
    before, after = wordy(), wordy()
    strip(after, ["x"])
    onnx.checker.check_model(after, full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 2, 2, 2)).astype(np.float32)
    for one, other in zip(run(before, x), run(after, x), strict=True):
        np.testing.assert_array_equal(one, other)


def test_stripping_drops_the_rest() -> None:
    model = wordy()
    strip(model, ["x"])
    assert [node.op_type for node in model.graph.node] == ["Conv", "Reshape", "Reshape"]
    assert not any(node.attribute or node.name for node in model.graph.node)
    assert len(model.graph.initializer) == 2  # the weight, and the one shape
    assert not model.producer_name
    assert [info.name for info in model.graph.input] == ["input"]
    assert [info.name for info in model.graph.output] == ["output0", "output1"]


def test_names_of_inputs_are_free_of_those_of_outputs_and_values() -> None:
    add = helper.make_node("Add", ["a", "b"], ["c"])
    split = helper.make_node("Add", ["c", "b"], ["d"])
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [add, split],
        "g",
        [info("a", 1, ["n"]), info("b", 1, ["n"])],
        [info("c", 1, ["n"]), info("d", 1, ["n"])],
    )
    for names in (["output1", "output0_"], ["_1", "_2"], ["_3", "x"]):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        strip(model, names)
        onnx.checker.check_model(model, full_check=True)
        assert [value.name for value in model.graph.input] == names
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        one, two = np.ones(2, np.float32), np.full(2, 3, np.float32)
        first, second = session.run(None, dict(zip(names, (one, two), strict=True)))
        assert first.tolist() == [4, 4]
        assert second.tolist() == [7, 7]
