"""Layers: what is known of a convolution or linear layer of a network."""

from dataclasses import dataclass

__all__ = ["Layer"]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a network.

    ``kind`` is "conv", "depthwise", "grouped" or "linear"; ``node`` is the name of its node in
    the graph; ``weight`` and ``bias`` are keys of the network's parameters, there is always a
    bias; shapes are without the batch; ``macs`` are multiply-adds for one input, ``positions``
    how often each weight is used for them; all are of the network that was traced.
    """

    name: str
    kind: str
    node: str
    weight: str
    bias: str
    groups: int
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    macs: int
    parameters: int
    positions: int
