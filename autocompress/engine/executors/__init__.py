"""Executors: in what processes plans are evaluated."""

from autocompress.core.execution import Execution
from autocompress.engine.executors.base import Executor
from autocompress.engine.executors.serial import Serial
from autocompress.engine.system import check_memory_limit, check_time_limit
from autocompress.errors import ConfigError

__all__ = ["Executor", "Serial", "make_executor"]


def make_executor(execution: Execution) -> Executor:
    """Return what evaluates as it is told.

    Raises ConfigError that names the package it needs, or a limit that this system cannot keep.
    """
    here = execution.workers == 1 and not execution.ray_address
    if here:
        check_time_limit(execution.trial_seconds)
    if not execution.ray_address:  # a cluster's machines are asked by its workers
        check_memory_limit(execution.trial_memory_bytes)
    if here:
        return Serial(execution)
    try:
        from autocompress.engine.executors.ray_tune import Tuned
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("ray", "pyarrow", "tensorboardX"):
            raise
        raise ConfigError(
            "More workers than one need the package ray: pip install 'autocompress[ray]'."
        ) from error
    return Tuned(execution)
