import json
import math
import random

import pytest

from autocompress.errors import InputError
from autocompress.spec.budget import Budget
from autocompress.spec.pareto import closest_miss, non_dominated
from autocompress.spec.plan import Plan, Recipe
from autocompress.spec.score import Score, check_objectives


def score(number, accuracy, size, latency=1.0, outcome="ok"):
    return Score(
        trial=number,
        plan=Plan({f"l{number}/w_bits": 4}),
        recipe=Recipe(),
        target="null",
        outcome=outcome,
        accuracy=accuracy,
        size_bytes=size,
        latency_ms=latency,
        latency_high_ms=latency * 1.1,
    )


def test_budget_uses_the_upper_end_of_the_interval():
    one = score(0, 0.9, 100, latency=1.0)
    assert one.meets(Budget(latency_ms=1.1))
    assert not one.meets(Budget(latency_ms=1.05))
    assert one.constraints(Budget(latency_ms=2.2, max_size_bytes=50)) == pytest.approx(
        {"latency_ms": -0.5, "max_size_bytes": 1.0}
    )
    assert one.constraints(Budget()) == {}
    assert not Budget()
    assert Budget(latency_ms=1)


@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf, "1", True])
def test_a_budget_must_be_a_number_above_zero(limit):
    with pytest.raises(InputError, match="latency_ms"):
        Budget(latency_ms=limit)


def test_a_score_survives_json_with_nan_left_out():
    one = score(3, 0.9, 100)
    text = json.dumps(one.to_json(), allow_nan=False)
    two = Score.from_json(json.loads(text))
    assert two.to_json() == one.to_json()
    assert two.plan == one.plan
    assert math.isnan(two.test_accuracy)
    assert two.key == one.key


def dominated(one, many):
    return any(
        o.accuracy >= one.accuracy
        and o.size_bytes <= one.size_bytes
        and (o.accuracy > one.accuracy or o.size_bytes < one.size_bytes)
        for o in many
    )


@pytest.mark.parametrize("seed", range(5))
def test_front_agrees_with_the_definition(seed):
    rng = random.Random(seed)
    scores = [score(i, rng.randrange(20) / 20, rng.randrange(1, 20)) for i in range(60)]
    front = non_dominated(scores, ("accuracy", "size"))
    expected = {(s.accuracy, s.size_bytes) for s in scores if not dominated(s, scores)}
    assert {(s.accuracy, s.size_bytes) for s in front} == expected
    assert len(front) == len(expected)
    sizes = [s.size_bytes for s in front]
    assert sizes == sorted(sizes)


def test_front_of_three_objectives():
    scores = [score(0, 0.9, 10, 1.0), score(1, 0.9, 10, 0.5), score(2, 0.9, 20, 0.4)]
    assert [s.trial for s in non_dominated(scores, ("accuracy", "size", "latency"))] == [1, 2]
    assert [s.trial for s in non_dominated(scores, ("accuracy", "size"))] == [0]
    assert non_dominated([], ("accuracy", "size")) == []


def test_closest_miss_has_the_smallest_worst_excess():
    scores = [
        score(0, 0.9, 200, 1.0),
        score(1, 0.8, 120, 1.3),
        score(2, 0.7, 110, outcome="failed"),
    ]
    assert closest_miss(scores, Budget(max_size_bytes=100, latency_ms=1.2)).trial == 1
    assert closest_miss([], Budget(max_size_bytes=1)) is None


@pytest.mark.parametrize("names", [["size"], ["accuracy"], ["accuracy", "speed"], "accuracy", 3])
def test_objectives_are_checked(names):
    with pytest.raises(InputError, match=r"(?i)objective"):
        check_objectives(names)
    assert check_objectives(["accuracy", "latency"]) == ("accuracy", "latency")
