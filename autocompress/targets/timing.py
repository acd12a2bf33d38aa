"""Latency: alternating blocks of candidate and reference, and the ratio of the two.

Candidate and reference run in turn, in short blocks whose first, cold, run is dropped; a block's
figure is its fastest run. Of the calm blocks, those in which the reference is near its own floor,
the fastest quarter is averaged for each of the two, and the ratio of the averages times the
reference's own latency is the figure: the drift of a shared machine cancels, and what disturbs it
for a moment or for seconds does not enter. One thread is timed on the thread's CPU clock, so that
being scheduled away costs nothing, with the wall clock beside it. Several threads are timed on the
wall clock, one measurement at a time on a host. Measuring goes on until the interval is narrow
enough; where a slow episode leaves too few calm blocks it waits, up to a limit, for its end.
"""

import contextlib
import getpass
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from autocompress.targets.base import Array, Session

__all__ = ["Block", "Timing", "cpu_features", "cpu_model", "measure", "summarise"]

#: Fastest runs of a block in ms: CPU clock of candidate and reference, wall clock of the two.
Block = tuple[float, float, float, float]

_CALM = 1.05  # a reference this far above its floor: a slow episode
_OTHER = 1.5  # a floor this far above the known one: another machine, no slow episode
_LEAST = 8  # calm blocks before an interval is believed
_PATIENCE = 6  # times the time limit, to wait for the end of a slow episode
_FASTEST = 0.25  # the share of the blocks that is averaged
_DRIFT = 0.004  # standard deviation of what repeats differ by beyond their blocks' scatter
_FEATURES = (
    "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx_vnni_int8",
    "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Timing:
    """A latency in milliseconds with its 95 % interval, and all it was made of.

    ``ratio``: candidate's time over the reference's. ``clock``: "cpu", "wall", or "fixed" for
    targets that make their latency up. ``agree``: process and thread CPU time were equal, so that
    the CPU clock of the calling thread saw all of the work; where it is false for one thread, the
    wall clock was used. ``calm``: the share of blocks in which the reference ran near its floor.
    ``blocks``: the samples, those of slow episodes too.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    reference_ms: float
    ratio: float
    clock: str
    agree: bool
    calm: float
    blocks: tuple[Block, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON, samples to 10 ns."""
        blocks = [[round(time, 5) for time in block] for block in self.blocks]
        return {**asdict(self), "blocks": blocks}


def measure(
    candidate: Session,
    reference: Session,
    inputs: tuple[Array, ...],
    *,
    threads: int = 1,
    reference_ms: float | None = None,
    max_seconds: float = 0.6,
    relative_width: float = 0.02,
    seed: int = 0,
) -> Timing:
    """Time ``candidate`` beside ``reference`` on the same inputs.

    ``reference_ms``: the reference's own latency in milliseconds as this function measured it
    before; without it the figure is the candidate's own time. Stops when the 95 % interval is
    narrower than ``relative_width`` of the figure, or after ``max_seconds``, unless the machine is
    in a slow episode: then after six times as long at most. Raises ValueError for a limit that is
    not > 0.
    """
    if max_seconds <= 0 or relative_width <= 0 or threads < 1:
        raise ValueError("max_seconds and relative_width must be above 0, threads at least 1.")
    fixed, base = getattr(candidate, "fixed_ms", None), getattr(reference, "fixed_ms", None)
    if fixed is not None and base is not None:
        return Timing(fixed, fixed, fixed, base, fixed / base, "fixed", True, 1.0, ())
    with _host_lock() if threads > 1 else contextlib.nullcontext(), _pinned(threads):
        return _measure(
            candidate, reference, inputs, threads, reference_ms, max_seconds, relative_width, seed
        )


def _measure(
    candidate: Session,
    reference: Session,
    inputs: tuple[Array, ...],
    threads: int,
    reference_ms: float | None,
    max_seconds: float,
    relative_width: float,
    seed: int,
) -> Timing:
    start = time.perf_counter()
    runs = min(_runs(candidate, inputs), _runs(reference, inputs))
    process, thread = time.process_time(), time.thread_time()
    blocks: list[Block] = []
    check = _LEAST
    while True:
        first, second = _block(candidate, inputs, runs), _block(reference, inputs, runs)
        blocks.append((first[0], second[0], first[1], second[1]))
        gone = time.perf_counter() - start
        late = gone > max_seconds
        if len(blocks) < (3 if late else check):
            continue
        used = time.thread_time() - thread
        whole = time.process_time() - process
        agree = abs(whole - used) <= 0.05 * used + 0.002
        timing = summarise(
            tuple(blocks),
            clock="cpu" if threads == 1 and agree else "wall",
            agree=agree,
            reference_ms=reference_ms,
            seed=seed,
        )
        enough = timing.calm * len(blocks) >= _LEAST
        narrow = timing.high_ms - timing.low_ms <= relative_width * timing.latency_ms
        if (enough and (late or narrow)) or gone > _PATIENCE * max_seconds:
            return timing
        check = math.ceil(len(blocks) * 1.25)


def _runs(session: Session, inputs: tuple[Array, ...]) -> int:
    """Warm a session up; return the runs of a block, fewer where one takes long."""
    each = math.inf
    for _ in range(3):
        start = time.perf_counter()
        session(*inputs)
        each = min(each, time.perf_counter() - start)
    return 6 if each < 2e-3 else 4 if each < 5e-3 else 3


def _block(session: Session, inputs: tuple[Array, ...], runs: int) -> tuple[float, float]:
    """Return CPU and wall milliseconds of the fastest run, the first, cold, run left out."""
    session(*inputs)
    best_cpu = best_wall = math.inf
    for _ in range(runs - 1):
        wall, cpu = time.perf_counter(), time.thread_time()
        session(*inputs)
        best_cpu = min(best_cpu, time.thread_time() - cpu)
        best_wall = min(best_wall, time.perf_counter() - wall)
    return best_cpu * 1e3, best_wall * 1e3


def summarise(
    blocks: tuple[Block, ...],
    *,
    clock: str,
    agree: bool = True,
    reference_ms: float | None = None,
    seed: int = 0,
) -> Timing:
    """Return the timing of blocks on a clock, "cpu" or "wall".

    Dropped are blocks whose reference lies more than 5 % above its floor (``reference_ms``, or
    the 10th percentile of the blocks if that is less or half as much again), unless fewer than
    three would be left: then the floor is the blocks' own. The interval is bootstrapped over
    stretches of neighbouring blocks. Raises ValueError without blocks.
    """
    if not blocks:
        raise ValueError("A timing needs at least one block.")
    columns = (0, 1) if clock == "cpu" else (2, 3)
    table = np.maximum(np.array(blocks, dtype=np.float64)[:, columns], 1e-9)
    own = float(np.quantile(table[:, 1], 0.1))
    other = reference_ms is None or own > _OTHER * reference_ms
    floor = own if other or reference_ms is None else min(own, reference_ms)
    near = table[:, 1] <= _CALM * floor
    calm = float(near.mean())
    if near.sum() < 3:
        near = table[:, 1] <= _CALM * own
    table = table[near] if near.sum() >= 3 else table
    resampled = _fastest(_resample(table, seed))
    whole = _fastest(table[None])[0]
    ratio = float(whole[0] / whole[1])
    if reference_ms is None:
        figure, spread = float(whole[0]), resampled[:, 0]
    else:
        figure = ratio * reference_ms
        spread = resampled[:, 0] / resampled[:, 1] * reference_ms
    low, high = np.quantile(spread, (0.025, 0.975))
    drift = 1.96 * _DRIFT * figure
    return Timing(
        latency_ms=figure,
        low_ms=figure - math.hypot(max(0.0, figure - float(low)), drift),
        high_ms=figure + math.hypot(max(0.0, float(high) - figure), drift),
        reference_ms=float(whole[1]) if reference_ms is None else reference_ms,
        ratio=ratio,
        clock=clock,
        agree=agree,
        calm=calm,
        blocks=blocks,
    )


def _fastest(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of the fastest quarter of the rows; [n, rows, 2] becomes [n, 2]."""
    count = max(1, round(_FASTEST * tables.shape[1]))
    part = np.partition(tables, count - 1, axis=1)[:, :count]
    means: NDArray[np.float64] = part.mean(axis=1)
    return means


def _resample(table: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return 300 tables made of random stretches of neighbouring rows (Künsch 1989)."""
    rows = len(table)
    length = max(1, round(rows ** (1 / 3)))
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, rows, (300, -(-rows // length), 1))
    index = (starts + np.arange(length)) % rows
    return table[index.reshape(300, -1)[:, :rows]]


@contextlib.contextmanager
def _pinned(threads: int) -> Iterator[None]:
    """Keep the calling thread on its core or, with several, all on as many, where one can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    tasks = [threading.get_native_id()] if threads == 1 else _tasks()
    before: dict[int, set[int]] = {}
    for task in tasks:
        with contextlib.suppress(OSError):  # a thread that has ended
            before[task] = os.sched_getaffinity(task)
    cores = sorted(before.get(threading.get_native_id(), ()))
    chosen = {_core()} & set(cores) if threads == 1 else set(cores[-threads:])
    try:
        for task in before:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(task, chosen or cores)
        yield
    finally:
        for task, cores_before in before.items():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(task, cores_before)


def _tasks() -> list[int]:
    """Return the identifiers of the process's threads."""
    try:
        return [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:
        return [threading.get_native_id()]


def _core() -> int:
    """Return the core that the calling thread runs on, -1 where the system does not tell."""
    try:
        stat = Path(f"/proc/self/task/{threading.get_native_id()}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[36])  # field 39 of proc(5)
    except (OSError, ValueError, IndexError):
        return -1


def _host_lock() -> FileLock:
    """Return the lock that lets one measurement at a time run; the system frees a dead holder's."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "user"
    return FileLock(Path(tempfile.gettempdir()) / f"autocompress-timing-{user}.lock")


def cpu_features(path: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return the instruction sets that decide how fast and how exact integer kernels are."""
    flags = set(_cpuinfo(path, "flags|Features").split())
    return tuple(feature for feature in _FEATURES if feature in flags)


def cpu_model(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return what the processor calls itself, "unknown" where the system does not tell."""
    found = [_cpuinfo(path, key) for key in ("model name", "CPU part", "cpu family", "model")]
    return " ".join(part for part in found if part) or "unknown"


def _cpuinfo(path: Path, key: str) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(rf"^(?:{key})\s*:(.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else ""
