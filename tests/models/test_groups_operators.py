"""Operators one by one, between two layers whose channels they join."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.models.channels.ids import Book, Ids
from autocompress.models.channels.moves import canonical
from autocompress.models.network import Network
from autocompress.models.trace import trace
from tests.models.group_nets import choose, masked, prune, traced

Middle = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """A convolution of 8 channels, something, a convolution of ``width`` channels."""

    def __init__(self, middle: Middle, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(width, 4, 1)
        self.c, self.middle = nn.Conv2d(4, 3, 1), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(self.middle(self.a(x))))).flatten(1)


def network_of(middle: Middle, width: int = 8) -> Network:
    torch.manual_seed(0)
    return traced(Between(middle, width), 3, 4, 4)


def uneven(x: Tensor) -> Tensor:
    a, b, c = x.split([1, 2, 5], 1)
    return torch.cat([c, F.relu(b), a], 1)


def stacked(x: Tensor) -> Tensor:
    return torch.stack([x, x.sigmoid()], 2).flatten(1, 2)


def windows(x: Tensor) -> Tensor:
    """Swin: pixels into windows and back, rolled."""
    x = torch.roll(x, (1, 1), (2, 3)).permute(0, 2, 3, 1)
    n, h, w, c = x.shape
    x = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
    x = x.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
    return x.permute(0, 3, 1, 2)


# what stands between, channels after it, sizes of the units that a's channels form
PRUNED: dict[str, tuple[Middle, int, list[int]]] = {
    "split": (uneven, 8, [2, 5]),
    "split_equal": (lambda x: torch.cat(x.split(3, 1)[::-1], 1), 8, [3, 3, 2]),
    "unbind_rows": (lambda x: x.unbind(2)[1].unsqueeze(2), 8, [8]),
    "slice": (lambda x: x[:, 2:7], 5, [3, 5]),
    "slice_negative": (lambda x: x[:, -6:-1], 5, [3, 5]),
    "select_row": (lambda x: x[:, :, -1:] + x.select(3, 1).unsqueeze(3), 8, [8]),
    "pad": (lambda x: F.pad(x, (1, 1, 0, 0, 2, 3)), 13, [8]),
    "pad_negative": (lambda x: F.pad(x, (0, 0, 0, 0, -2, 1)), 7, [2, 6]),
    "pad_reflect": (lambda x: F.pad(x, (1, 1, 1, 1), "reflect"), 8, [8]),
    "windows": (windows, 8, [8]),
    "stack": (stacked, 16, [8]),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), 16, [8]),
    "expand": (lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 4, 4), 8, [8]),
    "flip": (lambda x: x.flip(1), 8, [8]),
    "index_rows": (lambda x: x[:, :, torch.tensor([0, 2])], 8, [8]),
    "glu": (lambda x: F.glu(x, 1), 4, [4]),
    "softmax_pixels": (lambda x: x * x.flatten(2).softmax(-1).view_as(x), 8, [8]),
    "rms_norm": (lambda x: F.rms_norm(x, (4, 4)), 8, [8]),
    "zeros": (lambda x: torch.cat([x, x + torch.ones(x.shape[0], 8, 4, 4)], 1), 16, [8]),
    "like": (lambda x: x + torch.full_like(x, 2.0) * x.abs().clamp(max=1), 8, [8]),
    "where": (lambda x: torch.where(x > 0, x, 0.1 * x), 8, [8]),
    "max_over_pixels": (lambda x: x - x.amax((2, 3), keepdim=True), 8, [8]),
    "mean_all": (lambda x: x.mean(3, keepdim=True) + x.var((2, 3), keepdim=True), 8, [8]),
    "shuffle": (lambda x: nn.functional.channel_shuffle(x, 2), 8, [4]),
    "unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 32, [8]),
    "to": (lambda x: x.to(torch.float64).to(torch.float32), 8, [8]),
    "pool": (lambda x: F.avg_pool2d(F.max_pool2d(x, 2, 1), 2), 8, [8]),
    "resize": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 8, [8]),
}

# what stands between, channels after it, words of the reason why a's channels stay
FIXED: dict[str, tuple[Middle, int, str]] = {
    "softmax": (lambda x: x.softmax(1), 8, "softmax.int runs over its channels"),
    "mean": (lambda x: x.mean(1, keepdim=True), 1, "mean.dim runs over its channels"),
    "cumsum": (lambda x: x.cumsum(1), 8, "cumsum.default runs over its channels"),
    "roll": (lambda x: x.roll(1, 1), 8, "not analysed"),
    "step": (lambda x: x[:, ::2], 4, "slice.Tensor cuts channels in a pattern"),
    "gather": (lambda x: x[:, torch.tensor([1, 5])], 2, "not analysed"),
    "sort": (lambda x: x.sort(1).values, 8, "sort.default is not analysed"),
    "matmul": (lambda x: x @ x.transpose(2, 3), 8, "not analysed"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(PRUNED))
def test_operator_lets_channels_be_pruned(name: str) -> None:
    middle, width, expected = PRUNED[name]
    network = network_of(middle, width)
    units = [unit for unit in network.units if "a" in unit.producers]
    assert sorted(unit.channels for unit in units) == sorted(expected)
    x = torch.randn(2, 3, 4, 4)
    for seed in range(3):
        kept = choose(network, seed)
        out = prune(network, kept)(x)
        torch.testing.assert_close(out, masked(network, kept)(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(FIXED))
def test_operator_that_needs_all_channels_fixes_them_and_says_so(name: str) -> None:
    middle, width, reason = FIXED[name]
    network = network_of(middle, width)
    assert reason in network.fixed["a"]
    assert [unit.name for unit in network.units] == ["b"]
    assert prune(network, {"b": [0, 2]})(torch.randn(2, 3, 4, 4)).shape[0] == 2


def test_canonical_cuts_into_sizes() -> None:
    network = trace(Between(lambda x: torch.cat(x.split(3, 1), 1), 8).eval(),
                    (torch.randn(1, 3, 4, 4),))  # fmt: skip
    x = torch.randn(2, 3, 4, 4)
    before = network(x)
    canonical(network.graph)
    node = next(n for n in network.graph.nodes if "split" in str(n.target))
    assert node.args[1:] == ([3, 3, 2], 1)
    assert torch.equal(network(x), before)


def test_ids_keep_the_dimension_with_most_channels() -> None:
    book = Book()
    full = book.fresh(12).view(1, 3, 4)
    assert book.collapse(full).dim == 2
    assert book.collapse(full.view(1, 4, 3)).dim == 1
    assert book.collapse(full, prefer=1).dim == 1
    assert book.collapse(full[:, :1].expand(5, 3, 4)).ids.tolist() == [0, 1, 2, 3]
    assert book.collapse(full[:, :1, :1]).dim is None


def test_ids_that_vary_along_different_dimensions_are_frozen_where_they_meet() -> None:
    book = Book()
    rows, columns = Ids.along((3, 1), 0, book.fresh(3)), Ids.along((1, 4), 1, book.fresh(4))
    out = book.meet((3, 4), [rows, columns], "a clash")
    assert out.dim is None
    frozen = {i for ids, reason in book.frozen if reason == "a clash" for i in ids.tolist()}
    assert set(range(7)) < frozen
