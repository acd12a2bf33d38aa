"""Latency: alternating blocks of candidate and reference, and the ratio of the two.

Candidate and reference run in turn, in short blocks whose first, cold, run is dropped; a block's
figure is its fastest run. Of the calm blocks, those in which the reference is near its own floor,
the fastest quarter is averaged for each of the two, and the ratio of the averages times the
reference's own latency is the figure: the drift of a shared machine cancels, and what disturbs it
for a moment or for seconds does not enter. Where a run takes 2 ms and more, blocks are few and
moments are averaged out within each: there the figure is the median of the blocks' ratios.

The same file opened again lies elsewhere in memory and may differ by a percent, so blocks take
turns over several openings. One thread is timed on the thread's CPU clock, so that being scheduled
away costs nothing, with the wall clock beside it. Several threads are timed on the wall clock, one
measurement at a time on a host. Measuring goes on until blocks tell enough; where a slow episode
leaves too few calm ones it waits, up to a limit, for its end.
"""

import contextlib
import getpass
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from autocompress.targets.session import Array, Session

__all__ = ["Block", "Timing", "cpu_features", "cpu_model", "measure", "openings", "summarise"]

#: Fastest runs of a block in ms: CPU clock of candidate and reference, wall clock of the two.
Block = tuple[float, float, float, float]

_CALM = 1.05  # a reference this far above its floor: a slow episode
_OTHER = 1.5  # a floor this far above the known one: another machine, no slow episode
_LEAST = 8  # calm blocks before an interval is believed
_PATIENCE = 6  # times the time limit, to wait for the end of a slow episode
_FASTEST = 0.25  # the share of the blocks that is averaged
_SLOW = 2.0  # milliseconds of a run from which on it is the median
_DRIFT = 0.006  # standard deviation of what repeats differ by beyond all that they scatter by
_OPENING = 0.008  # that of openings, before any is seen
_WORTH = 4  # openings that this is worth beside those that are seen
_EACH = 6  # blocks of each opening before an interval is believed
# The CPU clock of Windows goes on in steps of 16 ms, too coarse for one run.
_COARSE = time.get_clock_info("thread_time").implementation == "GetThreadTimes()"
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
    wall clock was used, as where the CPU clock is too coarse (Windows). ``calm``: the share of
    blocks in which the reference ran near its floor. ``openings``: how many of the candidate's file
    took turns. ``blocks``: the samples, those of slow episodes too.
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
    openings: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON, samples to 10 ns."""
        blocks = [[round(time, 5) for time in block] for block in self.blocks]
        return {**asdict(self), "blocks": blocks}


def openings(session: Session, seconds: float) -> tuple[Session, ...]:
    """Return a session and its file opened once or three times more, as far as seconds allow."""
    if hasattr(session, "fixed_ms") or session.load_ms * 1e-3 > 2 * seconds:
        return (session,)
    start = time.perf_counter()
    second = session.again()
    if 3 * (time.perf_counter() - start) > seconds:
        return session, second
    return session, second, session.again(), session.again()


def measure(
    candidate: Session | Sequence[Session],
    reference: Session | Sequence[Session],
    inputs: tuple[Array, ...],
    *,
    threads: int = 1,
    reference_ms: float | None = None,
    max_seconds: float = 0.6,
    relative_width: float = 0.02,
    seed: int = 0,
) -> Timing:
    """Time ``candidate`` beside ``reference`` on the same inputs.

    Either may be several openings of a file, of which one number is a multiple of the other.
    ``reference_ms``: the reference's own latency in milliseconds as this function measured it
    before; without it the figure is the candidate's own time. Stops when blocks scatter by so
    little that the 95 % interval of this alone is narrower than ``relative_width`` of the figure,
    or after ``max_seconds``, unless the machine is in a slow episode: then after six times as long
    at most. Raises ValueError for a limit that is not > 0.
    """
    if max_seconds <= 0 or relative_width <= 0 or threads < 1:
        raise ValueError("max_seconds and relative_width must be above 0, threads at least 1.")
    candidates = candidate if isinstance(candidate, Sequence) else (candidate,)
    references = reference if isinstance(reference, Sequence) else (reference,)
    fixed, base = (getattr(each[0], "fixed_ms", None) for each in (candidates, references))
    if fixed is not None and base is not None:
        return Timing(fixed, fixed, fixed, base, fixed / base, "fixed", True, 1.0, ())
    with _host_lock() if threads > 1 else contextlib.nullcontext(), _pinned(threads):
        return _measure(
            candidates, references, inputs, threads, reference_ms, max_seconds, relative_width, seed
        )


def _measure(
    candidates: Sequence[Session],
    references: Sequence[Session],
    inputs: tuple[Array, ...],
    threads: int,
    reference_ms: float | None,
    max_seconds: float,
    relative_width: float,
    seed: int,
) -> Timing:
    start = time.perf_counter()
    runs = min(_runs(session, inputs) for session in (*candidates, *references))
    process, thread = time.process_time(), time.thread_time()
    blocks: list[Block] = []
    turns = max(len(candidates), len(references))
    least = max(_LEAST, _EACH * turns)
    check = least
    while True:
        turn = len(blocks)
        first = _block(candidates[turn % len(candidates)], inputs, runs)
        second = _block(references[turn % len(references)], inputs, runs)
        blocks.append((first[0], second[0], first[1], second[1]))
        gone = time.perf_counter() - start
        late = gone > max_seconds
        if len(blocks) < (max(3, turns) if late else check):
            continue
        used = time.thread_time() - thread
        whole = time.process_time() - process
        agree = abs(whole - used) <= 0.05 * used + 0.002
        timing, scatter = _summary(
            tuple(blocks),
            clock="cpu" if threads == 1 and agree and not _COARSE else "wall",
            agree=agree,
            openings=len(candidates),
            turns=turns,
            reference_ms=reference_ms,
            seed=seed,
        )
        enough = timing.calm * len(blocks) >= (_LEAST if late else least)
        narrow = scatter <= relative_width * timing.latency_ms
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
    openings: int = 1,
    turns: int = 0,
    reference_ms: float | None = None,
    seed: int = 0,
) -> Timing:
    """Return the timing of blocks on a clock, "cpu" or "wall".

    The candidate took turns over ``openings``, candidate and reference together over ``turns``
    (as many if 0). Dropped are blocks whose reference lies more than 5 % above its floor
    (``reference_ms``, or the 10th percentile of the blocks if that is less or half as much again),
    unless fewer than three would be left: then the floor is the blocks' own. The interval is
    bootstrapped over stretches of neighbouring blocks, and widened by what the openings differ by.
    Raises ValueError without blocks.
    """
    return _summary(
        blocks, clock=clock, agree=agree, openings=openings, turns=turns or openings,
        reference_ms=reference_ms, seed=seed,
    )[0]  # fmt: skip


def _summary(
    blocks: tuple[Block, ...],
    *,
    clock: str,
    agree: bool,
    openings: int,
    turns: int,
    reference_ms: float | None,
    seed: int,
) -> tuple[Timing, float]:
    """Return the timing, and the width of its interval if blocks scattered alone."""
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
    if near.sum() < 3:
        near[:] = True
    parts = [table[turn::turns][near[turn::turns]] for turn in range(turns)]
    if table[near].min() >= _SLOW:
        parts, middle = [table[near]], _median
    else:
        parts, middle = [part for part in parts if len(part)], _fastest
    means = np.stack([middle(part[None])[0] for part in parts])
    whole = means.mean(0)
    resampled = np.mean([middle(_resample(part, seed)) for part in parts], axis=0)
    ratio = float(whole[0] / whole[1])
    if reference_ms is None:
        figure, spread = float(whole[0]), resampled[:, 0]
    else:
        figure = ratio * reference_ms
        spread = resampled[:, 0] / resampled[:, 1] * reference_ms
    low, high = np.quantile(spread, (0.025, 0.975))
    square, count = _WORTH * _OPENING**2, _WORTH
    if len(parts) > 1 and openings > 1:
        ratios = means[:, 0] / means[:, 1] / ratio
        square, count = square + float(((ratios - 1) ** 2).sum()), count + len(parts) - 1
    beyond = 1.96 * math.hypot(_DRIFT, math.sqrt(square / count / openings)) * figure
    timing = Timing(
        latency_ms=figure,
        low_ms=figure - math.hypot(max(0.0, figure - float(low)), beyond),
        high_ms=figure + math.hypot(max(0.0, float(high) - figure), beyond),
        reference_ms=float(whole[1]) if reference_ms is None else reference_ms,
        ratio=ratio,
        clock=clock,
        agree=agree,
        calm=calm,
        blocks=blocks,
        openings=openings,
    )
    return timing, float(high - low)


def _fastest(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the means of the fastest quarter of the rows; [n, rows, 2] becomes [n, 2]."""
    count = max(1, round(_FASTEST * tables.shape[1]))
    part = np.partition(tables, count - 1, axis=1)[:, :count]
    means: NDArray[np.float64] = part.mean(axis=1)
    return means


def _median(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median ratio of the rows times the median of the second column, and the latter."""
    second = np.median(tables[..., 1], axis=1)
    return np.stack([np.median(tables[..., 0] / tables[..., 1], axis=1) * second, second], axis=1)


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
        path = Path(f"/proc/self/task/{threading.get_native_id()}/stat")
        stat = path.read_text(encoding="utf-8")
        return int(stat.rpartition(")")[2].split()[36])  # field 39 of proc(5)
    except (OSError, ValueError, IndexError):
        return -1


def _host_lock() -> FileLock:
    """Return the lock that lets one measurement at a time run; the system frees a dead holder's."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # the last: no environment, and no pwd
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
