"""Latency: alternating blocks of candidate and reference, and the ratio of the two.

The figure is the median of the paired ratios times the reference's own latency, so that the
drift of a shared machine cancels. Blocks in which the reference is far above its floor are
dropped. One thread is timed on the thread's CPU clock beside the wall clock: being scheduled away
then costs nothing. Several threads are timed on the wall clock, one measurement at a time on a
host. Intervals are bootstrapped over blocks.
"""

import contextlib
import getpass
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from autocompress.targets.base import Array, Session

__all__ = ["Timing", "cpu_features", "measure", "summarise"]

Pair = tuple[float, float]
Blocks = tuple[Pair, ...]

_RUNS = 6  # in a block; the first is cold and dropped
_SLOW = 1.08  # a reference this far above its floor: a slow episode
_LEAST = 8  # blocks before an interval is believed
_FEATURES = (
    "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx_vnni_int8",
    "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Timing:
    """A latency in milliseconds with its 95 % interval, and all it was made of.

    ``ratio``: candidate's time over the reference's. ``clock``: "cpu", "wall", or "fixed" for
    targets that make their latency up. ``agree``: process and thread CPU time were equal, so that
    the CPU clock of the calling thread saw all of the work. ``blocks``: per block, milliseconds
    a run of candidate and reference; slow ones are here too.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    reference_ms: float
    ratio: float
    clock: str
    agree: bool
    blocks: Blocks

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "blocks": [list(pair) for pair in self.blocks]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Timing":
        """Undo :meth:`to_json`."""
        blocks = tuple((float(a), float(b)) for a, b in document["blocks"])
        return cls(**{**document, "blocks": blocks})


def measure(
    candidate: Session,
    reference: Session,
    inputs: tuple[Array, ...],
    *,
    threads: int = 1,
    reference_ms: float | None = None,
    max_seconds: float = 0.6,
    relative_width: float = 0.03,
    seed: int = 0,
) -> Timing:
    """Time ``candidate`` beside ``reference`` on the same inputs.

    ``reference_ms``: the reference's own latency in milliseconds, measured from these blocks if
    None. Stops when the 95 % interval is narrower than ``relative_width`` of the figure, or after
    ``max_seconds`` (but not before a few blocks). Raises ValueError for a limit that is not > 0.
    """
    if max_seconds <= 0 or relative_width <= 0 or threads < 1:
        raise ValueError("max_seconds and relative_width must be above 0, threads at least 1.")
    fixed, base = getattr(candidate, "fixed_ms", None), getattr(reference, "fixed_ms", None)
    if fixed is not None and base is not None:
        return Timing(fixed, fixed, fixed, base, fixed / base, "fixed", True, ())
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
    for session in (candidate, reference):  # warm-up
        for _ in range(3):
            session(*inputs)
    process, thread = time.process_time(), time.thread_time()
    cpu_blocks: list[Pair] = []
    wall_blocks: list[Pair] = []
    agree = True
    check = _LEAST
    while True:
        first = _block(candidate, inputs)
        second = _block(reference, inputs)
        cpu_blocks.append((first[0], second[0]))
        wall_blocks.append((first[1], second[1]))
        late = time.perf_counter() - start > max_seconds
        if len(cpu_blocks) < (3 if late else check):
            continue
        used = time.thread_time() - thread
        whole = time.process_time() - process
        agree = abs(whole - used) <= 0.05 * used + 0.002
        on_cpu = threads == 1 and agree
        blocks = tuple(cpu_blocks if on_cpu else wall_blocks)
        timing = summarise(
            blocks,
            clock="cpu" if on_cpu else "wall",
            agree=agree,
            reference_ms=reference_ms,
            seed=seed,
        )
        if late or timing.high_ms - timing.low_ms <= relative_width * timing.latency_ms:
            return timing
        check = math.ceil(len(cpu_blocks) * 1.25)


def _block(session: Session, inputs: tuple[Array, ...]) -> Pair:
    """Return CPU and wall milliseconds a run, the first, cold, run left out."""
    session(*inputs)
    cpu, wall = time.thread_time(), time.perf_counter()
    for _ in range(_RUNS - 1):
        session(*inputs)
    each = 1e3 / (_RUNS - 1)
    return (time.thread_time() - cpu) * each, (time.perf_counter() - wall) * each


def summarise(
    blocks: Blocks,
    *,
    clock: str,
    agree: bool = True,
    reference_ms: float | None = None,
    seed: int = 0,
) -> Timing:
    """Return the timing of blocks of (candidate, reference) milliseconds a run.

    Blocks whose reference lies more than 8 % above its floor (the 10th percentile) are dropped,
    unless fewer than three would be left. Raises ValueError without blocks.
    """
    if not blocks:
        raise ValueError("A timing needs at least one block.")
    table = np.maximum(np.array(blocks, dtype=np.float64), 1e-9)
    floor = np.quantile(table[:, 1], 0.1)
    calm = table[table[:, 1] <= _SLOW * floor]
    table = calm if len(calm) >= 3 else table
    ratios = table[:, 0] / table[:, 1]
    ratio = float(np.median(ratios))
    generator = np.random.default_rng(seed)
    samples = generator.integers(0, len(ratios), (400, len(ratios)))
    low, high = np.quantile(np.median(ratios[samples], axis=1), (0.025, 0.975))
    base = float(np.median(table[:, 1])) if reference_ms is None else reference_ms
    return Timing(
        latency_ms=ratio * base,
        low_ms=min(float(low), ratio) * base,
        high_ms=max(float(high), ratio) * base,
        reference_ms=base,
        ratio=ratio,
        clock=clock,
        agree=agree,
        blocks=blocks,
    )


@contextlib.contextmanager
def _pinned(threads: int) -> Iterator[None]:
    """Keep the calling thread on as many cores as there are threads, where the system can.

    With more than one, the runtime's other threads keep the cores that they were started with.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, set(sorted(before)[-threads:]))
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, before)


def _host_lock() -> FileLock:
    """Return the lock that lets one measurement at a time run; the system frees a dead holder's."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "user"
    return FileLock(Path(tempfile.gettempdir()) / f"autocompress-timing-{user}.lock")


def cpu_features(path: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Return the instruction sets that decide how fast and how exact integer kernels are."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = set(found.group(1).split()) if found else set()
    return tuple(feature for feature in _FEATURES if feature in flags)
