"""Samples of a layer's inputs and outputs, and their Gram matrices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from autocompress.models.network import Layer

__all__ = ["Moments", "Window", "choose_positions", "moments", "rows_of", "window_of"]


@dataclass(frozen=True)
class Window:
    """How a layer reads its input: groups, and kernel, stride, padding, dilation by dimension.

    A linear layer has no dimensions. ``padding`` is (before, after) a dimension.
    """

    groups: int = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()


def window_of(node: fx.Node, layer: Layer, weight: Tensor) -> Window:
    """Read the window of a layer from its node."""
    if layer.kind == "linear":
        return Window()
    kernel = tuple(weight.shape[2:])
    defaults: list[Any] = [None, None, None, 1, 0, 1, 1]
    args = [*node.args, *defaults[len(node.args) :]]
    names = ("stride", "padding", "dilation", "groups")
    stride, padding, dilation, groups = (
        node.kwargs.get(name, value) for name, value in zip(names, args[3:7], strict=True)
    )

    def each(value: Any) -> tuple[int, ...]:
        many = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        return many * len(kernel) if len(many) == 1 else many

    wide = each(dilation)
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(wide, kernel, strict=True)]
        around = tuple((t // 2, t - t // 2) for t in total)
    else:
        around = tuple((p, p) for p in each(padding))
    return Window(int(groups), kernel, each(stride), around, wide)


def choose_positions(
    shape: Sequence[int], batch: int, count: int, generator: torch.Generator
) -> Tensor | None:
    """Return [batch, P] positions of ``shape``, flat, P ≥ count / batch; None means all."""
    total = math.prod(shape)
    each = max(1, math.ceil(count / batch))
    if each >= total:
        return None
    return torch.rand(batch, total, generator=generator).argsort(1)[:, :each].sort(1).values


def rows_of(value: Tensor, window: Window, positions: Tensor | None) -> Tensor:
    """Return what a layer sees at positions of its output: [samples, channels x kernel].

    ``value``: the layer's input; columns are ordered as in a flattened weight. ``positions``:
    [batch, P], flat positions of the output, or all.
    """
    if not window.kernel:
        flat = value.reshape(len(value), -1, value.shape[-1])
        if positions is None:
            return flat.reshape(-1, value.shape[-1])
        index = positions.unsqueeze(2).expand(-1, -1, value.shape[-1])
        return flat.gather(1, index).reshape(-1, value.shape[-1])
    if any(p for pair in window.padding for p in pair):
        value = F.pad(value, [p for pair in reversed(window.padding) for p in pair])
    batch, channels, *sizes = value.shape
    out = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(sizes, window.kernel, window.stride, window.dilation, strict=True)
    ]
    if positions is None:
        positions = torch.arange(math.prod(out)).expand(batch, -1)
    # the flat index of the window's first corner, and the offsets of its cells from there
    base, offsets, rest, pitch = torch.zeros_like(positions), torch.zeros(1).long(), positions, 1
    for axis in reversed(range(len(sizes))):
        base = base + rest % out[axis] * (window.stride[axis] * pitch)
        rest = rest // out[axis]
        cells = torch.arange(window.kernel[axis]) * (window.dilation[axis] * pitch)
        offsets = (cells[:, None] + offsets[None, :]).reshape(-1)
        pitch *= sizes[axis]
    index = (base[:, :, None] + offsets).reshape(batch, 1, -1).expand(-1, channels, -1)
    taken = value.reshape(batch, channels, -1).gather(2, index)
    taken = taken.reshape(batch, channels, -1, len(offsets)).transpose(1, 2)
    return taken.reshape(-1, channels * len(offsets))


def outputs_of(value: Tensor, window: Window, positions: Tensor | None) -> Tensor:
    """Return a layer's output at positions, [samples, out]; see :func:`rows_of`."""
    if window.kernel:
        value = value.reshape(*value.shape[:2], -1).transpose(1, 2)
    else:
        value = value.reshape(len(value), -1, value.shape[-1])
    width = value.shape[-1]
    if positions is None:
        return value.reshape(-1, width)
    return value.gather(1, positions.unsqueeze(2).expand(-1, -1, width)).reshape(-1, width)


@dataclass(frozen=True)
class Moments:
    """Centred second moments of a layer's inputs x and wanted outputs y, batched over groups.

    ``gram``: [groups, K, K], the covariance of x; ``cross``: [groups, K, rows], that of x and y;
    ``mean_in``: [groups, K]; ``mean_out``: [groups, rows]. Centring is the same as appending a
    constant 1 to every input: the best bias for weights W is mean_out - Wᵀ mean_in.
    """

    gram: Tensor
    cross: Tensor
    mean_in: Tensor
    mean_out: Tensor

    def bias(self, weights: Tensor) -> Tensor:
        """Return the bias, [out], with which weights [groups, K, rows] err by 0 on average."""
        shift = (weights * self.mean_in.unsqueeze(2)).sum(1)
        return (self.mean_out - shift).flatten()


def moments(rows: Tensor, outputs: Tensor, groups: int = 1) -> Moments:
    """Return the moments of samples: ``rows`` [samples, groups x K], ``outputs`` [samples, out]."""
    count = len(rows)
    mean_in, mean_out = rows.mean(0), outputs.mean(0)
    x = (rows - mean_in).reshape(count, groups, -1)
    y = (outputs - mean_out).reshape(count, groups, -1)
    if groups == 1:
        x, y = x[:, 0], y[:, 0]
        gram, cross = (x.T @ x).unsqueeze(0), (x.T @ y).unsqueeze(0)
    else:
        gram = torch.einsum("ngk,ngl->gkl", x, x)
        cross = torch.einsum("ngk,ngr->gkr", x, y)
    shape_in, shape_out = (groups, gram.shape[1]), (groups, cross.shape[2])
    return Moments(
        gram / count, cross / count, mean_in.reshape(shape_in), mean_out.reshape(shape_out)
    )
