"""Searches per-layer pruning and bit widths of a trained network for deployable files."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.api import Run, open_run, search, search_config, status
    from autocompress.errors import AutocompressError
    from autocompress.measuring import bench, bench_all, calibrate
    from autocompress.report.front import Front, Pick
    from autocompress.spec.budget import Budget
    from autocompress.spec.plan import Plan
    from autocompress.spec.score import Score
    from autocompress.spec.space import SearchSpace, SpaceTemplate
    from autocompress.tasks.base import Task

__version__ = "0.1.0"

__all__ = [
    "AutocompressError",
    "Budget",
    "Front",
    "Pick",
    "Plan",
    "Run",
    "Score",
    "SearchSpace",
    "SpaceTemplate",
    "Task",
    "bench",
    "bench_all",
    "calibrate",
    "open_run",
    "search",
    "search_config",
    "status",
]

# Imported at first use: torch alone takes seconds, and --help needs none of it.
_MODULES = {
    "autocompress.api": ("Run", "open_run", "search", "search_config", "status"),
    "autocompress.errors": ("AutocompressError",),
    "autocompress.measuring": ("bench", "bench_all", "calibrate"),
    "autocompress.report.front": ("Front", "Pick"),
    "autocompress.spec.budget": ("Budget",),
    "autocompress.spec.plan": ("Plan",),
    "autocompress.spec.score": ("Score",),
    "autocompress.spec.space": ("SearchSpace", "SpaceTemplate"),
    "autocompress.tasks.base": ("Task",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'autocompress' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
