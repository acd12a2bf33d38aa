import math

import numpy as np
import pytest
from scipy.stats import binomtest

from autocompress.engine.intervals import mean_of
from autocompress.errors import TrialError


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (93, 100), (950, 1000)])
def test_wilson_interval_agrees_with_scipy(hits, n):
    values = np.array([1] * hits + [0] * (n - hits))
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    found = mean_of(values)
    assert found == pytest.approx((hits / n, expected.low, expected.high))


def test_a_number_has_no_interval():
    found = mean_of(0.5)
    assert found.mean == 0.5
    assert math.isnan(found.low)


def test_other_scores_get_the_normal_interval():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = mean_of(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.mean == pytest.approx(1.96 * values.std(ddof=1) / 20, rel=1e-3)


@pytest.mark.parametrize("result", [math.nan, [1.0, math.nan], None, "x", [], [[1.0]], math.inf])
def test_what_is_no_score_is_refused(result):
    with pytest.raises(TrialError, match="evaluate"):
        mean_of(result)


def test_a_missing_return_is_guessed():
    with pytest.raises(TrialError, match="returned None: is a return missing"):
        mean_of(None)
