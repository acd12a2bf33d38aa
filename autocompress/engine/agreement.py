"""Whether a file answers as it should, on calibration inputs: beside its simulation, or the model.

A file that its runtime refuses is asked once more with the network's names in it, so that what is
said names the layer.
"""

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from autocompress.errors import ArtifactError
from autocompress.models.network import Network
from autocompress.targets.base import Array, Builder, Session, Target
from autocompress.targets.differences import rms, tuple_of
from autocompress.transforms.compressor import Compressed

__all__ = ["arrays_of", "farthest", "refused"]

_NODE = re.compile(r"(\w+)/(?:\d+|[qd])(?![^\W_])")


@torch.no_grad()
def arrays_of(model: Callable[..., Any], inputs: Sequence[Tensor]) -> tuple[Array, ...]:
    """Return what a model or a simulation gives, in the order in which a file has its outputs."""
    leaves = tree_leaves(model(*(value.clone() for value in inputs)))  # a model may write its input
    return tuple(leaf.numpy() for leaf in leaves if isinstance(leaf, Tensor))


def farthest(session: Session, inputs: Sequence[Tensor], wanted: Sequence[Array]) -> float:
    """Return how far a file's outputs are from those wanted: the RMS of the output that is worst.

    In units of that output's deviation; infinite where shapes or numbers of outputs differ, but
    for dimensions of one, which a model may drop of a batch of one. Raises what the runtime does.
    """
    found = tuple_of(session(*(value.numpy() for value in inputs)))
    if list(map(_shape, found)) != list(map(_shape, wanted)):
        return float(np.inf)
    pairs = zip(found, wanted, strict=True)
    return max(rms(one.reshape(other.shape), other) for one, other in pairs)


def _shape(value: Array) -> list[int]:
    return [size for size in value.shape if size != 1]


def refused(
    target: Target,
    builder: Builder,
    compressed: Compressed,
    inputs: Sequence[Tensor],
    error: Exception,
) -> ArtifactError:
    """Return the error for a file that its runtime does not load or run; it names the layer.

    ``inputs``: a batch; ``error``: what the runtime raised.
    """
    reason, layer = " ".join(str(error).split()), ""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"named{target.suffix}"
        try:
            path.write_bytes(builder.content(compressed, named=True))
            target.open(path)(*(value.numpy() for value in inputs))
        except Exception as named:  # runtimes' exceptions have no common base
            layer = _layer(compressed.network, str(named))
    return ArtifactError(
        f"A file must run in its runtime: {target.version} refuses this one"
        f"{f' at {layer!r}' if layer else ''} ({reason[:300]}). Leave what is done to that layer "
        "or before it out of the space, and report the network."
    )


def _layer(network: Network, text: str) -> str:
    """Return the layer at or before the first node of the network that a text names, "" if none."""
    nodes = {node.name: node for node in network.graph.nodes}
    layers = {layer.node: layer.name for layer in network.layers}
    queue = [nodes[name] for name in _NODE.findall(text) if name in nodes][:1]
    first = queue[0].name if queue else ""
    for node in queue:  # grows as it is read
        if node.name in layers:
            return layers[node.name]
        queue += [source for source in node.all_input_nodes if source not in queue]
    return first
