"""Transforms: pruning, refit, quantization, and the pass that puts them together."""
