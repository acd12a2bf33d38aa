"""A file opened in OpenVINO: what needs the runtime and numpy alone."""

import copy
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino.frontend import FrontEndManager

from autocompress.errors import ArtifactError
from autocompress.targets.memory import PeakMemory
from autocompress.targets.session import Array

__all__ = ["OpenVinoSession"]


class OpenVinoSession:
    """A file opened in OpenVINO: synchronous, ``threads`` threads, float32 where not integers.

    It is compiled for one batch size while it is opened, which is faster than for any, and for
    any when a batch of another size comes first. ``load_ms`` is the time from path to the first of
    the two; ``peak_memory_bytes`` what that took at its peak, None where the system does not tell.
    """

    load_ms: float
    peak_memory_bytes: int | None

    def __init__(
        self, path: Path, threads: int = 1, batch_size: int = 1, *, profile: bool = False
    ) -> None:
        self._path = path
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # else float layers of stored codes round inputs
            "PERF_COUNT": profile,
        }
        memory = PeakMemory()
        start = time.perf_counter()
        self._model = self._first = self._compile(batch_size)
        self._prepare()
        self.load_ms = (time.perf_counter() - start) * 1e3
        self.peak_memory_bytes = memory.read()

    def _prepare(self) -> None:
        """Make what calls need of the compiled file."""
        self._request = self._model.create_infer_request()
        self._any: Any = None
        # Buffers of our own: OpenVINO's conversion of numpy arrays costs up to 0.1 ms a call.
        self._buffers: list[Array] = []
        for index, port in enumerate(self._model.inputs):
            if port.partial_shape.is_static:
                buffer = np.zeros(tuple(port.shape), port.element_type.to_dtype())
                tensor = openvino.Tensor(buffer, shared_memory=True)
                self._request.set_input_tensor(index, tensor)
                self._buffers.append(buffer)
        self._count = len(self._model.inputs)

    def again(self) -> "OpenVinoSession":
        """Return the file opened once more, from its compiled form, which is faster."""
        again = copy.copy(self)
        compiled = self._first.export_model()
        again._model = _core().import_model(compiled, "CPU", self._settings)
        again._prepare()
        return again

    def _compile(self, batch_size: int | None) -> Any:
        """Return the file compiled for batches of one size, or of any if None."""
        try:
            model = _frontend().convert(_frontend().load(str(self._path)))
            if not model.outputs:
                raise ValueError("it has no outputs")
            if batch_size is not None:
                shapes = {}
                for port in model.inputs:
                    shape = port.partial_shape
                    if shape.rank.is_static and len(shape) and shape[0].is_dynamic:
                        shape[0] = batch_size
                    shapes[port] = shape
                model.reshape(shapes)
            return _core().compile_model(model, "CPU", self._settings)
        except Exception as error:  # OpenVINO raises RuntimeError and what its bindings raise
            reason = " ".join(str(error).split())
            raise ArtifactError(
                f"A model file must load in OpenVINO: {self._path} does not ({reason[-200:]}). "
                "In a run directory, 'autocompress resume' builds it again."
            ) from error

    def __call__(self, *arrays: Array) -> Any:
        """Run the file; return an array, or a tuple where there are several outputs."""
        if len(arrays) != self._count:
            raise ValueError(f"The file takes {self._count} inputs, not {len(arrays)}.")
        if self._fits(arrays):
            for buffer, array in zip(self._buffers, arrays, strict=True):
                np.copyto(buffer, array, casting="same_kind")
            found = self._request.infer(share_outputs=True)
        else:
            if self._any is None:
                self._any = self._compile(None).create_infer_request()
            found = self._any.infer([np.ascontiguousarray(a) for a in arrays], share_outputs=True)
        results = [np.array(value) for value in found.values()]
        return results[0] if len(results) == 1 else tuple(results)

    def _fits(self, arrays: Sequence[Array]) -> bool:
        """Return whether arrays have the shapes that the file was first compiled for."""
        return len(self._buffers) == self._count and all(
            buffer.shape == np.shape(array)
            for buffer, array in zip(self._buffers, arrays, strict=True)
        )

    def example_inputs(self, batch_size: int = 1) -> tuple[Array, ...]:
        """Return normal random numbers (zeros for integers) of the inputs' shapes."""
        generator = np.random.default_rng(0)
        arrays: list[Array] = []
        for port in self._model.inputs:
            shape = list(port.partial_shape)[1:]
            sizes = [1 if size.is_dynamic else size.get_length() for size in shape]
            values = generator.standard_normal((batch_size, *sizes))
            kind = np.dtype(port.element_type.to_dtype())
            arrays.append(values.astype(kind) if kind.kind == "f" else np.zeros_like(values, kind))
        return tuple(arrays)


@functools.cache
def _core() -> Any:
    """Return this process's OpenVINO; its plugin is loaded once."""
    core = openvino.Core()
    core.get_versions("CPU")
    return core


@functools.cache
def _frontend() -> Any:
    """Return OpenVINO's reader of ONNX; of a file of no known kind every reader would print."""
    return FrontEndManager().load_by_framework("onnx")
