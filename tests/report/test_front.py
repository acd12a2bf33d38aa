import json
import math
import random
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from autocompress.core.budget import Budget
from autocompress.errors import ArtifactError, InputError, NoModelError
from autocompress.targets.checkfile import check_path
from tests.report.made_up import failure, files, front, score, study, with_tests


def numbers(picks):
    return [pick.score.trial for pick in picks]


def random_study(seed, count=80):
    draw = random.Random(seed)
    return [
        score(i, draw.randrange(50, 60) / 100, draw.randrange(10, 40), draw.randrange(1, 12) / 10)
        for i in range(count)
    ]


def beats(one, other, names):
    costs = [
        [-s.accuracy if n == "accuracy" else getattr(s, n) for n in names] for s in (one, other)
    ]
    return all(a <= b for a, b in zip(*costs, strict=True)) and costs[0] != costs[1]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("objectives", "names"),
    [
        (("accuracy", "size"), ("accuracy", "size_bytes")),
        (("accuracy", "size", "latency"), ("accuracy", "size_bytes", "latency_ms")),
    ],
)
def test_members_are_what_nothing_within_the_budget_dominates(seed, objectives, names, tmp_path):
    scores = random_study(seed)
    budget = Budget(latency_ms=0.8)
    within = [s for s in scores if s.latency_high_ms <= 0.8]
    wanted = {s.values(objectives) for s in within if not any(beats(o, s, names) for o in within)}
    found = front(scores, tmp_path, objectives, budget)
    assert {pick.score.values(objectives) for pick in found} == wanted
    assert len(found) == len(wanted)  # of equal figures, one
    sizes = [pick.score.size_bytes for pick in found]
    assert sizes == sorted(sizes)
    assert found.feasible
    assert found.message == ""


def test_a_front_is_a_sequence_of_picks_with_files_in_artifacts(tmp_path):
    found = front(study(), tmp_path)
    assert list(found) == list(found.members) == [found[i] for i in range(len(found))]
    assert found[:2] == found.members[:2]
    assert found[0].path == tmp_path / "artifacts" / found[0].score.artifact
    assert found[0].plan == found[0].score.plan
    assert found[0].reference is found.reference
    assert found.reference.baseline == "uncompressed"


def test_baselines_are_the_measured_ones(tmp_path):
    scores = [*study(20), replace(failure(20), baseline="uniform broken")]
    found = front(scores, tmp_path)
    assert set(numbers(found.baselines)) == set(range(16))
    assert [s.trial for s in found.failures] == [20]


def test_without_a_feasible_score_the_closest_miss_stands_alone(tmp_path):
    scores = [score(0, size=300), score(1, size=150, accuracy=0.5), score(2, size=200)]
    found = front(scores, tmp_path, budget=Budget(max_size_bytes=100))
    assert not found.feasible
    assert numbers(found) == [1]
    assert "trial 1: accuracy 0.5000" in found.message
    assert "size at most 100 bytes" in found.message


@pytest.mark.parametrize("scores", [[], [failure(0)]])
def test_a_front_of_nothing_is_empty_and_says_so(scores, tmp_path):
    found = front(scores, tmp_path)
    assert len(found) == 0
    assert not found.feasible
    assert "at least one completed trial" in found.message
    assert str(found) == found.message
    assert found.to_pandas().empty
    assert "completed trial" in found._repr_html_()
    with pytest.raises(NoModelError, match="completed trial"):
        found.pick()


def over_budget(trial, **estimates):
    """Return a plan that was not built: it has estimates and nothing else."""
    told = {"accuracy": 0.99, "size_bytes": 1.0, "latency_limit_ms": 9.0} | estimates
    nan = math.nan
    return score(
        trial, nan, nan, nan, outcome="over_budget", estimates=told, artifact="", sha256=""
    )  # fmt: skip


def test_an_over_budget_estimate_is_no_member_and_no_pick(tmp_path):
    scores = [over_budget(0), score(1, 0.9, 100), over_budget(2, latency_limit_ms=0.1)]
    found = front(scores, tmp_path, budget=Budget(latency_ms=2))
    assert numbers(found) == numbers(found.picks) == [1]
    assert [one.trial for one in found.over_budget] == [0, 2]
    assert found.failures == ()
    assert found.pick().score.trial == 1
    with pytest.raises(NoModelError, match="trial 1"):
        found.pick(max_size_bytes=50)


def test_the_predicted_floor_stands_beside_the_closest_miss(tmp_path):
    floor = {"latency_ms": 0.51234, "max_size_bytes": 12_345.6}
    budget = Budget(latency_ms=0.5, max_size_bytes=12_000)
    scores = [score(0, size=30_000, latency=1.0), score(1, size=15_000, latency=0.9)]
    found = front(scores, tmp_path, budget=budget)
    without = found.message
    assert "floor" not in without
    found = replace(found, floor=floor)
    assert "The closest miss is trial 1" in found.message
    assert (
        "The predicted floor of this search space: latency 0.5123 ms, size 12,346 bytes. "
        in found.message
    )
    assert replace(found, scores=[score(0, size=10, latency=0.1)]).message == ""


def test_limits_of_energy_and_memory_pick_too(tmp_path):
    scores = [
        score(0, 0.9, energy_mj=4.0, activation_bytes=500.0, device="chip", device_latency_ms=9.0),
        score(1, 0.8, energy_mj=2.0, activation_bytes=900.0, device="chip", device_latency_ms=5.0),
    ]
    found = front(scores, tmp_path)
    assert found.pick().score.trial == 0
    assert found.pick(max_energy_mj=4.0).score.trial == 0
    assert found.pick(max_energy_mj=3.9).score.trial == 1
    assert found.pick(max_memory_bytes=899).score.trial == 0
    assert found.pick(max_latency_ms=6).score.trial == 1  # of the device, not the measured 1 ms
    with pytest.raises(NoModelError) as caught:
        found.pick(max_energy_mj=3, max_memory_bytes=600)
    assert "energy at most 3 mJ, activations at most 600 bytes" in str(caught.value)
    assert "trial 0" in str(caught.value)
    assert "predicted on chip: 9.000 ms, 4 mJ, activations 0.5 kB" in str(caught.value)
    with pytest.raises(InputError, match="no energy_mj"):  # no limit on it could be met
        front([score(0)], tmp_path).pick(max_energy_mj=100)


def test_objectives_of_a_device_make_its_front(tmp_path):
    scores = [
        score(0, 0.9, 100, 1.0, device="chip", device_latency_ms=9.0, energy_mj=1.0),
        score(1, 0.9, 100, 2.0, device="chip", device_latency_ms=5.0, energy_mj=2.0),
        score(2, 0.9, 100, 3.0, device="chip", device_latency_ms=9.5, energy_mj=3.0),
    ]
    assert numbers(front(scores, tmp_path, ("accuracy", "latency"))) == [1]
    assert numbers(front(scores, tmp_path, ("accuracy", "energy"))) == [0]
    assert numbers(front(scores, tmp_path, ("accuracy", "latency", "energy"))) == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_pick_is_the_most_accurate_file_within_the_limits(seed, tmp_path):
    scores = random_study(seed)
    found = front(scores, tmp_path, budget=Budget(latency_ms=0.5))
    for limits in ({}, {"max_size_bytes": 25}, {"max_latency_ms": 0.9, "max_size_bytes": 20}):
        latency = limits.get("max_latency_ms", 0.5)
        within = [
            s
            for s in scores
            if s.latency_high_ms <= latency
            and s.size_bytes <= limits.get("max_size_bytes", math.inf)
        ]
        best = max(s.accuracy for s in within)
        smallest = min(s.size_bytes for s in within if s.accuracy == best)
        pick = found.pick(**limits)
        assert (pick.score.accuracy, pick.score.size_bytes) == (best, smallest)
        assert pick.score.latency_high_ms <= latency


def test_pick_uses_validation_and_the_upper_end_of_the_latency(tmp_path):
    scores = [
        score(0, 0.90, 100, latency=1.0, test_accuracy=0.99),
        score(1, 0.91, 100, latency=1.0, test_accuracy=0.10),
    ]
    assert front(scores, tmp_path).pick().score.trial == 1
    with pytest.raises(NoModelError):
        front(scores, tmp_path).pick(max_latency_ms=1.04)  # the upper ends are 1.05
    assert front(scores, tmp_path).pick(max_latency_ms=1.05).score.trial == 1


def test_an_accuracy_alone_picks_the_smallest_file_that_reaches_it(tmp_path):
    found = front([score(0, 0.95, 300), score(1, 0.92, 200), score(2, 0.8, 100)], tmp_path)
    assert found.pick(min_accuracy=0.9).score.trial == 1
    assert found.pick(min_accuracy=0.9, max_size_bytes=400).score.trial == 0
    assert found.pick().score.trial == 0


def test_no_model_names_the_limits_and_the_closest_miss(tmp_path):
    found = front([score(0, 0.95, 300_000, 2.0), score(1, 0.80, 100_000, 1.0)], tmp_path)
    with pytest.raises(NoModelError) as caught:
        found.pick(max_size_bytes=250_000, min_accuracy=0.94)
    message = str(caught.value)
    assert "accuracy at least 0.94, size at most 250,000 bytes" in message
    assert "trial 1: accuracy 0.8000, 100.0 kB, 1.000 ms (upper end 1.050 ms)" in message
    with pytest.raises(NoModelError, match=r"trial 0: accuracy 0\.9500, 300\.0 kB"):
        found.pick(min_accuracy=0.99)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_latency_ms": 0}, {"max_size_bytes": -1}, {"min_accuracy": math.nan},
        {"max_energy_mj": math.inf}, {"max_memory_bytes": 0},
    ],
)  # fmt: skip
def test_an_impossible_limit_is_an_input_error(limits, tmp_path):
    with pytest.raises(InputError):
        front(study(20), tmp_path).pick(**limits)


def exported(tmp_path):
    scores = with_tests([replace(s, size_bytes=70.0 + (s.trial > 9) * 10) for s in study(20)], {0})
    files(scores, tmp_path)
    return front(scores, tmp_path)


def test_export_copies_the_file_and_writes_its_card(tmp_path):
    pick = exported(tmp_path).pick()
    path = pick.export(tmp_path / "out" / "model.onnx")
    assert path.read_bytes() == pick.path.read_bytes()
    folder = sorted(file.name for file in path.parent.iterdir())
    assert folder == ["model.onnx", "model.onnx.json", "model.onnx.md"]
    data = json.loads((path.parent / "model.onnx.json").read_text())
    assert data["sha256"] == pick.score.sha256
    assert data["plan"] == json.loads(pick.plan.to_json())
    assert data["figures"]["accuracy"] == pick.score.accuracy
    assert pick.score.sha256 in (path.parent / "model.onnx.md").read_text()


def test_export_takes_the_check_along_and_leaves_no_older_one(tmp_path):
    pick = exported(tmp_path).pick()
    check = check_path(tmp_path / "out" / "model.onnx")
    for kept, wanted, there in ((b"", True, False), (b"one", True, True), (b"one", False, False)):
        if kept:
            check_path(pick.path).write_bytes(kept)
        else:
            check.parent.mkdir()
            check.write_bytes(b"of an older model")
        pick.export(tmp_path / "out" / "model.onnx", check=wanted)
        assert check.exists() == there
        assert not there or check.read_bytes() == kept


def test_a_pick_without_a_check_cannot_be_verified(tmp_path):
    with pytest.raises(InputError, match="must lie beside the model"):
        exported(tmp_path).pick().verify()


def test_export_replaces_an_older_file(tmp_path):
    pick = exported(tmp_path).pick()
    path = tmp_path / "model.onnx"
    path.write_text("older")
    assert pick.export(str(path)) == path
    assert path.read_bytes() == pick.path.read_bytes()


@pytest.mark.parametrize("harm", ["truncate", "overwrite", "delete"])
def test_export_refuses_a_file_that_is_not_the_one_scored(harm, tmp_path):
    pick = exported(tmp_path).pick()
    content = pick.path.read_bytes()
    if harm == "delete":
        pick.path.unlink()
    else:
        pick.path.write_bytes(content[:-3] if harm == "truncate" else b"x" * len(content))
    with pytest.raises(ArtifactError):
        pick.export(tmp_path / "out" / "model.onnx")
    assert not (tmp_path / "out").exists()


def test_export_checks_the_copy_too(tmp_path, monkeypatch):
    pick = exported(tmp_path).pick()
    whole = type(pick.path).read_bytes
    answers = iter([whole(pick.path), whole(pick.path)[:-1], whole(pick.path)[:-1]])
    monkeypatch.setattr(type(pick.path), "read_bytes", lambda path: next(answers))
    with pytest.raises(ArtifactError):
        pick.export(tmp_path / "out" / "model.onnx")
    assert list((tmp_path / "out").iterdir()) == []


def test_export_to_a_path_that_cannot_be_is_an_input_error(tmp_path):
    pick = exported(tmp_path).pick()
    with pytest.raises(InputError, match="directory"):
        pick.export(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="writable"):
        pick.export(tmp_path / "file" / "model.onnx")


def test_pandas_has_the_columns_in_order_and_whole_numbers_whole(tmp_path):
    found = front(study(40), tmp_path)
    frame = found.to_pandas()
    assert list(frame.columns) == [
        "trial", "accuracy", "size_bytes", "latency_ms", "accuracy_low", "accuracy_high",
        "latency_low_ms", "latency_high_ms", "test_accuracy", "test_low", "test_high", "load_ms",
        "peak_memory_bytes", "macs", "activation_bytes", "energy_mj", "device_latency_ms",
        "parameters", "difference", "differs", "baseline", "artifact", "sha256", "smaller",
        "on_front", "meets_budget",
    ]  # fmt: skip
    assert list(frame.trial) == numbers(found)
    assert frame.on_front.all()
    assert str(frame.size_bytes.dtype) == "Int64"
    assert frame.test_accuracy.isna().all()
    assert frame.peak_memory_bytes.isna().all()
    last = frame.iloc[-1]
    assert last.smaller == pytest.approx(found.reference.size_bytes / found[-1].score.size_bytes)


def test_pandas_with_baselines_has_each_score_once(tmp_path):
    found = front(study(40), tmp_path)
    frame = found.to_pandas(baselines=True)
    assert frame.trial.is_unique
    assert set(frame.trial) == set(numbers(found)) | set(numbers(found.baselines))
    assert set(frame.trial[frame.on_front]) == set(numbers(found))


def test_a_closest_miss_is_not_on_the_front(tmp_path):
    frame = front(study(20), tmp_path, budget=Budget(max_size_bytes=1)).to_pandas(baselines=True)
    assert not frame.on_front.any()
    assert not frame.meets_budget.any()


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


def test_html_escapes_names_and_messages(tmp_path):
    hostile = "<script>alert('&')</script>"
    scores = [*study(20), score(20, 0.99, 10, baseline=hostile), failure(21, f"{hostile}\n<b>")]
    page = Tags()
    page.feed(front(scores, tmp_path)._repr_html_())
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "p", "small"}
    assert page.text.count(hostile) == 2


def test_repr_counts(tmp_path):
    assert "from 20 scores" in repr(front(study(20), tmp_path))
    assert "closest miss" in repr(front(study(20), tmp_path, budget=Budget(latency_ms=0.01)))


def test_picks_are_short_to_look_at(tmp_path):
    pick = front(study(30), tmp_path).pick()
    assert len(repr(pick)) < 300
    assert "\n" not in repr(pick)
    assert str(pick).startswith("trial")
