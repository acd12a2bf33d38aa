"""Artifacts: the files that a target writes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from autocompress.errors import ArtifactError

__all__ = ["Artifact"]


@dataclass(frozen=True)
class Artifact:
    """A file that a runtime loads: path, sha256 in hex, bytes on disk, target's name."""

    path: Path
    sha256: str
    size_bytes: int
    target: str

    @classmethod
    def of(cls, path: Path, target: str) -> "Artifact":
        """Describe the file at ``path``; raise ArtifactError if it cannot be read."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"A model file must be readable: {path} ({error}). In a run directory, "
                "'autocompress resume' builds it again."
            ) from error
        return cls(path, hashlib.sha256(content).hexdigest(), len(content), target)

    def verify(self) -> None:
        """Raise ArtifactError if the file is not the one that was written."""
        found = Artifact.of(self.path, self.target)
        if found.sha256 != self.sha256:
            raise ArtifactError(
                f"A model file must be the one that was scored: {self.path} has "
                f"{found.size_bytes} bytes and sha256 {found.sha256[:12]}…, recorded were "
                f"{self.size_bytes} bytes and {self.sha256[:12]}…. It was truncated or "
                "overwritten; 'autocompress resume' builds it again."
            )
