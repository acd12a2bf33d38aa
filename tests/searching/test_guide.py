import itertools
import math

import numpy as np
import pytest
import torch

from autocompress.models.students import STUDENTS
from autocompress.models.trace import trace
from autocompress.searching.allocation import Table, total
from autocompress.searching.guide import (
    Guide,
    Observed,
    Profile,
    companions_of,
    groups_of,
    profile,
)
from autocompress.searching.oracle import Oracle
from autocompress.spec.pareto import Volume
from autocompress.spec.plan import Plan
from autocompress.spec.space import SearchSpace
from tests.targets.support import Residual, network

SPACE = SearchSpace({f"l{i}/w_bits": (2, 4, 8) for i in range(7)} | {"l0/keep": (0.5, 1.0)})
NAMES = tuple(SPACE.knobs)
EFFECTS = {name: [0.2 * (i + 1), 0.02 * (i + 1), 0.0] for i, name in enumerate(NAMES[:7])}
EFFECTS["l0/keep"] = [0.3, 0.0]
GROUPS = {name: f"{name[3:]} {int(name[1]) // 4}" for name in NAMES}
# what a value does in company, which the profile cannot know
HIDDEN = dict(zip(NAMES, (0.3, 3.0, 1.0, 0.2, 2.0, 0.5, 1.0, 1.0), strict=True))
BYTES = {name: 10.0 * (8 - i) for i, name in enumerate(NAMES)}


def places(plan: Plan) -> dict[str, int]:
    return {n: SPACE.knobs[n].index(v) for n, v in SPACE.choices(plan).items()}


def loss_of(plan: Plan) -> float:
    alone = {n: EFFECTS[n][place] for n, place in places(plan).items()}
    if sum(value > 0 for value in alone.values()) < 2:
        return sum(alone.values())
    return sum(HIDDEN[n] * value for n, value in alone.items())


TABLES = [Table((n,), BYTES[n] * np.array(SPACE.knobs[n]) / 8) for n in NAMES[:7]]
TABLES += [Table(("l0/keep",), np.array([20.0, 40.0]))]


def size_of(plan: Plan) -> float:
    return total(TABLES, places(plan))


def observe(plan: Plan) -> Observed:
    return Observed(plan, math.exp(-loss_of(plan)), (size_of(plan),))


def make_guide(limit: float = math.inf, oracle: Oracle | None = None) -> Guide:
    return Guide(
        SPACE, oracle or Oracle(loss_of), Profile(EFFECTS, 0.0), GROUPS, [TABLES],
        lambda plan: (size_of(plan),), objectives=1, limits=[limit],
    )  # fmt: skip


def searched(count: int, limit: float = math.inf, seed: int = 0) -> list[Observed]:
    guide, generator = make_guide(limit), np.random.default_rng(seed)
    found = [observe(plan) for _, plan in SPACE.baselines()[1:5]]
    for _ in range(count):
        found.append(observe(guide.propose(found, generator)))
    return found


def every() -> list[Observed]:
    choices = itertools.product(*SPACE.knobs.values())
    return [observe(SPACE.plan(dict(zip(NAMES, c, strict=True)))) for c in choices]


def held(found: list[Observed]) -> float:
    sizes = np.log([o.costs for o in every()])
    volume = Volume(sizes.min(0), sizes.max(0))
    return volume.of([o.accuracy for o in found], np.log([o.costs for o in found]))


def test_plans_are_of_the_space_and_never_twice() -> None:
    found = searched(40)
    plans = [o.plan for o in found]
    assert len(set(plans)) == len(plans) == 44
    assert all(SPACE.contains(plan) for plan in plans)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_fiftieth_of_a_space_has_its_front(seed: int) -> None:
    whole = held(every())
    guided = held(searched(40, seed=seed))
    generator = np.random.default_rng(seed)
    drawn = [every()[i] for i in generator.permutation(len(every()))[:300]]
    assert guided > 0.99 * whole
    assert guided > held(drawn)


def test_limits_are_kept_to() -> None:
    limit = float(np.quantile([o.costs[0] for o in every()], 0.3))
    found = searched(24, limit)[4:]
    assert np.mean([o.costs[0] <= limit for o in found]) > 0.8


def test_the_seed_decides() -> None:
    assert [o.plan for o in searched(6, seed=3)] == [o.plan for o in searched(6, seed=3)]
    assert [o.plan for o in searched(6, seed=3)] != [o.plan for o in searched(6, seed=4)]


def test_a_space_that_is_used_up_still_has_an_answer() -> None:
    guide = make_guide()
    plan = guide.propose(every(), np.random.default_rng(0))
    assert SPACE.contains(plan)


def test_plans_from_outside_the_space_are_lived_with() -> None:
    guide = make_guide(oracle=Oracle(lambda plan: loss_of(plan) if SPACE.contains(plan) else 0.01))
    outside = Observed(Plan(), 1.0, (400.0,))
    plan = guide.propose([outside], np.random.default_rng(0))
    assert SPACE.contains(plan)
    assert plan != Plan()


def test_the_outlook_falls_as_the_front_fills() -> None:
    guide, generator = make_guide(), np.random.default_rng(0)
    assert math.isnan(guide.outlook)
    found = [observe(plan) for _, plan in SPACE.baselines()[1:3]]
    outlooks = []
    for _ in range(40):
        found.append(observe(guide.propose(found, generator)))
        outlooks.append(guide.outlook)
    assert outlooks[0] > 0.02
    assert np.mean(outlooks[-5:]) < outlooks[0] / 5


def test_the_coefficients_are_those_of_plans_at_the_level() -> None:
    oracle = Oracle(loss_of)
    generator = np.random.default_rng(1)
    guide = make_guide(oracle=oracle)
    assert (guide.weigh(np.log([200.0])).means == 1).all()
    for o in (every()[i] for i in generator.permutation(len(every()))[:200]):
        oracle(o.plan)
    means = dict(zip(guide.losses.knobs, guide.weigh(np.log([200.0])).means, strict=True))
    for name, hidden in HIDDEN.items():
        assert abs(means[name] - hidden) < max(0.4 * abs(1 - hidden), 0.15)


def test_the_profile_is_of_single_values() -> None:
    asked: list[Plan] = []
    told: list[tuple[int, int]] = []

    def effect(plan: Plan) -> float:
        asked.append(plan)
        return loss_of(plan)

    found = profile(SPACE, Oracle(effect), {}, lambda *done: told.append(done))
    assert found.effects == pytest.approx({n: pytest.approx(v) for n, v in EFFECTS.items()})
    assert found.base == 0
    assert len(asked) == sum(len(v) for v in SPACE.knobs.values()) - len(NAMES) + 1
    assert told[0] == (0, 23)
    assert told[-1] == (23, 23)


def test_effects_are_above_what_the_highest_values_do() -> None:
    found = profile(SPACE, Oracle(lambda plan: 0.5 + loss_of(plan)), {})
    assert found.base == 0.5
    assert found.effects == pytest.approx({n: pytest.approx(v) for n, v in EFFECTS.items()})


def test_values_that_work_only_together_are_set_together() -> None:
    space = SearchSpace(
        {"a/a_bits": (8, 32), "b/a_bits": (8, 32), "a/w_bits": (4, 8, 32), "b/w_bits": (4, 8, 32)}
    )
    together = ("a/a_bits", "b/a_bits")
    asked: list[Plan] = []

    def effect(plan: Plan) -> float:
        asked.append(plan)
        return 1.0 if all(plan.get(n, "a_bits") == 8 for n in "ab") else 0.0

    found = profile(space, Oracle(effect), dict.fromkeys(together, together))
    assert found.effects["a/a_bits"] == [0.5, 0]
    assert found.effects["b/a_bits"] == [0.5, 0]
    narrow = [plan for plan in asked if plan.get("a", "a_bits") == 8]
    assert narrow == [Plan({"a/a_bits": 8, "b/a_bits": 8, "a/w_bits": 8, "b/w_bits": 8})]


def test_companions_are_the_readers_of_a_tensor_or_a_weight() -> None:
    model = STUDENTS["resnet"](in_channels=1, num_classes=4, depth=1).eval()
    net = trace(model, (torch.randn(1, 1, 16, 16),))
    knobs = {f"{layer.name}/{k}": (8, 32) for layer in net.layers for k in ("w_bits", "a_bits")}
    found = companions_of(net, SearchSpace(knobs))
    assert set(found) == set(knobs)
    nodes = {node.name: node for node in net.graph.nodes}
    for layer in net.layers:
        assert found[f"{layer.name}/w_bits"] == (f"{layer.name}/w_bits",)
        readers = {
            f"{other.name}/a_bits"
            for other in net.layers
            if nodes[other.node].args[0] is nodes[layer.node].args[0]
        }
        assert set(found[f"{layer.name}/a_bits"]) == readers
    assert any(len(names) > 1 for names in found.values())


def test_what_was_tried_is_not_proposed_again() -> None:
    found = [observe(plan) for _, plan in SPACE.baselines()[1:5]]
    first = make_guide().propose(found, np.random.default_rng(0))
    again = make_guide().propose(found, np.random.default_rng(0), [first])
    assert first != again


def test_groups_are_of_kind_and_stage() -> None:
    net = network(Residual, 3, 8, 8)
    knobs = {f"{u.name}/keep": (0.5, 1.0) for u in net.units}
    knobs |= {f"{layer.name}/w_bits": (2, 8) for layer in net.layers}
    groups = groups_of(net, SearchSpace(knobs))
    assert set(groups) == set(knobs)
    for name, group in groups.items():
        assert group.startswith(name.rpartition("/")[2])
    by_layer = {n.rpartition("/")[0]: g for n, g in groups.items() if n.endswith("w_bits")}
    for layer in net.layers:
        for other in net.layers:
            if layer.kind != "linear" and other.kind != "linear":
                same = layer.out_shape[1:] == other.out_shape[1:]
                assert (by_layer[layer.name] == by_layer[other.name]) == same
