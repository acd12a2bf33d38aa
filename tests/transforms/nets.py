"""Small networks, one of them trained on the bundled digits, for the tests of this floor."""

from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from autocompress.core.abilities import PORTABLE, Abilities
from autocompress.models.network import Network
from autocompress.models.trace import trace

BITS = (2, 3, 4, 5, 6, 7, 8, 16, 32)
PLAIN = Abilities(BITS, (8, 32))
EDGES = Abilities(
    BITS,
    (8, 32),
    quantized_outputs=frozenset({"conv", "depthwise", "grouped"}),
    fused_activations=frozenset({"aten.relu.default"}),
    code_limit=PORTABLE,
    integer_biases=True,
)


class Residual(nn.Module):
    """Two convolutions beside a shortcut, depthwise and grouped ones, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.depth = nn.Conv2d(16, 16, 3, 2, 1, groups=16)
        self.point = nn.Conv2d(16, 32, 1)
        self.group = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.conv2(F.relu(self.conv1(x))) + x)
        x = F.relu(self.point(F.relu(self.depth(x))))
        x = F.relu(self.group(x))
        return self.fc(x.mean((2, 3)))


class Mixer(nn.Module):
    """A transformer's block without convolutions: linear layers on tokens, one weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(24)
        self.query, self.key, self.value = (nn.Linear(24, 24) for _ in range(3))
        self.proj = nn.Linear(24, 24)
        self.up, self.down = nn.Linear(24, 48), nn.Linear(48, 24)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).squeeze(1).reshape(-1, 8, 8))
        y = self.norm(x)
        x = x + self.proj(F.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y)))
        for _ in range(2):
            x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x.mean(1))


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Images [n, 1, 8, 8] and labels; the last 400 are for testing."""
    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16
    return images, torch.tensor(found.target)


@cache
def trained(kind: type[nn.Module], steps: int = 250) -> Network:
    """A network of a kind, trained for seconds."""
    torch.manual_seed(0)
    images, labels = digits()
    model = kind()
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(0, len(images) - 400, (96,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return trace(model.eval(), (images[:1],))


def calibration() -> list[tuple[Tensor, ...]]:
    images, _ = digits()
    return [(images[start : start + 64],) for start in range(0, 256, 64)]


def accuracy(outputs: Tensor) -> float:
    return float((outputs.argmax(1) == digits()[1][-400:]).float().mean())


def held_out() -> Tensor:
    return digits()[0][-400:]
