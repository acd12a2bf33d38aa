import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.abilities import Abilities
from autocompress.core.plan import Plan
from autocompress.core.space import SearchSpace
from autocompress.cost.fit_latency import random_plans
from autocompress.models.network import Network
from autocompress.models.students import STUDENTS
from autocompress.models.trace import trace
from autocompress.targets import TARGETS, Target
from autocompress.transforms.compressor import Compressed, Compressor, Options, QuantizedWeight
from autocompress.transforms.dry_run import dry_run
from autocompress.transforms.reconstruct.layer import LIMIT_COLUMNS
from tests.targets.support import Attention, Shuffled
from tests.targets.support import builder as builder_of
from tests.targets.support import network as block
from tests.transforms.nets import BITS, EDGES, PLAIN, Mixer, Residual, calibration, digits, trained

Data = list[tuple[Tensor, ...]]
OFF = Options(bn=False, refit=False, compensate=False)


def noise(*shape: int) -> Data:
    return [(torch.randn(96, *shape, generator=torch.Generator().manual_seed(0)),)]


@functools.cache
def student(family: str, size: int = 28, widths: tuple[int, ...] = ()) -> tuple[Network, Data]:
    """A student whose BatchNorm knows the digits, so that its outputs spread as after training.

    Those with many alike blocks have fewer of them.
    """
    torch.manual_seed(0)
    options: dict[str, Any] = {"widths": widths} if widths else {}
    few: dict[str, dict[str, Any]] = {
        "resnet": {"depth": 1},
        "mobilenetv2": {"stages": [(1, 16, 1, 1), (6, 24, 2, 2), (6, 64, 2, 2)]},
        "shufflenetv2": {"depths": (2, 2, 2)},
    }
    options |= few.get(family, {})
    model = STUDENTS[family](in_channels=1, num_classes=10, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average of what it sees
    images = F.interpolate(digits()[0][:128], size)
    with torch.no_grad():
        for _ in range(2):
            model(images)
    return trace(model.eval(), (images[:1],)), [(images,)]


class Wide(nn.Module):
    """A layer with more columns than a Gram matrix is made for, between two small ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, LIMIT_COLUMNS + 60)
        self.second = nn.Linear(LIMIT_COLUMNS + 60, 6)
        self.third = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.third(F.relu(self.second(F.relu(self.first(x)))))
        return logits


@functools.cache
def wide() -> tuple[Network, Data]:
    torch.manual_seed(0)
    return trace(Wide().eval(), (torch.randn(1, 8),)), noise(8)


NETS: dict[str, Callable[[], tuple[Network, Data]]] = {
    "residual": lambda: (trained(Residual), calibration()),
    "shared weights": lambda: (trained(Mixer), calibration()),
    "shuffled": lambda: (block(Shuffled, 2, 8, 8), noise(2, 8, 8)),
    "attention": lambda: (block(Attention, 5, 6), noise(5, 6)),
    "wide": wide,
    "digits": lambda: student("plain_cnn", 8, (8, 16)),
}


def space(net: Network, keeps: tuple[float, ...] = (0.3, 0.5, 0.8, 1.0)) -> SearchSpace:
    knobs: dict[str, tuple[float, ...]] = {f"{unit.name}/keep": keeps for unit in net.units}
    for layer in net.layers:
        knobs |= {f"{layer.name}/w_bits": BITS, f"{layer.name}/a_bits": (8, 32)}
    return SearchSpace(knobs)


def plans(net: Network, count: int, seed: int = 0) -> Iterator[Plan]:
    yield from itertools.islice(random_plans(space(net), seed), count)


def shapes(found: Compressed) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in found.network.params.items()}


def forms(found: Compressed, biases: bool = True) -> dict[str, object]:
    kept = {layer.weight for layer in found.network.layers}
    return {
        name: (code.bits, code.odd, code.codes.shape) if isinstance(code, QuantizedWeight) else code
        for name, code in found.weights.items()
        if biases or name in kept
    }


def long_of(found: Compressed) -> dict[str, int]:
    """Return the biases that compressing left in float32, with their lengths."""
    return {
        layer.bias: len(found.network.params[layer.bias])
        for layer in found.network.layers
        if layer.weight in found.weights and layer.bias not in found.weights
    }


@pytest.mark.parametrize("options", [Options(), OFF, Options(bn=False), Options(odd_bits=(2, 3))])
@pytest.mark.parametrize("name", NETS)
def test_shapes_and_forms_are_those_of_compressing(name: str, options: Options) -> None:
    net, data = NETS[name]()
    abilities = EDGES if name != "wide" else PLAIN
    compressor = Compressor(net, data, abilities, options, images=64)
    for plan in plans(net, 5):
        real = compressor.compress(plan)
        drawn = dry_run(net, plan, abilities, options, long=long_of(real))
        assert drawn.plan == plan
        assert shapes(drawn) == shapes(real)
        assert forms(drawn) == forms(real)
        assert forms(dry_run(net, plan, abilities, options), False) == forms(real, False)
        assert {name: r.bits for name, r in drawn.activations.items()} == {
            name: r.bits for name, r in real.activations.items()
        }
        assert list(drawn.activations) == list(real.activations)
        assert drawn.integer == real.integer
        assert [n.name for n in drawn.network.graph.nodes] == [
            n.name for n in real.network.graph.nodes
        ]
        exact = {  # a file holds scales in float16 where that is exact
            drawn_by: {
                name: bool((code.scale == code.scale.astype(np.float16)).all())
                for name, code in found.weights.items()
                if isinstance(code, QuantizedWeight)
            }
            for drawn_by, found in (("real", real), ("dry_run", drawn))
        }
        assert exact["dry_run"] == exact["real"]
        drawn.network.run(*net.example_inputs)  # and it runs


def test_a_plan_that_sets_nothing_changes_nothing() -> None:
    net = trained(Residual)
    found = dry_run(net, Plan(), EDGES)
    assert not found.weights
    assert not found.activations
    assert torch.equal(found(*net.example_inputs), net(*net.example_inputs))


@pytest.mark.parametrize("name", NETS)
def test_the_network_stays_as_it_is_and_results_repeat(name: str) -> None:
    net, _ = NETS[name]()
    params = {name: value.clone() for name, value in net.params.items()}
    graph = str(net.graph)
    for plan in plans(net, 3, seed=5):
        first, second = (dry_run(net, plan, EDGES) for _ in range(2))
        for key, value in first.network.params.items():
            assert torch.equal(value, second.network.params[key])
        for key, code in first.weights.items():
            other = second.weights[key]
            if isinstance(code, QuantizedWeight):
                assert isinstance(other, QuantizedWeight)
                assert np.array_equal(code.codes, other.codes)
                assert np.array_equal(code.scale, other.scale)
            else:
                assert code == other
        assert first.activations == second.activations
    assert all(torch.equal(net.params[key], value) for key, value in params.items())
    assert str(net.graph) == graph


def test_codes_use_all_of_their_bits_and_lie_on_their_grid() -> None:
    net = trained(Residual)
    for bits in range(2, 9):
        found = dry_run(net, Plan({"conv2/w_bits": bits}), PLAIN)
        code = found.weights["conv2.weight"]
        assert isinstance(code, QuantizedWeight)
        assert len(np.unique(code.codes)) == 2**bits
        assert code.odd == (bits == 2)
        peak = net.params["conv2.weight"].abs().amax((1, 2, 3)).numpy()
        assert (code.values.max((1, 2, 3)) <= 1.01 * peak).all()


def test_ranges_start_at_zero_where_the_uncompressed_tensor_does() -> None:
    """Runtimes fuse a ReLU only then, so that time depends on it."""
    net = trained(Residual)
    plan = Plan({f"{x.name}/{k}": 8 for x in net.layers for k in ("w_bits", "a_bits")})
    bare = Abilities(BITS, (8, 32), quantized_outputs=frozenset({"conv", "depthwise", "grouped"}))
    for abilities in (EDGES, bare):
        for name, found in dry_run(net, plan, abilities).activations.items():
            least, greatest = net.example_ranges[name]
            assert (found.zero_point == 0) == (least >= 0)
            assert found.scale == pytest.approx(
                (max(greatest, 0) - min(least, 0)) / 255, rel=1e-3, abs=2.0**-20
            )
    points = {r.zero_point == 0 for r in dry_run(net, plan, bare).activations.values()}
    assert points == {True, False}


@pytest.mark.parametrize("bits", [4, 16])
def test_biases_that_are_known_to_be_long_stay_in_float32(bits: int) -> None:
    net = trained(Residual)
    plan = Plan({f"{layer.name}/w_bits": bits for layer in net.layers})
    for least, stored in ((None, "float16"), (16, None), (17, "float16")):
        found = dry_run(net, plan, PLAIN, long={"conv1.bias": least} if least else None)
        assert found.weights.get("conv1.bias") == stored
        value = found.network.params["conv1.bias"]
        assert torch.equal(value, value.half().float()) == (stored == "float16")
        assert found.weights["conv2.bias"] == "float16"


def excess(
    net: Network, data: Data, target: Target, count: int, known: bool = False
) -> list[float]:
    """Return how much longer sketches are than the files of what is really compressed.

    ``known``: which biases stay in float32 is known, as after a plan like that.
    """
    builder = builder_of(target.name, net)
    found = []
    for options in (Options(), OFF) if known else (Options(),):
        compressor = Compressor(net, data, target.abilities, options, images=48)
        for plan in plans(net, count):
            real = compressor.compress(plan)
            long = long_of(real) if known else None
            drawn = dry_run(net, plan, target.abilities, options, long=long)
            found.append(len(builder.content(drawn)) / len(builder.content(real)) - 1)
    return found


@pytest.mark.parametrize(
    ("name", "target"),
    [
        *itertools.product(
            ("residual", "shuffled", "attention", "digits"), ("onnxruntime", "null")
        ),
        ("residual", "openvino"),
        ("shuffled", "openvino"),
        ("shared weights", "null"),
    ],
)
def test_a_file_of_a_few_kilobytes_weighs_what_its_sketch_does(name: str, target: str) -> None:
    pytest.importorskip(target if target == "openvino" else "autocompress")
    assert max(map(abs, excess(*NETS[name](), TARGETS[target](), 6, known=True))) < 0.01


@pytest.mark.parametrize(
    ("family", "target", "count"),
    [
        ("plain_cnn", "onnxruntime", 8), ("plain_cnn", "null", 4), ("plain_cnn", "openvino", 4),
        ("resnet", "onnxruntime", 3), ("resnet", "null", 2), ("mobilenetv2", "onnxruntime", 3),
        ("mobilenetv2", "null", 2), ("shufflenetv2", "onnxruntime", 3), ("shufflenetv2", "null", 2),
    ],
)  # fmt: skip
def test_a_student_weighs_what_its_sketch_does(family: str, target: str, count: int) -> None:
    pytest.importorskip(target if target == "openvino" else "autocompress")
    assert max(map(abs, excess(*student(family), TARGETS[target](), count))) < 0.01
