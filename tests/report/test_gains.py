from pathlib import Path

import pytest

from autocompress.core.budget import Budget
from autocompress.report.front import Front
from autocompress.report.gains import gain_over_uniform, gains_text
from autocompress.report.tables import text_table
from tests.report.made_up import score

UNIFORM = [
    score(0, 0.92, 1000, 1.0, baseline="uncompressed"),
    score(1, 0.90, 500, 0.6, baseline="uniform 8-bit weights"),
    score(2, 0.80, 250, 0.5, baseline="uniform 4-bit weights"),
    score(3, 0.70, 260, 0.4, baseline="uniform keep 0.5"),  # dominated in size, not in latency
]


def front(*found, budget: Budget | None = None) -> Front:
    return Front([*UNIFORM, *found], ("accuracy", "size"), budget or Budget(), Path())


def test_at_equal_size_and_at_equal_accuracy() -> None:
    gain = gain_over_uniform(front(score(4, 0.91, 400), score(5, 0.85, 240)), "size")
    assert gain is not None
    assert gain.mean == pytest.approx((0.01 + 0.05) / 2)
    assert (gain.most, gain.at.trial) == (pytest.approx(0.05), 2)
    assert gain.cheaper == pytest.approx(500 / 400)


def test_latency_has_uniform_plans_of_its_own() -> None:
    gain = gain_over_uniform(front(score(4, 0.75, 900, 0.3)), "latency")
    assert gain is not None
    assert gain.mean == pytest.approx(0.05 / 3)
    assert gain.at.trial == 3
    assert gain.cheaper == pytest.approx(0.4 / 0.3)


def test_nothing_gained_is_nothing_lost() -> None:
    gain = gain_over_uniform(front(score(4, 0.5, 900)), "size")
    assert gain is not None
    assert (gain.mean, gain.most, gain.cheaper) == (0, 0, 1)


def test_only_what_meets_the_budget_is_compared() -> None:
    found = front(score(4, 0.91, 400), score(5, 0.79, 240), budget=Budget(max_size_bytes=300))
    gain = gain_over_uniform(found, "size")
    assert gain is not None
    assert gain.at.trial == 2
    assert gain.most == 0
    assert gain_over_uniform(
        front(score(4, 0.9, 400), budget=Budget(max_size_bytes=9)), "size"
    ) is (None)


def test_without_uniform_plans_or_others_there_is_nothing_to_say() -> None:
    assert gain_over_uniform(front(), "size") is None
    alone = Front([UNIFORM[0], score(4)], ("accuracy", "size"), Budget(), Path())
    assert gains_text(alone) == []


def test_the_table_says_it() -> None:
    text = text_table(front(score(4, 0.91, 400, 0.5)))
    assert (
        "against the best uniform plans at equal size: +0.0050 accuracy on average, +0.0100 at "
        "500 bytes; at equal accuracy up to 1.25 × smaller" in text
    )
    assert "at equal latency: " in text
    assert "× faster" in text
