"""Targets: runtimes and their file formats, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from autocompress.targets.base import Builder, Session, Target

__all__ = ["TARGETS", "Builder", "Session", "Target"]


def _onnxruntime(threads: int = 1, batch_size: int = 1) -> Target:
    from autocompress.targets.onnxruntime import OnnxRuntime

    return OnnxRuntime(threads, batch_size)


def _null(threads: int = 1, batch_size: int = 1) -> Target:
    from autocompress.targets.null import Null

    return Null(threads, batch_size)


#: Makes a target from its number of threads and the batch size of latency measurements.
TARGETS: Mapping[str, Callable[..., Target]] = MappingProxyType(
    {"null": _null, "onnxruntime": _onnxruntime}
)
