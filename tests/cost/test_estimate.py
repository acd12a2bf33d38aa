import dataclasses
import functools
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.budget import Budget
from autocompress.core.plan import Plan
from autocompress.core.space import SearchSpace
from autocompress.cost import analytic
from autocompress.cost.estimate import Estimate, Estimator
from autocompress.cost.fit_latency import random_plans
from autocompress.cost.hardware import read_hardware
from autocompress.cost.latency_model import LatencyModel, Prediction
from autocompress.cost.latency_terms import terms
from autocompress.cost.memory import peak_activation_bytes
from autocompress.cost.workload import workload
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.targets import TARGETS
from autocompress.transforms.compressor import Compressor
from autocompress.transforms.dry_run import dry_run
from autocompress.transforms.options import Options
from tests.targets.support import Attention, Residual, Shuffled, builder, network
from tests.transforms.nets import Residual as Trained
from tests.transforms.nets import calibration, trained

ORT = TARGETS["onnxruntime"]().abilities
CHIP = read_hardware("cortex-m7")
MODEL = Prediction(2.0, 1.5, 2.5)
NONE = Prediction(math.nan, math.nan, math.nan)
WHOLE = Estimate(
    size_bytes=1000, macs=5000, activation_bytes=300, latency=MODEL, device_latency_ms=7.0,
    energy_mj=0.5, device="chip",
)  # fmt: skip
BARE = Estimate(size_bytes=1000, macs=5000, activation_bytes=300, latency=NONE)


def net() -> Network:
    return network(Residual, 3, 8, 8)


def space(of: Network) -> SearchSpace:
    knobs: dict[str, tuple[float, ...]] = {f"{unit.name}/keep": (0.5, 1) for unit in of.units}
    for layer in of.layers:
        knobs |= {f"{layer.name}/w_bits": (2, 4, 8, 16, 32), f"{layer.name}/a_bits": (8, 32)}
    return SearchSpace(knobs)


def plans(count: int, of: Network | None = None) -> list[Plan]:
    return list(itertools.islice(random_plans(space(of or net())), count))


@functools.cache
def model() -> LatencyModel:
    drawn = [workload(dry_run(net(), plan, ORT), ORT) for plan in plans(40)]
    return LatencyModel([(terms(work), 0.01 + work.macs * 1e-6) for work in drawn])


def test_figures_go_by_name_and_what_is_unknown_is_left_out() -> None:
    assert WHOLE.figures() == {
        "size_bytes": 1000.0, "macs": 5000.0, "activation_bytes": 300.0, "latency_ms": 2.0,
        "latency_low_ms": 1.5, "latency_high_ms": 2.5, "device_latency_ms": 7.0, "energy_mj": 0.5,
    }  # fmt: skip
    assert BARE.figures() == {"size_bytes": 1000.0, "macs": 5000.0, "activation_bytes": 300.0}
    assert all(type(value) is float for value in WHOLE.figures().values())


def test_the_least_and_the_expected() -> None:
    here = dataclasses.replace(WHOLE, device="")
    assert here.least("latency_limit_ms") == 1.5
    assert here.expected("latency_limit_ms") == here.expected("latency_figure_ms") == 2.0
    for name in ("latency_limit_ms", "latency_figure_ms"):
        assert WHOLE.expected(name) == 7.0
    assert WHOLE.least("latency_limit_ms") == 7.0  # of the device that was named
    assert WHOLE.least("size_bytes") == pytest.approx(990)
    assert WHOLE.expected("size_bytes") == 1000
    for name in ("energy_mj", "activation_bytes"):
        assert WHOLE.least(name) == WHOLE.expected(name)
    assert math.isnan(BARE.least("latency_limit_ms"))
    assert math.isnan(BARE.least("energy_mj"))


@pytest.mark.parametrize(
    ("budget", "over"),
    [
        (Budget(), False),
        (Budget(latency_ms=1.49), True),
        (Budget(latency_ms=1.51), False),  # within the error bar: the measurement decides
        (Budget(latency_ms=3.0), False),
        (Budget(max_size_bytes=985), True),
        (Budget(max_size_bytes=992), False),  # within 1 %
        (Budget(max_memory_bytes=299), True),
        (Budget(max_memory_bytes=300), False),
        (Budget(max_energy_mj=0.49), True),
        (Budget(max_energy_mj=0.5), False),
        (Budget(latency_ms=9, max_size_bytes=9000, max_energy_mj=9, max_memory_bytes=1), True),
    ],
)
def test_over_is_what_exceeds_a_limit_by_more_than_the_error(budget: Budget, over: bool) -> None:
    assert dataclasses.replace(WHOLE, device="").over(budget) is over


def test_over_on_a_device_that_was_named() -> None:
    assert WHOLE.over(Budget(latency_ms=6.9))
    assert not WHOLE.over(Budget(latency_ms=7.0))


def test_what_has_no_model_is_never_over() -> None:
    tight = Budget(latency_ms=1e-9, max_energy_mj=1e-9)
    assert not BARE.over(tight)
    assert BARE.over(dataclasses.replace(tight, max_memory_bytes=1))  # but this is known
    assert not dataclasses.replace(BARE, device="chip").over(tight)


@pytest.mark.parametrize("target", ["null", "onnxruntime"])
def test_an_estimate_is_of_the_file_that_would_be_built(target: str, tmp_path: Path) -> None:
    abilities, made = TARGETS[target]().abilities, builder(target, net())
    estimator = Estimator(net(), abilities, made)
    for plan in [Plan(), *plans(4)]:
        found = estimator(plan)
        drawn = dry_run(net(), plan, abilities)
        work = workload(drawn, abilities)
        assert found.size_bytes == made.build(drawn, tmp_path / "file").size_bytes
        assert found.size_bytes == (tmp_path / "file").stat().st_size
        assert (found.macs, found.activation_bytes) == (work.macs, peak_activation_bytes(work))
        assert set(found.figures()) == {"size_bytes", "macs", "activation_bytes"}
        assert (found.device, found.unknown) == ("", ())
        assert repr(estimator.of(drawn, found.size_bytes)) == repr(found)
        assert estimator.work(drawn).ops == work.ops


def test_options_are_obeyed() -> None:
    made = builder("onnxruntime", net())
    plan = Plan({f"{layer.name}/w_bits": 4 for layer in net().layers})
    sizes = [
        Estimator(net(), ORT, made, options=options)(plan).size_bytes
        for options in (None, Options(), Options(bn=False))
    ]
    assert sizes[0] == sizes[1] < sizes[2]


def test_the_latency_is_the_models() -> None:
    estimator = Estimator(net(), ORT, builder("null", net()), model=model())
    for plan in plans(3):
        drawn = dry_run(net(), plan, ORT)
        assert estimator(plan).latency == model().predict(terms(workload(drawn, ORT)))


def test_the_figures_of_a_device() -> None:
    estimator = Estimator(net(), ORT, builder("null", net()), device=CHIP)
    for plan in plans(3):
        work, found = workload(dry_run(net(), plan, ORT), ORT), estimator(plan)
        assert found.device == "cortex-m7"
        assert found.device_latency_ms == analytic.latency_ms(work, CHIP)
        assert found.energy_mj == analytic.energy_mj(work, CHIP)
        assert math.isnan(found.latency.ms)
        assert {"device_latency_ms", "energy_mj"} < set(found.figures())


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sinh(self.fc(F.gelu(x)))


def test_unknown_operators_are_named_and_nothing_is_guessed() -> None:
    odd = trace(Odd().eval(), (torch.randn(1, 4),))
    estimator = Estimator(odd, ORT, builder("null", odd), device=CHIP)
    found = estimator(Plan())
    assert found.unknown == ("aten.sinh.default",)
    assert math.isnan(found.energy_mj)
    assert math.isnan(found.device_latency_ms)
    assert found.macs == 16
    assert not found.over(Budget(latency_ms=1e-9, max_energy_mj=1e-9))
    both = Estimator(odd, ORT, builder("null", odd), device=CHIP, model=model())(Plan())
    assert both.unknown == (
        "aten.gelu.default, 1 positions", "aten.sinh.default", "aten.sinh.default, 1 positions",
        "convert f to p, 1 positions",
    )  # fmt: skip
    assert math.isnan(both.latency.ms)
    assert not both.over(Budget(latency_ms=1e-9))
    assert not Estimator(net(), ORT, builder("null", net()), model=model())(Plan()).unknown


def test_measured_trials_refine_the_model() -> None:
    own = LatencyModel(model().samples)
    estimator = Estimator(net(), ORT, builder("null", net()), model=own)
    plan = plans(1)[0]
    before = estimator(plan).latency.ms
    for _ in range(8):
        estimator.learn(estimator.feedback(dry_run(net(), plan, ORT)), 1.5 * before)
    assert estimator(plan).latency.ms > 1.25 * before
    without = Estimator(net(), ORT, builder("null", net()))
    without.learn(without.feedback(dry_run(net(), plan, ORT)), 1.0)  # there is nothing to refine
    assert math.isnan(without(plan).latency.ms)


def test_sizes_are_right_to_one_percent_once_trials_showed_which_biases_are_long() -> None:
    """The network has channels that are always 0, whose biases compressing keeps in float32."""
    of, made = trained(Trained), builder("onnxruntime", trained(Trained))
    compressor = Compressor(of, calibration(), ORT, images=64)
    estimator, fresh = (Estimator(of, ORT, made) for _ in range(2))
    base = Plan({f"{layer.name}/w_bits": 8 for layer in of.layers})
    estimator.learn(estimator.feedback(compressor.compress(base)), 1.0)
    worst = {"learnt": 0.0, "fresh": 0.0}
    for plan in [base, *plans(12, of)]:
        found = compressor.compress(plan)
        size = len(made.content(found))
        for name, which in (("learnt", estimator), ("fresh", fresh)):
            worst[name] = max(worst[name], abs(which(plan).size_bytes / size - 1))
        estimator.learn(estimator.feedback(found), 1.0)
    assert worst["learnt"] < 0.01
    assert worst["fresh"] >= worst["learnt"]


def test_how_long_a_bias_is_decides_where_trials_differed() -> None:
    of = trained(Trained)
    estimator = Estimator(of, ORT, builder("null", of))
    for keep, long in ((1, {"conv1.bias": 1}), (0.5, {}), (0.75, {"conv1.bias": 1})):
        plan = Plan({"conv1/w_bits": 4} | ({"conv1/keep": keep} if keep < 1 else {}))
        estimator.learn(estimator.feedback(dry_run(of, plan, ORT, long=long)), 1.0)
    for keep, stored in ((0.5, "float16"), (0.625, "float16"), (0.75, None), (1, None)):
        plan = Plan({"conv1/w_bits": 4, "conv1/keep": keep})
        wanted = dry_run(of, plan, ORT, long={} if stored else {"conv1.bias": 1})
        assert wanted.weights.get("conv1.bias") == stored
        assert estimator(plan).size_bytes == len(builder("null", of).content(wanted))


def summed(parts: dict[str, dict[str, float]], figure: str) -> float:
    return math.fsum(figures.get(figure, 0.0) for figures in parts.values())


@pytest.mark.parametrize("kind", [(Residual, 3, 8, 8), (Shuffled, 2, 8, 8), (Attention, 5, 6)])
def test_parts_are_what_each_value_adds(kind: tuple[type[nn.Module], int, int, int]) -> None:
    of = network(*kind)
    estimator = Estimator(of, ORT, builder("null", of))
    drawn = [Plan(), *plans(4, of)]
    found = estimator.parts(drawn)
    assert len(found) == len(drawn)
    for plan, parts in zip(drawn, found, strict=True):
        work = workload(dry_run(of, plan, ORT), ORT)
        assert summed(parts, "macs") == estimator(plan).macs
        for op in work.ops:
            own = parts[op.output]
            assert own.get("macs", 0) == op.macs
            stored = op.kind != "view"
            assert own.get("activation_bytes", 0) == work.values[op.output].nbytes * stored
        assert {figure for own in parts.values() for figure in own} == {
            "macs", "activation_bytes", "weights", "biases",
        }  # fmt: skip


def test_parts_count_the_numbers_of_every_layer() -> None:
    estimator = Estimator(net(), ORT, builder("null", net()))
    for plan in [Plan(), *plans(4)]:
        (parts,) = estimator.parts([plan])
        drawn = dry_run(net(), plan, ORT)
        for layer in drawn.network.layers:
            own = parts[layer.node]
            assert own["weights"] == drawn.network.params[layer.weight].numel()
            assert own["biases"] == drawn.network.params[layer.bias].numel()


def test_numbers_that_layers_share_are_counted_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.fc(x)))

    of = trace(Twice().eval(), (torch.randn(1, 8),))
    (parts,) = Estimator(of, ORT, builder("null", of)).parts([Plan()])
    assert (summed(parts, "weights"), summed(parts, "biases")) == (64, 8)
    assert summed(parts, "macs") == 128


def test_parts_of_the_latency_sum_up_to_the_prediction() -> None:
    estimator = Estimator(net(), ORT, builder("null", net()), model=model())
    drawn = [plans(12)[0], *plans(12)[5:8], plans(12)[0]]  # one of them twice
    found = estimator.parts(drawn)
    assert found[0] == found[-1]
    for plan, parts in zip(drawn, found, strict=True):
        assert summed(parts, "latency_ms") == pytest.approx(estimator(plan).latency.ms)
        assert sum("latency_ms" in own for own in parts.values()) > 5
    assert estimator.parts([]) == []


def test_parts_of_a_devices_figures_sum_up_to_them() -> None:
    estimator = Estimator(net(), ORT, builder("null", net()), device=CHIP)
    for plan in plans(3):
        (parts,), whole = estimator.parts([plan]), estimator(plan)
        assert summed(parts, "device_latency_ms") == pytest.approx(whole.device_latency_ms)
        assert summed(parts, "energy_mj") == pytest.approx(whole.energy_mj)


def test_parts_of_what_nobody_knows_are_no_numbers() -> None:
    odd = trace(Odd().eval(), (torch.randn(1, 4),))
    estimator = Estimator(odd, ORT, builder("null", odd), device=CHIP, model=model())
    (parts,) = estimator.parts([Plan()])
    assert math.isnan(summed(parts, "latency_ms"))
    figures = {figure for own in parts.values() for figure in own}
    assert not figures & {"device_latency_ms", "energy_mj"}
    assert summed(parts, "macs") == 16
