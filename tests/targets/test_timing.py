"""The arithmetic and the bookkeeping of timing; nothing here asserts how fast anything is."""

import json
import math
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autocompress.targets import timing
from autocompress.targets.timing import (
    Block,
    Timing,
    cpu_features,
    cpu_model,
    measure,
    openings,
    summarise,
)

INPUTS = (np.zeros(1),)
#: What an interval has on either side at least, as a share of the figure.
LEAST = 1.96 * math.hypot(timing._DRIFT, timing._OPENING)


class Fake:
    """A session that does something for one call."""

    load_ms = 0.0
    peak_memory_bytes = None

    def __init__(
        self,
        work: Callable[[], None] = lambda: None,
        again: Callable[[], "Fake"] | None = None,
    ) -> None:
        self.work = work
        self.calls = 0
        self.again = again or (lambda: Fake(work, again))

    def __call__(self, *arrays: Any) -> Any:
        self.calls += 1
        self.work()
        return arrays[0]

    def example_inputs(self, batch_size: int = 1) -> tuple[Any, ...]:
        return (np.zeros((batch_size, 1)),)


class Machine:
    """A machine with clocks of its own: time passes while a session runs, and only then.

    ``slowness``: what runs take longer by, given the time in seconds; ``away``: seconds a run that
    the thread is not running; ``others``: CPU time of other threads as a share of this one's.
    """

    def __init__(
        self,
        slowness: Callable[[float], float] = lambda now: 1.0,
        away: Callable[[float], float] = lambda now: 0.0,
        others: float = 0.0,
    ) -> None:
        self.wall = self.cpu = 0.0
        self.slowness, self.away, self.others = slowness, away, others

    def perf_counter(self) -> float:
        return self.wall

    def thread_time(self) -> float:
        return self.cpu

    def process_time(self) -> float:
        return self.cpu * (1 + self.others)

    def session(self, ms: float | Callable[[], float]) -> Fake:
        def work() -> None:
            spent = (ms() if callable(ms) else ms) * 1e-3 * self.slowness(self.wall)
            self.cpu += spent
            self.wall += spent + self.away(self.wall)

        return Fake(work)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], Machine]:
    def use(machine: Machine) -> Machine:
        monkeypatch.setattr(timing, "time", machine)
        return machine

    return use


def blocks_of(pairs: Sequence[tuple[float, float]]) -> tuple[Block, ...]:
    """Return blocks that are the same on both clocks."""
    return tuple((a, b, a, b) for a, b in pairs)


def test_the_drift_of_the_machine_cancels() -> None:
    drift = np.linspace(1.0, 1.04, 30)
    blocks = blocks_of([(0.5 * d, 1.0 * d) for d in drift])
    found = summarise(blocks, clock="cpu", reference_ms=2.0)
    assert found.ratio == pytest.approx(0.5)
    assert found.latency_ms == pytest.approx(1.0)
    # what blocks cannot tell of alone, since the scatter cancels too
    assert found.high_ms - 1.0 == pytest.approx(LEAST)
    assert 1.0 - found.low_ms == pytest.approx(LEAST)
    assert summarise(blocks, clock="cpu").latency_ms > 0.5  # nothing to cancel it with


def test_slow_episodes_are_dropped_but_kept_on_record() -> None:
    calm, slow = [(0.5, 1.0)] * 10, [(0.4, 1.29)] * 30
    found = summarise(blocks_of([*calm, *slow]), clock="cpu")
    assert (found.ratio, found.reference_ms, found.latency_ms) == (0.5, 1.0, 0.5)
    assert found.calm == 0.25
    assert len(found.blocks) == 40


def test_an_episode_as_long_as_the_measurement_shows_against_the_known_reference() -> None:
    slow = [(0.4, 1.29)] * 30
    assert summarise(blocks_of(slow), clock="cpu").calm == 1.0
    found = summarise(blocks_of(slow), clock="cpu", reference_ms=1.0)
    assert found.calm == 0.0
    assert found.ratio == pytest.approx(0.4 / 1.29)  # for want of better blocks
    with_calm = blocks_of([*slow, *[(0.5, 1.0)] * 3])  # below the 10th percentile
    assert summarise(with_calm, clock="cpu").ratio != 0.5
    found = summarise(with_calm, clock="cpu", reference_ms=1.0)
    assert found.ratio == 0.5
    assert found.calm == pytest.approx(3 / 33)
    # where the machine has become faster since, or is slow throughout: the blocks' own floor
    mixed = blocks_of([*[(0.5, 1.3)] * 10, *[(0.4, 1.9)] * 10])
    for reference_ms, calm in ((2.0, 0.5), (1.0, 0.0)):
        found = summarise(mixed, clock="cpu", reference_ms=reference_ms)
        assert found.ratio == pytest.approx(0.5 / 1.3)
        assert found.calm == calm


def test_few_blocks_are_all_kept() -> None:
    found = summarise(blocks_of([(1.0, 1.0), (0.8, 2.0)]), clock="wall")
    assert found.calm == 0.5
    assert found.latency_ms == 0.8
    assert found.reference_ms == 1.0
    with pytest.raises(ValueError, match="at least one block"):
        summarise((), clock="wall")


def test_the_figure_is_of_the_fastest_quarter_of_each() -> None:
    candidate = [1.0, 8.0, 3.0, 4.0, 2.0, 6.0, 7.0, 5.0]
    reference = [1.02, 1.03, 1.0, 1.04, 1.05, 1.05, 1.05, 1.01]
    blocks = blocks_of(list(zip(candidate, reference, strict=True)))
    found = summarise(blocks, clock="cpu", reference_ms=2.0)
    assert found.ratio == pytest.approx(1.5 / 1.005)
    assert found.latency_ms == pytest.approx(2 * 1.5 / 1.005)
    assert summarise(blocks, clock="cpu").latency_ms == 1.5  # its own time


def test_each_clock_has_its_own_columns() -> None:
    blocks = ((1.0, 2.0, 30.0, 40.0),) * 8
    assert summarise(blocks, clock="cpu").latency_ms == 1.0
    assert summarise(blocks, clock="cpu").reference_ms == 2.0
    assert summarise(blocks, clock="wall").latency_ms == 30.0
    assert summarise(blocks, clock="wall").reference_ms == 40.0


def test_the_interval_narrows_with_blocks_and_holds_the_figure() -> None:
    noise = np.random.default_rng(0).normal(1.0, 0.15, 400)
    blocks = blocks_of([(float(n), 1.0) for n in noise])
    few, many = summarise(blocks[:10], clock="cpu"), summarise(blocks, clock="cpu")
    for found in (few, many):
        assert found.low_ms < found.latency_ms < found.high_ms
        least = LEAST * found.latency_ms
        assert found.latency_ms - found.low_ms >= least
        assert found.high_ms - found.latency_ms >= least
    assert many.high_ms - many.low_ms < (few.high_ms - few.low_ms) / 2
    assert summarise(blocks, clock="cpu") == many  # seeded
    assert summarise(blocks, clock="cpu", seed=1).high_ms != many.high_ms


def test_openings_count_alike_and_each_has_its_fastest_quarter() -> None:
    """The mean over openings, not over the fastest one's blocks."""
    quick, slow = [1.0, 1.2, 1.3, 1.4], [2.0, 2.2, 2.3, 2.4]
    blocks = blocks_of([(c, 1.0) for pair in zip(quick, slow, strict=True) for c in pair])
    found = summarise(blocks, clock="cpu", openings=2, reference_ms=4.0)
    assert found.ratio == pytest.approx(1.5)
    assert found.latency_ms == pytest.approx(6.0)
    assert found.openings == 2
    assert summarise(blocks, clock="cpu").latency_ms < 1.2
    # two openings of the reference beside one of the candidate
    blocks = blocks_of([(1.0, 1.0), (1.0, 1.04)] * 4)
    found = summarise(blocks, clock="cpu", openings=1, turns=2, reference_ms=1.02)
    assert found.latency_ms == pytest.approx(1.0)


def test_an_opening_without_a_calm_block_is_left_out() -> None:
    blocks = blocks_of([(1.0, 1.0), (9.0, 1.2)] * 4)
    assert summarise(blocks, clock="cpu", openings=2).latency_ms == 1.0


def test_the_interval_knows_how_openings_differ() -> None:
    def half(ratios: Sequence[float]) -> float:
        found = summarise(
            blocks_of([(r, 1.0) for r in ratios] * 8), clock="cpu", openings=len(ratios)
        )
        return (found.high_ms - found.low_ms) / 2 / found.latency_ms

    assert half([1.0]) == pytest.approx(LEAST)
    alike, different = half([1.0] * 4), half([0.97, 1.03, 0.97, 1.03])
    assert alike < half([1.0] * 2) < half([1.0])
    square = (4 * timing._OPENING**2 + 4 * 0.03**2) / (4 + 3)  # what was known, and what is seen
    expected = 1.96 * math.hypot(timing._DRIFT, math.sqrt(square / 4))
    assert different == pytest.approx(expected)
    assert different > 1.5 * alike


def test_neighbouring_blocks_that_are_alike_are_worth_less_than_independent_ones() -> None:
    generator = np.random.default_rng(1)
    alike = np.repeat(generator.normal(1.0, 0.15, 60), 4)
    free = generator.normal(1.0, 0.15, 240)

    def width(values: Any) -> float:
        found = summarise(blocks_of([(float(v), 1.0) for v in values]), clock="cpu")
        return found.high_ms - found.low_ms

    assert width(alike) > 1.5 * width(free)
    assert width(alike) > 1.3 * width(generator.permutation(alike))


def test_a_timing_is_json_with_its_samples() -> None:
    found = summarise(((1.0, 2.0, 1.1234567, 2.5),) * 4, clock="cpu", reference_ms=3.0)
    again = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert again["blocks"] == [[1.0, 2.0, 1.12346, 2.5]] * 4
    blocks = tuple(tuple(block) for block in again.pop("blocks"))
    assert summarise(blocks, clock=again["clock"], reference_ms=3.0).to_json() == {
        **again, "blocks": [list(block) for block in blocks],
    }  # fmt: skip


def test_candidate_and_reference_alternate_in_blocks(on) -> None:
    machine, order = on(Machine()), []
    first, second = machine.session(1.0), machine.session(1.0)
    for name, session in (("c", first), ("r", second)):
        work = session.work
        session.work = lambda name=name, work=work: (order.append(name), work())
    found = measure(first, second, INPUTS, max_seconds=1)
    text = "".join(order)[6:]  # after the warm-up
    assert text == ("c" * 6 + "r" * 6) * len(found.blocks)


def test_openings_take_turns(on) -> None:
    machine, order = on(Machine()), []

    def named(name: str) -> Fake:
        session = machine.session(1.0)
        work = session.work
        session.work = lambda: (order.append(name), work())
        return session

    found = measure([named("a"), named("b")], [named("r")], INPUTS, max_seconds=1)
    text = "".join(order)[9:]  # after the warm-up
    assert text == ("a" * 6 + "r" * 6 + "b" * 6 + "r" * 6) * (len(found.blocks) // 2)
    assert (found.openings, len(found.blocks)) == (2, 12)
    four = [named(name) for name in "cdef"]
    assert len(measure(four, four, INPUTS, max_seconds=1).blocks) == 24


def test_a_file_is_opened_as_often_as_time_allows(on) -> None:
    def opened(load: float, again: float, seconds: float = 1.0) -> int:
        machine = on(Machine())

        def open_again() -> Fake:
            machine.wall += again
            return Fake()

        session = Fake(again=open_again)
        session.load_ms = load * 1e3
        found = openings(session, seconds)
        assert found[0] is session
        assert len({id(each) for each in found}) == len(found)
        assert machine.wall <= seconds
        return len(found)

    assert opened(0.1, 0.1) == 4
    assert opened(0.9, 0.3) == 4
    assert opened(0.9, 0.4) == 2
    assert opened(1.9, 0.3) == 4  # to open again may be quicker
    assert opened(2.1, 0.1) == 1
    fixed = Fake()
    fixed.fixed_ms = 1.0
    assert openings(fixed, 1.0) == (fixed,)


def test_the_cold_run_of_a_block_is_left_out(on) -> None:
    machine = on(Machine())
    turn = iter(range(10**6))

    def cold_first() -> float:
        """Three of warm-up, then blocks of six whose second run is the fastest."""
        place = next(turn)
        return 1.0 if place < 3 else {0: 0.1, 1: 0.5}.get((place - 3) % 6, 0.9)

    found = measure(machine.session(cold_first), machine.session(1.0), INPUTS, max_seconds=1)
    assert found.latency_ms == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("candidate", "reference", "runs"), [(1.0, 1.9, 6), (3.0, 1.0, 4), (1.0, 4.9, 4), (1.0, 50, 3)]
)
def test_slow_sessions_get_fewer_runs_a_block(on, candidate, reference, runs) -> None:
    machine = on(Machine())
    first, second = machine.session(candidate), machine.session(reference)
    found = measure(first, second, INPUTS, max_seconds=5)
    assert first.calls == second.calls == 3 + runs * len(found.blocks)


def test_it_stops_when_the_interval_is_narrow(on) -> None:
    machine = on(Machine())
    quick = measure(machine.session(1.0), machine.session(2.0), INPUTS, max_seconds=5)
    assert len(quick.blocks) == 8
    assert quick.latency_ms == pytest.approx(1.0)
    assert quick.reference_ms == pytest.approx(2.0)
    assert (quick.clock, quick.agree, quick.calm) == ("cpu", True, 1.0)
    known = measure(
        machine.session(1.0), machine.session(2.0), INPUTS, max_seconds=5, reference_ms=3.0
    )
    assert known.latency_ms == pytest.approx(1.5)
    assert known.reference_ms == 3.0


def test_it_stops_at_the_limit_where_the_interval_stays_wide(on) -> None:
    machine = on(Machine())
    start, generator = machine.wall, np.random.default_rng(0)
    found = measure(
        machine.session(lambda: generator.uniform(1, 5)), machine.session(1.0), INPUTS,
        max_seconds=2, relative_width=1e-6, seed=3,
    )  # fmt: skip
    assert found.calm == 1.0
    assert 2 < machine.wall - start < 2.1
    assert len(found.blocks) > 40
    again = summarise(found.blocks, clock="cpu", seed=3)
    assert (found.low_ms, found.high_ms) == (again.low_ms, again.high_ms)


@pytest.mark.parametrize(
    "bad", [{"max_seconds": 0}, {"relative_width": 0}, {"threads": 0}, {"max_seconds": -1}]
)
def test_limits_must_be_above_zero(bad) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        measure(Fake(), Fake(), INPUTS, **bad)


def test_a_slow_episode_is_waited_out(on) -> None:
    machine = on(Machine(slowness=lambda now: 1.4 if now < 3 else 1.0))
    found = measure(
        machine.session(0.5), machine.session(1.0), INPUTS, max_seconds=1, reference_ms=1.0
    )
    assert 3 < machine.wall < 6
    assert found.calm * len(found.blocks) >= timing._LEAST
    assert found.calm < 0.5
    assert found.latency_ms == pytest.approx(0.5)


def test_waiting_for_a_calm_machine_ends(on) -> None:
    machine = on(Machine(slowness=lambda now: 1.4))
    found = measure(
        machine.session(0.5), machine.session(1.0), INPUTS, max_seconds=0.5, reference_ms=1.0
    )
    assert 3 < machine.wall < 3 * 1.3
    assert found.calm == 0.0
    assert found.latency_ms == pytest.approx(0.5)  # the ratio still is
    # without a reference to compare with nobody can tell that it is slow
    machine = on(Machine(slowness=lambda now: 1.4))
    found = measure(machine.session(0.5), machine.session(1.0), INPUTS, max_seconds=1)
    assert machine.wall < 1
    assert found.latency_ms == pytest.approx(0.7)


def test_being_scheduled_away_costs_nothing(on) -> None:
    machine = on(Machine(away=lambda now: 0.01))
    found = measure(machine.session(0.5), machine.session(1.0), INPUTS, max_seconds=1)
    assert (found.clock, found.agree) == ("cpu", True)
    assert found.latency_ms == pytest.approx(0.5)
    assert found.blocks[0] == pytest.approx((0.5, 1.0, 10.5, 11.0))


def test_work_in_other_threads_is_noticed(on) -> None:
    machine = on(Machine(away=lambda now: 0.01, others=0.2))
    found = measure(machine.session(0.5), machine.session(1.0), INPUTS, max_seconds=1)
    assert (found.clock, found.agree) == ("wall", False)
    assert found.latency_ms == pytest.approx(10.5)


def test_made_up_latencies_are_taken_as_they_are() -> None:
    one, two = Fake(), Fake()
    one.fixed_ms, two.fixed_ms = 2.0, 4.0
    found = measure(one, two, INPUTS)
    assert found == Timing(2.0, 2.0, 2.0, 4.0, 0.5, "fixed", True, 1.0, ())
    assert one.calls == 0


def test_several_threads_are_timed_on_the_wall_under_the_lock(on) -> None:
    machine, held = on(Machine(away=lambda now: 1e-3)), []
    first = machine.session(1.0)
    work = first.work

    def look() -> None:
        work()
        if not held:
            other = timing._host_lock()
            with pytest.raises(TimeoutError):
                other.acquire(timeout=0)
            held.append(True)

    first.work = look
    found = measure(first, machine.session(1.0), INPUTS, threads=2, max_seconds=1)
    assert (found.clock, found.agree) == ("wall", True)
    assert found.latency_ms == pytest.approx(2.0)
    assert held
    with timing._host_lock().acquire(timeout=1):  # given back
        pass


def test_a_coarse_cpu_clock_is_not_used(on, monkeypatch) -> None:
    machine = on(Machine(away=lambda now: 1e-3))
    monkeypatch.setattr(timing, "_COARSE", True)
    found = measure(machine.session(1.0), machine.session(2.0), INPUTS)
    assert (found.clock, found.agree) == ("wall", True)
    assert found.latency_ms == pytest.approx(2.0)


def test_one_thread_needs_no_lock(on) -> None:
    machine = on(Machine())
    with timing._host_lock().acquire(timeout=1):
        assert measure(machine.session(1.0), machine.session(1.0), INPUTS).clock == "cpu"


class Cores:
    """A system of eight cores in which a thread of this process has ended meanwhile."""

    def __init__(self) -> None:
        self.me = threading.get_native_id()
        self.of = {self.me: {0, 1, 2, 3, 4, 5}, self.me + 1: {0, 1, 2, 3, 4, 5, 6, 7}}
        self.seen: list[dict[int, set[int]]] = []

    def sched_getaffinity(self, task: int) -> set[int]:
        if task not in self.of:
            raise ProcessLookupError(task)
        return set(self.of[task])

    def sched_setaffinity(self, task: int, cores: Any) -> None:
        if task not in self.of:
            raise ProcessLookupError(task)
        self.of[task] = set(cores)

    def listdir(self, path: str) -> list[str]:
        assert path == "/proc/self/task"
        return [str(task) for task in (*self.of, self.me + 2)]

    def look(self) -> None:
        self.seen.append({task: set(cores) for task, cores in self.of.items()})


def pinned(monkeypatch: pytest.MonkeyPatch, threads: int, core: int = 3) -> Cores:
    system = Cores()
    before = {task: set(cores) for task, cores in system.of.items()}
    monkeypatch.setattr(timing, "os", system)
    monkeypatch.setattr(timing, "_core", lambda: core)
    with timing._pinned(threads):
        system.look()
    assert system.of == before
    system.look()
    with pytest.raises(RuntimeError), timing._pinned(threads):
        raise RuntimeError
    assert system.of == before
    return system


def test_one_thread_stays_on_its_core_and_the_others_where_they_are(monkeypatch) -> None:
    system = pinned(monkeypatch, 1)
    assert system.seen[0] == {system.me: {3}, system.me + 1: set(range(8))}


def test_several_threads_share_as_many_cores(monkeypatch) -> None:
    system = pinned(monkeypatch, 2)
    assert system.seen[0] == {system.me: {4, 5}, system.me + 1: {4, 5}}


@pytest.mark.parametrize("core", [-1, 7])  # not told; not one that it may run on
def test_a_core_that_cannot_be_had_is_not_asked_for(monkeypatch, core) -> None:
    system = pinned(monkeypatch, 1, core)
    assert system.seen[0][system.me] == set(range(6))


def test_a_system_without_affinity_measures_too(on, monkeypatch) -> None:
    monkeypatch.setattr(timing, "os", SimpleNamespace())
    machine = on(Machine())
    assert measure(machine.session(1.0), machine.session(1.0), INPUTS).latency_ms > 0


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_the_process_is_pinned_and_released() -> None:
    before = os.sched_getaffinity(0)
    seen = []
    fake = Fake(lambda: seen.append(os.sched_getaffinity(0)))
    measure(fake, fake, INPUTS, max_seconds=0.01, relative_width=1e9)
    assert {len(cores) for cores in seen} == {1}
    assert os.sched_getaffinity(0) == before
    assert threading.get_native_id() in timing._tasks()
    assert timing._core() in before


def test_an_error_of_a_session_leaves_the_process_as_it_was() -> None:
    def fail() -> None:
        raise RuntimeError("no")

    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with pytest.raises(RuntimeError, match="no"):
        measure(Fake(fail), Fake(), INPUTS, threads=2)
    assert before is None or os.sched_getaffinity(0) == before
    with timing._host_lock().acquire(timeout=1):
        pass


def test_what_the_processor_is(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 sse avx512_vnni\n\nprocessor\t: 1\n")
    assert cpu_features(info) == ("avx2", "avx512_vnni")
    info.write_text("Features\t: fp asimd asimddp\nCPU part\t: 0xd0b\n")
    assert cpu_features(info) == ("asimd", "asimddp")
    assert cpu_model(info) == "0xd0b"
    info.write_text("cpu family\t: 6\nmodel\t\t: 85\nmodel name\t: A processor @ 2 GHz\n")
    assert cpu_model(info) == "A processor @ 2 GHz 6 85"
    assert cpu_features(tmp_path / "none") == ()
    assert cpu_model(tmp_path / "none") == "unknown"


def test_a_reference_far_above_its_known_floor_is_of_another_machine() -> None:
    blocks = tuple((1.0, 2.0, 1.0, 2.0) for _ in range(10))
    assert summarise(blocks, clock="cpu", reference_ms=1.8).calm == 0.0  # a slow episode
    moved = summarise(blocks, clock="cpu", reference_ms=1.0)
    assert moved.calm == 1.0
    assert moved.latency_ms == pytest.approx(0.5)
