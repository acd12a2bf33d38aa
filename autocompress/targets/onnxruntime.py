"""ONNX files for onnxruntime on the CPU: exported once, edited for every plan."""

import functools
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto

from autocompress.core.abilities import PORTABLE, Abilities
from autocompress.models.network import Network
from autocompress.targets.base import Array, Builder, OpTime
from autocompress.targets.onnx.origins import Origins, is_layer, of_network
from autocompress.targets.onnx.template import make_template
from autocompress.targets.onnx.writer import OnnxBuilder
from autocompress.targets.onnxruntime_session import OnnxRuntimeSession
from autocompress.targets.probe import overflows

__all__ = ["OnnxRuntime", "OnnxRuntimeSession"]

_ABILITIES = Abilities(
    w_bits=(2, 3, 4, 5, 6, 7, 8, 16, 32),
    a_bits=(8, 32),
    quantized_outputs=frozenset({"conv", "depthwise", "grouped"}),
    fused_activations=frozenset(
        {"aten.relu.default", "aten.relu6.default", "aten.hardtanh.default", "aten.clamp.default"}
    ),
    float_block=4,
    folds_weights=True,
    keep=True,
    code_limit=PORTABLE,
    integer_biases=True,
)


@dataclass(frozen=True)
class OnnxRuntime:
    """onnxruntime's CPU provider.

    ``limit``: layers with more weights than this are stored in int8 (int4 up to 4 bits) and read
    at run time, since unpacking them while loading costs about 35 bytes of memory a weight.
    ``portable``: files answer alike on every CPU; otherwise 8-bit codes take their whole range,
    which is right on CPUs with VNNI or of ARM alone.
    """

    threads: int = 1
    batch_size: int = 1
    limit: int = 4_000_000
    portable: bool = True

    name = "onnxruntime"
    version = f"onnxruntime {onnxruntime.__version__}"
    suffix = ".onnx"
    abilities = _ABILITIES

    def __post_init__(self) -> None:
        for field in ("threads", "batch_size", "limit"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, not {getattr(self, field)}.")
        if not self.portable:
            object.__setattr__(self, "abilities", replace(_ABILITIES, code_limit=128))

    def saturates(self) -> bool:
        """Tell whether its integer kernels on this host overflow at codes above 64."""
        return _overflows()

    def prepare(self, network: Network) -> Builder:
        """Export the network once; raise TraceError if that fails."""
        large = any(value.numel() > self.limit for value in network.params.values())
        template = make_template(network, 21 if large else 18)
        return OnnxBuilder(template, self.name, self.limit)

    def open(self, path: Path) -> "OnnxRuntimeSession":
        """Load a file; raise ArtifactError if onnxruntime refuses it."""
        return OnnxRuntimeSession(path, self.threads)

    def profile(self, path: Path, inputs: tuple[Array, ...], runs: int = 20) -> tuple[OpTime, ...]:
        """Return the time of every operator of a file whose nodes are named."""
        warm = 3
        with tempfile.TemporaryDirectory() as place:
            into = Path(place) / "optimised.onnx"
            session = OnnxRuntimeSession(path, self.threads, profile=into)
            for _ in range(warm + runs):
                session(*inputs)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            fused = onnx.load(str(into), load_external_data=False)
        nodes = _origins(Origins(onnx.load(str(path), load_external_data=False)), fused)
        times: dict[str, list[float]] = {}
        kinds: dict[str, str] = {}
        for event in events:
            name = event["name"].removesuffix("_kernel_time")
            if event["cat"] == "Node" and name != event["name"]:
                times.setdefault(name, []).append(event["dur"] * 1e-3)
                kinds[name] = event["args"]["op_name"]
        return tuple(
            OpTime(nodes.get(name, ""), kinds[name], _calm(values[-runs:]))
            for name, values in times.items()
        )


@functools.cache
def _overflows() -> bool:
    return overflows(OnnxRuntimeSession)


def _calm(times: list[float]) -> float:
    """Return the mean of the fastest quarter: what disturbs the machine does not enter."""
    return float(np.mean(np.sort(times)[: max(1, len(times) // 4)]))


def _origins(origins: Origins, fused: onnx.ModelProto) -> dict[str, str]:
    """Return the network's node of every node of the graph that onnxruntime runs.

    A fused node keeps the name of a node of the file and adds to it, or is called after the value
    that it makes; conversions between layouts are those of the tensor that they convert.
    """
    found: dict[str, NodeProto] = {}
    late: list[NodeProto] = []
    for node in fused.graph.node:
        parts: list[NodeProto | None] = [*origins.named(node.name)]
        values = [node.name.partition("_")[0], *node.output, *node.input]
        parts += map(origins.value, values)
        known = next((part for part in parts if part is not None), None)
        if known is not None and is_layer(node) and not is_layer(known):
            late.append(node)
        if known is not None:
            found[node.name] = known
    # A layer called after the last node that was fused into it: the nearest one before that.
    taken = {found[n.name].name for n in fused.graph.node if n.name in found and is_layer(n)}
    for node in late:
        found[node.name] = origins.layer(found[node.name], taken)
        taken.add(found[node.name].name)
    makers = {name: node.name for node in fused.graph.node for name in node.output}
    for node in fused.graph.node:
        before = (found.get(makers.get(name, "")) for name in node.input)
        source = next((origin for origin in before if origin is not None), None)
        if source is not None:
            found.setdefault(node.name, source)
    for node in reversed(fused.graph.node):  # of constants: what they are for
        if node.name in found:
            for name in node.input:
                found.setdefault(makers.get(name, ""), found[node.name])
    return {name: of_network(node) for name, node in found.items()}
