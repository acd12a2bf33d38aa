"""Files that are either whole or absent."""

import os
from collections.abc import Callable
from pathlib import Path

from autocompress.errors import InputError, RunError

__all__ = ["write_whole"]


def write_whole(path: Path, content: bytes, check: Callable[[Path], None] = lambda _: None) -> None:
    """Write a file beside its place, check it there and rename it into place.

    No reader, and no crash, ever meets a part of it. Missing folders are made. ``check`` may raise
    to keep the file out of its place. Raises InputError for a folder, RunError where nothing can be
    written.
    """
    if not path.name or path.is_dir():
        raise InputError(f"A file to write needs a name: {path} is a directory. Add one.")
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            check(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"A file must be writable: {path} ({error}). Name another.") from error
