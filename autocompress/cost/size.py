"""Size: the bytes that a compressed network's values need, estimated before any file."""

import math

from autocompress.transforms.compress import Compressed, QuantizedWeight
from autocompress.transforms.weights import short

__all__ = ["estimate_size"]


def estimate_size(compressed: Compressed) -> int:
    """Return the bytes of packed codes, scales, biases and other parameters, without the graph."""
    total = 0
    for name, value in compressed.network.params.items():
        form = compressed.weights.get(name)
        if isinstance(form, QuantizedWeight):
            total += math.ceil(form.codes.size * form.bits / 8) + short(form.scale).nbytes
        else:
            total += value.numel() * (2 if form == "float16" else value.element_size())
    return total
