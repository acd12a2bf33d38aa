"""The arithmetic and the bookkeeping of timing; nothing here asserts how fast anything is."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autocompress.targets import timing
from autocompress.targets.timing import Timing, cpu_features, measure, summarise


class Fake:
    load_ms = 0.0
    peak_memory_bytes = None

    def __init__(self, work: Callable[[], None] = lambda: None) -> None:
        self.work = work
        self.calls = 0

    def __call__(self, *arrays: Any) -> Any:
        self.calls += 1
        self.work()
        return arrays[0]

    def example_inputs(self, batch_size: int = 1) -> tuple[Any, ...]:
        return (np.zeros((batch_size, 1)),)


def test_the_drift_of_the_machine_cancels() -> None:
    drift = np.linspace(1.0, 1.06, 30)
    found = summarise(tuple((0.5 * d, 1.0 * d) for d in drift), clock="cpu", reference_ms=2.0)
    assert found.ratio == pytest.approx(0.5)
    assert found.latency_ms == pytest.approx(1.0)
    assert found.low_ms == pytest.approx(found.high_ms)


def test_slow_episodes_are_dropped_but_kept_on_record() -> None:
    calm = [(0.5, 1.0)] * 10
    slow = [(0.775, 1.29)] * 5
    found = summarise((*calm, *slow), clock="cpu")
    assert found.ratio == 0.5
    assert found.reference_ms == 1.0
    assert len(found.blocks) == 15


def test_few_blocks_are_all_kept() -> None:
    found = summarise(((1.0, 1.0), (1.0, 2.0)), clock="wall")
    assert found.ratio == 0.75
    with pytest.raises(ValueError, match="at least one block"):
        summarise((), clock="wall")


def test_the_interval_narrows_with_blocks_and_holds_the_figure() -> None:
    noise = np.random.default_rng(0).normal(1.0, 0.02, 400)
    blocks = tuple((float(n), 1.0) for n in noise)
    few, many = summarise(blocks[:10], clock="cpu"), summarise(blocks, clock="cpu")
    assert many.low_ms < many.latency_ms < many.high_ms
    assert many.high_ms - many.low_ms < few.high_ms - few.low_ms
    assert summarise(blocks, clock="cpu") == many  # seeded


def test_a_timing_travels_as_json() -> None:
    found = summarise(((1.0, 2.0),) * 4, clock="cpu", reference_ms=3.0)
    assert Timing.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_candidate_and_reference_alternate_in_blocks() -> None:
    order: list[str] = []
    first, second = Fake(lambda: order.append("c")), Fake(lambda: order.append("r"))
    found = measure(first, second, (np.zeros(1),), max_seconds=0.01, relative_width=1e9)
    text = "".join(order)[6:]  # after the warm-up
    assert text == ("c" * 6 + "r" * 6) * len(found.blocks)
    assert found.clock == "cpu"


def test_it_stops_when_the_interval_is_narrow() -> None:
    quick = measure(Fake(), Fake(), (np.zeros(1),), max_seconds=5, relative_width=1e9)
    assert len(quick.blocks) == 8
    with pytest.raises(ValueError, match="must be above 0"):
        measure(Fake(), Fake(), (np.zeros(1),), max_seconds=0)


def test_work_in_other_threads_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1, 10**6))
    monkeypatch.setattr(timing.time, "process_time", lambda: float(next(ticks)))
    found = measure(Fake(), Fake(), (np.zeros(1),), max_seconds=0.01, relative_width=1e9)
    assert (found.agree, found.clock) == (False, "wall")


def test_several_threads_are_timed_on_the_wall_under_the_lock() -> None:
    held = []

    def look() -> None:
        other = timing._host_lock()
        with pytest.raises(TimeoutError):
            other.acquire(timeout=0)
        held.append(True)

    found = measure(
        Fake(look), Fake(), (np.zeros(1),), threads=2, max_seconds=0.01, relative_width=1e9
    )
    assert found.clock == "wall"
    assert held
    with timing._host_lock().acquire(timeout=1):  # given back
        pass


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_the_process_is_pinned_and_released() -> None:
    before = os.sched_getaffinity(0)
    seen = []
    fake = Fake(lambda: seen.append(os.sched_getaffinity(0)))
    measure(fake, fake, (np.zeros(1),), max_seconds=0.01, relative_width=1e9)
    assert {len(cores) for cores in seen} == {1}
    assert os.sched_getaffinity(0) == before


def test_an_error_of_a_session_leaves_the_process_as_it_was() -> None:
    def fail() -> None:
        raise RuntimeError("no")

    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with pytest.raises(RuntimeError, match="no"):
        measure(Fake(fail), Fake(), (np.zeros(1),), threads=2)
    assert before is None or os.sched_getaffinity(0) == before


def test_cpu_features(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 sse avx512_vnni\n\nprocessor\t: 1\n")
    assert cpu_features(info) == ("avx2", "avx512_vnni")
    info.write_text("Features\t: fp asimd asimddp\n")
    assert cpu_features(info) == ("asimd", "asimddp")
    assert cpu_features(tmp_path / "none") == ()
