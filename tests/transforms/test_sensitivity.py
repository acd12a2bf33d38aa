"""Effects: the same as compressing and running, only sooner."""

import math
import pickle
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from autocompress.core.abilities import Abilities
from autocompress.core.plan import Plan
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.transforms.compressor import Compressor
from autocompress.transforms.divergence import divergence
from autocompress.transforms.options import Options
from autocompress.transforms.reconstruct.network import _last, _Pass
from autocompress.transforms.sensitivity import Effects
from tests.targets import support
from tests.transforms.nets import EDGES, PLAIN, Mixer, Residual, calibration, trained


class Dense(nn.Module):
    """Two outputs, of an image's size and of classes; the former is read by the latter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.second(torch.relu(self.first(x)))
        return x, self.fc(x.mean((2, 3)))


@cache
def compressor(
    name: str, abilities: Abilities = EDGES, options: Options | None = None
) -> Compressor:
    if name in ("trained", "mixer"):
        network = trained({"trained": Residual, "mixer": Mixer}[name])
        return Compressor(network, calibration(), abilities, options, images=48)
    if name == "dense":
        torch.manual_seed(0)
        network = trace(Dense().eval(), (torch.randn(1, 2, 8, 8),))
    else:
        network = {
            "residual": support.residual,
            "shuffled": lambda: support.network(support.Shuffled, 2, 8, 8),
        }[name]()
        # logits that differ as much as those of a network that was trained
        network = network.replace(params={"head.weight": network.params["head.weight"] * 100})
        mean = network(*support.inputs(network, 48)).mean(0)
        network = network.replace(params={"head.bias": network.params["head.bias"] - mean})
    return Compressor(network, [support.inputs(network, 48)], abilities, options)


NETS = ["trained", "mixer", "residual", "shuffled", "dense"]


def plans(network: Network, count: int, seed: int = 0) -> list[Plan]:
    """Random plans, half of which set only the last few of a network's layers and units."""
    generator = torch.Generator().manual_seed(seed)

    def one(values: tuple[float, ...]) -> float:
        return values[int(torch.randint(len(values), (1,), generator=generator))]

    found = []
    for number in range(count):
        layers, units = list(network.layers), list(network.units)
        if number % 2:
            layers, units = layers[-2:], units[-1:]
        chosen: dict[str, float] = {f"{unit.name}/keep": one((0.5, 0.8, 1)) for unit in units}
        for layer in layers:
            chosen[f"{layer.name}/w_bits"] = one((2, 4, 8, 16, 32))
            chosen[f"{layer.name}/a_bits"] = one((8, 32))
        found.append(Plan(chosen))
    return found


def by_hand(outputs: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    found = 0.0
    for value, target in zip(outputs, wanted, strict=True):
        if target.ndim == 2:
            logs, aims = value.double().softmax(1).log(), target.double().softmax(1).log()
            found += float((aims.exp() * (aims - logs)).sum(1).mean())
        else:
            rest = (value - target).double()
            found += float((rest**2).mean() / ((target - target.mean()).double() ** 2).mean())
    return found


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def laid_out(network: Network) -> Network:
    """Return a network whose sums are added in the order in which the pass adds them."""
    return network.replace(params={name: _last(value) for name, value in network.params.items()})


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("abilities", [PLAIN, EDGES])
def test_effects_are_those_of_the_compressed_network(name: str, abilities: Abilities) -> None:
    found = compressor(name, abilities)
    inputs, wanted = found.reference.inputs, found.reference.outputs
    effect = Effects(found, limit_bytes=0)
    far = []
    for plan in plans(found.network, 6):
        made = found.compress(plan)
        made = replace(made, network=laid_out(made.network))
        far.append(by_hand(as_tuple(made(*inputs)), wanted))
        assert effect(plan) == pytest.approx(far[-1], rel=1e-4, abs=1e-7)
    assert sum(value > 1e-4 for value in far) > 2


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("repaired", [True, False])
def test_effects_do_not_depend_on_what_is_kept(name: str, repaired: bool) -> None:
    """An order of addition, which is the CPU's, moves floats by a last bit and codes by a step.

    So plans that are repaired, whose weights come out of sums, have no codes here, and those that
    have codes round the weights as they are.
    """
    options = Options() if repaired else Options(refit=False, bn=False, compensate=False)
    found = compressor(name, options=options)
    dropped = ("/a_bits", "/w_bits") if repaired else ("/a_bits",)
    kept = [Effects(found), *(Effects(found, limit_bytes=n) for n in (0, 4_000, 200_000))]
    for plan in plans(found.network, 6):
        floats = Plan({k: v for k, v in plan.settings.items() if not k.endswith(dropped)})
        first, *others = (effect(floats) for effect in kept)
        assert others == pytest.approx([first] * len(others), rel=1e-3, abs=1e-6)
        assert kept[0](plan) == kept[0](plan)


@pytest.mark.parametrize("limit", [0, 2**30])
@pytest.mark.parametrize("name", NETS)
def test_a_plan_that_sets_nothing_has_none(name: str, limit: int) -> None:
    found = compressor(name)
    effect = Effects(found, limit_bytes=limit)
    assert effect(Plan()) == 0
    for unit in found.network.units[:1]:
        assert effect(Plan({f"{unit.name}/keep": 0.9999})) == 0  # no channel is lost


def test_changing_more_changes_the_outputs_more() -> None:
    effect = Effects(compressor("trained"))
    network = compressor("trained").network
    found = [
        effect(Plan({f"{layer.name}/w_bits": bits for layer in network.layers}))
        for bits in (2, 3, 4, 8, 16)
    ]
    assert found == sorted(found, reverse=True)
    assert found[0] > 20 * found[3] > 0


@pytest.mark.parametrize(
    ("plan", "first"),
    [
        ({"fc/w_bits": 4}, "fc"),
        ({"point/w_bits": 4}, "point"),
        ({"group/w_bits": 8, "group/a_bits": 8}, "group"),
        ({"stem/w_bits": 8}, "stem"),
    ],
)
def test_what_lies_before_the_first_change_is_not_computed(
    plan: dict[str, float], first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = compressor("trained")
    effect = Effects(found)
    order = [layer.name for layer in found.network.layers]
    nodes = {layer.node: layer.name for layer in found.network.layers}
    computed: list[str] = []
    compute = _Pass._compute

    def spied(self: _Pass, node: fx.Node) -> Any:
        computed.append(node.name)
        return compute(self, node)

    monkeypatch.setattr(_Pass, "_compute", spied)
    effect(Plan(plan))
    layers = [nodes[name] for name in computed if name in nodes]
    assert layers == order[order.index(first) :]
    computed.clear()
    Effects(found, limit_bytes=0)(Plan(plan))
    assert [nodes[name] for name in computed if name in nodes] == order


def test_no_more_is_kept_than_the_limit() -> None:
    found = compressor("trained")
    held = []
    for limit in (0, 40_000, 500_000, 2**30):
        effect = Effects(found, limit_bytes=limit)
        tensors = [v for v in effect._known.values() if isinstance(v, Tensor)]
        held.append(sum(v.numel() * v.element_size() for v in tensors))
        assert held[-1] <= limit
    assert held[0] == 0
    assert held == sorted(set(held))


def test_what_is_kept_is_never_changed() -> None:
    found = compressor("residual")
    effect = Effects(found)
    kept = {name: v.clone() for name, v in effect._known.items() if isinstance(v, Tensor)}
    for plan in plans(found.network, 4, seed=3):
        effect(plan)
    assert set(effect._known) >= set(kept)
    assert all(torch.equal(effect._known[name], value) for name, value in kept.items())


def test_classes_differ_by_their_distributions_and_other_values_by_squares() -> None:
    torch.manual_seed(0)
    for shape in ((7, 5), (7,), (7, 1), (7, 3, 4), (7, 3, 4, 4)):
        wanted, value = torch.randn(shape), torch.randn(shape)
        if shape == (7, 1):
            slow = float((value - wanted).square().mean() / wanted.var(correction=0))
        else:
            slow = by_hand((value,), (wanted,))
        assert divergence([value], [wanted]) == pytest.approx(slow, rel=1e-4)
        assert divergence([wanted], [wanted]) == 0
    logits = torch.randn(6, 4)
    assert divergence([logits + 3], [logits]) == pytest.approx(0, abs=1e-6)  # softmax is the same
    assert divergence([torch.full((5, 3, 2), 2.0)], [torch.ones(5, 3, 2)]) == 1  # nothing varies


def test_outputs_are_summed_over_and_integers_left_out() -> None:
    torch.manual_seed(1)
    wanted = [torch.randn(6, 4), torch.arange(6), torch.randn(6, 2, 2), 3]
    value = [torch.randn(6, 4), torch.arange(6) + 1, torch.randn(6, 2, 2), 4]
    each = [divergence([value[i]], [wanted[i]]) for i in range(4)]
    assert each[1] == each[3] == 0
    assert divergence(value, wanted) == pytest.approx(each[0] + each[2])
    with pytest.raises(ValueError):
        divergence(value[:2], wanted)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2)])
def test_outputs_that_are_not_finite_are_infinitely_far(bad: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    wanted = torch.randn(shape)
    value = wanted.clone()
    value[1, 1] = bad
    assert divergence([value], [wanted]) == math.inf
    assert divergence([wanted, value], [wanted, wanted]) == math.inf


class Overflows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return 1 / self.fc(x)


def test_a_plan_that_makes_outputs_infinite_is_infinitely_far() -> None:
    torch.manual_seed(0)
    model = Overflows().eval()
    with torch.no_grad():
        model.fc.weight[0] = 1e-12  # 0 in 16 bits
        model.fc.bias[0] = 0
    network = trace(model, (torch.ones(1, 4),))
    found = Compressor(network, [(torch.rand(32, 4),)], EDGES, Options(refit=False, bn=False))
    plan = Plan({"fc/w_bits": 16})
    assert not bool(torch.isfinite(found.compress(plan)(*found.reference.inputs)).all())
    assert Effects(found)(plan) == math.inf


@pytest.mark.parametrize("name", NETS)
def test_what_is_compressed_tells_its_effect(name: str) -> None:
    found = compressor(name)
    effects = Effects(found)
    for plan in [Plan(), *plans(found.network, 4)]:
        assert found.compress(plan).effect == pytest.approx(effects(plan), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_another_process_compresses_alike(name: str) -> None:
    found = compressor(name)
    network = pickle.loads(pickle.dumps(found.network))
    other = Compressor(network, [found.reference.inputs], found.abilities, found.options)
    for plan in plans(found.network, 3):
        one, two = found.compress(plan), other.compress(plan)
        assert one.effect == pytest.approx(two.effect, rel=1e-4, abs=1e-7)
        assert {t.other for t in found.reference.targets.values()} == {
            t.other for t in other.reference.targets.values()
        }
