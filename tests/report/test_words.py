import math

import pytest

from autocompress.report import words
from autocompress.spec.budget import Budget
from tests.report.made_up import score


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ("uncompressed", "uncompressed"),
        ("uniform 4-bit weights", "w4"),
        ("uniform keep 0.5, 8-bit weights, 8-bit activations", "keep 0.5 w8 a8"),
        ("two\nlines\x1b[31m", "two lines[31m"),
    ],
)
def test_short_names(long, short):
    assert words.short_name(long) == short


def test_digits_follow_the_size_of_a_figure():
    assert words.milliseconds(0.65149) == "0.651"
    assert words.milliseconds(1234.5) == "1,234.5"
    assert words.kilobytes(1_092_220) == "1,092.2"
    assert words.accuracy(1) == "1.0000"
    for write in (words.milliseconds, words.kilobytes, words.accuracy):
        assert write(math.nan) == ""
    assert words.interval(0.5, math.nan) == ""
    assert words.interval(0.5, 0.75) == "0.5000–0.7500"


def test_limits_in_words():
    assert words.limits(Budget()) == "none"
    both = Budget(latency_ms=2, max_size_bytes=1_000_000)
    text = words.limits(both, 0.9)
    assert text == "accuracy at least 0.9, size at most 1,000,000 bytes, latency at most 2 ms"


def test_smaller_needs_a_reference():
    assert words.smaller(score(0, size=100), score(1, size=250)) == 2.5
    assert math.isnan(words.smaller(score(0), None))
