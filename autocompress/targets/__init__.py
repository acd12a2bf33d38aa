"""Targets: runtimes and their file formats, by name."""

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from autocompress.errors import ConfigError, unknown
from autocompress.targets.base import Builder, OpTime, Session, Target

__all__ = ["TARGETS", "Builder", "OpTime", "Session", "Target", "make_target"]


def _onnxruntime(**options: Any) -> Target:
    from autocompress.targets.onnxruntime import OnnxRuntime

    return OnnxRuntime(**options)


def _null(**options: Any) -> Target:
    from autocompress.targets.null import Null

    return Null(**options)


def _openvino(**options: Any) -> Target:
    try:
        from autocompress.targets.openvino import OpenVino
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "openvino":
            raise
        raise ConfigError(
            "The target openvino needs the package openvino: pip install 'autocompress[openvino]'."
        ) from error
    return OpenVino(**options)


#: Makes a target from ``threads``, ``batch_size`` of latency measurements, and ``portable``.
TARGETS: Mapping[str, Callable[..., Target]] = MappingProxyType(
    {"null": _null, "onnxruntime": _onnxruntime, "openvino": _openvino}
)


def make_target(
    name: str, *, threads: int = 1, batch_size: int = 1, portable: bool = True
) -> Target:
    """Return a target by its name; raise ConfigError that names the nearest if there is none.

    ``portable``: its files answer alike on every CPU; otherwise 8-bit codes take their whole range.
    """
    if name not in TARGETS:
        raise ConfigError(unknown("target", name, TARGETS))
    for what, value in (("threads", threads), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{what} must be at least 1, not {value}.")
    cores = max(os.cpu_count() or 1, 16)  # more hang a runtime up, or the machine
    if threads > cores:
        raise ConfigError(f"threads must be at most {cores} on this machine, not {threads}.")
    return TARGETS[name](threads=threads, batch_size=batch_size, portable=portable)
