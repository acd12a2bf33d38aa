"""How far a network's outputs are from another's."""

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

__all__ = ["divergence"]


def divergence(outputs: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Return how far outputs are from those wanted; infinite if they are not finite.

    Of [N, classes] outputs the Kullback-Leibler divergence of their softmax, in nats, of other
    floats the squared error relative to the variance; summed over outputs.
    """
    found = 0.0
    for value, target in zip(outputs, wanted, strict=True):
        if not isinstance(target, Tensor) or not target.is_floating_point():
            continue
        if target.ndim == 2 and target.shape[1] > 1:
            logs, aim = F.log_softmax(value, 1), F.log_softmax(target, 1)
            found += float(F.kl_div(logs, aim, reduction="batchmean", log_target=True))
        else:
            spread = float(target.var(correction=0)) or 1.0
            found += float((value - target).square().mean()) / spread
    return max(found, 0.0) if math.isfinite(found) else math.inf
