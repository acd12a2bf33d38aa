"""ONNX files for OpenVINO on the CPU, with weights in types that its integer kernels take.

OpenVINO runs bit planes in float32, so codes are plain int8, or int4 up to 4 bits, behind a
DequantizeLinear. Its convolutions and products of u8 activations with s8 weights give float32 or
u8 as the operator behind them wants, so only what layers read is rounded; biases stay floats.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
from onnx import NodeProto

from autocompress.core.abilities import PORTABLE, Abilities
from autocompress.models.network import Network
from autocompress.targets.base import Array, Builder, OpTime
from autocompress.targets.onnx.origins import Origins, is_layer, of_network
from autocompress.targets.onnx.template import make_template
from autocompress.targets.onnx.writer import OnnxBuilder
from autocompress.targets.openvino_session import OpenVinoSession
from autocompress.targets.probe import overflows

__all__ = ["OpenVino", "OpenVinoSession"]

_ABILITIES = Abilities(
    w_bits=(2, 3, 4, 5, 6, 7, 8, 16, 32),
    a_bits=(8, 32),
    fused_activations=frozenset(
        f"aten.{name}.default"
        for name in (
            "relu", "relu6", "hardtanh", "clamp", "hardswish", "silu", "sigmoid", "gelu", "tanh",
            "leaky_relu", "elu",
        )
    ),
    stored_bits=(4, 8, 16, 32),
    folds_weights=True,
    keep=True,
    code_limit=PORTABLE,
)  # fmt: skip
_OPSET = 21  # the first with int4
_WARM = 3  # runs before those of a profile
_REPEATS = 3  # profiles of which the median is taken
_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO's CPU plugin. Sessions are compiled for batches of ``batch_size``.

    ``portable``: files answer alike on every CPU; otherwise 8-bit codes take their whole range,
    which is right on CPUs with VNNI or of ARM alone.
    """

    threads: int = 1
    batch_size: int = 1
    portable: bool = True

    name = "openvino"
    suffix = ".onnx"
    abilities = _ABILITIES

    def __post_init__(self) -> None:
        for field in ("threads", "batch_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, not {getattr(self, field)}.")
        if not self.portable:
            object.__setattr__(self, "abilities", replace(_ABILITIES, code_limit=128))

    @property
    def version(self) -> str:
        """OpenVINO's name and version."""
        return f"openvino {openvino.__version__.partition('-')[0]}"

    def saturates(self) -> bool:
        """Tell whether its integer kernels on this host overflow at codes above 64."""
        return _overflows()

    def prepare(self, network: Network) -> Builder:
        """Export the network once; raise TraceError if that fails."""
        return OnnxBuilder(make_template(network, _OPSET), self.name, limit=None)

    def open(self, path: Path) -> "OpenVinoSession":
        """Load a file; raise ArtifactError if OpenVINO refuses it."""
        return OpenVinoSession(path, self.threads, self.batch_size)

    def profile(self, path: Path, inputs: tuple[Array, ...], runs: int = 20) -> tuple[OpTime, ...]:
        """Return the time of every operator of a file whose nodes are named.

        Medians of three means, since means are what OpenVINO tells. ``kind`` is its type and the
        precision of its kernel, as "Convolution.i8".
        """
        sessions = [
            _Profiled(path, self.threads, len(inputs[0]), profile=True) for _ in range(_REPEATS)
        ]
        origins = Origins(onnx.load(str(path), load_external_data=False))
        repeats = [session.profile(origins, inputs, runs) for session in sessions]
        ops = []
        for same in zip(*repeats, strict=True):
            ms = float(np.median([op.ms for op in same]))
            if same[0].kind.startswith(_LAYERS):
                ms = max(ms, 0.5e-3)  # OpenVINO tells no time below 1 µs
            if ms > 0:
                ops.append(OpTime(same[0].node, same[0].kind, ms))
        return tuple(ops)


class _Profiled(OpenVinoSession):
    """A session that tells what each operator takes."""

    def profile(self, origins: Origins, inputs: tuple[Array, ...], runs: int) -> list[OpTime]:
        """Return the mean time of every operator over ``runs`` after warm-up, or 0.

        OpenVINO tells the mean over all runs so far, cold ones too, in whole microseconds, each
        run's rounded down as well: so the sums before and after are subtracted, and half a
        microsecond is added for either rounding.
        """
        for _ in range(_WARM):
            self(*inputs)
        before = self._means()
        for _ in range(runs):
            self(*inputs)
        after = self._means()
        nodes = self._origins(origins)
        found: list[OpTime] = []
        live: set[str] = set()  # what is computed in every run, and not of constants alone
        for op in self._model.get_runtime_model().get_ordered_ops():
            name, kind = op.get_friendly_name(), _info(op, "layerType")
            sources = {port.get_node().get_friendly_name() for port in op.input_values()}
            if kind == "Input" or sources & live:
                live.add(name)
                mean = 0.0
                if name in after:
                    sums = after[name] * (_WARM + runs) - before.get(name, 0.0) * _WARM
                    mean = max(sums / runs + 1.0, 0.5)
                precision = _info(op, "primitiveType").rpartition("_")[2].lower()
                found.append(OpTime(nodes.get(name, ""), f"{kind}.{precision}", mean * 1e-3))
        return found

    def _means(self) -> dict[str, float]:
        """Return the microseconds that OpenVINO tells of each operator that it has run."""
        times = {
            op.get_friendly_name(): _info(op, "execTimeMcs")
            for op in self._model.get_runtime_model().get_ops()
        }
        return {name: float(text) for name, text in times.items() if text.isdigit()}

    def _origins(self, origins: Origins) -> dict[str, str]:
        """Return the network's node of every node of the graph that OpenVINO runs.

        It keeps the names of the nodes that it fused, or that of the value they make; a layer that
        has lost its name is the one before what its reader came from.
        """
        found: dict[str, NodeProto] = {}
        late: list[Any] = []
        ops = self._model.get_runtime_model().get_ordered_ops()
        for op in ops:
            name = op.get_friendly_name()
            kept = _info(op, "originalLayersNames")
            parts = origins.named(kept) or origins.named(name)
            parts += [node for node in map(origins.value, kept.split(",")) if node is not None]
            layer = next((node for node in parts if is_layer(node)), None)
            if layer is None and _info(op, "layerType") in _LAYERS:
                late.append(op)
            if parts:
                found[name] = layer or parts[0]
        taken = {node.name for node in found.values()}
        for op in sorted(late, key=lambda op: op.get_friendly_name() not in found):
            readers = [r.get_node() for port in op.outputs() for r in port.get_target_inputs()]
            names = [node.get_friendly_name() for node in (op, *readers)]
            start = next((found[name] for name in names if name in found), None)
            if start is not None:
                found[names[0]] = origins.layer(start, taken)
                taken.add(found[names[0]].name)
        for op in ops:  # conversions between layouts: of the tensor that they convert
            sources = (found.get(port.get_node().get_friendly_name()) for port in op.input_values())
            source = next((node for node in sources if node is not None), None)
            if source is not None:
                found.setdefault(op.get_friendly_name(), source)
        return {name: of_network(node) for name, node in found.items()}


@functools.cache
def _overflows() -> bool:
    return overflows(OpenVinoSession)


def _info(op: Any, key: str) -> str:
    """Return a fact of a node of OpenVINO's graph, "" if there is none."""
    info = op.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""
