"""Does a file, on this machine, answer as it did where it was chosen? Numpy and its runtime tell.

Alike are answers that differ by ``MACHINES`` of an output's deviation at most (the reason is told
in :mod:`autocompress.targets.differences`), with the same class wherever the first class won by
more than twice that: nearer ones may change places within it.
"""

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from autocompress.core.artifact import Artifact
from autocompress.errors import ArtifactError, ConfigError, InputError, unknown
from autocompress.targets.checkfile import (
    Answers,
    Check,
    check_path,
    digest_of,
    places,
    values_each,
)
from autocompress.targets.differences import (
    MACHINES,
    MACHINES_UNEQUAL,
    classes,
    deviation,
    differs,
    tuple_of,
)
from autocompress.targets.made_inputs import InputStatistics, inputs_like
from autocompress.targets.session import Array, Session
from autocompress.targets.timing import cpu_features

__all__ = ["Verified", "make_check", "verified_json", "verified_text", "verify"]

_ROWS = 32
_ELEMENTS = 2**21  # of all inputs together

#: Package, module and class of the sessions, which need no torch where the runtime does not.
_SESSIONS = {
    "null": ("torch", "null", "NullSession"),
    "onnxruntime": ("onnxruntime", "onnxruntime_session", "OnnxRuntimeSession"),
    "openvino": ("openvino", "openvino_session", "OpenVinoSession"),
}


@dataclass(frozen=True)
class Verified:
    """How a file answers here beside how it did where it was chosen.

    ``agree`` of ``total`` answers are the same: one an input and output, its class where it has
    one, else all that was kept of it within ``tolerance``. ``largest_difference`` is in units of
    the outputs' deviation. ``cpu_then`` and ``cpu_now``: the processors' features.
    """

    agree: int
    total: int
    largest_difference: float
    alike: bool
    cpu_then: tuple[str, ...]
    cpu_now: tuple[str, ...]
    runtime_then: str
    runtime_now: str
    tolerance: float = MACHINES


def verify(path: str | Path, check: str | Path | None = None) -> Verified:
    """Run a model file on the inputs of its check file and compare.

    ``check``: by default ``<path>.check.npz``, which an exported pick has beside it. Raises
    InputError for files that are missing, damaged or of another model, ConfigError where the
    runtime is unknown or not installed, ArtifactError where it refuses the file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"What is verified must be a model file: {path} is none. Name one that 'pick' exported."
        )
    known = Check.read(check_path(path) if check is None else Path(check))
    found = Artifact.of(path, known.target)
    if found.sha256 != known.sha256:
        raise InputError(
            f"A check file must be of the model that is verified: {path} has sha256 "
            f"{found.sha256[:12]}…, the check is of {known.sha256[:12]}…. Name that model's, or "
            "export the pick again."
        )
    inputs = known.inputs()
    if digest_of(inputs) != known.digest:
        raise InputError(
            f"The inputs of a check file must come out as they were: those of {path} do not; the "
            "check file was changed. Export the pick again."
        )
    session, runtime = _open(path, known.target)
    outputs = _run(session, inputs, path)
    shapes = [value.shape for value in outputs]
    wanted = [each.shape for each in known.answers]
    if shapes != wanted:
        raise InputError(
            f"A check file must have the model's outputs: {path} gives the shapes {shapes}, the "
            f"check has {wanted}. Export the pick again."
        )
    return _compared(known, outputs, runtime)


def make_check(
    session: Session, artifact: Artifact, runtime: str, statistics: Sequence[InputStatistics]
) -> Check:
    """Run an opened file on inputs like those of the statistics; keep what it answers here.

    ``runtime``: its name and version. Raises InputError if the file does not run on them.
    """
    elements = sum(int(np.prod(each.shape)) for each in statistics)
    rows = max(1, min(_ROWS, _ELEMENTS // max(elements, 1)))
    inputs = inputs_like(statistics, rows)
    outputs = _run(session, inputs, artifact.path)
    return Check(
        sha256=artifact.sha256,
        target=artifact.target,
        runtime=runtime,
        cpu=cpu_features(),
        rows=rows,
        seed=0,
        digest=digest_of(inputs),
        statistics=tuple(statistics),
        answers=tuple(_answers(v, i, len(outputs)) for i, v in enumerate(outputs)),
    )


def _open(path: Path, target: str) -> tuple[Session, str]:
    """Return a file opened in a runtime, and what the runtime calls itself."""
    if target not in _SESSIONS:
        raise ConfigError(unknown("target", target, _SESSIONS))
    package, module, name = _SESSIONS[target]
    try:
        version = importlib.import_module(package).__version__
        kind = getattr(importlib.import_module(f"autocompress.targets.{module}"), name)
    except ImportError as error:
        extra = "'autocompress[openvino]'" if package == "openvino" else package
        raise ConfigError(
            f"A file is verified in its runtime: the target {target} needs the package {package}, "
            f"which cannot be imported ({error}): pip install {extra}."
        ) from error
    session: Session = kind(path)
    return session, f"{package} {str(version).partition('-')[0]}"


def _run(session: Session, inputs: Sequence[Array], path: Path) -> list[Array]:
    """Return the outputs on each row alone, rows first: no row has to do with another."""
    try:
        found = [
            tuple_of(session(*(value[row : row + 1] for value in inputs)))
            for row in range(len(inputs[0]))
        ]
    except Exception as error:  # runtimes' exceptions have no common base
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"A model must run on the inputs of its check, of shapes "
            f"{[value.shape[1:] for value in inputs]}: {path} does not ({reason})."
        ) from error
    try:
        return [_stacked(values) for values in zip(*found, strict=True)]
    except ValueError as error:
        raise ArtifactError(
            f"A file that is checked gives outputs of one shape: {path} does not ({error})."
        ) from error


def _stacked(values: Sequence[Array]) -> Array:
    whole = all(value.ndim and len(value) == 1 for value in values)
    return np.concatenate(values) if whole else np.stack(values)


def _answers(value: Array, index: int, count: int) -> Answers:
    unit, named = deviation(value), classes(value)
    kept = value.reshape(-1)[places(value.shape, values_each(count), index)]
    if named is None:
        none = np.zeros(0, np.float32)
        return Answers(value.shape, kept, unit, none.astype(np.int32), none)
    ordered = np.sort(value.astype(np.float64), 1)
    margins = ((ordered[:, -1] - ordered[:, -2]) / unit).astype(np.float32)
    return Answers(value.shape, kept, unit, named.astype(np.int32), margins)


def _compared(known: Check, outputs: Sequence[Array], runtime: str) -> Verified:
    agree, largest, alike = 0, 0.0, True
    for index, (then, value) in enumerate(zip(known.answers, outputs, strict=True)):
        at = places(then.shape, values_each(len(outputs)), index)
        now = value.reshape(-1)[at]
        if now.dtype.kind != then.values.dtype.kind:
            away: Array = np.full(len(now), np.inf)
        else:
            away = differs(now, then.values, then.unit)
        bound = MACHINES
        if then.values.dtype.kind != "f":
            bound, far = MACHINES_UNEQUAL, float(away.mean()) if away.size else 0.0
        else:
            far = float(away.max(initial=0.0))
        largest, alike = max(largest, far), alike and far <= bound
        named = classes(value)
        if len(then.classes) and named is not None:
            same = named == then.classes
            alike = alike and bool(same[then.margins > 2 * MACHINES].all())
        else:
            rows = (at // np.uint64(max(1, value.size // known.rows))).astype(np.int64)
            same = ~np.isin(np.arange(known.rows), rows[away > MACHINES])
        agree += int(same.sum())
    return Verified(
        agree=agree, total=known.rows * len(outputs), largest_difference=largest, alike=alike,
        cpu_then=known.cpu, cpu_now=cpu_features(), runtime_then=known.runtime,
        runtime_now=runtime,
    )  # fmt: skip


def verified_text(found: Verified) -> str:
    """Return what was found as lines of plain text."""
    lines = {
        "answers": f"{found.agree} of {found.total} are those of where the file was scored",
        "difference": f"{found.largest_difference:.2g} of the outputs' deviation at most "
        f"({found.tolerance:g} is allowed)",
        "CPU then": ", ".join(found.cpu_then) or "not recorded",
        "CPU now": ", ".join(found.cpu_now) or "not told by the system",
        "runtime then": found.runtime_then,
        "runtime now": found.runtime_now,
        "": _WORDS[found.alike],
    }
    width = max(map(len, lines))
    return "\n".join(f"{name.ljust(width)}  {text}".strip() for name, text in lines.items())


_WORDS = {
    True: "This file answers here as it did where it was scored.",
    False: "This file answers otherwise here: its figures do not hold on this machine. If its card "
    "says that it is not portable, search again with portable = true; else try the other runtime "
    "version.",
}


def verified_json(found: Verified) -> str:
    """Return what was found as JSON; a difference that is no number is null."""
    data = asdict(found)
    if not np.isfinite(found.largest_difference):
        data["largest_difference"] = None
    return json.dumps(data, indent=2)
