"""ONNX files for onnxruntime on the CPU: exported once, edited for every plan."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from autocompress.errors import ArtifactError
from autocompress.models.network import Network
from autocompress.spec.abilities import Abilities
from autocompress.spec.artifact import Artifact
from autocompress.spec.files import write_whole
from autocompress.targets.base import Array, Builder
from autocompress.targets.memory import PeakMemory
from autocompress.targets.onnx_edits import NotPlain
from autocompress.targets.onnx_template import Template, make_template
from autocompress.targets.onnx_writer import write

if TYPE_CHECKING:
    from autocompress.transforms.compress import Compressed

__all__ = ["OnnxRuntime", "OnnxRuntimeBuilder", "OnnxRuntimeSession"]

_ABILITIES = Abilities(
    w_bits=(2, 3, 4, 5, 6, 7, 8, 16, 32),
    a_bits=(8, 32),
    quantized_outputs=frozenset({"conv", "depthwise", "grouped"}),
    fused_activations=frozenset(
        {"aten.relu.default", "aten.relu6.default", "aten.hardtanh.default", "aten.clamp.default"}
    ),
    keep=True,
)

_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(bool)": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class OnnxRuntime:
    """onnxruntime's CPU provider.

    ``limit``: layers with more weights than this are stored in int8 (int4 up to 4 bits) and read
    at run time, since unpacking them while loading costs about 35 bytes of memory a weight.
    """

    threads: int = 1
    batch_size: int = 1
    limit: int = 4_000_000

    name = "onnxruntime"
    suffix = ".onnx"
    abilities = _ABILITIES

    def __post_init__(self) -> None:
        for field in ("threads", "batch_size", "limit"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, not {getattr(self, field)}.")

    def prepare(self, network: Network) -> Builder:
        """Export the network once; raise TraceError if that fails."""
        large = any(value.numel() > self.limit for value in network.params.values())
        return OnnxRuntimeBuilder(make_template(network, 21 if large else 18), self.limit)

    def open(self, path: Path) -> "OnnxRuntimeSession":
        """Load a file; raise ArtifactError if onnxruntime refuses it."""
        return OnnxRuntimeSession(path, self.threads)


@dataclass(frozen=True)
class OnnxRuntimeBuilder:
    """Writes compressed copies of the network that ``template`` was made of."""

    template: Template
    limit: int = 4_000_000

    def content(self, compressed: "Compressed", *, named: bool = False) -> bytes:
        """Return the file; export afresh in the rare case that the template cannot be edited."""
        try:
            return write(self.template, compressed, limit=self.limit, named=named)
        except NotPlain:
            template = make_template(compressed.network, self.template.opset)
            return write(template, compressed, limit=self.limit, named=named)

    def build(self, compressed: "Compressed", path: Path) -> Artifact:
        """Write the file and describe it."""
        content = self.content(compressed)
        write_whole(path, content)
        digest = hashlib.sha256(content).hexdigest()
        return Artifact(path, digest, len(content), OnnxRuntime.name)


class OnnxRuntimeSession:
    """A file opened in onnxruntime: sequential, with ``threads`` threads inside an operator.

    ``load_ms`` is the time from path to session; ``peak_memory_bytes`` what loading took at its
    peak, None where the system does not tell.
    """

    load_ms: float
    peak_memory_bytes: int | None

    def __init__(self, path: Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
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
