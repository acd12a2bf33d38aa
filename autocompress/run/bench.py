"""Measuring without a search: files in runtimes, and the latency model of this machine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.core.config import Config
from autocompress.core.space import SpaceTemplate
from autocompress.cost.fit_latency import calibrate as measure_plans
from autocompress.cost.fit_latency import calibration_path, load_calibration
from autocompress.errors import AutocompressError, ConfigError, InputError
from autocompress.models.trace import trace
from autocompress.registry import find_space, make_task, resolve_space
from autocompress.targets import TARGETS, make_target
from autocompress.targets.timing import Timing, measure, openings
from autocompress.tasks.base import Task

__all__ = ["Calibrated", "bench", "bench_all", "fit_latency", "fit_latency_config"]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A latency model that was calibrated: its cache, how many plans it saw, and its errors.

    ``errors`` are relative, of plans that were held out in turn; ``note`` says why an older
    calibration was not kept.
    """

    path: Path
    plans: int
    errors: NDArray[np.float64] = field(repr=False)
    note: str = ""


def bench(
    path: str | Path,
    *,
    threads: int = 1,
    reference: str | Path | None = None,
    runtime: str = "onnxruntime",
    seconds: float = 4.0,
) -> Timing:
    """Measure a file's latency, in milliseconds, against itself or a reference file.

    ``seconds``: what it may take at most on a calm machine. Raises ArtifactError for a file that
    the runtime refuses, InputError for what is no file, and for files that do not take the same
    inputs.
    """
    if not seconds > 0:
        raise InputError(f"seconds must be above 0, not {seconds!r}.")
    target = make_target(runtime, threads=threads)
    for file in (path, reference):
        if file is not None and not Path(file).is_file():
            raise InputError(f"What is measured must be a file: {file} is none.")
    candidate = target.open(Path(path))
    other = candidate if reference is None else target.open(Path(reference))
    inputs = candidate.example_inputs()
    for file, session in ((path, candidate), (reference, other)):
        try:
            session(*inputs)
        except Exception as error:  # runtimes' exceptions have no common base
            raise InputError(
                f"Both files must run on the same inputs, of shapes {[x.shape for x in inputs]}: "
                f"{file} does not ({' '.join(str(error).split())[:200]})."
            ) from error
    base = None
    candidates = openings(candidate, seconds)
    others = candidates if other is candidate else openings(other, seconds)
    if reference is not None:
        base = measure(others, others, inputs, threads=threads, max_seconds=seconds / 2).latency_ms
    return measure(
        candidates, others, inputs,
        threads=threads, reference_ms=base, max_seconds=seconds, relative_width=0.001,
    )  # fmt: skip


def bench_all(
    path: str | Path, *, threads: int = 1, reference: str | Path | None = None, seconds: float = 4.0
) -> dict[str, Timing | AutocompressError]:
    """Measure an ONNX file in every runtime that reads such files, by the runtime's name.

    A runtime that is not installed, or refuses the file, has its error in place of a timing.
    """
    found: dict[str, Timing | AutocompressError] = {}
    for name in TARGETS:
        try:
            if make_target(name).suffix == ".onnx":
                found[name] = bench(
                    path, threads=threads, reference=reference, runtime=name, seconds=seconds
                )
        except AutocompressError as error:
            found[name] = error
    return found


def fit_latency(
    task: Task,
    *,
    space: str | Path | Mapping[str, Sequence[float]] | SpaceTemplate = "ptq",
    target: str = "onnxruntime",
    threads: int = 1,
    batch_size: int = 1,
    seconds: float = 120.0,
    progress: Callable[[float], None] | None = None,
) -> Calibrated:
    """Measure random plans of a network on a target and cache the latency model that they make.

    Searches under a latency budget on this machine then start with it. ``progress`` is called with
    the part that is done.
    """
    runtime = make_target(target, threads=threads, batch_size=batch_size)
    network = trace(task.model, task.example_inputs)
    resolved = resolve_space(find_space(space), network, runtime)
    path = calibration_path(network, runtime)
    _, note = load_calibration(path, runtime)
    made = measure_plans(
        network, runtime, resolved, seconds=seconds, progress=progress or (lambda _: None)
    )
    made.save(path)
    return Calibrated(path, len(made.samples), made.model().errors, note)


def fit_latency_config(
    path: str | Path, *, target: str | None = None, **options: Any
) -> Calibrated:
    """Calibrate for the task, space and target of a configuration file; see :func:`fit_latency`."""
    config = Config.read(Path(path)).override(target=target, threads=options.pop("threads", None))
    if config.task is None:
        raise ConfigError(f'{path}: a [task] section with name = "…" is needed.')
    return fit_latency(
        make_task(config.task), space=config.space, target=config.target, threads=config.threads,
        batch_size=config.batch_size, **options,
    )  # fmt: skip
