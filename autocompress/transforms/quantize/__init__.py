"""Quantization: weights, ranges of activations, where rounding happens."""
