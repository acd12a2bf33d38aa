import csv
import io
import json
import math
from dataclasses import replace

import pytest

from autocompress.core.budget import Budget
from autocompress.report.tables import (
    COLUMNS,
    html_table,
    rows,
    text_table,
    to_csv,
    to_json,
)
from tests.report.made_up import failure, front, score, study, with_tests


def listed(found):
    members = [pick.score.trial for pick in found]
    return members, [p.score.trial for p in found.baselines if p.score.trial not in members]


def test_rows_are_members_then_the_other_baselines(tmp_path):
    found = front(study(40), tmp_path)
    members, others = listed(found)
    assert [row["trial"] for row in rows(found)] == members + others
    assert [row["on_front"] for row in rows(found)] == [True] * len(members) + [False] * len(others)
    assert [row["trial"] for row in rows(found, baselines=False)] == members


def test_the_text_is_aligned_and_has_every_figure(tmp_path):
    scores = with_tests(study(40), {0})
    scores.append(failure(40, "out of\n memory"))
    found = front(scores, tmp_path, budget=Budget(latency_ms=3))
    lines = text_table(found).splitlines()
    members, _ = listed(found)
    assert lines[1] == "-- front"
    assert [int(line.split()[0]) for line in lines[2 : 2 + len(members)]] == members
    assert lines[2 + len(members)] == "-- baselines beside it"
    start = lines[0].index("× smaller")
    table = lines[2 : 2 + len(members)]
    assert all(line[start - 1] == " " and line[start + len("× smaller")] == " " for line in table)
    uncompressed = next(line for line in lines if line.endswith("uncompressed"))
    assert uncompressed.split() == [
        "0", "0.9200", "0.0090", "0.9160", "1,092.2", "1.00", "1.060", "1.039–1.113",
        "uncompressed",
    ]  # fmt: skip
    assert "budget: latency at most 3 ms" in lines
    assert lines[-1] == "1 trial failed, the last one: out of memory"


def test_a_score_without_intervals_or_reference_leaves_cells_empty(tmp_path):
    nan = float("nan")
    found = front([score(0, 0.9, 1000, accuracy_low=nan, accuracy_high=nan)], tmp_path)
    row = text_table(found).splitlines()[2].split()
    assert row == ["0", "0.9000", "1.0", "1.000", "0.980–1.050"]
    assert rows(found)[0]["smaller"] is None
    assert rows(found)[0]["accuracy_low"] is None


def test_a_closest_miss_has_its_own_heading(tmp_path):
    found = front(study(20), tmp_path, budget=Budget(latency_ms=0.01))
    assert text_table(found).splitlines()[1] == "-- closest miss; nothing meets the budget"


def test_csv_reads_back(tmp_path):
    scores = [*study(30), score(30, 0.99, 20.0, baseline='odd, "name"\nhere')]
    found = front(scores, tmp_path)
    read = list(csv.DictReader(io.StringIO(to_csv(found))))
    wanted = rows(found)
    assert tuple(read[0]) == COLUMNS
    assert len(read) == len(wanted)
    for got, row in zip(read, wanted, strict=True):
        assert int(got["size_bytes"]) == row["size_bytes"]
        assert float(got["accuracy"]) == row["accuracy"]
        assert got["peak_memory_bytes"] == ""
        assert got["baseline"] == row["baseline"]
        assert got["on_front"] == str(row["on_front"])


def test_csv_is_what_pandas_writes(tmp_path):
    found = front(study(30), tmp_path)
    assert to_csv(found) == found.to_pandas(baselines=True).to_csv(index=False)


def test_json_reads_back_with_plans(tmp_path):
    found = front(study(30), tmp_path)
    read = json.loads(to_json(found))
    assert [{k: row[k] for k in COLUMNS} for row in read] == rows(found)
    assert read[0]["plan"] == json.loads(found[0].plan.to_json())
    assert read[0]["peak_memory_bytes"] is None


def test_describe_names_validation_and_test(tmp_path):
    scores = with_tests(study(20), {0})
    text = str(front(scores, tmp_path).pick())
    lines = {line[:22].strip(): line[22:].strip() for line in text.splitlines()}
    assert lines["accuracy (validation)"] == "0.9200  0.9100–0.9280"
    assert lines["accuracy (test)"].startswith("0.9160")
    assert lines["size"] == "1,092,220 bytes, 1.00× smaller than uncompressed"
    assert lines["file"].endswith("artifacts/0.onnx")
    without = str(front(study(20), tmp_path).pick())
    assert "(test)" not in without


@pytest.mark.parametrize("count", [1, 2])
def test_failures_are_counted(count, tmp_path):
    scores = [score(0), *(failure(i + 1) for i in range(count))]
    assert f"{count} trial{'s' * (count > 1)} failed" in text_table(front(scores, tmp_path))


def on_chip(trial, **figures):
    given = {"device": "a\nchip", "device_latency_ms": 12.5, "energy_mj": 0.12345}
    return score(trial, activation_bytes=2500.0, **(given | figures))


def test_figures_of_a_device_have_columns_where_there_is_one(tmp_path):
    found = front([on_chip(0, baseline="uncompressed"), on_chip(1, energy_mj=math.nan)], tmp_path)
    text = text_table(found)
    head, _, first, *_ = text.splitlines()
    assert head.split("  ")[-1] == "baseline"
    for name in ("device ms", "device mJ", "activations kB"):
        assert name in head
    assert first.split()[-4:] == ["12.5", "0.123", "2.5", "uncompressed"]
    assert "on a chip: predicted from its device file, not measured" in text.splitlines()
    assert rows(found)[0]["energy_mj"] == 0.12345
    assert rows(found)[0]["activation_bytes"] == 2500
    plain = text_table(front([score(0)], tmp_path))
    assert "device" not in plain
    page = html_table(found)
    assert "<th>device mJ</th>" in page
    assert "<td>0.123</td>" in page


def test_describe_says_what_is_predicted_on_a_device(tmp_path):
    text = str(front([on_chip(0)], tmp_path).pick())
    assert "device " in text
    assert "predicted on a chip: 12.5 ms, 0.123 mJ, activations 2.5 kB" in text
    assert "predicted" not in str(front([score(0)], tmp_path).pick())


@pytest.mark.parametrize("count", [1, 2])
def test_plans_over_budget_are_counted(count, tmp_path):
    over = [score(i + 1, outcome="over_budget", estimates={}) for i in range(count)]
    found = front([score(0), *over], tmp_path, budget=Budget(latency_ms=5))
    text = text_table(found)
    line = f"{count} plan{'s' * (count > 1)} predicted over budget, not built"
    assert line in text.splitlines()
    assert line in html_table(found)
    assert [row["trial"] for row in rows(found)] == [0]
    assert "over budget" not in text_table(front([score(0)], tmp_path))


def test_files_that_are_not_what_they_should_be_are_marked(tmp_path):
    scores = [
        replace(s, differs="the <file> is not its simulation") if s.trial in (0, 3) else s
        for s in study(30)
    ]
    found = front(scores, tmp_path)
    text = text_table(found)
    assert [line.split()[0] for line in text.splitlines() if line.lstrip().startswith("!")] == [
        *(f"!{pick.score.trial}" for pick in found.members if pick.score.trial in (0, 3)),
        *(
            f"!{pick.score.trial}"
            for pick in found.baselines
            if pick.score.trial in (0, 3) and pick not in found.members
        ),
        "!3,",
    ]
    assert text.count("the <file> is not its simulation") == 1
    assert "the &lt;file&gt; is not its simulation" in html_table(found)
    marked = {row["trial"] for row in rows(found) if row["differs"]}
    assert marked == {0, 3}
    pick = next(p for p in found.baselines if p.score.trial == 3)
    assert "beware                 the <file> is not its simulation" in str(pick)
    assert "beware" not in str(next(p for p in found.baselines if p.score.trial == 4))
