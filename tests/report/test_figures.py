import math
import struct
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from autocompress.core.budget import Budget
from autocompress.errors import InputError
from tests.report.made_up import failure, front, score, study, with_tests

BOTH = Budget(latency_ms=0.8, max_size_bytes=250_000)


def size_of(path):
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


def test_png_has_a_second_panel_for_latency(tmp_path):
    one = front(study(), tmp_path).plot(tmp_path / "one.png")
    two = front(study(), tmp_path, budget=BOTH).plot(tmp_path / "two.png")
    objective = ("accuracy", "size", "latency")
    three = front(study(), tmp_path, objective).plot(tmp_path / "three.png")
    assert size_of(two)[0] > 1.5 * size_of(one)[0]
    assert size_of(three) == size_of(two)


def comments(path):
    """Return the texts of an SVG, which Matplotlib keeps as comments beside their outlines."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    tree = ET.parse(path, parser)
    return [node.text.strip() for node in tree.iter() if node.tag is ET.Comment]


def test_svg_is_the_same_twice_and_has_names_and_budgets(tmp_path):
    scores = with_tests(study(), range(30))
    one, two = (
        front(scores, tmp_path, budget=BOTH).plot(tmp_path / name) for name in ("1.svg", "2.svg")
    )
    assert one.read_bytes() == two.read_bytes()
    texts = comments(one)
    assert {"uncompressed", "w4 a8", "keep 0.5"} <= set(texts)
    assert {"budget 250 kB", "budget 0.8 ms (upper end)"} <= set(texts)
    assert {"front, validation (95 % interval)", "the same, test", "other trials"} <= set(texts)
    assert any("below this range" in text for text in texts)


def test_what_changes_the_front_changes_the_picture(tmp_path):
    scores = study()
    one = front(scores, tmp_path).plot(tmp_path / "1.svg")
    two = front([*scores, score(99, 0.93, 100_000)], tmp_path).plot(tmp_path / "2.svg")
    assert one.read_bytes() != two.read_bytes()


@pytest.mark.parametrize(
    "scores",
    [
        [],
        [failure(0)],
        [score(0)],
        [score(0), score(1)],
        [score(0, accuracy=0.0)],
        [score(0, accuracy_low=math.nan, accuracy_high=math.nan, latency_low_ms=math.nan)],
        [score(i, accuracy=-50.0 * i, size=10.0 ** (i + 1)) for i in range(6)],
        [score(0, baseline="$\\broken {<&>"), score(1, 0.5, 10.0)],
    ],
    ids=["none", "failed", "one", "equal", "zero", "no-interval", "losses", "hostile-name"],
)
@pytest.mark.parametrize("budget", [Budget(), BOTH, Budget(latency_ms=1e-3)])
def test_every_study_can_be_drawn(scores, budget, tmp_path):
    path = front(scores, tmp_path, budget=budget).plot(tmp_path / "front.svg")
    ET.parse(path)


def test_a_closest_miss_is_called_one(tmp_path):
    path = front(study(20), tmp_path, budget=Budget(latency_ms=0.01)).plot(tmp_path / "x.svg")
    texts = comments(path)
    assert "nothing meets the budget: the closest miss" in texts
    assert "closest miss, validation" in texts


def test_the_latency_of_a_device_is_drawn_with_its_budget(tmp_path):
    scores = [
        score(i, 0.9 - i / 100, 1000 - i, 1.0, device="chip", device_latency_ms=50.0 - i)
        for i in range(6)
    ]
    path = front(scores, tmp_path, budget=Budget(latency_ms=48)).plot(tmp_path / "1.svg")
    texts = comments(path)
    assert "predicted latency on chip (ms, log scale)" in texts
    assert "budget 48 ms" in texts
    assert not any("upper end" in text for text in texts)
    moved = [replace(one, latency_ms=9.0, latency_high_ms=9.9) for one in scores]
    again = front(moved, tmp_path, budget=Budget(latency_ms=48)).plot(tmp_path / "2.svg")
    assert again.read_bytes() == path.read_bytes()  # what was measured here is not drawn


@pytest.mark.parametrize("name", ["front.pdf", "front", "front.png.txt"])
def test_another_suffix_is_refused(name, tmp_path):
    with pytest.raises(InputError, match=r"\.png or \.svg"):
        front(study(20), tmp_path).plot(tmp_path / name)


def test_nothing_half_written_stays(tmp_path):
    front(study(20), tmp_path).plot(str(tmp_path / "new" / "FRONT.PNG"))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["FRONT.PNG"]
