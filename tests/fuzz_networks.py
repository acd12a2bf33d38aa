"""Random networks, plans, examples and calibration data, each made by a seed."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.core.plan import Plan
from autocompress.models.network import Network
from tests.fuzz_parts import PARTS, Part

__all__ = ["EXAMPLES", "Case", "make_case", "random_plan", "uniform_plan"]

EXAMPLES = ("zeros", "ones", "repeated", "offset", "ordinary")
_ACTIVATIONS = (nn.ReLU, nn.GELU, nn.LeakyReLU, nn.ReLU6, nn.Hardswish, nn.SiLU)


class Tower(nn.Module):
    """A stem and a chain of random parts, all of one number of dimensions."""

    def __init__(self, rng: random.Random, dims: int, channels: int) -> None:
        super().__init__()
        act = rng.choice(_ACTIVATIONS)
        self.width = 4 * rng.randint(2, 4)
        conv = nn.Conv2d if dims == 2 else nn.Conv1d
        self.stem = conv(channels, self.width, 3, padding=1, bias=rng.random() < 0.7)
        self.names = [rng.choice(sorted(PARTS)) for _ in range(rng.randint(2, 4))]
        parts: list[nn.Module] = []
        for name in self.names:
            part: Part = PARTS[name](rng, dims, self.width, act)
            self.width = part.out
            parts.append(part)
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for part in self.parts:
            x = part(x)
        return x


class Tail(nn.Module):
    """From maps to outputs: a mean, the maximum, all positions, or tokens with attention."""

    def __init__(self, rng: random.Random, width: int) -> None:
        super().__init__()
        self.kind = rng.choice(("mean", "max", "pool", "attention", "tokens"))
        self.norm = nn.LayerNorm(width) if rng.random() < 0.5 else nn.Identity()
        if self.kind == "attention":
            self.block = nn.TransformerEncoderLayer(
                width, 2, 2 * width, batch_first=True, dropout=0.0, activation="gelu"
            )
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        if self.kind == "attention":
            y = self.block(tokens).mean(1)
        elif self.kind == "tokens":
            y = torch.relu(self.norm(tokens)).mean(1)
        elif self.kind == "pool":
            y = nn.functional.adaptive_avg_pool1d(x.flatten(2), 1).flatten(1)
        else:
            y = tokens.amax(1) if self.kind == "max" else tokens.mean(1)
        return self.head(self.norm(y))


class Maps(nn.Module):
    """One or two inputs of maps; one or two outputs."""

    def __init__(self, rng: random.Random, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        state = rng.getstate()
        self.towers = nn.ModuleList()
        for _ in range(inputs):
            rng.setstate(state)  # towers of one shape, with weights of their own
            self.towers.append(Tower(rng, dims, 3))
        if rng.random() < 0.5:  # one tower for both inputs
            self.towers = nn.ModuleList([self.towers[0]] * inputs)
        self.join, self.outputs = rng.choice(("cat", "add", "mul")), outputs
        width = self.towers[0].width * (inputs if self.join == "cat" else 1)
        self.tail = Tail(rng, width)
        self.second = nn.Linear(width, 3) if outputs == 2 else None

    def forward(self, *inputs: Tensor) -> Any:
        maps = [tower(x) for tower, x in zip(self.towers, inputs, strict=True)]
        x = maps[0]
        if len(maps) == 2 and self.join == "cat":
            x = torch.cat(maps, 1)
        elif len(maps) == 2:
            x = maps[0] + maps[1] if self.join == "add" else maps[0] * torch.sigmoid(maps[1])
        y = self.tail(x)
        return y if self.second is None else (y, self.second(x.flatten(2).mean(2)))


class Words(nn.Module):
    """Integer tokens: an embedding, positions, blocks of attention or MLPs, a classifier."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        width = 4 * rng.randint(3, 5)
        self.embed = nn.Embedding(24, width)
        self.place = nn.Parameter(torch.randn(1, 6, width) * 0.3)
        self.attend = [rng.random() < 0.5 for _ in range(2)]
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 2, 2 * width, batch_first=True, dropout=0.0, norm_first=rng.random() < 0.5
            )
            if attend
            else nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width)
            )
            for attend in self.attend
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words) + self.place
        for attend, block in zip(self.attend, self.blocks, strict=True):
            x = block(x) if attend else x + block(x)
        return self.head(self.norm(x).mean(1))


@dataclass(frozen=True)
class Case:
    """A model in eval mode, its example inputs, and what draws inputs for it.

    ``example`` is one of EXAMPLES; ``draw(count, generator)`` returns inputs of that many rows.
    """

    seed: int
    model: nn.Module
    kind: str
    example: str
    example_inputs: tuple[Tensor, ...]
    draw: Callable[[int, torch.Generator], tuple[Tensor, ...]] = field(repr=False)

    def calibration(self, seed: int) -> list[tuple[Tensor, ...]]:
        """Return batches of a random number of inputs, some sorted, some channels last."""
        rng = random.Random(seed)
        count = rng.choice((16, 64, 128, 256, 512))
        inputs = self.draw(count, torch.Generator().manual_seed(seed))
        if rng.random() < 0.4:
            first = inputs[0].float().flatten(1).mean(1).argsort()
            inputs = tuple(value[first] for value in inputs)
        if rng.random() < 0.4:
            inputs = tuple(
                v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v
                for v in inputs
            )
        size = rng.choice((16, 32, count))
        return list(zip(*(value.split(size) for value in inputs), strict=True))


def make_case(seed: int) -> Case:
    """Return the case of a seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    kind = rng.choice(("maps2d", "maps2d", "maps1d", "towers", "towers1d", "words"))
    if kind == "words":
        model: nn.Module = Words(rng)
    else:
        dims = 1 if kind.endswith("1d") else 2
        model = Maps(rng, dims, 2 if kind.startswith("towers") else 1, rng.choice((1, 1, 2)))
    _give_statistics(model, spread=rng.random() < 0.4)
    offset, example = rng.choice((0.0, 0.0, 0.5)), rng.choice(EXAMPLES)
    shape = (6,) if kind == "words" else (3, 16) if kind.endswith("1d") else (3, 8, 8)
    count = 2 if kind.startswith("towers") else 1

    def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        if kind == "words":
            return (torch.randint(0, 24, (rows, *shape), generator=generator),)
        light = torch.rand(rows, *[1] * len(shape), generator=generator) * 1.5 + 0.3
        return tuple(
            (torch.randn(rows, *shape, generator=generator) + offset) * light for _ in range(count)
        )

    inputs = _examples(example, draw(1, torch.Generator().manual_seed(seed)))
    return Case(seed, model.eval(), kind, example, inputs, draw)


def _give_statistics(model: nn.Module, spread: bool) -> None:
    """Give norms the statistics of a trained network; ``spread``: biases of period three."""
    for module in model.modules():
        if spread and isinstance(module, nn.Conv1d | nn.Conv2d) and module.bias is not None:
            with torch.no_grad():
                module.bias += 2.0 * (torch.arange(len(module.bias)) % 3 - 1)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)


def _examples(kind: str, drawn: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if kind == "zeros":
        return tuple(torch.zeros_like(value) for value in drawn)
    if kind == "ones":
        return tuple(torch.ones_like(value) for value in drawn)
    if kind == "repeated":
        return tuple(drawn[0].clone() for _ in drawn)
    if kind == "offset" and drawn[0].is_floating_point():
        return tuple(value + 1e4 for value in drawn)
    return drawn


def random_plan(network: Network, seed: int, *, integers: bool = True) -> Plan:
    """Return a plan of random widths and shares on random layers and units.

    ``integers``: whether activations may take 8 bits.
    """
    rng = random.Random(seed)
    often, prune = rng.choice((0.3, 0.7, 1.0)), rng.choice((0.0, 0.4, 0.9))
    integers = integers and rng.random() < 0.7
    settings: dict[str, float | int] = {}
    for layer in network.layers:
        if rng.random() < often:
            settings[f"{layer.name}/w_bits"] = rng.choice((2, 3, 4, 5, 6, 7, 8, 16, 32))
            settings[f"{layer.name}/a_bits"] = rng.choice((8, 8, 32)) if integers else 32
    for unit in network.units:
        if rng.random() < prune:
            settings[f"{unit.name}/keep"] = rng.choice((0.25, 0.5, 0.6, 0.75, 0.9))
    return Plan(settings)


def uniform_plan(network: Network, bits: int, a_bits: int = 8) -> Plan:
    """Return the plan that gives every layer the same widths."""
    return Plan(
        {f"{layer.name}/w_bits": bits for layer in network.layers}
        | {f"{layer.name}/a_bits": a_bits for layer in network.layers}
    )
