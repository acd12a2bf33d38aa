"""Peak memory of a stretch of code, from the kernel's own account of the process."""

from pathlib import Path

__all__ = ["PeakMemory"]

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class PeakMemory:
    """The highest resident memory since this was made, less what was resident then."""

    def __init__(self) -> None:
        self._before: int | None = None
        try:
            _RESET.write_text("5", encoding="utf-8")  # resets the high-water mark
            self._before = _read("VmRSS")
        except OSError:
            pass

    def read(self) -> int | None:
        """Return bytes, or None where the system does not tell."""
        if self._before is None:
            return None
        try:
            return max(0, _read("VmHWM") - self._before)
        except OSError:
            return None


def _read(field: str) -> int:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(field)
