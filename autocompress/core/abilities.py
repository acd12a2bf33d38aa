"""What a target can do: inert data that quantization obeys and spaces are checked against."""

from dataclasses import dataclass

__all__ = ["PORTABLE", "Abilities"]

#: The greatest code of which two, each times 255, add up within 16 bits: 2 · 255 · 64 < 2^15.
PORTABLE = 64


@dataclass(frozen=True)
class Abilities:
    """Bit widths and number formats of a target, and what its fused kernels ask for.

    ``quantized_outputs``: layer kinds whose integer kernel is used only if the output is
    quantized too (the Q/DQ edge rule).
    ``fused_activations``: ATen names that the runtime folds into the layer before them when
    the range starts at the zero point.
    ``stored_bits``: the widths in which weights are stored; one of ``w_bits`` between them takes
    the next wider. Empty: each width is stored as it is.
    ``float_block``: float convolutions run in a layout of their own only if the channels that they
    read (of depthwise ones, all) are a multiple of this; others convert or take a slower kernel.
    ``folds_weights``: narrow weights are widened while a file loads, and take no other time than
    8-bit ones after that.
    ``keep``: whether files with fewer channels can be written.
    ``code_limit``: codes of weights whose input is rounded are at most this in magnitude. Kernels
    of CPUs without VNNI add two products of a u8 activation and an s8 weight in 16 bits: up to
    ``PORTABLE`` they cannot overflow, and a file answers alike on every CPU.
    ``integer_biases``: integer kernels add biases as whole multiples of input scale × weight scale.
    """

    w_bits: tuple[int, ...]
    a_bits: tuple[int, ...]
    quantized_outputs: frozenset[str] = frozenset()
    fused_activations: frozenset[str] = frozenset()
    stored_bits: tuple[int, ...] = ()
    float_block: int = 1
    folds_weights: bool = False
    keep: bool = True
    code_limit: int = 128
    integer_biases: bool = False

    def stored(self, bits: int) -> int:
        """Return the width that a weight of ``bits`` takes in a file."""
        return min((width for width in self.stored_bits if width >= bits), default=bits)
