import math

import pytest
import torch

from autocompress.core.plan import Plan
from autocompress.core.space import SearchSpace
from autocompress.engine.proposers.guided.sensitivity import (
    companions_of,
    groups_of,
    profile,
    questions,
)
from autocompress.engine.proposers.guided.sensitivity_cache import SensitivityCache
from autocompress.models.students import STUDENTS
from autocompress.models.trace import trace
from tests.engine.proposers.guided.test_guide import EFFECTS, NAMES, SPACE, loss_of
from tests.targets.support import Residual, network


def test_the_profile_is_of_single_values() -> None:
    highest = {name: values[-1] for name, values in SPACE.knobs.items()}
    asked: list[Plan] = []

    def effect(plan: Plan) -> float:
        asked.append(plan)
        return loss_of(SPACE.plan({**highest, **plan.settings}))

    found = profile(SPACE, SensitivityCache(effect), {})
    assert found.effects == pytest.approx({n: pytest.approx(v) for n, v in EFFECTS.items()})
    assert found.base == 0
    assert len(asked) == sum(len(v) for v in SPACE.knobs.values()) - len(NAMES) + 1
    assert sorted(asked, key=str) == sorted(questions(SPACE, {}), key=str)


def test_every_second_of_many_values_is_computed() -> None:
    space = SearchSpace({"a/w_bits": (2, 3, 4, 5, 6, 7, 8), "b/keep": (0.25, 0.5, 0.75, 1.0)})
    asked: list[Plan] = []

    def effect(plan: Plan) -> float:
        asked.append(plan)
        bits = plan.get("a", "w_bits")
        return (0.0 if bits == 32 else 4.0**-bits) + 1.0 - plan.get("b", "keep")

    found = profile(space, SensitivityCache(effect), {})
    assert found.base == 4.0**-8
    assert found.effects["a/w_bits"] == pytest.approx([4.0**-bits for bits in range(2, 8)] + [0])
    assert found.effects["b/keep"] == pytest.approx([0.75, (0.75 * 0.25) ** 0.5, 0.25, 0])
    assert len(asked) == 1 + 3 + 2


def test_what_lies_beside_outputs_that_are_no_numbers_is_no_number() -> None:
    space = SearchSpace({"a/w_bits": (2, 3, 4, 5, 8)})

    def effect(plan: Plan) -> float:
        return math.inf if plan.get("a", "w_bits") == 2 else 0.0

    effects = profile(space, SensitivityCache(effect), {}).effects["a/w_bits"]
    assert effects == [math.inf, math.inf, 0.0, 0.0, 0.0]


def test_each_value_is_tried_in_a_network_that_is_else_uncompressed() -> None:
    space = SearchSpace({"a/w_bits": (2, 4), "b/keep": (0.5, 0.75)})
    effects = {
        Plan({"a/w_bits": 4, "b/keep": 0.75}): 0.5,
        Plan({"a/w_bits": 2}): 0.25,
        Plan({"b/keep": 0.5}): 0.125,
    }
    found = profile(space, SensitivityCache(effects.__getitem__), {})
    assert found.base == 0.5
    assert found.effects == {"a/w_bits": [0.25, 0.0], "b/keep": [0.125, 0.0]}


def test_values_that_work_only_together_are_set_together() -> None:
    space = SearchSpace(
        {"a/a_bits": (8, 32), "b/a_bits": (8, 32), "a/w_bits": (4, 8, 32), "b/w_bits": (4, 8, 32)}
    )
    together = ("a/a_bits", "b/a_bits")
    asked: list[Plan] = []

    def effect(plan: Plan) -> float:
        asked.append(plan)
        return 1.0 if all(plan.get(n, "a_bits") == 8 for n in "ab") else 0.0

    found = profile(space, SensitivityCache(effect), dict.fromkeys(together, together))
    assert found.effects["a/a_bits"] == [0.5, 0]
    assert found.effects["b/a_bits"] == [0.5, 0]
    assert set(asked) == set(questions(space, dict.fromkeys(together, together)))
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
