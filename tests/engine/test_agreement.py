"""Files beside what they should be, and refusals that name the layer."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.core.plan import Plan
from autocompress.engine.agreement import arrays_of, farthest, refused
from autocompress.errors import ArtifactError
from autocompress.models.trace import trace
from autocompress.targets import make_target
from autocompress.transforms.compressor import Compressor


def test_outputs_are_taken_in_the_order_of_a_file() -> None:
    def model(x: torch.Tensor) -> object:
        return {"b": x, "a": (None, [x + 1, "a word"])}

    found = arrays_of(model, (torch.zeros(2),))
    assert [value.tolist() for value in found] == [[0, 0], [1, 1]]


def test_a_model_that_writes_its_input_leaves_that_of_others_alone() -> None:
    x = torch.ones(2)
    assert arrays_of(lambda value: value.mul_(2), (x,))[0].tolist() == [2, 2]
    assert x.tolist() == [1, 1]


@pytest.mark.parametrize("shift", [0.0, 0.5, math.nan])
def test_the_worst_output_counts_in_units_of_its_own_deviation(shift: float) -> None:
    x = torch.randn(64, 100)
    wanted = (1000 * x.numpy(), x.numpy().astype(np.float32))

    def session(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        return 1000 * arrays[0], arrays[0] + np.float32(shift)

    away = farthest(session, (x,), wanted)
    if math.isnan(shift):
        assert away == math.inf
    else:
        assert away == pytest.approx(shift, rel=0.05)
    assert farthest(session, (x,), wanted[:1]) == math.inf
    assert farthest(session, (x[:2],), wanted) == math.inf


def test_a_model_may_drop_dimensions_of_one() -> None:
    x = torch.randn(1, 1)
    assert farthest(lambda value: value[0], (x,), (x.numpy()[0, 0],)) == 0


def test_outputs_that_are_all_alike_do_not_differ_by_rounding() -> None:
    x = torch.zeros(8, 4)
    wanted = (np.full((8, 4), 1000.0, np.float32),)
    assert farthest(lambda *_: wanted[0] * np.float32(1 + 3e-7), (x,), wanted) < 0.01


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_refusal_names_the_layer(name: str, tmp_path: Path, monkeypatch) -> None:
    """The file asks for a channel that there is not, as an exporter's forgotten constant does."""
    target = make_target(name)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    inputs = (torch.randn(4, 3, 8, 8),)
    network = trace(model.eval(), (inputs[0][:1],))
    compressed = Compressor(network, [inputs], target.abilities).compress(Plan())
    builder = target.prepare(network)
    whole = type(builder).content

    def broken(self, compressed, *, named=False):
        import onnx

        file = onnx.ModelProto.FromString(whole(self, compressed, named=named))
        flat = next(node for node in file.graph.node if node.op_type in ("Reshape", "Flatten"))
        index = onnx.numpy_helper.from_array(np.array([9]), "index")
        file.graph.initializer.append(index)
        gather = onnx.helper.make_node(
            "Gather", [flat.input[0], "index"], ["gathered"], axis=1,
            name=flat.name.replace("/", "/0") if named else "",
        )  # fmt: skip
        at = list(file.graph.node).index(flat)
        file.graph.node.insert(at, gather)
        file.graph.node[at + 1].input[0] = "gathered"
        return file.SerializeToString()

    monkeypatch.setattr(type(builder), "content", broken)
    artifact = builder.build(compressed, tmp_path / "m.onnx")
    with pytest.raises(Exception) as caught:
        target.open(artifact.path)(inputs[0].numpy())
    error = refused(target, builder, compressed, inputs, caught.value)
    assert isinstance(error, ArtifactError)
    assert f"{target.version} refuses this one at '2' (" in str(error)
