"""A rounded tensor of the file is the one that the network rounds, whatever the example holds."""

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.models.trace import trace
from autocompress.targets.onnx.template import make_template
from autocompress.targets.onnx.writer import write
from tests.targets.support import inputs, rounded

pytestmark = pytest.mark.exporter


class Towers(nn.Module):
    """Towers beside each other, of which one weight may serve all."""

    def __init__(self, count: int, shared: bool) -> None:
        super().__init__()
        first = nn.Linear(6, 8, bias=False)
        self.towers = nn.ModuleList(
            first if shared else nn.Linear(6, 8, bias=False) for _ in range(count)
        )
        for tower in self.towers:
            tower.load_state_dict(first.state_dict())
        self.mixed = nn.ModuleList(nn.Linear(8, 8) for _ in range(count))
        self.head = nn.Linear(8 * count, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        parts = [
            F.dropout(F.gelu(tower(x)), 0.1, self.training)
            for tower, x in zip(self.towers, inputs, strict=True)
        ]
        return self.head(torch.cat([m(p) for m, p in zip(self.mixed, parts, strict=True)], 1))


class Pair(Towers):
    """Two towers under a signature that can be traced."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__(2, shared)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, y)


class Three(Towers):
    def __init__(self) -> None:
        super().__init__(3, False)

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, y, z)


class Plain(nn.Module):
    """Convolutions without biases: of zeros, every value is zero."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.a = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.b = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(x))
        return self.head((x + self.act(self.b(x))).mean((2, 3)))


class Centred(nn.Module):
    """Takes the batch's mean away."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        return self.b(y - y.mean(0))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x).flatten(1, 1)[:, 0])


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 8)
        self.query, self.key, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        score = self.query(x) @ self.key(x).transpose(1, 2)
        return self.head((score.softmax(-1) @ x).mean(1))


class Kept(nn.Module):
    """What a dropout passes on is rounded for a layer; what it reads goes on unrounded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        return 40 * x + self.b(F.dropout(x, 0.1, self.training))


class Offset(nn.Module):
    """Inputs far from zero are centred by the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(F.layer_norm(x, (6,)))))


class Views(nn.Module):
    """Layers that read the same numbers by several ways: chunks, and rows of another view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        p, q, _, t = y.chunk(4, 1)
        rows = y.view(-1, 4, 4).unbind(1)
        return self.c(F.relu(self.b(p * q) + self.b(t) + self.b(rows[1]) - self.b(rows[3])))


ONE, IMAGE = torch.ones(1, 6), torch.zeros(1, 2, 6, 6)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "equal inputs": (Pair, (ONE, ONE)),
    "three towers": (Three, (ONE, ONE, ONE)),
    "siamese": (lambda: Pair(shared=True), (ONE, ONE)),
    "zeros, gelu": (lambda: Plain(F.gelu), (IMAGE,)),
    "ones, silu": (lambda: Plain(F.silu), (IMAGE + 1,)),
    "batch mean": (Centred, (torch.randn(1, 6),)),
    "encoder on pairs": (Encoder, (torch.ones(1, 2, 8),)),
    "equal tokens": (Tokens, (torch.zeros(1, 5, dtype=torch.int64),)),
    "dropout beside": (Kept, (torch.zeros(1, 6),)),
    "one number by two ways": (Views, (torch.zeros(1, 6),)),
    "mean 10^4": (Offset, (1e4 + torch.randn(1, 6),)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_file_rounds_what_the_simulation_rounds(case: str) -> None:
    torch.manual_seed(0)
    make, example = CASES[case]
    net = trace(make().eval(), example)
    template = make_template(net)
    layers = {layer.node for layer in net.layers}
    sources = {n.all_input_nodes[0].name for n in net.graph.nodes if n.name in layers}
    assert sources <= set(template.values)
    compressed = rounded(net, 7, 8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        write(template, compressed, limit=4_000_000), options, providers=["CPUExecutionProvider"]
    )
    fresh = inputs(net, 8)
    feeds = {i.name: v.numpy() for i, v in zip(session.get_inputs(), fresh, strict=True)}
    expected = compressed(*fresh).numpy()
    (found,) = session.run(None, feeds)
    assert np.sqrt(np.mean((found - expected) ** 2)) <= 0.01 * expected.std()
