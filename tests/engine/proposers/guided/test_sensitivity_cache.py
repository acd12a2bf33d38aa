import json
import math

import pytest

from autocompress.core.plan import Plan
from autocompress.engine.proposers.guided.sensitivity_cache import SensitivityCache
from autocompress.errors import RunError

CLOCK = "autocompress.engine.proposers.guided.sensitivity_cache.time.perf_counter"
PLANS = [Plan({"a/w_bits": bits}) for bits in (2, 4, 8)]


class Counted:
    """An effect that counts what it is asked, and takes some time of a clock of its own."""

    def __init__(self, seconds=0.0):
        self.asked, self.seconds, self.now = [], seconds, 0.0

    def clock(self):
        return self.now

    def __call__(self, plan):
        self.asked.append(plan)
        self.now += self.seconds
        return 1 / plan.get("a", "w_bits")


def test_a_plan_is_computed_once():
    effect = Counted()
    cache = SensitivityCache(effect)
    assert [cache(plan) for plan in (*PLANS, *PLANS)] == [0.5, 0.25, 0.125] * 2
    assert cache(Plan({"a/w_bits": 2, "b/w_bits": 32})) == 0.5  # the same plan
    assert effect.asked == PLANS
    assert cache.known == dict(zip(PLANS, (0.5, 0.25, 0.125), strict=True))


def test_answers_are_kept_a_line_each_and_read_again(tmp_path):
    path = tmp_path / "profile" / "effects.jsonl"
    first = SensitivityCache(Counted(), path)
    assert not path.exists()
    for plan in PLANS[:2]:
        first(plan)
        assert len(path.read_text().splitlines()) == len(first.known)
    assert json.loads(path.read_text().splitlines()[0])[:2] == [{"a/w_bits": 2}, 0.5]
    effect = Counted()
    second = SensitivityCache(effect, path)
    assert second.known == first.known
    assert [second(plan) for plan in PLANS] == [0.5, 0.25, 0.125]
    assert effect.asked == PLANS[2:]
    assert SensitivityCache(effect, path).known == second.known


def test_what_is_infinite_and_what_is_nothing_stay_so(tmp_path):
    path = tmp_path / "effects.jsonl"
    cache = SensitivityCache(lambda plan: math.inf if plan.settings else 0.0, path)
    assert (cache(PLANS[0]), cache(Plan())) == (math.inf, 0.0)
    assert SensitivityCache(Counted(), path).known == {PLANS[0]: math.inf, Plan(): 0.0}


def test_numbers_are_kept_to_the_last_bit(tmp_path):
    path = tmp_path / "effects.jsonl"
    SensitivityCache(lambda plan: 0.1 + 0.2, path)(PLANS[0])
    assert SensitivityCache(Counted(), path).known[PLANS[0]] == 0.1 + 0.2


def test_seconds_are_those_of_all_runs(tmp_path, monkeypatch):
    path, effect = tmp_path / "effects.jsonl", Counted(0.02)
    monkeypatch.setattr(CLOCK, effect.clock)
    first = SensitivityCache(effect, path)
    first(PLANS[0])
    assert first.seconds == 0.02
    first(PLANS[0])
    assert first.seconds == 0.02
    effect.seconds = 0.03
    second = SensitivityCache(effect, path)
    assert second.seconds == 0.02
    second(PLANS[1])
    assert second.seconds == pytest.approx(0.05)
    assert SensitivityCache(effect, path).seconds == pytest.approx(0.05)


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_cut_off(tmp_path, cut):
    path = tmp_path / "effects.jsonl"
    first = SensitivityCache(Counted(), path)
    for plan in PLANS:
        first(plan)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    effect = Counted()
    second = SensitivityCache(effect, path)
    assert list(second.known) == PLANS[:2]
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    second(PLANS[2])
    assert effect.asked == PLANS[2:]
    assert SensitivityCache(effect, path).known == first.known


@pytest.mark.parametrize(
    "line",
    [
        b"hello",
        b"",
        b"3",
        b"{}",
        b"null",
        b"[1, 2, 3]",
        b'[{"a/w_bits": 4}, 1]',
        b'[{"a/w_bits": 4}, "much", 0]',
        b'[{"a/w_bits": 4}, null, 0]',
        b'[{"a/w_bits": 99}, 1, 0]',
        b'[{"a/colour": 4}, 1, 0]',
        b"\xff\xfe",
    ],
)
def test_a_line_that_is_none_is_named(tmp_path, line):
    path = tmp_path / "effects.jsonl"
    SensitivityCache(Counted(), path)(PLANS[0])
    content = path.read_bytes() + line + b"\n" + path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"effects\.jsonl, line 2: .*Delete the file"):
        SensitivityCache(Counted(), path)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "profile").write_text("a file where a directory should be")
    cache = SensitivityCache(Counted(), tmp_path / "profile" / "effects.jsonl")
    with pytest.raises(RunError, match=r"writable: .*effects\.jsonl"):
        cache(PLANS[0])


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "effects.jsonl").mkdir()
    with pytest.raises(RunError, match=r"effects\.jsonl"):
        SensitivityCache(Counted(), tmp_path / "effects.jsonl")


@pytest.mark.parametrize(
    "line", ['[{"a/w_bits": 2}, NaN, 0.1]', '[{"a/w_bits": 2}, -5.0, 0.1]', "[[], 0.5, 0.1]",
             '[{"a/w_bits": 2}, 0.5, NaN]', '[{"a/w_bits": 2}, 0.5, Infinity]']
)  # fmt: skip
def test_figures_that_cannot_be_are_refused(tmp_path, line):
    path = tmp_path / "effects.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(RunError, match="line 1: not a line that autocompress wrote"):
        SensitivityCache(Counted(), path)


def test_what_was_computed_elsewhere_costs_nothing_here(tmp_path, monkeypatch):
    path, effect = tmp_path / "effects.jsonl", Counted(0.01)
    monkeypatch.setattr(CLOCK, effect.clock)
    cache = SensitivityCache(effect, path)
    cache(PLANS[0])
    cache.learn(PLANS[1], 0.3)
    cache.learn(PLANS[0], 0.9)  # known
    assert cache.seconds == 0.01
    assert cache.known == {PLANS[0]: 0.5, PLANS[1]: 0.3}
    again = SensitivityCache(Counted(), path)
    assert again.known == cache.known
    assert again.seconds == 0.01
