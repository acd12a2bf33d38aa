import itertools
import math

import numpy as np
import pytest

from autocompress.engine.proposers.guided import allocation as module
from autocompress.engine.proposers.guided.allocation import Table, solve, sweep, total, totals

SCOPES = ["", "a", "b", "c", "d", "ab", "ba", "bd", "cd", "dca", "abe"]
SIZES = {"a": 3, "b": 2, "c": 4, "d": 3, "e": 2}


def drawn(generator, scopes=SCOPES, sizes=None):
    """Tables of a constant, single knobs, pairs in both orders and three at once."""
    sizes = sizes or SIZES
    return [Table(tuple(s), generator.random([sizes[k] for k in s])) for s in scopes]


def everything(sizes=None):
    sizes = sizes or SIZES
    for places in itertools.product(*(range(size) for size in sizes.values())):
        yield dict(zip(sizes, places, strict=True))


def value(loss, costs, prices, chosen):
    return total(loss, chosen) + sum(
        p * total(c, chosen) for p, c in zip(prices, costs, strict=True)
    )


def best_within(loss, costs, limits):
    """The least loss of any choice within limits, by trying all; infinite if there is none."""
    return min(
        (
            total(loss, chosen)
            for chosen in everything()
            if all(total(t, chosen) <= limit for t, limit in zip(costs, limits, strict=True))
        ),
        default=math.inf,
    )


def is_within(costs, limits, chosen):
    return all(
        total(t, chosen) <= limit * (1 + 1e-9) for t, limit in zip(costs, limits, strict=True)
    )


def test_a_table_has_one_axis_for_each_of_its_knobs():
    with pytest.raises(ValueError, match="axis"):
        Table(("a", "b"), np.zeros(3))
    with pytest.raises(ValueError, match="axis"):
        Table(("a", "a"), np.zeros((3, 3)))
    assert Table((), np.array(2.0)).values == 2


def test_a_total_looks_each_table_up_in_the_order_of_its_knobs():
    grid = np.arange(6.0).reshape(2, 3)
    tables = [Table(("b", "a"), grid), Table((), np.array(10.0)), Table(("a",), np.ones(3))]
    assert total(tables, {"a": 2, "b": 1, "other": 7}) == 5 + 10 + 1
    assert total([], {"a": 1}) == 0


@pytest.mark.parametrize("seed", range(6))
def test_a_sweep_finds_the_best_of_all_choices_at_every_price(seed):
    generator = np.random.default_rng(seed)
    loss, first, second = (drawn(generator) for _ in range(3))
    prices = np.vstack([np.zeros((1, 2)), np.eye(2), 10 ** generator.uniform(-2, 2, (12, 2))])
    found = sweep(loss, [first, second], prices)
    assert len(found) == len(prices)
    for row, chosen in zip(prices, found, strict=True):
        wanted = min(value(loss, (first, second), row, c) for c in everything())
        assert value(loss, (first, second), row, chosen) == pytest.approx(wanted)
    assert len({tuple(sorted(chosen.items())) for chosen in found}) > 3


def test_a_sweep_sees_knobs_that_only_a_cost_or_only_the_loss_has():
    loss = [Table(("a",), np.array([0.0, 5.0]))]
    cost = [Table(("b",), np.array([3.0, 1.0, 2.0]))]
    assert sweep(loss, [cost], np.array([[1.0], [9.0]])) == [{"a": 0, "b": 1}] * 2
    assert sweep([], [cost], np.ones((1, 1))) == [{"b": 1}]


def test_a_sweep_over_no_knobs_has_one_choice_for_every_price():
    constant = [Table((), np.array(4.0))]
    assert sweep(constant, [constant], np.ones((3, 1))) == [{}, {}, {}]


def test_a_long_chain_is_exact():
    """Forty knobs of six values, each bound to the next: 6^40 choices, 240 states."""
    generator = np.random.default_rng(3)
    names = [f"k{i}" for i in range(40)]
    own = {name: generator.random(6) for name in names}
    pairs = {pair: generator.random((6, 6)) for pair in itertools.pairwise(names)}
    loss = [Table((name,), values) for name, values in own.items()]
    cost = [Table(pair, values) for pair, values in pairs.items()]
    for price in (0.3, 2.0):
        (chosen,) = sweep(loss, [cost], np.array([[price]]))
        least = own["k0"]
        for pair in pairs:
            least = (least[:, None] + price * pairs[pair]).min(0) + own[pair[1]]
        assert value(loss, [cost], [price], chosen) == pytest.approx(least.min())


@pytest.mark.parametrize("seed", range(4))
def test_what_is_too_wide_is_descended_from_the_best_uniform_choice(seed, monkeypatch):
    generator = np.random.default_rng(seed)
    scopes = ["", *SIZES, *("".join(pair) for pair in itertools.combinations(SIZES, 2)), "ace"]
    loss, cost = drawn(generator, scopes), drawn(generator, scopes)
    prices = 10 ** generator.uniform(-1, 1, (8, 1))
    exact = sweep(loss, [cost], prices)
    calls = []
    descend = module._descend
    monkeypatch.setattr(module, "_descend", lambda *given: calls.append(1) or descend(*given))
    assert sweep(loss, [cost], prices) == exact
    assert not calls
    monkeypatch.setattr(module, "_WIDEST", 8)
    found = sweep(loss, [cost], prices)
    assert calls
    starts = [
        {name: round(part * (size - 1)) for name, size in SIZES.items()}
        for part in (0, 0.25, 0.5, 0.75, 1)
    ]
    for row, chosen, best in zip(prices, found, exact, strict=True):
        least = value(loss, [cost], row, chosen)
        assert least <= min(value(loss, [cost], row, start) for start in starts) + 1e-9
        assert least >= value(loss, [cost], row, best) - 1e-9
        for name, size in SIZES.items():  # no single knob makes it better
            for place in range(size):
                assert value(loss, [cost], row, {**chosen, name: place}) >= least - 1e-9


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_within_limits_is_that_of_all_choices(seed, count):
    generator = np.random.default_rng(10 + seed)
    loss, *costs = (drawn(generator) for _ in range(count + 1))
    whole = [[total(tables, chosen) for chosen in everything()] for tables in costs]
    for share in (0.1, 0.5):
        limits = [float(np.quantile(values, share)) for values in whole]
        wanted = best_within(loss, costs, limits)
        found = solve(loss, costs, limits, gap=0.0)
        if math.isinf(wanted):
            assert found is None
            continue
        assert is_within(costs, limits, found)
        assert total(loss, found) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("count", [1, 2])
def test_what_no_choice_can_meet_has_no_solution(count):
    generator = np.random.default_rng(5)
    loss, *costs = (drawn(generator) for _ in range(count + 1))
    least = [min(total(t, chosen) for chosen in everything()) for t in costs]
    assert solve(loss, costs, [*least[:-1], least[-1] * 0.99], gap=0.0) is None
    assert solve(loss, costs[:1], [least[0] * (1 + 1e-9)]) is not None


def test_each_limit_alone_can_be_met_but_not_both():
    loss = [Table(("a",), np.array([0.0, 1.0]))]
    costs = [[Table(("a",), np.array([0.0, 2.0]))], [Table(("a",), np.array([2.0, 0.0]))]]
    assert solve(loss, costs, [1.0, 9.0]) == {"a": 0}
    assert solve(loss, costs, [9.0, 1.0]) == {"a": 1}
    assert solve(loss, costs, [1.0, 1.0]) is None


def test_constants_count_towards_limits():
    loss = [Table(("a",), np.array([3.0, 2.0, 0.0])), Table((), np.array(7.0))]
    cost = [Table(("a",), np.array([1.0, 2.0, 3.0])), Table((), np.array(10.0))]
    assert [solve(loss, [cost], [limit]) for limit in (10.5, 11.5, 12.5, 13.5)] == [
        None, {"a": 0}, {"a": 1}, {"a": 2},
    ]  # fmt: skip


def test_what_lies_between_the_prices_is_found():
    """Prices lead to the ends alone: the middle is above the line between them."""
    loss = [Table(("a",), np.array([10.0, 6.0, 0.0]))]
    cost = [Table(("a",), np.array([0.0, 5.0, 10.0]))]
    prices = np.linspace(0, 5, 101)[:, None]
    assert {chosen["a"] for chosen in sweep(loss, [cost], prices)} == {0, 2}
    assert module._priced(loss, [cost], [7.0]) == {"a": 0}
    assert solve(loss, [cost], [7.0]) == {"a": 1}


def test_limits_that_do_not_bind_leave_the_least_loss():
    generator = np.random.default_rng(8)
    loss, cost = drawn(generator), drawn(generator)
    found = solve(loss, [cost], [1e9])
    assert total(loss, found) == pytest.approx(min(total(loss, c) for c in everything()))


@pytest.mark.parametrize("seed", range(4))
def test_prices_alone_lead_within_the_limits_and_near_the_best(seed):
    generator = np.random.default_rng(20 + seed)
    sizes = {f"k{i}": 5 for i in range(30)}
    falling = {k: np.sort(generator.random(5))[::-1] for k in sizes}
    loss = [Table((k,), values) for k, values in falling.items()]
    costs = [[Table((k,), np.sort(generator.random(5))) for k in sizes] for _ in range(2)]
    limits = [0.4 * total(t, dict.fromkeys(sizes, 4)) for t in costs]
    priced = module._priced(loss, costs, limits)
    found = solve(loss, costs, limits, gap=1e-4)
    assert is_within(costs, limits, priced)
    assert is_within(costs, limits, found)
    assert total(loss, found) <= total(loss, priced) < 1.25 * total(loss, found)


@pytest.mark.parametrize("limit", [0.5, 7.2, 12.5, 19.0])
def test_prices_lead_to_every_point_of_a_convex_front(limit):
    steps = np.arange(21.0)
    loss, cost = [Table(("a",), (20 - steps) ** 2)], [Table(("a",), steps)]
    assert module._priced(loss, [cost], [limit]) == {"a": math.floor(limit)}


def test_without_a_better_plan_in_time_that_of_the_prices_stands(monkeypatch):
    monkeypatch.setattr(module, "_programme", lambda *_: None)
    steps = np.arange(5.0)
    loss, cost = [Table(("a",), (4 - steps) ** 2)], [Table(("a",), steps)]
    assert solve(loss, [cost], [2.5]) == {"a": 2}
    assert solve(loss, [cost], [-1.0]) is None


def test_sets_may_weigh_the_loss_differently():
    generator = np.random.default_rng(7)
    loss, costs = drawn(generator), [drawn(generator)]
    prices, weights = generator.random((6, 1)), generator.random((6, len(loss)))
    for price, weight, found in zip(
        prices, weights, sweep(loss, costs, prices, weights), strict=True
    ):
        weighed = [Table(t.knobs, w * t.values) for t, w in zip(loss, weight, strict=True)]
        assert found == sweep(weighed, costs, price[None])[0]


def test_totals_are_totals_of_each():
    generator = np.random.default_rng(4)
    names = ["a", "b", "c"]
    tables = [
        Table((), np.array(2.0)),
        Table(("b",), generator.random(3)),
        Table(("c", "a"), generator.random((4, 2))),
    ]
    places = np.stack([generator.integers(n, size=20) for n in (2, 3, 4)], axis=1)
    expected = [total(tables, dict(zip(names, row, strict=True))) for row in places.tolist()]
    assert totals(tables, names, places) == pytest.approx(expected)
    assert totals([], names, places).tolist() == [0] * 20
