"""What a target can do: inert data that quantization obeys and spaces are checked against."""

from dataclasses import dataclass

__all__ = ["Abilities"]


@dataclass(frozen=True)
class Abilities:
    """Bit widths and number formats of a target, and what its fused kernels ask for.

    ``quantized_outputs``: layer kinds whose integer kernel is used only if the output is
    quantized too (the Q/DQ edge rule).
    ``fused_activations``: ATen names that the runtime folds into the layer before them when
    the range starts at the zero point.
    ``keep``: whether files with fewer channels can be written.
    """

    w_bits: tuple[int, ...]
    a_bits: tuple[int, ...]
    quantized_outputs: frozenset[str] = frozenset()
    fused_activations: frozenset[str] = frozenset()
    keep: bool = True
