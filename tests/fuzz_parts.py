"""Parts of random networks: maps (N, C, *positions) in, maps of ``out`` channels out."""

import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PARTS", "Part"]

Activation = Callable[[], nn.Module]


class Part(nn.Module):
    """What all parts share: the number of dimensions, and how layers of it are made."""

    def __init__(self, rng: random.Random, dims: int, width: int, act: Activation) -> None:
        super().__init__()
        self.dims, self.width, self.out, self.act = dims, width, width, act()

    def conv(self, i: int, o: int, k: int = 3, s: int = 1, g: int = 1) -> nn.Module:
        kind = nn.Conv2d if self.dims == 2 else nn.Conv1d
        return kind(i, o, k, s, k // 2, groups=g)

    def bn(self, width: int) -> nn.Module:
        return nn.BatchNorm2d(width) if self.dims == 2 else nn.BatchNorm1d(width)


class Plain(Part):
    """A convolution with any stride, kernel and groups; a norm or none."""

    def __init__(self, rng: random.Random, dims: int, width: int, act: Activation) -> None:
        super().__init__(rng, dims, width, act)
        self.out = 4 * rng.randint(2, 5)
        groups = rng.choice((1, 1, 2, 4))
        self.layer = self.conv(
            width, self.out, rng.choice((1, 3, 5)), rng.choice((1, 1, 2)), groups
        )
        norms = (nn.Identity(), self.bn(self.out), nn.GroupNorm(2, self.out))
        self.norm = rng.choice(norms)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.layer(x)))


class Residual(Part):
    def __init__(self, rng: random.Random, dims: int, width: int, act: Activation) -> None:
        super().__init__(rng, dims, width, act)
        self.one, self.two = self.conv(width, width), self.conv(width, width)
        self.norm, self.late = self.bn(width), rng.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.norm(self.two(self.act(self.one(x))))
        return self.act(y) if self.late else y


class Project(Part):
    """A residual block that changes channels and halves the positions."""

    def __init__(self, rng: random.Random, dims: int, width: int, act: Activation) -> None:
        super().__init__(rng, dims, width, act)
        self.out = width + 4
        self.one, self.two = self.conv(width, self.out, 3, 2), self.conv(self.out, self.out)
        self.side = self.conv(width, self.out, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.side(x) + self.two(self.act(self.one(x))))


class Separable(Part):
    """Expansion, depthwise convolution, squeeze and excitation or none, projection, sum."""

    def __init__(self, rng: random.Random, dims: int, width: int, act: Activation) -> None:
        super().__init__(rng, dims, width, act)
        inner = 2 * width
        self.up, self.deep = self.conv(width, inner, 1), self.conv(inner, inner, 3, 1, inner)
        self.excite = nn.ModuleList(
            [self.conv(inner, 4, 1), self.conv(4, inner, 1)] if rng.random() < 0.5 else []
        )
        self.down, self.norm = self.conv(inner, width, 1), self.bn(inner)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.deep(self.act(self.up(x)))))
        if len(self.excite):
            mean = y.mean(tuple(range(2, y.ndim)), keepdim=True)
            y = y * torch.sigmoid(self.excite[1](torch.relu(self.excite[0](mean))))
        return x + self.down(y)


class Shuffle(Part):
    """Half of the channels is convolved; both halves are interleaved."""

    def __init__(self, rng: random.Random, dims: int, width: int, act: Activation) -> None:
        super().__init__(rng, dims, width, act)
        half = width // 2
        self.one, self.deep = self.conv(half, half, 1), self.conv(half, half, 3, 1, half)
        self.norm = self.bn(half)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.act(self.norm(self.deep(self.one(right))))], 1)
        rest = x.shape[2:]
        return x.view(x.shape[0], 2, self.width // 2, *rest).transpose(1, 2).reshape(x.shape)


class Branches(Part):
    """Branches of different kernels and a pooled one, concatenated and mixed."""

    def __init__(self, rng: random.Random, dims: int, width: int, act: Activation) -> None:
        super().__init__(rng, dims, width, act)
        self.a, self.b = self.conv(width, 3, 1), self.conv(width, 5)
        self.mix = self.conv(8 + width, width, 1)
        self.average = rng.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        pools = (F.max_pool2d, F.avg_pool2d) if self.dims == 2 else (F.max_pool1d, F.avg_pool1d)
        pooled = pools[self.average](x, 3, 1, 1)
        return self.act(self.mix(torch.cat([self.act(self.a(x)), self.b(x), pooled], 1)))


class Last(Part):
    """Channels last: LayerNorm and an MLP around a residual, as in ConvNeXt."""

    def __init__(self, rng: random.Random, dims: int, width: int, act: Activation) -> None:
        super().__init__(rng, dims, width, act)
        self.deep, self.norm = self.conv(width, width, 3, 1, width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(torch.rand(width)) if rng.random() < 0.5 else None
        self.alone = rng.random() < 0.3

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.deep(x).movedim(1, -1))
        y = self.down(self.act(self.up(y)))
        y = (y if self.gamma is None else y * self.gamma).movedim(-1, 1)
        return y if self.alone else x + y


class Tied(Part):
    """One layer called twice, and two layers of one weight."""

    def __init__(self, rng: random.Random, dims: int, width: int, act: Activation) -> None:
        super().__init__(rng, dims, width, act)
        self.twice = self.conv(width, width)
        self.one, self.two = self.conv(width, width, 1), self.conv(width, width, 1)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.twice(self.act(self.twice(x))))
        return self.one(x) + self.act(self.two(x))


class Gated(Part):
    """Channels split in two, one of which gates the other; a slice is padded back."""

    def __init__(self, rng: random.Random, dims: int, width: int, act: Activation) -> None:
        super().__init__(rng, dims, width, act)
        self.up, self.map, self.cut = self.conv(width, 2 * width), self.conv(width, 1, 1), 2
        self.down = self.conv(width - self.cut, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.up(x).split(self.width, 1)
        y = left * torch.sigmoid(right) * torch.tanh(self.map(x))
        return x + self.down(y[:, self.cut :])


class Pool(Part):
    """A pooling, and the norm over channels that stands alone behind it."""

    def __init__(self, rng: random.Random, dims: int, width: int, act: Activation) -> None:
        super().__init__(rng, dims, width, act)
        self.average, self.norm = rng.random() < 0.5, self.bn(width)
        self.groups = nn.GroupNorm(1, width) if rng.random() < 0.5 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.dims == 2:
            x = F.avg_pool2d(x, 3, 1, 1) - x if self.average else F.max_pool2d(x, 3, 2, 1)
        else:
            x = F.avg_pool1d(x, 3, 1, 1) - x if self.average else F.max_pool1d(x, 3, 2, 1)
        return self.norm(self.groups(x))


PARTS: Mapping[str, Callable[..., Part]] = MappingProxyType(
    {
        kind.__name__.lower(): kind
        for kind in (
            Plain,
            Residual,
            Project,
            Separable,
            Shuffle,
            Branches,
            Last,
            Tied,
            Gated,
            Pool,
        )
    }
)
