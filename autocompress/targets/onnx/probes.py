"""Probes: generic inputs and parameters, and both graphs' values on them.

On a probe every row, input and parameter is another random number, so values that are equal there
are equal always. How far two values may differ is measured, not assumed: the network runs in
float64 too, and its distance from float32 is what rounding does at that node.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor, fx

from autocompress.errors import TraceError
from autocompress.models.network import Network

__all__ = ["Probe", "Values", "close", "generic", "inputs_like", "pair", "run_model", "run_network"]

Array = np.ndarray[Any, Any]
Inputs = tuple[Tensor, ...]
Replace = Callable[[str, Tensor], Tensor]
_MARGIN = 16.0  # times the rounding noise that was seen: another order of additions has other noise


@dataclass(frozen=True)
class Values:
    """The float32 values of a network by node, and the rounding noise of each."""

    arrays: Mapping[str, Array]
    noise: Mapping[str, float]


@dataclass(frozen=True)
class Probe:
    """Values of the network and of its export on the same inputs."""

    ours: Values
    theirs: Mapping[str, Array]

    def same(self, node: str, value: str) -> bool:
        """Tell whether a node of the network and a value of the export are equal."""
        mine, other = self.ours.arrays[node], self.theirs.get(value)
        return (
            other is not None
            and mine.shape == other.shape
            and close(mine, other, self.ours.noise[node])
        )


def pair(example: Inputs) -> Inputs:
    """Return the example inputs as a batch of two, so that the batch differs from 1."""
    return tuple(v.repeat(2, *[1] * (v.ndim - 1)) for v in example)


def generic(params: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return the parameters ``names`` with every entry changed: no zeros, no two that are equal.

    Positive ones stay positive (variances), and the scale stays, so that no layer saturates.
    """
    generator = torch.Generator().manual_seed(1)
    found: dict[str, Tensor] = {}
    for name in names:
        value = params[name].detach()
        if value.dtype != torch.float32 or not value.numel():
            continue
        finite = value[torch.isfinite(value)]
        size = float(finite.square().mean().sqrt()) if finite.numel() else 0.0
        changed = value * (torch.rand(value.shape, generator=generator) * 0.5 + 0.75)
        if not finite.numel() or float(finite.min()) <= 0:
            changed = changed + torch.randn(value.shape, generator=generator) * (0.1 * size or 0.1)
        found[name] = changed
    return found


def inputs_like(network: Network) -> Inputs:
    """Return random inputs in a batch of two with the example's moments, or within its range.

    Integers are drawn from the rows of the tables that they look up where that works, else from
    the example's range, else they are the example's.
    """
    rows = [
        network.params[str(node.args[0].target)].shape[0]
        for node in network.graph.nodes
        if node.target is torch.ops.aten.embedding.default and node.args[0].op == "get_attr"
    ]
    bounds = [min(rows)] if rows else []
    for bound in (*bounds, 0):
        drawn = _draw(pair(network.example_inputs), bound)
        if all(value.is_floating_point() for value in drawn):
            return drawn
        try:
            network.run(*drawn)
        except (IndexError, RuntimeError):
            continue
        return drawn
    return pair(network.example_inputs)


def _draw(example: Inputs, bound: int) -> Inputs:
    generator = torch.Generator().manual_seed(2)
    drawn = []
    for value in example:
        if value.is_floating_point() and value.numel():
            deviation = float(value.std()) if value.numel() > 1 else 0.0
            mean = float(value.mean())
            noise = torch.randn(value.shape, generator=generator)
            changed = mean + noise * (deviation if deviation > 1e-12 else abs(mean) or 1.0)
            if float(value.min()) >= 0 and deviation:
                changed = changed.abs()
            drawn.append(changed.to(value.dtype))
        elif value.dtype == torch.bool or not value.numel():
            drawn.append(value)
        else:
            low, high = min(0, int(value.min())), max(bound - 1, int(value.max()))
            low = low if bound else int(value.min())
            drawn.append(
                torch.randint(low, high + 1, value.shape, generator=generator).to(value.dtype)
            )
    return tuple(drawn)


def run_network(
    network: Network, inputs: Inputs, replace: Replace | None = None, *, exact: bool = True
) -> Values:
    """Return every float32 value of the network, those that ``replace`` put in place too.

    ``exact``: measure the noise by a second run in float64, else take it to be 0.
    """
    arrays = _observed(network, inputs, replace)
    if not exact:
        return Values(arrays, dict.fromkeys(arrays, 0.0))
    doubled = network.replace(
        params={n: v.double() for n, v in network.params.items() if v.dtype == torch.float32}
    )
    wide = tuple(v.double() if v.dtype == torch.float32 else v for v in inputs)
    try:
        others = _observed(doubled, wide, replace)
    except RuntimeError:  # types that the graph itself names
        others = {}
    noise = {}
    for name, value in arrays.items():
        other = others.get(name)
        finite = np.isfinite(value)
        if other is None or other.shape != value.shape:
            noise[name] = 1e-5 * float(np.abs(value[finite]).max(initial=0.0)) / _MARGIN
        else:
            finite &= np.isfinite(other)
            noise[name] = float(np.abs(value[finite] - other[finite]).max(initial=0.0))
    return Values(arrays, noise)


def _observed(network: Network, inputs: Inputs, replace: Replace | None) -> dict[str, Array]:
    found: dict[str, Array] = {}

    def observe(node: fx.Node, value: Any) -> Tensor | None:
        if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
            return None
        result = replace(node.name, value) if replace else value
        found[node.name] = result.numpy()
        return result if replace else None

    network.run(*inputs, observe=observe)
    return found


def close(a: Array, b: Array, noise: float, part: float = 0.0) -> bool:
    """Tell whether values are the same up to rounding; infinities and NaN must be in both.

    A difference is measured by the value's deviation and by its rounding noise, never by its
    magnitude alone. ``part``: of the elements that may differ.
    """
    odd = ~np.isfinite(a)
    if odd.any():
        if not np.array_equal(a[odd], b[odd], equal_nan=True):
            return False
        a, b = a[~odd], b[~odd]
    if not a.size:
        return True
    middle = float(a.flat[a.size // 2]), float(b.flat[a.size // 2])
    size = float(np.abs(a).max())
    limit = 1e-3 * float(a.std(dtype=np.float64)) + _MARGIN * noise + 1e-6 * size
    if not part and not abs(middle[0] - middle[1]) <= limit + 1e-30:
        return False
    wrong = ~(np.abs(a - b) <= limit + 1e-30)
    return bool(wrong.mean() <= part)


def run_model(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a model with all of its float values as outputs; return them, inputs first, in order.

    Raises TraceError if onnxruntime refuses.
    """
    probe = ModelProto()
    probe.CopyFrom(model)
    known = {info.name for info in probe.graph.output}
    names = [name for node in probe.graph.node for name in node.output if name]
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(
            probe.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        results = session.run(names, dict(feeds))
    except Exception as error:  # onnxruntime's exceptions have no common base
        raise TraceError(f"onnxruntime must run the exported graph: {error}") from error
    both = (*feeds.items(), *zip(names, results, strict=True))
    return {
        name: value
        for name, value in both
        if isinstance(value, np.ndarray) and value.dtype == np.float32
    }
