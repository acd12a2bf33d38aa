from pathlib import Path

import onnx
import pytest

from autocompress.cost.size import estimate_size
from tests.targets.support import builder, pruned, residual, rounded, wide


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16, 32])
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_values_are_counted_to_the_byte(bits: int, keep: float) -> None:
    net = pruned(residual(), keep) if keep < 1 else residual()
    expected = 0
    for layer in net.layers:
        weight, bias = net.params[layer.weight], net.params[layer.bias]
        scales = 4 * len(bias) if bits <= 8 else 0
        expected += -(-weight.numel() * bits // 8) + scales + 4 * bias.numel()
    assert estimate_size(rounded(net, bits)) == expected


@pytest.mark.parametrize("bits", [4, 8, 32])
def test_the_file_stores_about_as_much(bits: int, tmp_path: Path) -> None:
    net = wide()
    compressed = rounded(net, bits)
    path = builder("onnxruntime", net).build(compressed, tmp_path / "a").path
    stored = sum(len(i.raw_data) for i in onnx.load(str(path)).graph.initializer)
    assert 0.95 * estimate_size(compressed) < stored < 1.1 * estimate_size(compressed)
