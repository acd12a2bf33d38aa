"""Effects: how far a plan moves a network's outputs on the calibration inputs, without a file."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from autocompress.errors import InputError, PlanError
from autocompress.spec.plan import Plan
from autocompress.transforms.compress import Compressor

__all__ = ["Effects", "divergence"]

_LIMIT_BYTES = 2**30  # of values that are kept; those of the last nodes are computed again


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


class Effects:
    """The divergence from the uncompressed network of any plan, repaired as its file would be.

    What lies before a plan's first change is not computed again: the uncompressed network's values
    are kept, up to ``limit_bytes`` of them. A plan that cannot be carried out has an infinite one.
    Raises PlanError for a plan that does not fit the network.
    """

    def __init__(self, compressor: Compressor, *, limit_bytes: int = _LIMIT_BYTES) -> None:
        self.compressor = compressor
        self._known: dict[str, Any] = {}
        held = 0

        def observe(node: fx.Node, value: Any) -> None:
            nonlocal held
            parts = value if isinstance(value, (tuple, list)) else (value,)
            held += sum(part.nbytes for part in parts if isinstance(part, Tensor))
            if held <= limit_bytes:
                self._known[node.name] = value

        found = compressor.network.run(*compressor.teacher.inputs, observe=observe)
        self._wanted = found if isinstance(found, tuple) else (found,)

    @torch.no_grad()
    def __call__(self, plan: Plan) -> float:
        """Return the divergence of a plan's simulated outputs."""
        try:
            return divergence(self.compressor.outputs(plan, self._known), self._wanted)
        except PlanError:
            raise
        except (RuntimeError, InputError):  # activations that are no numbers, a singular matrix
            return math.inf
