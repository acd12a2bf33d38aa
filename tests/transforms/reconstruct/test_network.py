"""The pass through a network: order, what is left alone, and the reference it aims at."""

import pytest
import torch

from autocompress.core.plan import Plan
from autocompress.errors import InputError
from autocompress.models.trace import trace
from autocompress.transforms.options import Options
from autocompress.transforms.reconstruct.network import rebuild
from autocompress.transforms.reference import Reference, gather_inputs
from tests.transforms.nets import PLAIN, Residual, calibration, trained


def run(plan: Plan, reference: Reference, tensors: dict[str, int] | None = None):
    return rebuild(reference, reference.network, plan, tensors or {}, {}, Options(), PLAIN)


def test_layers_before_the_first_change_stay_to_the_bit() -> None:
    network = trained(Residual)
    rebuilt = run(Plan({"point/w_bits": 4}), Reference(network, calibration()))
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
    reference = Reference(network, [(torch.randn(64, 8),)])
    rebuilt = run(Plan({f"{first}/w_bits": 3, f"{second}/w_bits": 6}), reference)
    assert {code.bits for code in rebuilt.weights.values()} == {6}


def test_ranges_are_those_of_the_compressed_networks_tensors() -> None:
    network = trained(Residual)
    node = network.layers[1].node
    source = next(n for n in network.graph.nodes if n.name == node).args[0].name
    rebuilt = run(Plan({"conv1/w_bits": 8}), Reference(network, calibration()), {source: 8})
    assert set(rebuilt.activations) == {source}
    assert rebuilt.activations[source].bits == 8


def numbered(count: int, size: int) -> list[tuple[torch.Tensor, ...]]:
    """Return batches of ``size`` inputs, the n-th of which is full of n."""
    whole = torch.arange(count).float().reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    return [(batch,) for batch in whole.split(size)]


def test_calibration_is_drawn_over_all_inputs_up_to_a_limit_and_never_empty() -> None:
    network = trained(Residual)
    (taken,), given = gather_inputs(network, numbered(60, 30), 60)
    assert given == 60
    assert torch.equal(taken[:, 0, 0, 0], torch.arange(60).float())  # all, in their order
    (taken,), given = gather_inputs(network, numbered(5000, 77), 200)
    assert (len(taken), given) == (200, 5000)
    places = taken[:, 0, 0, 0]
    assert torch.equal(places, places.unique())
    quarters = torch.bincount((places / 1250).long())
    assert len(quarters) == 4
    assert quarters.min() >= 30
    with pytest.raises(InputError, match="at least one input"):
        gather_inputs(network, [], 40)


def test_what_is_drawn_depends_on_the_data_and_the_seed_alone() -> None:
    network = trained(Residual)
    (taken,), _ = gather_inputs(network, numbered(300, 300), 50)
    for size in (1, 7, 50, 128):
        (same,), _ = gather_inputs(network, iter(numbered(300, size)), 50)
        assert torch.equal(same, taken)
    (other,), _ = gather_inputs(network, numbered(300, 300), 50, seed=1)
    assert not torch.equal(other, taken)


def test_the_inputs_of_a_pair_stay_together() -> None:
    network = trained(Residual)
    pairs = [(x, -x) for (x,) in numbered(90, 20)]
    (left, right), given = gather_inputs(network, pairs, 16)
    assert given == 90
    assert torch.equal(left, -right)


def test_a_teacher_says_how_many_inputs_it_uses() -> None:
    network = trained(Residual)
    assert Reference(network, numbered(60, 30)).note == ""
    reference = Reference(network, numbered(60, 30), limit_images=20)
    assert reference.note == "20 of the 60 calibration inputs are used, drawn over all of them"


def test_the_teacher_aims_at_sums_where_layers_end_in_one() -> None:
    network = trained(Residual)
    targets = Reference(network, calibration()).targets
    assert targets["conv2"].other is not None
    assert targets["conv1"].other is None
    assert Reference(network, calibration(), correct_sums=False).targets["conv2"].other is None


def test_held_bytes_are_counted() -> None:
    reference = Reference(trained(Residual), calibration())
    at_least = sum(t.outputs.numel() * 4 for t in reference.targets.values())
    assert reference.nbytes > at_least


def test_outputs_are_those_of_the_rebuilt_network_whatever_is_known() -> None:
    network = trained(Residual)
    reference, plan = Reference(network, calibration()), Plan({"conv1/w_bits": 3, "fc/w_bits": 2})
    (bare,) = run(plan, reference).outputs
    values: dict[str, object] = {}

    def observe(node: torch.fx.Node, value: object) -> None:
        values[node.name] = value

    network.run(*reference.inputs, observe=observe)
    kept = dict(values)
    for known in ({}, dict(list(values.items())[:5]), values):
        rebuilt = rebuild(reference, network, plan, {}, {}, Options(), PLAIN, known=known)
        wanted = network.replace(params=rebuilt.params).run(*reference.inputs)
        assert len(rebuilt.outputs) == 1
        torch.testing.assert_close(rebuilt.outputs[0], bare, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(rebuilt.outputs[0], wanted, rtol=1e-3, atol=1e-3)
        plain = run(plan, reference).params
        assert set(rebuilt.params) == set(plain)
        for name, value in plain.items():
            torch.testing.assert_close(rebuilt.params[name], value, rtol=1e-3, atol=1e-3)
    assert values == kept  # nothing was taken out or put in
