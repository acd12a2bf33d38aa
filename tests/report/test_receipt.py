import json
import math

import pytest

from autocompress.report.receipt import Line, Receipt, Side, receipt_json, receipt_text
from tests.report.made_up import score

UNCOMPRESSED = score(0, 0.92, 4000, 2.0, baseline="uncompressed")
CONV = Line(
    name="layer1.conv",
    kind="conv",
    before=Side(channels="16×32", size_bytes=18_560, predicted_ms=0.5, profiled_ms=0.6),
    after=Side(
        channels="16×20", w_bits=4, a_bits=8, size_bytes=1520, predicted_ms=0.25, profiled_ms=0.3
    ),
    step="20 of 32; 16 would take -0.0500 ms",
    conversion="float to 8-bit codes 0.0120 ms",
)
NORM = Line(
    name="norm", kind="layer_norm", before=Side(size_bytes=80), after=Side(size_bytes=80)
)  # fmt: skip
ADD = Line(
    name="add_1",
    kind="add",
    before=Side(predicted_ms=0.1, profiled_ms=0.2),
    after=Side(predicted_ms=0.05, profiled_ms=math.nan),
)
NEW = Line(name="cast", kind="cast", before=None, after=Side(predicted_ms=0.01))
LINES = (CONV, NORM, ADD, NEW)


def receipt(lines=LINES, notes=(), reference=UNCOMPRESSED, **figures):
    made = score(7, 0.91, 1600, 0.4, **figures)
    return Receipt(score=made, reference=reference, lines=lines, notes=notes)


def cells(text):
    """Return the rows of the table by the name of their operator, then by heading."""
    head, *rows = text.partition("-- sums")[0].splitlines()
    names = [name for name in head.split("  ") if name]
    starts = [head.index(name.strip()) for name in names]
    found = {}
    for row in rows:
        parts = [row[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        found[parts[0]] = dict(zip((name.strip() for name in names), parts, strict=True))
    return found


def sums(text):
    below = text.partition("-- sums, before → after\n")[2].splitlines()
    return dict(line.split(": ", 1) for line in below if ": " in line)


def test_sums_are_of_what_is_known():
    found = receipt()
    assert found.total("size_bytes") == 1600
    assert found.total("size_bytes", after=False) == 18_640
    assert found.total("predicted_ms") == pytest.approx(0.31)
    assert found.total("predicted_ms", after=False) == pytest.approx(0.6)
    assert found.total("profiled_ms") == 0.3
    assert math.isnan(found.total("device_ms"))


def test_the_text_has_before_and_after_of_every_operator():
    found = cells(receipt_text(receipt()))
    assert found == {
        "layer1.conv": {
            "layer": "layer1.conv", "kind": "conv", "channels": "16×32 → 16×20",
            "weight bits": "32 → 4", "input bits": "32 → 8", "bytes": "18,560 → 1,520",
            "predicted ms": "0.5000 → 0.2500", "profiled ms": "0.6000 → 0.3000",
            "step": "20 of 32; 16 would take -0.0500 ms",
            "conversion": "float to 8-bit codes 0.0120 ms",
        },
        "norm": dict.fromkeys(
            ("channels", "weight bits", "input bits", "predicted ms", "profiled ms", "step",
             "conversion"), "",
        ) | {"layer": "norm", "kind": "layer_norm", "bytes": "80"},
        "add_1": dict.fromkeys(
            ("channels", "weight bits", "input bits", "bytes", "step", "conversion"), ""
        ) | {
            "layer": "add_1", "kind": "add", "predicted ms": "0.1000 → 0.0500",
            "profiled ms": "0.2000 → ?",
        },
        "cast": dict.fromkeys(
            ("channels", "weight bits", "input bits", "bytes", "profiled ms", "step",
             "conversion"), "",
        ) | {"layer": "cast", "kind": "cast", "predicted ms": "0.0100"},
    }  # fmt: skip


def test_the_text_adds_up_beside_what_was_measured():
    text = receipt_text(receipt(notes=["what could not be told"]))
    assert sums(text) == {
        "bytes of weights": "18,640 → 1,600",
        "predicted ms": "0.6000 → 0.3100",
        "profiled ms": "0.8000 → 0.3000",
        "measured end to end, ms": "2.0000 → 0.4000 (0.392–0.420)",
        "file, bytes": "4,000 → 1,600",
    }
    assert "the predicted sum is -22.5% of that" in text
    assert "the profiled sum is -25.0% of that" in text
    assert text.splitlines()[-1] == "what could not be told"


def test_columns_of_nothing_are_left_out():
    line = Line(name="a", kind="add", before=Side(), after=Side())
    text = receipt_text(receipt([line], reference=None))
    assert text.splitlines()[0] == "layer  kind"
    assert sums(text) == {
        "bytes of weights": "0",
        "measured end to end, ms": "0.4000 (0.392–0.420)",
        "file, bytes": "1,600",
    }
    device = Line(name="a", kind="add", before=Side(device_ms=2.0), after=Side(device_ms=1.5))
    text = receipt_text(receipt([device]))
    assert cells(text)["a"]["device ms"] == "2.0000 → 1.5000"
    assert sums(text)["device ms"] == "2.0000 → 1.5000"


def test_what_did_not_change_stands_once_and_names_stay_on_their_line():
    line = Line(name="odd\nname\x1b", kind="conv", before=CONV.before, after=CONV.before)
    found = cells(receipt_text(receipt([line])))["odd name"]
    assert (found["channels"], found["weight bits"], found["bytes"]) == ("16×32", "32", "18,560")


def test_a_plan_that_was_not_built_says_so():
    nan = math.nan
    found = receipt(
        outcome="over_budget", estimates={"size_bytes": 1234.0}, size_bytes=nan, latency_ms=nan
    )
    text = receipt_text(found)
    assert "measured" not in text
    assert "of that" not in text
    assert sums(text)["file, bytes (predicted, not built)"] == "4,000 → 1,234"
    data = json.loads(receipt_json(found))
    assert (data["outcome"], data["latency_ms"], data["size_bytes"]) == ("over_budget", None, 1234)


def test_json_has_null_for_what_is_not_known():
    data = json.loads(receipt_json(receipt(notes=["a note"])), parse_constant=pytest.fail)
    assert (data["trial"], data["outcome"], data["notes"]) == (7, "ok", ["a note"])
    assert data["predicted_ms"] == pytest.approx(0.31)
    assert (data["profiled_ms"], data["latency_ms"], data["size_bytes"]) == (0.3, 0.4, 1600)
    first, _, third, last = data["lines"]
    assert first["after"] == {
        "channels": "16×20", "w_bits": 4, "a_bits": 8, "size_bytes": 1520, "predicted_ms": 0.25,
        "profiled_ms": 0.3, "device_ms": None,
    }  # fmt: skip
    assert (first["name"], first["kind"], first["step"]) == (CONV.name, CONV.kind, CONV.step)
    assert third["after"]["profiled_ms"] is None
    assert last["before"] is None
    without = json.loads(receipt_json(receipt([NORM])))
    assert without["predicted_ms"] is without["profiled_ms"] is None
