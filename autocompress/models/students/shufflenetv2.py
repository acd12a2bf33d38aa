"""Channel split and shuffle for images of 28 to 32 pixels (Ma et al. 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ShuffleNetV2"]


class ShuffleNetV2(nn.Module):
    """A ShuffleNetV2-style network.

    ``widths`` are the (even) channels of the stages, ``depths`` their blocks. Takes
    (N, in_channels, H, W); returns logits (N, num_classes).
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        widths: Sequence[int] = (48, 96, 192),
        depths: Sequence[int] = (4, 8, 4),
        stem: int = 24,
        head: int = 256,
    ) -> None:
        super().__init__()
        if any(width % 2 for width in widths):
            raise ValueError(f"widths must be even, not {tuple(widths)}.")
        blocks: list[nn.Module] = [*_unit(in_channels, stem, 3)]
        channels = stem
        for number, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks.append(_Down(channels, width, 1 if number == 0 else 2))
            blocks += [_Block(width) for _ in range(depth - 1)]
            channels = width
        blocks += _unit(channels, head, 1)
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(head, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        features: Tensor = self.features(x)
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


def _unit(channels: int, out: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(out), nn.ReLU()]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


def _shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class _Block(nn.Module):
    """Half of the channels pass, the other half is convolved."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        layers = [*_unit(half, half, 1), *_depthwise(half, 1), *_unit(half, half, 1)]
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        passed, convolved = x.chunk(2, dim=1)
        return _shuffle(torch.cat((passed, self.branch(convolved)), dim=1))


class _Down(nn.Module):
    """Both branches are convolved; the channels change, and the pixels with stride 2."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        half = out // 2
        self.left = nn.Sequential(*_depthwise(channels, stride), *_unit(channels, half, 1))
        layers = [*_unit(channels, half, 1), *_depthwise(half, stride), *_unit(half, half, 1)]
        self.right = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return _shuffle(torch.cat((self.left(x), self.right(x)), dim=1))
