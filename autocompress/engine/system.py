"""What this system has of what Linux has, and what is missing without it."""

import importlib.util
import os
import re
from pathlib import Path

from autocompress.errors import ConfigError
from autocompress.targets.memory import PeakMemory

__all__ = [
    "check_memory_limit",
    "check_time_limit",
    "has_groups",
    "is_gone",
    "lost",
    "mapped_bytes",
]


def has_groups() -> bool:
    """Tell whether processes form groups, which are ended with all that they started (POSIX)."""
    return hasattr(os, "killpg")


def is_gone(pid: int) -> bool:
    """Tell whether a process of this machine has ended, as far as it can be asked."""
    if not has_groups():  # signal 0, which asks elsewhere, is Ctrl-C on Windows
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # someone else's
        pass
    return False


def mapped_bytes() -> int | None:
    """Return the bytes of private memory that this process has mapped, None if nobody tells."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^VmData:\s+(\d+) kB", text, re.MULTILINE)
    return None if found is None else int(found.group(1)) * 1024


def check_time_limit(seconds: float | None) -> None:
    """Raise ConfigError for a limit of a trial's time that cannot be kept on this system."""
    if seconds is not None and not has_groups():
        raise ConfigError(
            "A trial's time is limited where the system ends a process with all that it started "
            f"(Linux, macOS): trial_seconds = {seconds:g} cannot be kept on this one. Take it off "
            "(--trial-seconds 0)."
        )


def check_memory_limit(most: int | None) -> None:
    """Raise ConfigError for a limit of a trial's memory that cannot be kept on this system."""
    if most is not None and not _limits_memory():
        raise ConfigError(
            "A trial's memory is limited where the system tells and limits what a process maps "
            f"(Linux): trial_memory_bytes = {most:,} cannot be kept on this one. Take it off "
            "(--trial-memory 0)."
        )


def _limits_memory() -> bool:
    known = importlib.util.find_spec("resource") is not None
    return known and has_groups() and mapped_bytes() is not None


def lost() -> tuple[str, ...]:
    """Return what Linux has and this system has not, by what it is good for."""
    there = {
        "the peak memory of loading": PeakMemory().read() is not None,
        "measuring on one core": hasattr(os, "sched_setaffinity"),
        "--trial-seconds": has_groups(),
        "--trial-memory": _limits_memory(),
    }
    return tuple(what for what, found in there.items() if not found)
