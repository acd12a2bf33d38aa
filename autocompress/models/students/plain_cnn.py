"""A plain chain of convolutions."""

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["PlainCNN"]


class PlainCNN(nn.Module):
    """3×3 convolutions with BatchNorm and ReLU, a pool after every second, one linear layer.

    Takes (N, in_channels, H, W) with H and W of 8 or more; returns logits (N, num_classes).
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        widths: Sequence[int] = (16, 32, 64, 64),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            layers += [
                nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            if index % 2 == 1:
                layers.append(nn.MaxPool2d(2))
            in_channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        features: Tensor = self.features(x)
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits
