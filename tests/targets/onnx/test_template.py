"""The table of what came from where, checked by content."""

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import TraceError
from autocompress.models.trace import trace
from autocompress.targets.onnx import template as onnx_template
from autocompress.targets.onnx.template import make_template
from tests.targets.support import Attention, Residual, Shuffled, network

pytestmark = pytest.mark.exporter


@pytest.mark.parametrize(
    ("kind", "shape"), [(Residual, (3, 8, 8)), (Shuffled, (2, 8, 8)), (Attention, (5, 6))]
)
def test_every_parameter_and_layer_is_found(kind: type, shape: tuple[int, ...]) -> None:
    net = network(kind, *shape)
    template = make_template(net)
    assert set(template.places) == set(net.params)
    assert {layer.node for layer in net.layers} <= set(template.values)
    model = onnx.load_from_string(template.model)
    kept = {initializer.name for initializer in model.graph.initializer}
    assert not kept & {p.initializer for found in template.places.values() for p in found}
    assert len(template.model) < 200 * len(model.graph.node)  # no weight is left inside


def test_transposed_weights_are_recognised() -> None:
    """A linear layer of 3-d input is exported as a product with the transposed weight."""
    net = network(Attention, 5, 6)
    places = make_template(net).places
    (place,) = places["embed.weight"]
    assert place.axes == (1, 0)
    value = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(place.arrange(value), value.T)
    assert places["head.weight"][0].axes == (0, 1)  # Gemm takes it as it is


class Twice(nn.Module):
    """One parameter in two places, equal biases, two outputs, one of them an inner value."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        nn.init.zeros_(self.a.bias)
        nn.init.zeros_(self.b.bias)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.tanh(self.a(x) * self.a.weight.sum() + y)
        return hidden, self.b(hidden)


def test_shared_parameters_and_several_ends() -> None:
    net = trace(Twice().eval(), (torch.randn(1, 4), torch.randn(1, 4)))
    template = make_template(net)
    model = onnx.load_from_string(template.model)
    assert [info.name for info in model.graph.output] == ["output0", "output1"]
    assert [info.name for info in model.graph.input] == ["x", "y"]
    biases = {template.places[f"{name}.bias"][0].initializer for name in "ab"}
    assert len(biases) == 2  # equal contents, told apart by the markers


def test_a_graph_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(Residual, 3, 8, 8)
    export = onnx_template._export

    def wrong(*arguments: object) -> tuple[onnx.ModelProto, torch.fx.Graph]:
        model, origin = export(*arguments)
        next(n for n in model.graph.node if n.op_type == "Relu").op_type = "Sigmoid"
        return model, origin

    monkeypatch.setattr(onnx_template, "_export", wrong)
    with pytest.raises(TraceError, match="must compute what the network computes"):
        make_template(net)


def test_an_operator_that_cannot_be_exported_is_named() -> None:
    class Distances(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(x[:, None], 2 * x[:, None])

    net = trace(Distances().eval(), (torch.randn(1, 4),))
    with pytest.raises(TraceError, match="_cdist_forward"):
        make_template(net)


def test_the_exporter_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    make_template(network(Residual, 3, 8, 8))
    assert capfd.readouterr() == ("", "")
