"""The pass through a network: order, what is left alone, and the teacher it aims at."""

import pytest
import torch

from autocompress.errors import InputError
from autocompress.models.trace import trace
from autocompress.spec.plan import Plan
from autocompress.transforms.options import Options
from autocompress.transforms.rebuild import rebuild
from autocompress.transforms.teacher import Teacher, gather_inputs
from tests.transforms.nets import PLAIN, Residual, calibration, trained


def run(plan: Plan, teacher: Teacher, tensors: dict[str, int] | None = None):
    return rebuild(teacher, teacher.network, plan, tensors or {}, {}, Options(), PLAIN)


def test_layers_before_the_first_change_stay_to_the_bit() -> None:
    network = trained(Residual)
    rebuilt = run(Plan({"point/w_bits": 4}), Teacher(network, calibration()))
    assert set(rebuilt.weights) <= {"point.weight", "point.bias"}
    order = [layer.name for layer in network.layers]
    first = order.index("point")
    for layer in network.layers[:first]:
        assert layer.weight not in rebuilt.params
    for layer in network.layers[first:]:  # they make good what the 4 bits spoil
        assert layer.weight in rebuilt.params


def test_the_widest_of_the_widths_of_a_shared_weight_is_taken() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(torch.relu(self.fc(x)))

    network = trace(Twice().eval(), (torch.randn(1, 8),))
    first, second = (layer.name for layer in network.layers)
    teacher = Teacher(network, [(torch.randn(64, 8),)])
    rebuilt = run(Plan({f"{first}/w_bits": 3, f"{second}/w_bits": 6}), teacher)
    assert {code.bits for code in rebuilt.weights.values()} == {6}


def test_ranges_are_those_of_the_compressed_networks_tensors() -> None:
    network = trained(Residual)
    node = network.layers[1].node
    source = next(n for n in network.graph.nodes if n.name == node).args[0].name
    rebuilt = run(Plan({"conv1/w_bits": 8}), Teacher(network, calibration()), {source: 8})
    assert set(rebuilt.activations) == {source}
    assert rebuilt.activations[source].bits == 8


def test_calibration_is_gathered_up_to_a_limit_and_never_empty() -> None:
    network = trained(Residual)
    batches = [(torch.randn(30, 1, 8, 8),), (torch.randn(30, 1, 8, 8),)]
    (taken,) = gather_inputs(network, batches, 40)
    assert torch.equal(taken, torch.cat([batches[0][0], batches[1][0][:10]]))
    with pytest.raises(InputError, match="at least one input"):
        gather_inputs(network, [], 40)


def test_the_teacher_aims_at_sums_where_layers_end_in_one() -> None:
    network = trained(Residual)
    targets = Teacher(network, calibration()).targets
    assert targets["conv2"].other is not None
    assert targets["conv1"].other is None
    assert Teacher(network, calibration(), correct_sums=False).targets["conv2"].other is None


def test_held_bytes_are_counted() -> None:
    teacher = Teacher(trained(Residual), calibration())
    at_least = sum(t.outputs.numel() * 4 for t in teacher.targets.values())
    assert teacher.nbytes > at_least


def test_outputs_are_those_of_the_rebuilt_network_whatever_is_known() -> None:
    network = trained(Residual)
    teacher, plan = Teacher(network, calibration()), Plan({"conv1/w_bits": 3, "fc/w_bits": 2})
    (bare,) = run(plan, teacher).outputs
    values: dict[str, object] = {}

    def observe(node: torch.fx.Node, value: object) -> None:
        values[node.name] = value

    network.run(*teacher.inputs, observe=observe)
    kept = dict(values)
    for known in ({}, dict(list(values.items())[:5]), values):
        rebuilt = rebuild(teacher, network, plan, {}, {}, Options(), PLAIN, known=known)
        wanted = network.replace(params=rebuilt.params).run(*teacher.inputs)
        assert len(rebuilt.outputs) == 1
        torch.testing.assert_close(rebuilt.outputs[0], bare, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(rebuilt.outputs[0], wanted, rtol=1e-3, atol=1e-3)
        plain = run(plan, teacher).params
        assert set(rebuilt.params) == set(plain)
        for name, value in plain.items():
            torch.testing.assert_close(rebuilt.params[name], value, rtol=1e-3, atol=1e-3)
    assert values == kept  # nothing was taken out or put in
