"""Execution: how a search is carried out, which changes nothing of what is searched."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from autocompress.errors import InputError, unknown

__all__ = ["Execution"]

_MOST = 2**53  # as of numbers on the command line


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Workers, and what one trial may take; raises InputError for a value that cannot be.

    ``workers``: processes of a Ray cluster, 1 for this process alone, 0 for as many as the cluster
    at ``ray_address`` has CPUs. ``trial_seconds`` of wall time, and ``trial_memory_bytes`` beyond
    what the process holds before, end a trial that takes more; None: no limit.
    """

    workers: int = 1
    ray_address: str = ""
    trial_seconds: float | None = None
    trial_memory_bytes: int | None = None

    def __post_init__(self) -> None:
        least = 0 if self.ray_address else 1
        workers = self.workers
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < least:
            raise InputError(f"workers must be an integer of at least {least}, not {workers!r}.")
        if not isinstance(self.ray_address, str):
            raise InputError(f"ray_address must be text, not {self.ray_address!r}.")
        for name, kinds, what in (
            ("trial_seconds", (int, float), "a number"),
            ("trial_memory_bytes", (int,), "an integer"),
        ):
            value = getattr(self, name)
            number = isinstance(value, kinds) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value <= _MOST):
                raise InputError(f"{name} must be {what} above 0, not {value!r}.")

    def changed(self, given: Mapping[str, Any]) -> "Execution":
        """Return a copy with other values by name; ``workers`` alone are of this machine again.

        Raises InputError for an unknown name, or a value that cannot be.
        """
        if not isinstance(given, Mapping):
            raise InputError(f"An execution is given as values by name, not as {given!r}.")
        known = [field.name for field in fields(self)]
        for name in given:
            if name not in known:
                raise InputError(unknown("option of the execution", str(name), known))
        values = dict(given)
        if "workers" in values:
            values.setdefault("ray_address", "")
        elif values.get("ray_address") == "" and self.workers == 0:
            values["workers"] = 1
        return replace(self, **values)

    @property
    def limited(self) -> bool:
        """Tell whether a trial has a limit."""
        return self.trial_seconds is not None or self.trial_memory_bytes is not None
