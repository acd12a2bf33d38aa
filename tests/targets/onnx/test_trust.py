"""Constants that the exporter computes from channel counts, in pruned copies."""

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.models.trace import trace
from autocompress.targets.onnx.template import make_template
from autocompress.targets.onnx.writer import OnnxBuilder
from tests.targets.support import inputs, pruned, rounded


class Body(nn.Module):
    """Two convolutions, a part of some kind between, and a pooled head."""

    def __init__(self, part: Callable[..., Tensor], *modules: nn.Module, out: int = 16) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.part, self.inner = part, nn.ModuleList(modules)
        self.head = nn.Linear(out, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.part(self.b(F.relu(self.a(x))), *self.inner)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def last(x: Tensor, norm: nn.Module) -> Tensor:
    """Normalise with channels last."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def windows(x: Tensor, layer: nn.Module) -> Tensor:
    """Mix channels in rolled windows of 4 × 4, as in Swin."""
    n, c, h, w = x.shape
    x = torch.roll(x, (2, 2), (2, 3)).permute(0, 2, 3, 1)
    x = x.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c)
    x = layer(x).view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h, w, c).permute(0, 3, 1, 2)


CASES: dict[str, Callable[[], nn.Module]] = {
    "channels last": lambda: Body(last, nn.LayerNorm(16)),
    "pooled to 2, channels last": lambda: Body(
        lambda x, norm: F.adaptive_avg_pool2d(last(x, norm), 2), nn.LayerNorm(16)
    ),
    "windows": lambda: Body(windows, nn.Linear(16, 16)),
    "pixel unshuffle": lambda: Body(lambda x: F.pixel_unshuffle(x, 2), out=64),
}


@pytest.mark.parametrize("case", CASES)
def test_pruned_files_compute_what_the_network_computes(case: str) -> None:
    torch.manual_seed(0)
    net = trace(CASES[case]().eval(), (torch.randn(1, 3, 8, 8),))
    builder = OnnxBuilder(make_template(net), "onnxruntime", 4_000_000)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    fresh = inputs(net)
    for keep in (0.5, 0.75):
        compressed = rounded(pruned(net, keep), 7, 8)
        session = onnxruntime.InferenceSession(
            builder.content(compressed), options, providers=["CPUExecutionProvider"]
        )
        expected = compressed(*fresh).numpy()
        (found,) = session.run(None, {"input": fresh[0].numpy()})
        assert np.sqrt(np.mean((found - expected) ** 2)) <= 0.01 * expected.std()
