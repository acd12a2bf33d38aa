"""Inverted residuals for images of 28 to 32 pixels (Sandler et al. 2018)."""

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["MobileNetV2"]

# expansion, channels at width 1, blocks, stride of the first (table 2, shortened for few pixels)
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 1), (6, 64, 3, 2), (6, 96, 2, 1))


class MobileNetV2(nn.Module):
    """A MobileNetV2-style network; ``width`` scales its channels.

    ``stages`` are (expansion, channels, blocks, stride). Takes (N, in_channels, H, W); returns
    logits (N, num_classes).
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        width: float = 0.5,
        stages: Sequence[tuple[int, int, int, int]] = _STAGES,
        head: int = 256,
    ) -> None:
        super().__init__()
        channels = _scaled(32, width)
        blocks: list[nn.Module] = [_unit(in_channels, channels, 3)]
        for expansion, base, repeats, stride in stages:
            out = _scaled(base, width)
            for index in range(repeats):
                blocks.append(_Block(channels, out, stride if index == 0 else 1, expansion))
                channels = out
        blocks.append(_unit(channels, head, 1))
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(head, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        features: Tensor = self.features(x)
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


def _scaled(channels: int, width: float) -> int:
    return max(8, round(channels * width / 8) * 8)


def _unit(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU6(),
    )


class _Block(nn.Module):
    def __init__(self, channels: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        layers: list[nn.Module] = [_unit(channels, hidden, 1)] if expansion > 1 else []
        layers += [
            _unit(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y
