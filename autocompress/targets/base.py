"""What a target is: a runtime and its file format on one device."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autocompress.core.abilities import Abilities
from autocompress.core.artifact import Artifact
from autocompress.targets.session import Array, Session

if TYPE_CHECKING:
    from autocompress.models.network import Network
    from autocompress.transforms.compressor import Compressed

__all__ = ["Array", "Builder", "OpTime", "Session", "Target"]


@dataclass(frozen=True)
class OpTime:
    """The time of one operator of a file, in milliseconds a run.

    ``node``: the node of the network that it came from, "" where that cannot be told. ``kind``:
    the runtime's own name for such operators.
    """

    node: str
    kind: str
    ms: float


class Builder(Protocol):
    """Writes compressed copies of one network; picklable, so that workers can have it."""

    def content(self, compressed: "Compressed", *, named: bool = False) -> bytes:
        """Return the file's bytes; ``named``: with what ``Target.profile`` needs to name nodes."""

    def build(self, compressed: "Compressed", path: Path) -> Artifact:
        """Write the file atomically and describe it."""


class Target(Protocol):
    """A runtime and its file format."""

    @property
    def name(self) -> str:
        """The name by which users choose it."""

    @property
    def version(self) -> str:
        """The runtime's name and version."""

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

    def saturates(self) -> bool:
        """Tell whether its integer kernels on this host overflow at codes above 64."""

    def prepare(self, network: "Network") -> Builder:
        """Do once what is slow; raise TraceError if the format cannot hold the network."""

    def open(self, path: Path) -> Session:
        """Load a file; raise ArtifactError if the runtime refuses it."""

    def profile(self, path: Path, inputs: tuple[Array, ...], runs: int = 20) -> tuple[OpTime, ...]:
        """Return the time of every operator that the runtime executes, in the order of execution.

        ``path``: a file of ``Builder.content(..., named=True)``; times are calm ones of ``runs``
        after warm-up, by the runtime's own profiler. Raises ArtifactError as ``open`` does.
        """
