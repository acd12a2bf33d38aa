import json
import pickle

import pytest

from autocompress.core.plan import Plan, Recipe
from autocompress.errors import PlanError


def test_neutral_settings_are_dropped_and_order_does_not_matter():
    one = Plan({"b/w_bits": 4, "a/keep": 0.5, "c/a_bits": 32, "d/keep": 1})
    two = Plan({"a/keep": 0.5, "b/w_bits": 4.0})
    assert one == two
    assert hash(one) == hash(two)
    assert one.digest == two.digest
    assert one.to_json() == (
        '{"settings":{"a/keep":0.5,"b/w_bits":4},"source":{"family":"teacher"}}'
    )


def test_json_round_trip_and_values():
    plan = Plan({"layer1.0.conv1/w_bits": 3, "layer1.0.conv1/keep": 0.75})
    assert Plan.from_json(plan.to_json()) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert plan.get("layer1.0.conv1", "w_bits") == 3
    assert plan.get("layer1.0.conv1", "a_bits") == 32
    assert plan.get("elsewhere", "keep") == 1.0
    assert list(plan.of("keep")) == [("layer1.0.conv1", 0.75)]


@pytest.mark.parametrize(
    "settings",
    [
        {"a/bits": 4},
        {"w_bits": 4},
        {"a/w_bits": 1},
        {"a/w_bits": 4.5},
        {"a/w_bits": "4"},
        {"a/w_bits": True},
        {"a/keep": 0},
        {"a/keep": 1.5},
        {"a/keep": float("nan")},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(PlanError):
        Plan(settings)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"settings": {}}', '{"settings":[],"source":1}'])
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_a_plan_is_frozen():
    plan = Plan({"a/w_bits": 4})
    with pytest.raises(TypeError):
        plan.settings["a/w_bits"] = 8


def test_key_depends_on_plan_recipe_and_target():
    plan, other = Plan({"a/w_bits": 4}), Plan({"a/w_bits": 5})
    keys = {
        Recipe().key(plan, "x"),
        Recipe().key(other, "x"),
        Recipe(seed=1).key(plan, "x"),
        Recipe(rung=1, epochs=1).key(plan, "x"),
        Recipe().key(plan, "y"),
    }
    assert len(keys) == 5
    assert Recipe().key(Plan(json.loads(plan.to_json())["settings"]), "x") in keys
