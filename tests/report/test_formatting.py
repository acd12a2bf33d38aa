import math

import pytest

from autocompress.core.budget import Budget
from autocompress.report import formatting
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
    assert formatting.short_name(long) == short


def test_digits_follow_the_size_of_a_figure():
    assert formatting.milliseconds(0.65149) == "0.651"
    assert formatting.milliseconds(1234.5) == "1,234.5"
    assert formatting.kilobytes(1_092_220) == "1,092.2"
    assert formatting.accuracy(1) == "1.0000"
    for write in (formatting.milliseconds, formatting.kilobytes, formatting.accuracy):
        assert write(math.nan) == ""
    assert formatting.interval(0.5, math.nan) == ""
    assert formatting.interval(0.5, 0.75) == "0.5000–0.7500"


def test_limits_in_words():
    assert formatting.limits(Budget()) == "none"
    both = Budget(latency_ms=2, max_size_bytes=1_000_000)
    text = formatting.limits(both, 0.9)
    assert text == "accuracy at least 0.9, size at most 1,000,000 bytes, latency at most 2 ms"


def test_every_limit_has_its_words_and_unit():
    budget = Budget(latency_ms=0.5, max_size_bytes=9, max_energy_mj=1.25, max_memory_bytes=20_000)
    assert formatting.limits(budget) == (
        "size at most 9 bytes, latency at most 0.5 ms, energy at most 1.25 mJ, activations at "
        "most 20,000 bytes"
    )
    floor = {
        "latency_ms": 0.123456, "max_size_bytes": 1234.5, "max_energy_mj": 0.98765,
        "max_memory_bytes": 2500.0,
    }  # fmt: skip
    text = formatting.no_model("x", score(4), floor)
    assert "No model meets the limits (x). The closest miss is trial 4: accuracy 0.9" in text
    assert (
        "The predicted floor of this search space: latency 0.1235 ms, size 1,234 bytes, energy "
        "0.9877 mJ, activations 2,500 bytes. Loosen"
    ) in text
    assert set(floor) == set(vars(budget))
    for without in (None, {}):
        assert "floor" not in formatting.no_model("x", score(4), without)
    assert "at least one completed trial" in formatting.no_model("x", None, floor)


def test_figures_of_a_device_are_called_predicted():
    one = score(0, device="my\nchip", device_latency_ms=0.05, energy_mj=2.0, activation_bytes=1e4)
    assert formatting.figures(one) == (
        formatting.figures(score(0))
        + "; predicted on my chip: 0.0500 ms, 2 mJ, activations 10.0 kB"
    )


def test_smaller_needs_a_reference():
    assert formatting.smaller(score(0, size=100), score(1, size=250)) == 2.5
    assert math.isnan(formatting.smaller(score(0), None))
