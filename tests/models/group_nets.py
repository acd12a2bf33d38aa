"""Small networks, one for each way in which channels can be coupled, and how to prune them."""

import random
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.models.channels.walk import canonical
from autocompress.models.network import Network
from autocompress.models.trace import trace


def conv(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=bias), nn.BatchNorm2d(o), nn.ReLU()
    )


class Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self, i: int, o: int, s: int, shortcut: str) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(i, o, 3, s), nn.Conv2d(o, o, 3, padding=1, bias=False)
        self.bn, self.add = nn.BatchNorm2d(o), (o - i) // 2
        self.project = nn.Conv2d(i, o, 1, s) if shortcut == "project" else None
        self.stride = s

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv2(self.conv1(x)))
        if self.project is not None:
            x = self.project(x)
        elif self.stride > 1 or self.add:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.add, self.add))
        return F.relu(x + y)


def resnet(shortcut: str, depth: int = 2, width: int = 8) -> nn.Module:
    blocks: list[nn.Module] = [conv(3, width)]
    for i, o, s in ((width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)):
        first = shortcut if i != o or s > 1 else ""
        blocks += [Block(i, o, s, first), *(Block(o, o, 1, "") for _ in range(depth - 1))]
    return nn.Sequential(*blocks, Head(4 * width))


class Dense(nn.Module):
    """DenseNet: BatchNorm before convolution, everything concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * n) for n in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * n, 4, 3, padding=1) for n in range(3))
        self.shrink, self.head = conv(20, 10, 1), Head(10)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for norm, layer in zip(self.norms, self.convs, strict=True):
            parts.append(layer(F.relu(norm(torch.cat(parts, 1)))))
        return self.head(F.avg_pool2d(self.shrink(torch.cat(parts, 1)), 2))


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8), conv(8, 4, 1), conv(8, 6)
        self.c, self.mix, self.head = conv(8, 5, 5), conv(23, 9), Head(9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pool = F.max_pool2d(x, 3, 1, 1)
        return self.head(self.mix(torch.cat([self.a(x), self.b(x), self.c(pool), pool], 1)))


class Shuffle(nn.Module):
    """ShuffleNetV2: split, branch, concatenate, shuffle."""

    def __init__(self, width: int = 16, blocks: int = 2) -> None:
        super().__init__()
        half = width // 2
        self.stem = conv(3, width)
        self.branches = nn.ModuleList(
            nn.Sequential(conv(half, half, 1), nn.Conv2d(half, half, 3, padding=1, groups=half),
                          nn.BatchNorm2d(half), conv(half, half, 1))
            for _ in range(blocks)
        )  # fmt: skip
        self.last, self.head = conv(width, 12, 1), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            left, right = x.chunk(2, 1)
            x = torch.cat([left, branch(right)], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.last(x))


class ShuffleV1(nn.Module):
    """Grouped convolutions with a channel shuffle between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv(3, 27), conv(27, 27, 1, g=3), conv(27, 12, 1, g=3)
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.stem(x))
        n, c, h, w = x.shape
        return self.head(self.two(x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.up(F.silu(self.down(scale))))


class Inverted(nn.Module):
    """MobileNetV2 / EfficientNet block."""

    def __init__(self, i: int, o: int, grow: int, excite: bool) -> None:
        super().__init__()
        h = i * grow
        self.up, self.deep = conv(i, h, 1), conv(h, h, 3, g=h)
        self.excite = SqueezeExcite(h, 4) if excite else nn.Identity()
        self.down, self.bn, self.add = nn.Conv2d(h, o, 1, bias=False), nn.BatchNorm2d(o), i == o

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.down(self.excite(self.deep(self.up(x)))))
        return x + y if self.add else y


def mobilenet(excite: bool) -> nn.Module:
    blocks = [Inverted(8, 8, 2, excite), Inverted(8, 12, 3, excite), Inverted(12, 12, 2, excite)]
    return nn.Sequential(conv(3, 8), *blocks, nn.Hardswish(), Head(12))


def resnext() -> nn.Module:
    return nn.Sequential(
        conv(3, 8), conv(8, 32, 1), conv(32, 32, 3, g=8), conv(32, 12, 1), Head(12)
    )


def multiplier() -> nn.Module:
    return nn.Sequential(
        conv(3, 6), nn.Conv2d(6, 18, 3, groups=6), nn.ReLU(), conv(18, 7, 1), Head(7)
    )


def flatten() -> nn.Module:
    return nn.Sequential(
        conv(3, 6), nn.MaxPool2d(2), conv(6, 8, 3, 2, bias=True), nn.Flatten(),
        nn.Linear(8 * 4, 10), nn.BatchNorm1d(10), nn.Tanh(), nn.Linear(10, 5),
    )  # fmt: skip


def preact() -> nn.Module:
    """BatchNorm that stands alone, behind a ReLU."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 6, 1),
        nn.ReLU(), nn.Upsample(scale_factor=2), nn.ZeroPad2d(1), nn.BatchNorm2d(6), Head(6),
    )  # fmt: skip


def groupnorm(groups: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(groups, 16), nn.ReLU(), nn.Conv2d(16, 8, 3), Head(8)
    )


class Mlp(nn.Module):
    """Tokens with a learnt position embedding, a class token, LayerNorm and residual MLPs."""

    def __init__(self, width: int = 12, attention: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 5, width))
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 20, batch_first=True, activation="gelu")
            if attention
            else nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width)
            )
            for _ in range(2)
        )
        self.scale, self.attention = nn.Parameter(torch.rand(width)), attention
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x) if self.attention else x + self.scale * block(x)
        return self.fc(self.norm(x)[:, 0])


class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 12, 2, 2), nn.Conv2d(12, 12, 7, padding=3, groups=12)
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 24), nn.Linear(24, 12)
        self.gamma, self.head = nn.Parameter(torch.rand(12)), Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return self.head(x + y.permute(0, 3, 1, 2))


class Mixer(nn.Module):
    """MLP-Mixer: a linear layer over positions between two over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.one, self.two = nn.Conv2d(3, 12, 4, 4), nn.Linear(4, 6), nn.Linear(6, 4)
        self.up, self.down, self.fc = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.two(F.gelu(self.one(x.transpose(1, 2)))).transpose(1, 2)
        return self.fc((x + self.down(F.gelu(self.up(x)))).mean(1))


class Speech(nn.Module):
    """1-d convolutions, a gate (GLU) and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(3, 8, 5, 2), nn.Conv1d(8, 12, 3, padding="same")
        self.deep, self.three = nn.Conv1d(6, 6, 3, groups=6), nn.Conv1d(6, 9, 1)
        self.bn, self.fc = nn.BatchNorm1d(9), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.two(F.relu(self.one(x.flatten(2)))), 1)
        x = x + torch.zeros(x.shape[0], 6, 1)
        x = F.max_pool1d(F.relu(self.bn(self.three(self.deep(x)))), 2)
        return self.fc(x.amax(-1))


class Tied(nn.Module):
    """One convolution used twice, and two that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.one, self.two = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.two.weight = self.one.weight
        self.head = Head(12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.twice(F.relu(self.twice(self.stem(x)))))
        return self.head(torch.cat([self.one(x), F.relu(self.two(x))], 1))


class Upscale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.three, self.head = nn.ConvTranspose2d(6, 7, 2, 2), Head(7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.three(F.relu(self.two(F.pixel_shuffle(self.one(x), 2))))))


class Gate(nn.Module):
    """A map of one channel that weighs all others; a slice; a concatenation with the input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.map = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        self.two, self.three, self.head = conv(11, 8), conv(6, 7), Head(7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        y = torch.cat([x, y * torch.sigmoid(self.map(y))], 1)
        return self.head(self.three(self.two(y)[:, 1:-1]))


NETS = {
    "chain": lambda: nn.Sequential(conv(3, 8), conv(8, 6, bias=True), Head(6)),
    "identity": lambda: nn.Sequential(conv(3, 8), Block(8, 8, 1, ""), Block(8, 8, 1, ""), Head(8)),
    "projected": lambda: resnet("project"),
    "padded": lambda: resnet("pad"),
    "dense": Dense,
    "inception": Inception,
    "shuffle": Shuffle,
    "shuffle_deep": lambda: Shuffle(20, 4),
    "shuffle_v1": ShuffleV1,
    "mobilenet": lambda: mobilenet(False),
    "efficientnet": lambda: mobilenet(True),
    "resnext": resnext,
    "multiplier": multiplier,
    "flatten": flatten,
    "preact": preact,
    "group_norm_whole": lambda: groupnorm(8),
    "mlp": Mlp,
    "transformer": lambda: Mlp(attention=True),
    "convnext": ConvNext,
    "mixer": Mixer,
    "speech": Speech,
    "tied": Tied,
    "upscale": Upscale,
    "gate": Gate,
    "group_norm": lambda: groupnorm(2),
}
#: Norms over all channels see whether a channel is zero or gone.
NORMS_OVER_CHANNELS = {"mlp", "transformer", "convnext", "group_norm"}

Kept = Mapping[str, Sequence[int]]


def traced(model: nn.Module, *shape: int) -> Network:
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    network = trace(model.eval(), (torch.randn(1, *(shape or (3, 8, 8))),))
    canonical(network.graph)
    return network


def prune(network: Network, kept: Kept) -> Network:
    params = {}
    for name, dims in network.groups.slices(kept).items():
        value = network.params[name]
        for dim, index in dims.items():
            value = value.index_select(dim, index)
        params[name] = value
    return network.replace(params=params, edits=network.groups.edits(kept))


def masked(network: Network, kept: Kept) -> Network:
    """The slow obvious version: zero everywhere what is removed, keep all shapes."""
    params: dict[str, Tensor] = {}
    for unit in network.units:
        gone = set(range(unit.channels)) - set(kept.get(unit.name, range(unit.channels)))
        for slot in unit.slots:
            value = params.setdefault(slot.param, network.params[slot.param].clone())
            for channel in gone:
                value.index_fill_(slot.dim, torch.tensor(slot.index[channel]), 0)
    return network.replace(params=params)


def choose(network: Network, seed: int) -> dict[str, list[int]]:
    rng = random.Random(seed)
    kept = {}
    for unit in network.units:
        count = rng.randint(1, unit.channels)
        kept[unit.name] = sorted(rng.sample(range(unit.channels), count))
    return kept
