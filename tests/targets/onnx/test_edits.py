"""Shape constants of pruned copies."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from autocompress.targets.onnx import writer as onnx_writer
from autocompress.targets.onnx.edits import NotPlain, apply_edits, check_shapes
from autocompress.targets.onnx.strip import tensor
from autocompress.targets.onnx.template import graph_args, make_template
from autocompress.targets.onnx.writer import OnnxBuilder
from autocompress.targets.onnxruntime import OnnxRuntime
from tests.targets.support import Attention, Shuffled, builder, inputs, network, pruned, rounded


@pytest.mark.parametrize(("kind", "shape"), [(Shuffled, (2, 8, 8)), (Attention, (5, 6))])
@pytest.mark.parametrize("keep", [0.75, 0.5, 0.2])
def test_constants_are_edited_without_an_export(
    kind: type, shape: tuple[int, ...], keep: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network(kind, *shape)
    build = builder("onnxruntime", net).build
    small = pruned(net, keep)
    assert graph_args(small.graph) != graph_args(net.graph)
    monkeypatch.delattr(onnx_writer, "make_template")
    session = OnnxRuntime().open(build(rounded(small), tmp_path / "a").path)
    (x,) = inputs(net)
    np.testing.assert_allclose(session(x.numpy()), small(x).numpy(), atol=1e-5)


def test_what_is_not_plain_is_exported_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network(Shuffled, 2, 8, 8)
    small = pruned(net, 0.5)
    template = make_template(net)
    lost = type(template)(**{**template.__dict__, "inner": {}})
    exports = []

    def count(*arguments: object) -> object:
        exports.append(arguments)
        return make_template(*arguments)

    monkeypatch.setattr(onnx_writer, "make_template", count)
    build = OnnxBuilder(lost, "onnxruntime", 4_000_000).build
    path = build(rounded(small, 4, 8), tmp_path / "a").path
    assert len(exports) == 1
    (x,) = inputs(net)
    expected = rounded(small, 4, 8)(x).numpy()
    found = OnnxRuntime().open(path)(x.numpy())
    assert np.abs(found - expected).max() <= 0.06 * np.abs(expected).max()


def test_an_unchanged_graph_is_not_edited() -> None:
    net = network(Shuffled, 2, 8, 8)
    template = make_template(net)
    model = onnx.load_from_string(template.model)
    assert apply_edits(model, template.inner, template.args, graph_args(net.graph)) is None
    assert model.SerializeToString(deterministic=True) == template.model


def model_of(*nodes: onnx.NodeProto, constants: dict[str, list[int]]) -> onnx.ModelProto:
    graph = onnx.helper.make_graph(
        list(nodes),
        "g",
        [onnx.helper.make_tensor_value_info("input", 1, ["N", 8, 4, 4])],
        [onnx.helper.make_tensor_value_info("output", 1, None)],
        [tensor(name, np.array(value, np.int64)) for name, value in constants.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])


def test_padding_is_in_the_other_order() -> None:
    node = onnx.helper.make_node("Pad", ["input", "p"], ["output"])
    model = model_of(node, constants={"p": [0, 2, 0, 0, 0, 3, 0, 0]})
    old = {"pad": (("%x", (0, 0, 0, 0, 2, 3), 0.0), ())}
    new = {"pad": (("%x", (0, 0, 0, 0, 1, 5), 0.0), ())}
    assert apply_edits(model, {"pad": (0,)}, old, new) == []
    added = onnx.numpy_helper.to_array(model.graph.initializer[-1])
    assert added.tolist() == [0, 1, 0, 0, 0, 5, 0, 0]
    assert model.graph.node[0].input[1] == model.graph.initializer[-1].name


def test_slices_share_constants_that_are_not_shared_after() -> None:
    first = onnx.helper.make_node("Slice", ["input", "zero", "end", "one"], ["a"])
    second = onnx.helper.make_node("Slice", ["a", "zero", "end", "two"], ["output"])
    model = model_of(first, second, constants={"zero": [0], "end": [4], "one": [1], "two": [2]})
    old = {"s": (("%x", 1, 0, 4), ()), "t": (("%s", 2, 0, 4), ())}
    new = {"s": (("%x", 1, 0, 3), ()), "t": (("%s", 2, 0, 4), ())}
    apply_edits(model, {"s": (0,), "t": (1,)}, old, new)
    values = {i.name: onnx.numpy_helper.to_array(i).tolist() for i in model.graph.initializer}
    ends = [values[node.input[2]] for node in model.graph.node]
    assert ends == [[3], [4]]


def test_an_ambiguous_constant_is_refused() -> None:
    node = onnx.helper.make_node("Tile", ["input", "r"], ["output"])
    model = model_of(node, constants={"r": [4, 4, 2, 2]})
    old = {"t": (("%x", (4, 4, 2, 2)), ())}
    with pytest.raises(NotPlain):
        apply_edits(model, {"t": (0,)}, old, {"t": (("%x", (4, 3, 2, 2)), ())})
    with pytest.raises(NotPlain):
        apply_edits(model, {"t": (0,)}, old, {"t": (("%x", (4, 4, 2)), ())})
    with pytest.raises(NotPlain):
        apply_edits(model, {}, old, {"t": (("%x", (4, 3, 2, 2)), ())})


def test_shapes_that_do_not_fit_are_refused() -> None:
    node = onnx.helper.make_node("Conv", ["input", "w"], ["output"])
    model = model_of(node, constants={})
    check_shapes(model, {"w": (5, 8, 1, 1)}, [("output", 1, 5)])
    with pytest.raises(NotPlain, match="not 7 in dimension 1"):
        check_shapes(model, {"w": (5, 7, 1, 1)})
    with pytest.raises(NotPlain, match="not 6 in dimension 1"):
        check_shapes(model, {"w": (5, 8, 1, 1)}, [("output", 1, 6)])
