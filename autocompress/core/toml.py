"""TOML read as data, with errors that name the line."""

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from autocompress.errors import ConfigError, unknown

__all__ = ["check_keys", "line_of", "read_toml"]


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """Return the table and the text of a TOML file; raise ConfigError naming file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"A TOML file must be readable: {path} ({error}).") from error
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as error:
        end = f"at line {len(text.splitlines())}, the last"
        reason = str(error).replace("at end of document", end)
        raise ConfigError(f"A TOML file must be valid TOML: {path}: {reason}.") from error


def line_of(text: str, key: str, section: str = "") -> int:
    """Return the line (from 1) on which a key is set, 0 if it is not found."""
    inside = not section
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            name = stripped.strip("[] ")
            if name == key:
                return number
            inside = name == section
        elif inside:
            name = stripped.partition("=")[0].strip()
            if name.strip("\"'") == key or name.startswith(f"{key}."):
                return number
    return 0


def check_keys(
    table: Mapping[str, Any], known: Collection[str], text: str, path: Path, section: str = ""
) -> None:
    """Raise ConfigError, with line and nearest known key, for a key that does not exist."""
    for key in table:
        if key not in known:
            where = f"{path}, line {line_of(text, key, section)}"
            kind = f"key in [{section}]" if section else "section or key"
            raise ConfigError(f"{where}: {unknown(kind, key, known)}")
