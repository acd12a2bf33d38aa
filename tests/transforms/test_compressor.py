from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress.core.abilities import Abilities
from autocompress.core.plan import Plan
from autocompress.errors import InputError, PlanError
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.transforms.compressor import Compressed, Compressor, QuantizedWeight, compress
from autocompress.transforms.options import Options
from tests.transforms.nets import (
    BITS,
    EDGES,
    PLAIN,
    Mixer,
    Residual,
    accuracy,
    calibration,
    held_out,
    trained,
)

NETS = [Residual, Mixer]


def uniform(network: Network, **knobs: float) -> Plan:
    settings: dict[str, float] = {}
    for knob, value in knobs.items():
        places = network.units if knob == "keep" else network.layers
        settings.update({f"{place.name}/{knob}": value for place in places})
    return Plan(settings)


def divergence(network: Network, found: Compressed) -> float:
    """KL of the simulated outputs to the reference's, held-out images."""
    wanted, got = (run(held_out()).log_softmax(1) for run in (network, found))
    return float((wanted.exp() * (wanted - got)).sum(1).mean())


@pytest.mark.parametrize("kind", NETS)
def test_a_plan_that_sets_nothing_changes_nothing(kind: type[nn.Module]) -> None:
    network = trained(kind)
    found = compress(network, Plan(), calibration(), PLAIN)
    assert found.network is network
    assert not found.weights
    assert not found.activations
    assert torch.equal(found(held_out()), network(held_out()))


def test_layers_before_the_first_change_stay_as_they_are() -> None:
    network = trained(Residual)
    found = compress(network, Plan({"fc/w_bits": 4}), calibration(), PLAIN)
    changed = {n for n, v in found.network.params.items() if not torch.equal(v, network.params[n])}
    assert changed == {"fc.weight", "fc.bias"}
    assert set(found.weights) == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("kind", NETS)
def test_inputs_are_never_changed_and_results_repeat(kind: type[nn.Module]) -> None:
    network, data = trained(kind), calibration()
    params = {name: value.clone() for name, value in network.params.items()}
    inputs = [value.clone() for (value,) in data]
    graph = str(network.graph)
    compressor = Compressor(network, data, EDGES)
    plans = [uniform(network, keep=0.5, w_bits=3, a_bits=8), uniform(network, w_bits=2)]
    first = compressor.compress(plans[0])
    size = compressor.nbytes
    for _ in range(6):
        for plan in plans:
            compressor.compress(plan)
    assert compressor.nbytes == size
    again = Compressor(network, data, EDGES).compress(plans[0])
    assert torch.equal(first(held_out()), again(held_out()))
    assert torch.equal(first(held_out()), compressor.compress(plans[0])(held_out()))
    assert all(torch.equal(network.params[name], value) for name, value in params.items())
    assert all(torch.equal(value, old) for (value,), old in zip(data, inputs, strict=True))
    assert str(network.graph) == graph


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize(("bits", "lost"), [(8, 0.005), (4, 0.02), (3, 0.04), (2, 0.1)])
def test_few_bits_lose_little(kind: type[nn.Module], bits: int, lost: float) -> None:
    network = trained(kind)
    found = compress(network, uniform(network, w_bits=bits), calibration(), PLAIN)
    assert accuracy(found(held_out())) >= accuracy(network(held_out())) - lost
    for layer in network.layers:
        weight = found.weights[layer.weight]
        assert isinstance(weight, QuantizedWeight)
        assert weight.bits == bits
        assert torch.equal(found.network.params[layer.weight], torch.from_numpy(weight.values))


def test_each_part_of_the_repair_helps() -> None:
    network = trained(Residual)
    plan = uniform(network, w_bits=3)
    off = {"refit": False, "bn": False, "compensate": False}
    chain: list[Mapping[str, Any]] = [
        off,
        {**off, "bn": True},
        {**off, "bn": True, "refit": True},
        {},
    ]
    kls = [
        divergence(network, compress(network, plan, calibration(), PLAIN, Options(**o)))
        for o in chain
    ]
    assert kls[0] > kls[2] > kls[3]
    assert kls[3] < 0.3 * kls[0]


@pytest.mark.parametrize("importance", ["energy", "l1", "l2"])
def test_refit_mends_pruning(importance: str) -> None:
    network = trained(Residual)
    plan = uniform(network, keep=0.5)
    mended = compress(network, plan, calibration(), PLAIN, Options(importance=importance))
    plain = compress(
        network, plan, calibration(), PLAIN, Options(importance=importance, refit=False)
    )
    assert divergence(network, mended) < 0.3 * divergence(network, plain)
    assert mended.network.params["conv1.weight"].shape == (8, 8, 3, 3)


def test_energy_chooses_better_than_magnitude() -> None:
    network = trained(Residual)
    plan = Plan({"conv1/keep": 0.25})
    kls = {
        name: divergence(
            network, compress(network, plan, calibration(), PLAIN, Options(importance=name))
        )
        for name in ("energy", "l1", "l2")
    }
    assert kls["energy"] < min(kls["l1"], kls["l2"])


def test_removing_what_is_redundant_costs_nothing() -> None:
    """Channels that are copies of others can go, and the refit makes that exact."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Conv2d(12, 5, 3)).eval()
    with torch.no_grad():
        model[0].weight[6:] = 0.5 * model[0].weight[:6]
        model[0].bias[6:] = 0.5 * model[0].bias[:6]
    network = trace(model, (held_out()[:1],))
    found = compress(network, Plan({"0/keep": 0.5}), calibration(), PLAIN, Options(ridge=1e-6))
    assert found.network.params["0.weight"].shape[0] == 6
    torch.testing.assert_close(found(held_out()), network(held_out()), atol=4e-3, rtol=1e-3)


def test_float16_weights_and_their_neighbours() -> None:
    network = trained(Residual)
    plan = Plan({"conv1/w_bits": 16, "fc/w_bits": 4})
    found = compress(network, plan, calibration(), PLAIN)
    assert found.weights["conv1.weight"] == "float16"
    value = found.network.params["conv1.weight"]
    assert torch.equal(value, value.half().float())


def test_a_shared_weight_is_stored_once() -> None:
    network = trained(Mixer)
    readers = Counter(layer.weight for layer in network.layers)
    shared = {weight for weight, count in readers.items() if count > 1}
    assert shared
    narrow = uniform(network, w_bits=3)
    name = next(layer.name for layer in network.layers if layer.weight in shared)
    found = compress(network, narrow, calibration(), PLAIN)
    mixed = Plan({**narrow.settings, f"{name}/w_bits": 6})
    wider = compress(network, mixed, calibration(), PLAIN)
    weight = network.layer(name).weight
    stored = found.weights[weight], wider.weights[weight]
    assert [w.bits for w in stored if isinstance(w, QuantizedWeight)] == [3, 6]


def test_the_simulation_rounds_what_it_says() -> None:
    network = trained(Residual)
    found = compress(network, uniform(network, w_bits=8, a_bits=8), calibration(), EDGES)
    seen: dict[str, Tensor] = {}

    def observe(node: Any, value: Tensor) -> Tensor | None:
        chosen = found.activations.get(node.name)
        seen[node.name] = value if chosen is None else chosen.simulate(value)
        return seen[node.name]

    assert torch.equal(found.network.run(held_out(), observe=observe), found(held_out()))
    assert set(found.activations) <= set(seen)
    assert not torch.equal(found(held_out()), found.network(held_out()))
    assert accuracy(found(held_out())) >= accuracy(network(held_out())) - 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conv3/w_bits": 4}, "Did you mean 'conv"),
        ({"sten/a_bits": 8}, "Unknown layer 'sten'. Did you mean 'stem'"),
        ({"con1/keep": 0.5}, "Unknown unit"),
        ({"fc/keep": 0.5}, "channels of 'fc' cannot be pruned"),
        ({"fc/w_bits": 9}, "w_bits must be what the target offers"),
        ({"fc/a_bits": 4}, "a_bits must be what the target offers"),
    ],
)
def test_plans_that_do_not_fit(settings: dict[str, float], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        compress(trained(Residual), Plan(settings), calibration(), PLAIN)


def test_other_refusals() -> None:
    network = trained(Residual)
    unit = network.units[0].name
    with pytest.raises(PlanError, match="cannot write pruned"):
        compress(
            network, Plan({f"{unit}/keep": 0.5}), calibration(), Abilities(BITS, (32,), keep=False)
        )
    with pytest.raises(PlanError, match="Only a teacher"):
        compress(network, Plan({}, {"family": "resnet"}), calibration(), PLAIN)
    with pytest.raises(InputError, match="Did you mean 'energy'"):
        Compressor(network, calibration(), PLAIN, Options(importance="enery"))
    with pytest.raises(InputError, match="calibration method"):
        Compressor(network, calibration(), PLAIN, Options(calibrate="mess"))
    with pytest.raises(InputError, match="at least one input"):
        Compressor(network, [], PLAIN)
    for wrong, text in (({"ridge": 0}, "ridge"), ({"refit": 1}, "refit must be true or false")):
        with pytest.raises(InputError, match=text):
            Options(**wrong)
    with pytest.raises(InputError, match="Did you mean 'refit'"):
        Options.of({"refits": True})
    assert Options.of({"bn": False}) == Options(bn=False)


class Tokens(nn.Module):
    """Layers whose first dimension is not the batch: positions first, as nn.LSTM has them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.fc(x.transpose(0, 1)).transpose(0, 1))[0].mean(1))


def error_of(network: Network, plan: Plan, x: Tensor, **options: bool) -> float:
    found = compress(network, plan, [(x,)], PLAIN, Options(**options))
    return float((found(x) - network(x)).square().mean())


def test_rows_are_sampled_from_all_positions() -> None:
    x = torch.randn(64, 7, 6) * torch.arange(1, 8)[:, None]  # positions differ
    network = trace(Tokens().eval(), (x[:1],))
    sampled = Compressor(network, [(x,)], PLAIN).reference.targets["fc"].samples
    assert sampled.rows == 64 * 7
    assert int(sampled.written.max()) > 64 * 6
    plan = Plan({"fc/w_bits": 3})
    plain = error_of(network, plan, x, refit=False, bn=False, compensate=False)
    assert error_of(network, plan, x) < plain


def test_channels_last_and_flattened_networks_run_after_pruning() -> None:
    class Permuted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(288, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.conv(x.permute(0, 3, 1, 2))).flatten(1))

    x = torch.randn(32, 8, 8, 3)
    network = trace(Permuted().eval(), (x[:1],))
    for plan in ({"conv/keep": 0.5}, {"conv/w_bits": 16}, {"head/w_bits": 4, "conv/a_bits": 8}):
        assert compress(network, Plan(plan), [(x,)], PLAIN)(x).shape == (32, 4)


def test_a_layer_over_positions_survives_pruned_positions() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.mix = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 8)
            self.c = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.mix(torch.relu(self.a(x)))).mean((2, 3))

    x = torch.randn(32, 3, 8, 8)
    network = trace(Mixing().eval(), (x[:1],))
    plan = Plan({"a/keep": 0.5, "mix/w_bits": 4})
    assert error_of(network, plan, x) < error_of(network, plan, x, refit=False, bn=False)


def test_what_follows_a_shared_weight_is_repaired() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.f, self.g = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.f(torch.relu(self.e(x))), self.g(torch.relu(self.e(-x)))], 1)

    x = torch.randn(256, 8)
    network = trace(Siamese().eval(), (x[:1],))
    plan = Plan({"e/w_bits": 2, "e:2/w_bits": 2})
    found = compress(network, plan, [(x,)], PLAIN)
    for name in ("f.weight", "g.weight"):
        assert not torch.equal(found.network.params[name], network.params[name])
    plain = compress(network, plan, [(x,)], PLAIN, Options(refit=False, bn=False))
    errors, before = (((c(x) - network(x)) ** 2).mean(0) for c in (found, plain))
    for half in (slice(4), slice(4, 8)):
        assert errors[half].mean() < 0.7 * before[half].mean()


@pytest.mark.parametrize("settings", [{"w_bits": 4}, {"keep": 0.5}])
def test_repairs_help_where_biases_must_stay(settings: dict[str, float]) -> None:
    network = trained(Residual)
    names = (
        [u.name for u in network.units] if "keep" in settings else [x.name for x in network.layers]
    )
    plan = Plan({f"{name}/{knob}": value for name in names for knob, value in settings.items()})
    plain = divergence(network, compress(network, plan, calibration(), PLAIN, Options(
        refit=False, bn=False, compensate=False)))  # fmt: skip
    good = divergence(network, compress(network, plan, calibration(), PLAIN, Options(bn=False)))
    assert good < plain
