"""Samples of a layer's inputs and outputs, and their Gram matrices.

The columns of a layer, what it reads at one position of its output, are ordered by group, cell of
the kernel, channel: in memory that is laid out with channels last, cells are whole rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Moments", "Samples", "columns_of", "moments", "weight_of"]


def columns_of(weight: Tensor, groups: int) -> Tensor:
    """Return a weight [out, channels/groups, *kernel] as [groups, K, out/groups]."""
    out, channels, *kernel = weight.shape
    cells = math.prod(kernel)
    split = weight.reshape(groups, out // groups, channels, cells)
    return split.permute(0, 3, 2, 1).reshape(groups, cells * channels, out // groups)


def weight_of(columns: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the weight of ``shape`` that has these columns; see :func:`columns_of`."""
    groups, _, rows = columns.shape
    split = columns.reshape(groups, math.prod(shape[2:]), shape[1], rows)
    return split.permute(0, 3, 2, 1).reshape(tuple(shape))


def _choose(total: int, count: int, batch: int, generator: torch.Generator) -> Tensor:
    """Return [batch, P] ascending positions out of ``total``, P ≥ count / batch or all."""
    each = max(1, math.ceil(count / batch))
    if each >= total:
        return torch.arange(total).expand(batch, -1)
    return torch.rand(batch, total, generator=generator).argsort(1)[:, :each].sort(1).values


@dataclass(frozen=True, eq=False)
class Samples:
    """Where a layer is sampled: some positions of its output, and what it reads there.

    Tensors are taken as [rows, channels], a row for every position of every example. ``read``:
    [samples x cells] rows of the input, ``outside``: which of ``read`` lie in the padding;
    ``written``: [samples] rows of the output; ``dim``: where channels are, 1 or -1; ``rows``: how
    many rows the input has.
    """

    read: Tensor
    outside: Tensor
    written: Tensor
    dim: int
    rows: int

    @classmethod
    def choose(
        cls,
        node: fx.Node,
        weight: Tensor,
        source: Sequence[int],
        result: Sequence[int],
        count: int,
        generator: torch.Generator,
    ) -> "Samples":
        """Choose at least ``count`` positions of a layer's output, or all.

        ``node`` and ``weight`` are the layer's, ``source`` and ``result`` the whole shapes of its
        input and output: what the first dimension means is the network's affair.
        """
        if node.target is torch.ops.aten.linear.default:
            rows = math.prod(result[:-1])
            written = _choose(rows, count, 1, generator).flatten().int()
            return cls(written, written[:0], written, -1, rows)
        batch, sizes, out, kernel = result[0], source[2:], result[2:], weight.shape[2:]
        positions = _choose(math.prod(out), count, batch, generator)
        samples, example = positions.numel(), torch.arange(batch)[:, None]
        written = (positions + example * math.prod(out)).reshape(-1)
        read = (example * math.prod(sizes)).expand_as(positions).reshape(-1, 1)
        outside = torch.zeros(samples, 1, dtype=torch.bool)
        rest, pitch = positions.reshape(-1, 1), 1
        axes = list(zip(sizes, out, kernel, *_window(node, kernel), strict=True))
        for size, length, cells, stride, before, dilation in reversed(axes):
            place = rest % length * stride - before + torch.arange(cells) * dilation
            # the axes before this one vary more slowly
            beyond = (place < 0) | (place >= size)
            read = (place.clamp(0, size - 1) * pitch)[:, :, None] + read[:, None, :]
            outside = beyond[:, :, None] | outside[:, None, :]
            read, outside = read.reshape(samples, -1), outside.reshape(samples, -1)
            rest, pitch = rest // length, pitch * size
        missing = outside.reshape(-1).nonzero().reshape(-1)
        rows = batch * math.prod(sizes)
        return cls(read.reshape(-1).int(), missing, written.int(), 1, rows)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(t.numel() * t.element_size() for t in (self.read, self.outside, self.written))

    def _rows(self, value: Tensor) -> Tensor:
        return value.movedim(self.dim, -1).reshape(-1, value.shape[self.dim])

    def inputs(self, value: Tensor) -> Tensor:
        """Return what the layer reads of its input: [samples, cells, channels]."""
        rows = self._rows(value).index_select(0, self.read)
        if len(self.outside):
            rows.index_fill_(0, self.outside, 0)
        return rows.reshape(len(self.written), -1, rows.shape[1])

    def outputs(self, value: Tensor) -> Tensor:
        """Return a layer's output, or a tensor like it: [samples, out]."""
        return self._rows(value).index_select(0, self.written)


def _window(node: fx.Node, kernel: Sequence[int]) -> list[tuple[int, ...]]:
    """Return stride, padding before, and dilation of a convolution, by dimension."""
    args = [*node.args, *[None, None, None, 1, 0, 1][len(node.args) :]]
    stride, padding, dilation = (
        node.kwargs.get(name, value)
        for name, value in zip(("stride", "padding", "dilation"), args[3:6], strict=True)
    )

    def each(value: Any) -> tuple[int, ...]:
        many = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        return many * len(kernel) if len(many) == 1 else many

    wide = each(dilation)
    if padding == "same":
        before = tuple(d * (k - 1) // 2 for d, k in zip(wide, kernel, strict=True))
    else:
        before = each(0 if padding == "valid" else padding)
    return [each(stride), before, wide]


@dataclass(frozen=True)
class Moments:
    """Second moments of a layer's inputs x and wanted outputs y, batched over groups.

    ``gram``: [groups, K, K], the covariance of x; ``cross``: [groups, K, rows], that of x and y;
    ``mean_in``: [groups, K]; ``mean_out``: [groups, rows]; ``spread``: [out], the deviation of y.
    Centring is the same as appending a constant 1 to every input: the best bias for weights W is
    mean_out - Wᵀ mean_in. Moments that are not centred, for a bias that must stay, have means of 0.
    """

    gram: Tensor
    cross: Tensor
    mean_in: Tensor
    mean_out: Tensor
    spread: Tensor

    def bias(self, weights: Tensor) -> Tensor:
        """Return the bias, [out], with which weights [groups, K, rows] err by 0 on average."""
        shift = (weights * self.mean_in.unsqueeze(2)).sum(1)
        return (self.mean_out - shift).flatten()


def moments(inputs: Tensor, outputs: Tensor, groups: int = 1, *, centred: bool = True) -> Moments:
    """Return the moments of [samples, cells, channels], overwritten, and [samples, out]."""
    count, cells = inputs.shape[:2]
    x = inputs.reshape(count, cells, groups, -1).permute(2, 0, 1, 3).reshape(groups, count, -1)
    y = outputs.reshape(count, groups, -1).transpose(0, 1)
    mean_in, mean_out = x.mean(1), y.mean(1)
    if not centred:
        mean_in, mean_out = torch.zeros_like(mean_in), torch.zeros_like(mean_out)
    gram = _gram(x.sub_(mean_in[:, None]))
    cross = x.transpose(1, 2) @ (y - mean_out[:, None])
    spread = (y - y.mean(1, keepdim=True)).square_().mean(1).sqrt_().flatten()
    return Moments(gram.div_(count), cross.div_(count), mean_in, mean_out, spread)


def _gram(x: Tensor) -> Tensor:
    """Return xᵀ x of [groups, samples, K]; what lies below the diagonal of a wide one is copied."""
    groups, _, size = x.shape
    if groups > 1 or size < 128:
        return x.transpose(1, 2) @ x
    found, step = x.new_empty(size, size), -(-size // 3)
    for start in range(0, size, step):
        rows = slice(start, start + step)
        torch.mm(x[0, :, rows].T, x[0, :, start:], out=found[rows, start:])
        found[rows, :start] = found[:start, rows].T
    return found[None]
