"""Check files: how a model file answered where it was chosen, in at most 50 kB.

A zip of numpy arrays (``.npz``): ``meta``, JSON as bytes; ``input<i>``, the statistics that inputs
are made from (:mod:`autocompress.targets.made_inputs`); ``values<i>``, what every output was, at
places that the seed chooses where it is large; ``classes<i>`` and ``margins<i>``, the class of each
input and by how much it won, in units of the deviation. Equal checks are equal files.
"""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import InputError
from autocompress.targets.made_inputs import InputStatistics, inputs_like, random_bits
from autocompress.targets.session import Array

__all__ = ["Answers", "Check", "check_path", "places"]

_FORMAT = 1
_LIMIT = 1_000_000  # bytes of a check file that are read, packed and unpacked: 20 times the most
_VALUES = 5_000  # of all outputs together: 20 kB


@dataclass(frozen=True, eq=False)
class Answers:
    """What one output was on the made inputs.

    ``shape``: with the inputs first. ``values``: at ``places`` of the flat output; ``unit``: its
    deviation. ``classes``, and the ``margins`` by which they won in that unit, are empty where
    inputs have no class.
    """

    shape: tuple[int, ...]
    values: Array
    unit: float
    classes: Array
    margins: Array


@dataclass(frozen=True, eq=False)
class Check:
    """How a file answered: the file's sha256, runtime, CPU features, inputs' statistics, answers.

    ``digest``: the sha256 of the made inputs, which must come out the same everywhere.
    """

    sha256: str
    target: str
    runtime: str
    cpu: tuple[str, ...]
    rows: int
    seed: int
    digest: str
    statistics: tuple[InputStatistics, ...]
    answers: tuple[Answers, ...]

    def inputs(self) -> tuple[Array, ...]:
        """Return the inputs, one array of ``rows`` each."""
        return inputs_like(self.statistics, self.rows, self.seed)

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        meta: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("sha256", "target", "runtime", "rows", "seed", "digest")
        }
        meta |= {"format": _FORMAT, "cpu": list(self.cpu)}
        meta["inputs"] = [[list(s.shape), s.dtype.name] for s in self.statistics]
        meta["outputs"] = [[list(a.shape), a.unit] for a in self.answers]
        text = json.dumps(meta, sort_keys=True).encode()
        arrays: dict[str, Array] = {"meta": np.frombuffer(text, np.uint8)}
        arrays |= {f"input{i}": s.table() for i, s in enumerate(self.statistics)}
        for i, each in enumerate(self.answers):
            arrays[f"values{i}"] = each.values
            arrays |= {f"classes{i}": each.classes, f"margins{i}": each.margins}
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, value in arrays.items():
                part = io.BytesIO()
                np.lib.format.write_array(part, np.ascontiguousarray(value), (1, 0), False)
                entry = zipfile.ZipInfo(f"{name}.npy")  # of 1980: no date
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, part.getvalue())
        return file.getvalue()

    @classmethod
    def read(cls, path: Path) -> "Check":
        """Read a check file; raise InputError for what is missing, damaged or none."""
        try:
            with path.open("rb") as file:
                content = file.read(_LIMIT + 1)
        except OSError as error:
            raise InputError(
                f"A check file must lie beside the model: {path} cannot be read "
                f"({error.strerror or error}). Export the pick again to get one, or name it by "
                "--check."
            ) from error
        try:
            if len(content) > _LIMIT:
                raise ValueError(f"it has more than {_LIMIT:,} bytes")
            return _check_of(_arrays(content))
        except Exception as error:  # zipfile, json and numpy raise what they like
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(
                f"A check file must be as autocompress wrote it: {path} is not ({reason}). Export "
                "the pick again."
            ) from error


def check_path(path: Path) -> Path:
    """Return where the check file of a model file lies."""
    return path.with_name(path.name + ".check.npz")


def places(shape: Sequence[int], count: int, output: int) -> Array:
    """Return the places of a flat output that are kept: all, or ``count`` that a seed chooses."""
    size = math.prod(shape)
    if size <= count:
        return np.arange(size, dtype=np.uint64)
    return random_bits((output + 1) << 48, count) % np.uint64(size)


def values_each(outputs: int) -> int:
    """Return how many values of each output are kept."""
    return max(16, _VALUES // max(outputs, 1))


def digest_of(inputs: Sequence[Array]) -> str:
    """Return a sha256 over inputs, in hex."""
    digest = hashlib.sha256()
    for value in inputs:
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _arrays(content: bytes) -> dict[str, Array]:
    """Return the arrays of a zip by name, without pickles and without more than was allowed."""
    found: dict[str, Array] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > _LIMIT:
            raise ValueError(f"it unpacks to more than {_LIMIT:,} bytes")
        for entry in entries:
            found[entry.filename.removesuffix(".npy")] = _array(archive.read(entry))
    return found


def _array(content: bytes) -> Array:
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of it has an unknown format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    rest = content[file.tell() :]
    if dtype.kind not in "fiub" or fortran or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError("an array of it is not whole")
    return np.frombuffer(rest, dtype).reshape(shape)


def _check_of(arrays: Mapping[str, Array]) -> Check:
    meta = json.loads(arrays["meta"].tobytes())
    if meta["format"] != _FORMAT:
        raise ValueError(f"its format is {meta['format']}, known is {_FORMAT}")
    statistics = tuple(
        InputStatistics.of_table(shape, kind, arrays[f"input{i}"])
        for i, (shape, kind) in enumerate(meta["inputs"])
    )
    rows = int(meta["rows"])
    size = sum(math.prod(each.shape) for each in statistics) * rows
    if (
        not statistics
        or not 1 <= rows <= 1024
        or size > 2**26
        or not 0 <= int(meta["seed"]) < 2**31
    ):
        raise ValueError("its inputs are none, or too large")
    answers = tuple(
        _answers(arrays, i, shape, unit, len(meta["outputs"]), rows)
        for i, (shape, unit) in enumerate(meta["outputs"])
    )
    if not answers:
        raise ValueError("it has no outputs")
    words = {name: str(meta[name]) for name in ("sha256", "target", "runtime", "digest")}
    return Check(
        **words, cpu=tuple(map(str, meta["cpu"])), rows=rows, seed=int(meta["seed"]),
        statistics=statistics, answers=answers,
    )  # fmt: skip


def _answers(
    arrays: Mapping[str, Array],
    index: int,
    shape: Sequence[int],
    unit: float,
    count: int,
    rows: int,
) -> Answers:
    values, names, margins = (arrays[f"{n}{index}"] for n in ("values", "classes", "margins"))
    sizes = tuple(int(size) for size in shape)
    if any(size < 0 for size in sizes) or sizes[:1] != (rows,):
        raise ValueError(f"output {index} has the shape {sizes} for {rows} inputs")
    wanted = min(math.prod(sizes), values_each(count))
    whole = values.shape == (wanted,) and names.shape == margins.shape
    if not whole or names.shape not in ((0,), (rows,)) or not 0 < float(unit) < math.inf:
        raise ValueError(f"the answers of output {index} do not fit its shape {sizes}")
    return Answers(sizes, values, float(unit), names, margins)
