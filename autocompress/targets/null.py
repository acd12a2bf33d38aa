"""A target without a runtime: deterministic, quick, for trying a search out and for tests.

A file is safetensors with one metadata entry: the network's graph as plain JSON, which a session
runs with torch operator by operator. Weights are packed to their bits, so sizes are honest; the
latency is a made-up function of the file's size, the same on every machine.
"""

import hashlib
import json
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from autocompress.core.abilities import Abilities
from autocompress.core.artifact import Artifact
from autocompress.core.files import write_whole
from autocompress.errors import ArtifactError
from autocompress.models.network import Network
from autocompress.models.plain import function, plain, whole
from autocompress.targets.base import Array, Builder, OpTime
from autocompress.transforms.quantize.weights import Grid

if TYPE_CHECKING:
    from autocompress.transforms.compressor import Compressed

__all__ = ["Null", "NullBuilder", "NullSession"]


@dataclass(frozen=True)
class Null:
    """A fake target; any plan that onnxruntime takes, it takes too."""

    threads: int = 1
    batch_size: int = 1
    portable: bool = True

    name = "null"
    version = "null 1"
    suffix = ".null"
    abilities = Abilities(
        w_bits=(2, 3, 4, 5, 6, 7, 8, 16, 32),
        a_bits=(8, 32),
        fused_activations=frozenset({"aten.relu.default"}),
    )

    def saturates(self) -> bool:
        """Say that it does not: it multiplies floats."""
        return False

    def prepare(self, network: Network) -> Builder:
        """Return the builder; nothing is slow here."""
        return NullBuilder()

    def open(self, path: Path) -> "NullSession":
        """Load a file; raise ArtifactError if it is not whole."""
        return NullSession(path)

    def profile(self, path: Path, inputs: tuple[Array, ...], runs: int = 20) -> tuple[OpTime, ...]:
        """Share the file's made-up time among its layers by their numbers of weights."""
        session = NullSession(path)
        total = sum(session.layers.values())
        return tuple(
            OpTime(node, "layer", session.fixed_ms * count / total)
            for node, count in session.layers.items()
        )


@dataclass(frozen=True)
class NullBuilder:
    """Writes a compressed network's graph and weights."""

    def content(self, compressed: "Compressed", *, named: bool = False) -> bytes:
        """Return the file; ``named``: with the nodes of the layers."""
        network = compressed.network
        tensors: dict[str, Array] = {}
        packed: dict[str, Any] = {}
        for name, value in network.params.items():
            weight = compressed.weights.get(name)
            array = value.detach().numpy()
            if weight is None:
                tensors[name] = np.ascontiguousarray(array)
            elif isinstance(weight, str):
                tensors[name] = array.astype(np.float16)
            else:
                grid, digits = Grid(weight.bits, weight.odd), weight.unsigned.reshape(-1, 1)
                bits = np.unpackbits(digits, axis=1, bitorder="little")[:, : weight.bits]
                tensors[name] = np.packbits(bits)
                tensors[f"{name}/scale"] = weight.scale.astype(np.float32)
                packed[name] = [list(weight.codes.shape), weight.bits, grid.low, grid.step]
        document = {
            "graph": [plain(node) for node in network.graph.nodes],
            "packed": packed,
            "activations": {
                name: [range_.scale, range_.zero_point]
                for name, range_ in compressed.activations.items()
            },
            "inputs": [list(value.shape[1:]) for value in network.example_inputs],
        }
        if named:
            document["layers"] = {
                layer.node: network.params[layer.weight].numel() for layer in network.layers
            }
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return safetensors.save(tensors, metadata={"network": text})

    def build(self, compressed: "Compressed", path: Path) -> Artifact:
        """Write the file and describe it."""
        content = self.content(compressed)
        write_whole(path, content)
        return Artifact(path, hashlib.sha256(content).hexdigest(), len(content), Null.name)


class NullSession:
    """A file of the null target, run with torch. ``fixed_ms`` is its made-up latency.

    ``layers``: numbers of weights by node of the layer, all under "" if the file names none.
    """

    load_ms: float
    peak_memory_bytes: int | None = None

    def __init__(self, path: Path) -> None:
        start = time.perf_counter()
        try:
            content = path.read_bytes()
            tensors = safetensors.load(content)
            size = struct.unpack("<Q", content[:8])[0]
            document = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["network"])
        except (OSError, SafetensorError, ValueError, KeyError, struct.error) as error:
            raise ArtifactError(
                f"A model file must be whole: {path} is not ({error}). "
                "Delete it and score its plan again."
            ) from error
        self._graph = document["graph"]
        self._ranges = document["activations"]
        self._inputs = document["inputs"]
        self._params = {
            name: torch.from_numpy(_unpack(name, tensors, document["packed"]))
            for name in tensors
            if not name.endswith("/scale")
        }
        self.layers: dict[str, int] = document.get("layers") or {"": 1}
        self.fixed_ms = 0.01 + len(content) * 1e-6
        self.load_ms = (time.perf_counter() - start) * 1e3

    @torch.no_grad()
    def __call__(self, *arrays: Array) -> Any:
        """Run the file; return an array, or a tuple where there are several outputs."""
        if len(arrays) != len(self._inputs):
            raise ValueError(f"The file takes {len(self._inputs)} inputs, not {len(arrays)}.")
        values: dict[str, Any] = {}
        feed = iter(arrays)
        for name, op, target, args, kwargs in self._graph:
            if op == "placeholder":
                value: Any = torch.from_numpy(np.ascontiguousarray(next(feed)))
            elif op == "get_attr":
                value = self._params[target]
            elif op == "output":
                outputs = [v.numpy() for v in whole(args, values)[0]]
                return outputs[0] if len(outputs) == 1 else tuple(outputs)
            else:
                value = function(target)(*whole(args, values), **whole(kwargs, values))
            if name in self._ranges:
                scale, zero = self._ranges[name]
                codes = torch.clamp(torch.round(value / scale) + zero, 0, 255)
                value = (codes - zero) * scale
            values[name] = value
        raise AssertionError("a graph ends with its output")

    def again(self) -> "NullSession":
        """Return this session: where it lies makes no difference."""
        return self

    def example_inputs(self, batch_size: int = 1) -> tuple[Array, ...]:
        """Return normal random numbers of the inputs' shapes."""
        generator = np.random.default_rng(0)
        return tuple(
            generator.standard_normal((batch_size, *shape)).astype(np.float32)
            for shape in self._inputs
        )


def _unpack(name: str, tensors: Mapping[str, Array], packed: Mapping[str, Any]) -> Array:
    if name not in packed:
        value = tensors[name]
        return value.astype(np.float32) if value.dtype == np.float16 else value
    shape, bits, low, step = packed[name]
    count = int(np.prod(shape))
    digits = np.unpackbits(tensors[name], count=count * bits).reshape(count, bits)
    codes = np.packbits(digits, axis=1, bitorder="little")[:, 0].astype(np.int16) * step + low
    scale = tensors[f"{name}/scale"].reshape(-1, *[1] * (len(shape) - 1))
    result: Array = codes.reshape(shape).astype(np.float32) * scale
    return result
