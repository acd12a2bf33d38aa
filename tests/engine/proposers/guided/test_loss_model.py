import math

import numpy as np
import pytest

from autocompress.engine.proposers.guided.allocation import Table, total
from autocompress.engine.proposers.guided.loss_model import LossModel

KNOBS = ("a", "b", "c", "d", "e", "f")


def model_of(groups="xxyyzz", seed=0, pairs=()):
    generator = np.random.default_rng(seed)
    effects = {knob: np.sort(generator.random(4))[::-1].tolist() for knob in KNOBS}
    return LossModel(effects, dict(zip(KNOBS, groups, strict=True)), pairs=pairs)


def plans(model, count, seed=1):
    """Random choices' effects, [plans, coefficients]."""
    generator = np.random.default_rng(seed)
    choices = generator.integers(4, size=(count, len(KNOBS)))
    return model.rows(choices)


def fitted(model, rows, losses, weights=None):
    weights = np.ones(len(losses)) if weights is None else np.array(weights, dtype=float)
    return model.fit(np.array(rows, dtype=float), np.array(losses, dtype=float), weights)


def test_effects_are_made_to_fall_from_value_to_value():
    model = LossModel({"a": [3, 5, 1, 2, 0], "b": [4, 2, 1]}, {"a": "x", "b": "x"})
    assert model.effects["a"].tolist() == [5, 5, 2, 2, 0]
    assert model.effects["b"].tolist() == [4, 2, 1]


def test_a_row_has_the_effect_of_each_knobs_value():
    model = LossModel({"a": [3, 1, 0], "b": [4, 2]}, {"a": "x", "b": "y"})
    assert model.rows(np.array([[1, 0], [2, 1]])).tolist() == [[1, 4], [0, 2]]


def test_an_infinite_effect_counts_as_a_large_one():
    model = LossModel({"a": [math.inf, 1, 0], "b": [4, 2]}, {"a": "x", "b": "y"})
    assert model.effects["a"].tolist() == [40, 1, 0]


def test_a_pair_has_the_root_of_its_knobs_product():
    effects, groups = {"a": [3, 1, 0], "b": [4, 2]}, {"a": "x", "b": "y"}
    model = LossModel(effects, groups, pairs=[("b", "a")])
    assert model.rows(np.array([[1, 0], [2, 1]])).tolist() == [[1, 4, 2], [0, 2, 0]]


def test_tables_sum_up_to_the_row():
    model = model_of(pairs=[("a", "c"), ("e", "d")])
    weights = np.array([0.5, 1, 2, 0.1, 3, 1.5, -0.7, 0.4])
    tables = model.tables()
    assert [table.knobs for table in tables] == [*((k,) for k in KNOBS), ("a", "c"), ("e", "d")]
    chosen = dict(zip(KNOBS, (0, 1, 2, 3, 0, 1), strict=True))
    (row,) = model.rows(np.array([list(chosen.values())]))
    assert [total([table], chosen) for table in tables] == pytest.approx(row)
    scaled = [Table(t.knobs, w * t.values) for t, w in zip(tables, weights, strict=True)]
    assert total(scaled, chosen) == pytest.approx(row @ weights)


def test_what_neighbours_do_together_is_learnt():
    pairs = [("a", "b"), ("c", "d"), ("e", "f")]
    model, alone = model_of(pairs=pairs), model_of()
    truth = np.array([0.9, 1.1, 1, 1, 1.2, 0.8, -1.2, 0.9, 1.5])
    rows = plans(model, 250)
    found = fitted(model, rows[:200], rows[:200] @ truth, np.full(200, 1000.0))
    assert found.means == pytest.approx(truth, abs=0.05)
    seen = slice(0, 60)
    with_pairs = fitted(model, rows[seen], rows[seen] @ truth, np.full(60, 20.0)).means
    without = fitted(alone, rows[seen, :6], rows[seen] @ truth, np.full(60, 20.0)).means
    losses = rows[200:] @ truth
    errors = [rows[200:] @ with_pairs / losses - 1, rows[200:, :6] @ without / losses - 1]
    assert np.abs(errors[0]).mean() < 0.5 * np.abs(errors[1]).mean()


def test_coefficients_are_recovered_from_what_they_make():
    model = model_of()
    truth = np.array([0.4, 0.7, 1.2, 1.8, 0.9, 2.5])
    rows = plans(model, 250)
    sure = fitted(model, rows, rows @ truth, np.full(250, 1000.0))
    assert sure.means == pytest.approx(truth, rel=1e-2)
    found = fitted(model, rows, rows @ truth)
    assert found.means == pytest.approx(truth, rel=0.15)
    few = fitted(model, rows[:5], rows[:5] @ truth)
    assert np.abs(few.means - truth).max() > np.abs(found.means - truth).max()


def test_losses_of_any_size_tell_as_much():
    """Errors are relative: the same plans, once on a large scale and once on a small one."""
    model = model_of()
    truth = np.array([0.4, 0.7, 1.2, 1.8, 0.9, 2.5])
    rows = plans(model, 60)
    scale = 10 ** np.random.default_rng(2).uniform(-3, 3, 60)
    scaled = fitted(model, rows * scale[:, None], (rows @ truth) * scale)
    assert scaled.means == pytest.approx(fitted(model, rows, rows @ truth).means)


def test_what_is_believed_is_bayes_rule():
    """The same as adding up precisions, which is slower where there are many knobs."""
    model = model_of()
    truth = np.array([0.6, 0.7, 1.2, 1.8, 0.9, 1.5])
    rows = plans(model, 12)
    losses = rows @ truth * np.random.default_rng(4).uniform(0.99, 1.01, 12)
    weights = np.random.default_rng(5).uniform(20, 200, 12)
    groups = "xxyyzz"
    prior = np.array(
        [[1 + 0.36 * (p == q) + 0.25 * (i == j) for j, q in enumerate(groups)]
         for i, p in enumerate(groups)]
    )  # fmt: skip
    system = rows / losses[:, None]
    precision = np.linalg.inv(prior) + system.T @ np.diag(weights / 0.15**2) @ system
    pull = np.linalg.inv(prior) @ np.ones(6) + system.T @ (weights / 0.15**2)
    found = fitted(model, rows, losses, weights)
    wanted = np.linalg.solve(precision, pull)
    assert wanted.min() > 0.05
    assert found.means == pytest.approx(wanted)
    generator, whole = np.random.default_rng(6), np.linalg.inv(precision)
    scatter = np.array([found.draw(generator) for _ in range(20_000)])
    assert scatter.mean(0) == pytest.approx(wanted, abs=0.02)
    assert np.cov(scatter.T) == pytest.approx(whole, abs=0.03 * np.abs(whole).max())


def test_a_group_shares_what_is_learnt_of_one_of_its_knobs():
    model = model_of()
    only_a = [[value, 0, 0, 0, 0, 0] for value in (0.2, 0.5, 0.9)]
    dearer = fitted(model, only_a, [2 * row[0] for row in only_a]).means
    assert dearer[0] > dearer[1] > dearer[2] == pytest.approx(dearer[4])
    assert dearer[2] > 1.2  # all have something in common
    cheaper = fitted(model, only_a, [0.5 * row[0] for row in only_a]).means
    assert cheaper[0] < cheaper[1] < cheaper[2] < 1


def test_what_was_seen_more_is_believed_more():
    model = model_of()
    rows = [[0.5, 0, 0, 0, 0, 0]] * 2
    means = [
        fitted(model, rows, [0.25, 1.0], weights).means[0]
        for weights in ([30, 0.01], [1, 1], [0.01, 30])
    ]
    assert means[0] == pytest.approx(0.5, abs=0.05)
    assert means[2] == pytest.approx(2.0, abs=0.15)
    assert means[0] < means[1] < means[2]


def test_nothing_is_for_free():
    model = model_of()
    rows = [[1.0, 0.01, 0, 0, 0, 0], [0.01, 1.0, 0, 0, 0, 0]]
    found = fitted(model, rows * 8, [1e-4, 2.0] * 8, [5.0] * 16)
    assert found.means.min() == 0.05
    generator = np.random.default_rng(1)
    assert min(found.draw(generator).min() for _ in range(50)) == 0.05


def test_before_anything_is_seen_effects_count_as_they_are():
    model = model_of(pairs=[("a", "b")])
    found = fitted(model, np.empty((0, 7)), [])
    assert found.means.tolist() == [1, 1, 1, 1, 1, 1, 0]
    assert np.ptp(found.draw(np.random.default_rng(0))) > 0.5
