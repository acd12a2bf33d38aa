"""Searches per-layer pruning and bit widths of a trained network for deployable files."""

import importlib
from typing import TYPE_CHECKING, Any

from autocompress._version import __version__ as __version__

if TYPE_CHECKING:
    from autocompress.api import Run, open_run, search, search_config, status
    from autocompress.core.budget import Budget
    from autocompress.core.plan import Plan
    from autocompress.core.score import Score
    from autocompress.core.space import SearchSpace, SpaceTemplate
    from autocompress.errors import AutocompressError
    from autocompress.report.front import Front, Pick
    from autocompress.run.bench import bench, bench_all, fit_latency
    from autocompress.tasks.base import Task

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
    "fit_latency",
    "open_run",
    "search",
    "search_config",
    "status",
]

# Imported at first use: torch alone takes seconds, and --help needs none of it.
_MODULES = {
    "autocompress.api": ("Run", "open_run", "search", "search_config", "status"),
    "autocompress.errors": ("AutocompressError",),
    "autocompress.run.bench": ("bench", "bench_all", "fit_latency"),
    "autocompress.report.front": ("Front", "Pick"),
    "autocompress.core.budget": ("Budget",),
    "autocompress.core.plan": ("Plan",),
    "autocompress.core.score": ("Score",),
    "autocompress.core.space": ("SearchSpace", "SpaceTemplate"),
    "autocompress.tasks.base": ("Task",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


#: Names of the version before, which are understood for one release.
_RENAMED = {"calibrate": "fit_latency"}


def __getattr__(name: str) -> Any:
    name = _RENAMED.get(name, name)
    if name not in _HOME:
        raise AttributeError(f"module 'autocompress' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
