"""A file opened in onnxruntime: what needs the runtime and numpy alone."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from autocompress.errors import ArtifactError
from autocompress.targets.memory import PeakMemory
from autocompress.targets.session import Array

__all__ = ["OnnxRuntimeSession"]

_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(bool)": np.dtype(np.bool_),
}


class OnnxRuntimeSession:
    """A file opened in onnxruntime: sequential, with ``threads`` threads inside an operator.

    ``load_ms`` is the time from path to session; ``peak_memory_bytes`` what loading took at its
    peak, None where the system does not tell.
    """

    load_ms: float
    peak_memory_bytes: int | None

    def __init__(self, path: Path, threads: int = 1, *, profile: Path | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        if profile is not None:  # the graph that is run, and the times beside it
            options.enable_profiling = True
            options.profile_file_prefix = str(profile.with_suffix(""))
            options.optimized_model_filepath = str(profile)
        self._path, self._threads = path, threads
        memory = PeakMemory()
        start = time.perf_counter()
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions have no common base
            reason = " ".join(str(error).split())
            raise ArtifactError(
                f"A model file must load in onnxruntime: {path} does not ({reason[:200]}). "
                "In a run directory, 'autocompress resume' builds it again."
            ) from error
        self.load_ms = (time.perf_counter() - start) * 1e3
        self.peak_memory_bytes = memory.read()
        self._inputs = [info.name for info in self._session.get_inputs()]
        self._outputs = [info.name for info in self._session.get_outputs()]

    def again(self) -> "OnnxRuntimeSession":
        """Return the file opened once more."""
        return OnnxRuntimeSession(self._path, self._threads)

    def end_profiling(self) -> str:
        """Return the path of the file of times."""
        return str(self._session.end_profiling())

    def __call__(self, *arrays: Array) -> Any:
        """Run the file; return an array, or a tuple where there are several outputs."""
        if len(arrays) != len(self._inputs):
            raise ValueError(f"The file takes {len(self._inputs)} inputs, not {len(arrays)}.")
        feeds = dict(zip(self._inputs, map(np.ascontiguousarray, arrays), strict=True))
        results = self._session.run(self._outputs, feeds)
        return results[0] if len(results) == 1 else tuple(results)

    def example_inputs(self, batch_size: int = 1) -> tuple[Array, ...]:
        """Return normal random numbers (zeros for integers) of the inputs' shapes."""
        generator = np.random.default_rng(0)
        arrays: list[Array] = []
        for info in self._session.get_inputs():
            sizes = [size if isinstance(size, int) else 1 for size in info.shape[1:]]
            values = generator.standard_normal((batch_size, *sizes))
            kind = _TYPES.get(info.type, _TYPES["tensor(float)"])
            arrays.append(values.astype(kind) if kind.kind == "f" else np.zeros_like(values, kind))
        return tuple(arrays)
