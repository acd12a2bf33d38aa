"""Executors: in what processes plans are evaluated."""

from autocompress.errors import ConfigError
from autocompress.searching.executors.base import Executor
from autocompress.searching.executors.serial import Serial
from autocompress.spec.execution import Execution

__all__ = ["Executor", "Serial", "make_executor"]


def make_executor(execution: Execution) -> Executor:
    """Return what evaluates as it is told; raise ConfigError that names the package it needs."""
    if execution.workers == 1 and not execution.ray_address:
        return Serial(execution)
    try:
        from autocompress.searching.executors.tuned import Tuned
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("ray", "pyarrow", "tensorboardX"):
            raise
        raise ConfigError(
            "More workers than one need the package ray: pip install 'autocompress[ray]'."
        ) from error
    return Tuned(execution)
