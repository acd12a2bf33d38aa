"""Budgets: upper limits that a file must meet."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from autocompress.errors import InputError

__all__ = ["Budget"]

# field -> the figure of a score that it limits
_LIMITS = {"latency_ms": "latency_high_ms", "max_size_bytes": "size_bytes"}


@dataclass(frozen=True)
class Budget:
    """Upper limits on a file; None is no limit.

    A file meets ``latency_ms`` (milliseconds) when the upper end of its latency interval does,
    and ``max_size_bytes`` when its bytes on disk do. Raises InputError unless limits are > 0.
    """

    latency_ms: float | None = None
    max_size_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
            if limit is not None and not (number and 0 < limit <= 2**53):
                raise InputError(f"A budget must be a number above 0: {name} = {limit!r}.")

    def constraints(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Return the relative excess over each limit, feasible at ≤ 0 (Optuna's convention)."""
        return {
            name: figures[figure] / getattr(self, name) - 1.0
            for name, figure in _LIMITS.items()
            if getattr(self, name) is not None
        }

    def __bool__(self) -> bool:
        return any(limit is not None for limit in asdict(self).values())
