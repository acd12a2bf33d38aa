"""Budgets: upper limits that a file must meet."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from autocompress.errors import InputError

__all__ = ["LIMITS", "Budget"]

#: By field of a budget: the figure of a score that it limits.
LIMITS = {
    "latency_ms": "latency_limit_ms",
    "max_size_bytes": "size_bytes",
    "max_energy_mj": "energy_mj",
    "max_memory_bytes": "activation_bytes",
}


@dataclass(frozen=True)
class Budget:
    """Upper limits on a file; None is no limit.

    A file meets ``latency_ms`` (milliseconds) when the upper end of its latency interval does,
    ``max_size_bytes`` when its bytes on disk do, ``max_energy_mj`` (millijoules an inference) when
    the device's cost model says so, and ``max_memory_bytes`` when its peak activation memory does.
    Raises InputError unless limits are > 0.
    """

    latency_ms: float | None = None
    max_size_bytes: int | None = None
    max_energy_mj: float | None = None
    max_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
            if limit is not None and not (number and 0 < limit <= 2**53):
                raise InputError(f"A budget must be a number above 0: {name} = {limit!r}.")

    def constraints(self, figure_of: Callable[[str], float]) -> dict[str, float]:
        """Return the relative excess over each limit, feasible at ≤ 0 (Optuna's convention)."""
        return {
            name: figure_of(figure) / getattr(self, name) - 1.0
            for name, figure in LIMITS.items()
            if getattr(self, name) is not None
        }

    def __bool__(self) -> bool:
        return any(limit is not None for limit in asdict(self).values())
