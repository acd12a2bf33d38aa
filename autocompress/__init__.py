"""Searches per-layer pruning and bit widths of a trained network for deployable files."""

__version__ = "0.1.0"
