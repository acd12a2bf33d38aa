import itertools
import json
import math
import random
from dataclasses import fields, replace

import numpy as np
import pytest

from autocompress.core.budget import LIMITS, Budget
from autocompress.core.pareto import Volume, closest_miss, floor_of, non_dominated, undominated
from autocompress.core.plan import Plan, Recipe
from autocompress.core.score import OBJECTIVES, Score, check_objectives
from autocompress.errors import InputError


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


def test_every_limit_has_its_figure():
    one = replace(score(0, 0.9, 100), energy_mj=3.0, activation_bytes=50.0)
    assert list(LIMITS) == [f.name for f in fields(Budget)]
    for name, excess in (
        ("latency_ms", 1.1 / 4 - 1),
        ("max_size_bytes", 24.0),
        ("max_energy_mj", -0.25),
        ("max_memory_bytes", 11.5),
    ):
        found = one.constraints(Budget(**{name: 4}))
        assert found == {name: pytest.approx(excess)}
        assert one.meets(Budget(**{name: 4})) == (excess <= 0)
        assert Budget(**{name: 4})
    assert Budget(max_energy_mj=3.0).constraints(one.figure) == {"max_energy_mj": 0.0}
    assert one.meets(Budget(max_energy_mj=3.0))


def test_what_was_not_measured_meets_no_limit():
    assert not score(0, 0.9, 100).meets(Budget(max_energy_mj=5))
    assert score(0, 0.9, 100).meets(Budget(latency_ms=5))


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("limit", [0, -1, math.nan, math.inf, 2.0**60, "1", True, [1]])
def test_a_budget_must_be_a_number_above_zero(name, limit):
    with pytest.raises(InputError, match=f"above 0: {name} = "):
        Budget(**{name: limit})


def test_a_score_survives_json_with_nan_left_out():
    one = score(3, 0.9, 100)
    text = json.dumps(one.to_json(), allow_nan=False)
    two = Score.from_json(json.loads(text))
    assert two.to_json() == one.to_json()
    assert two.plan == one.plan
    assert math.isnan(two.test_accuracy)
    assert two.key == one.key


ESTIMATES = {
    "accuracy": 0.6, "size_bytes": 300.0, "latency_ms": 3.0, "latency_limit_ms": 3.0,
    "latency_figure_ms": 3.0, "activation_bytes": 80.0,
}  # fmt: skip


def test_a_plan_over_budget_is_told_by_its_estimates():
    one = replace(score(0, math.nan, math.nan, math.nan, "over_budget"), estimates=ESTIMATES)
    budget = Budget(latency_ms=2, max_size_bytes=600, max_memory_bytes=40)
    assert one.values(("accuracy", "size", "latency", "memory")) == (0.6, 300.0, 3.0, 80.0)
    assert one.constraints(budget) == pytest.approx(
        {"latency_ms": 0.5, "max_size_bytes": -0.5, "max_memory_bytes": 1.0}
    )
    assert not one.meets(Budget())  # there is no file
    assert math.isnan(one.size_bytes)
    again = Score.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False)))
    assert again.to_json() == one.to_json()
    assert again.constraints(budget) == one.constraints(budget)
    # of a file that was built, estimates stand beside what was measured
    built = replace(score(0, 0.9, 100), estimates=ESTIMATES)
    assert built.values(("accuracy", "size")) == (0.9, 100)


def test_figures_of_a_device_replace_the_measured_latency():
    one = replace(score(0, 0.9, 100, latency=1.0), device_latency_ms=40.0, energy_mj=2.0)
    budget = Budget(latency_ms=30, max_energy_mj=4)
    assert one.values(("accuracy", "latency", "energy")) == (0.9, 1.0, 2.0)
    assert one.meets(budget)
    on_device = replace(one, device="phone")
    assert on_device.values(("accuracy", "latency", "energy")) == (0.9, 40.0, 2.0)
    assert on_device.constraints(budget) == pytest.approx(
        {"latency_ms": 1 / 3, "max_energy_mj": -0.5}
    )
    assert not on_device.meets(budget)
    assert on_device.latency_ms == 1.0  # beside it
    assert Score.from_json(on_device.to_json()).device == "phone"


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


@pytest.mark.parametrize(
    "names",
    [
        ["size"], ["accuracy"], ["accuracy", "speed"], "accuracy", 3, ["size", "accuracy"],
        ["accuracy", "size", "size"], ["accuracy", 3], ["accuracy", "accuracy"],
    ],
)  # fmt: skip
def test_objectives_are_checked(names):
    with pytest.raises(InputError, match=r"(?i)objective"):
        check_objectives(names)
    assert check_objectives(["accuracy", "latency"]) == ("accuracy", "latency")
    every = tuple(OBJECTIVES)
    assert every == ("accuracy", "size", "latency", "energy", "memory")
    assert check_objectives(list(every)) == every


def exact_volume(points, low, high, floor):
    """The area above ``floor`` under the steps of two-dimensional points, as a mean."""
    area, best = 0.0, floor
    for (cost, accuracy), (after, _) in itertools.pairwise([*sorted(points), (high, None)]):
        best = max(best, accuracy)
        area += (best - floor) * (min(after, high) - max(cost, low))
    return area / (high - low)


def test_volume_is_that_of_the_steps():
    draw = random.Random(3)
    for _ in range(5):
        points = [(draw.uniform(0, 3), draw.uniform(0.2, 1)) for _ in range(12)]
        costs, accuracies = np.array([[c] for c, _ in points]), [a for _, a in points]
        volume = Volume([0.0], [3.0], floor=0.1, count=4096)
        exact = exact_volume(points, 0.0, 3.0, 0.1)
        assert volume.of(accuracies, costs) == pytest.approx(exact, rel=2e-3)


def test_volume_of_two_costs_counts_boxes():
    volume = Volume([0.0, 0.0], [1.0, 2.0], count=4096)
    found = volume.of([1.0, 0.5], np.array([[0.5, 1.0], [0.0, 0.0]]))
    assert found == pytest.approx(0.25 * 1.0 + 0.75 * 0.5, rel=5e-3)
    assert volume.of([], np.empty((0, 2))) == 0


def test_what_is_added_is_the_difference_of_volumes():
    draw = np.random.default_rng(0)
    volume = Volume([0.0, 0.0], [1.0, 1.0], floor=0.2)
    accuracies, logs = draw.random(6), draw.random((6, 2))
    best = volume.best(accuracies, logs)
    others, places = draw.random(5), draw.random((5, 2))
    for gain, accuracy, place in zip(
        volume.added(others, places, best), others, places, strict=True
    ):
        more = volume.of([*accuracies, accuracy], np.vstack([logs, place]))
        assert gain == pytest.approx(more - volume.of(accuracies, logs))


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_the_undominated_are_those_that_no_other_is_better_than(columns):
    generator = np.random.default_rng(columns)
    for count in (0, 1, 2, 30, 120):
        costs = generator.integers(0, 6, (count, columns)).astype(float)
        slow = [
            i
            for i, own in enumerate(costs)
            if not any((o <= own).all() and (o < own).any() for o in costs)
            and not any((o == own).all() for o in costs[:i])
        ]
        assert undominated(costs) == slow


def test_what_has_no_figure_dominates_nothing():
    costs = np.array([[math.nan, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert undominated(costs) == [0, 1]


def test_the_floor_is_half_of_the_best_fraction_and_below_all_other_figures():
    assert floor_of([0.2, 0.9, 0.5]) == 0.45
    losses = [-30.0, -10.0, -20.0]
    assert floor_of(losses) == pytest.approx(-31.0)
    assert floor_of([70.0, 90.0]) == pytest.approx(69.0)
    assert floor_of([5.0]) < 5.0
    assert floor_of([]) < 1.0
