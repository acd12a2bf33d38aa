"""Effects: how far a plan moves a network's outputs on the calibration inputs, without a file."""

import math
from typing import Any

import torch
from torch import Tensor, fx

from autocompress.core.plan import Plan
from autocompress.errors import InputError, PlanError
from autocompress.transforms.compressor import Compressor

__all__ = ["Effects"]

_LIMIT_BYTES = 2**30  # of values that are kept; those of the last nodes are computed again


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

        compressor.network.run(*compressor.reference.inputs, observe=observe)

    @torch.no_grad()
    def __call__(self, plan: Plan) -> float:
        """Return the divergence of a plan's simulated outputs."""
        try:
            return self.compressor.effect(plan, self._known)
        except PlanError:
            raise
        except (RuntimeError, InputError):  # NaN or infinite activations, a singular matrix
            return math.inf
