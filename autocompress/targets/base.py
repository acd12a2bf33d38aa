"""What a target is: a runtime and its file format on one device."""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from autocompress.errors import ArtifactError
from autocompress.spec.abilities import Abilities
from autocompress.spec.artifact import Artifact

if TYPE_CHECKING:
    from autocompress.models.network import Network
    from autocompress.transforms.compress import Compressed

__all__ = ["Array", "Builder", "Session", "Target", "write_atomically"]

Array = np.ndarray[Any, Any]


class Session(Protocol):
    """An opened file. Calls take and return numpy arrays, of any batch size."""

    load_ms: float
    peak_memory_bytes: int | None

    def __call__(self, *arrays: Array) -> Any:
        """Run the file; return an array, or a tuple where there are several outputs."""

    def example_inputs(self, batch_size: int = 1) -> tuple[Array, ...]:
        """Return arrays that the file takes, the same at every call."""


class Builder(Protocol):
    """Writes compressed copies of one network; picklable, so that workers can have it."""

    def build(self, compressed: "Compressed", path: Path) -> Artifact:
        """Write the file atomically and describe it."""


class Target(Protocol):
    """A runtime and its file format."""

    @property
    def name(self) -> str:
        """The name by which users choose it."""

    @property
    def suffix(self) -> str:
        """How its files' names end."""

    @property
    def abilities(self) -> Abilities:
        """What it can do."""

    @property
    def threads(self) -> int:
        """Threads that a session runs on."""

    @property
    def batch_size(self) -> int:
        """The batch size of latency measurements."""

    def prepare(self, network: "Network") -> Builder:
        """Do once what is slow; raise TraceError if the format cannot hold the network."""

    def open(self, path: Path) -> Session:
        """Load a file; raise ArtifactError if the runtime refuses it."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that no reader, and no crash, ever meets a part of it.

    Raises ArtifactError if the directory cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise ArtifactError(f"A model file's directory must be writable: {error}.") from error
