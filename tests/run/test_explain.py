"""Where bytes and milliseconds go, on a small network and the null target."""

import functools
import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autocompress.core.plan import Plan, Recipe
from autocompress.core.score import Score
from autocompress.cost import analytic
from autocompress.cost.estimate import Estimator
from autocompress.cost.fit_latency import random_plans
from autocompress.cost.hardware import read_hardware
from autocompress.cost.latency_model import LatencyModel
from autocompress.cost.latency_terms import features, terms
from autocompress.cost.workload import workload
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.registry import find_space, resolve_space
from autocompress.report.receipt import Receipt
from autocompress.run import explain as explaining
from autocompress.run.explain import explain
from autocompress.targets import make_target
from autocompress.targets.base import OpTime
from autocompress.targets.null import Null
from autocompress.transforms.compressor import Compressor
from autocompress.transforms.dry_run import dry_run

PLAN = Plan({"stem/keep": 0.5, "stem/w_bits": 4, "mid/a_bits": 8, "mid/w_bits": 8})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.mid = nn.Conv2d(24, 20, 3, padding=1)
        self.head = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.mid(F.relu(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    """The same weights twice, and weights that are of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(self.norm(F.gelu(self.one(x))))


@functools.cache
def network(kind: type[nn.Module] = Net, *shape: int) -> Network:
    torch.manual_seed(0)
    return trace(kind().eval(), (torch.randn(1, *(shape or (3, 6, 6))),))


@functools.cache
def model(space: str = "ptq") -> LatencyModel:
    """A latency model of made-up times."""
    target = make_target("null")
    plans = random_plans(resolve_space(find_space(space), network(), target))
    samples = []
    for plan in islice(plans, 40):
        found = terms(workload(dry_run(network(), plan, target.abilities), target.abilities))
        samples.append((found, sum(0.01 * n for term in found for _, n in features(term))))
    return LatencyModel(samples)


def score_of(plan: Plan, trial: int = 3, **figures) -> Score:
    return Score(trial=trial, plan=plan, recipe=Recipe(), target="null", outcome="ok", **figures)


def explained(
    plan: Plan = PLAN, net: Network | None = None, target=None, reference=None, **given
) -> tuple[Receipt, Estimator, Compressor]:
    net, target = net or network(), target or make_target("null")
    inputs = tuple(torch.randn(20, *value.shape[1:]) for value in net.example_inputs)
    compressor = Compressor(net, (inputs,), target.abilities)
    estimator = Estimator(net, target.abilities, target.prepare(net), **given)
    arrays = tuple(value.numpy() for value in net.example_inputs)
    score = score_of(plan, size_bytes=1000)
    return explain(score, reference, compressor, estimator, target, arrays), estimator, compressor


def test_every_operator_is_a_line_before_and_after() -> None:
    receipt, estimator, compressor = explained()
    assert [(line.name, line.kind) for line in receipt.lines] == [
        ("stem", "conv"), ("mid", "conv"), ("mean", "mean"), ("head", "linear"),
    ]  # fmt: skip
    stem, mid, mean, head = receipt.lines
    assert (stem.before.channels, stem.after.channels) == ("3×24", "3×12")
    assert (mid.before.channels, mid.after.channels) == ("24×20", "12×20")
    assert mean.before.channels == mean.after.channels == mean.step == ""
    assert (stem.before.w_bits, stem.after.w_bits, stem.after.a_bits) == (32, 4, 32)
    assert (mid.before.a_bits, mid.after.a_bits, mid.after.w_bits) == (32, 8, 8)
    assert (head.before.channels, head.before.size_bytes) == ("20×5", 420)
    assert (head.after.channels, head.after.size_bytes) == ("20×5", 420)
    for after, plan in ((False, Plan()), (True, PLAN)):
        work = estimator.work(compressor.compress(plan))
        assert receipt.total("size_bytes", after) == work.weight_bytes
    assert receipt.total("size_bytes") == (
        3 * 12 * 9 // 2 + 4 * 12 + 12 * 20 * 9 + 4 * 20 + (20 * 5 + 5) * 4
    )
    assert receipt.score.plan == PLAN


def test_what_the_runtime_tells_is_split_by_operator(tmp_path) -> None:
    receipt, estimator, compressor = explained()
    for after, plan in ((False, Plan()), (True, PLAN)):
        content = estimator.builder.content(compressor.compress(plan), named=True)
        (tmp_path / "x").write_bytes(content)
        session = make_target("null").open(tmp_path / "x")
        assert receipt.total("profiled_ms", after) == pytest.approx(session.fixed_ms)
        shares = [
            getattr(line, "after" if after else "before").profiled_ms for line in receipt.lines
        ]
        assert math.isnan(shares.pop(2))  # the mean is no layer
        weights = list(session.layers.values())
        assert shares == pytest.approx([session.fixed_ms * w / sum(weights) for w in weights])


def test_without_a_model_or_a_device_nothing_is_predicted() -> None:
    receipt, *_ = explained()
    assert math.isnan(receipt.total("predicted_ms"))
    assert math.isnan(receipt.total("device_ms"))
    assert receipt.notes == [
        "no latency model of this machine yet: autocompress fit-latency makes one"
    ]
    assert all(line.conversion == "" for line in receipt.lines)


def test_predictions_add_up_to_the_models_and_conversions_are_named() -> None:
    receipt, estimator, compressor = explained(model=model())
    assert receipt.notes == []
    for after, plan in ((False, Plan()), (True, PLAN)):
        wanted = model().predict(terms(estimator.work(compressor.compress(plan))))
        assert receipt.total("predicted_ms", after) == pytest.approx(wanted.ms)
    named = {line.name: line.conversion for line in receipt.lines}
    assert "float to 8-bit codes 0.0" in named["stem"]
    assert named["mid"].startswith("8-bit codes to float 0.0")
    assert "8-bit" not in named["mean"] + named["head"]
    assert all(text == "" or text.endswith(" ms") for text in named.values())
    whole, *_ = explained(Plan(), model=model())
    assert not any("8-bit" in line.conversion for line in whole.lines)
    assert [line.before for line in whole.lines] == [line.after for line in whole.lines]


def test_what_the_model_has_never_seen_is_named() -> None:
    receipt, *_ = explained(model=model("prune"))  # float32 alone
    (note,) = receipt.notes
    assert note.startswith("the latency model has never seen conv int8 9 taps")
    assert note.endswith(": nothing is predicted")
    assert math.isnan(receipt.total("predicted_ms"))
    assert not math.isnan(receipt.total("predicted_ms", after=False))  # the uncompressed one is
    assert not any(";" in line.step for line in receipt.lines)


@pytest.mark.parametrize(("cpu", "steps"), [(("avx512f",), (16, 32, 16)), (("avx2",), (16, 24, 8))])
def test_steps_tell_where_channels_stand_and_what_the_next_one_down_saves(
    monkeypatch, cpu, steps
) -> None:
    monkeypatch.setattr(explaining, "cpu_features", lambda: cpu)
    receipt, estimator, compressor = explained(model=model())
    layers = [line for line in receipt.lines if line.after.channels]
    counts = (12, 20, 5)
    for line, count, full in zip(layers, counts, steps, strict=True):
        assert line.step.startswith(f"{count} of {full}")
        assert (";" in line.step) == (full > (16 if cpu == ("avx512f",) else 8))
    found = terms(estimator.work(compressor.compress(PLAN)))
    (term,) = (t for t in found if t.op == "conv2d_1" and t.work)
    now, then = model().parts((term, term._replace(out=16)))
    assert layers[1].step == f"20 of {steps[1]}; 16 would take {then - now:+.4f} ms"
    assert then < now


def test_a_devices_figures_stand_beside(monkeypatch) -> None:
    device = read_hardware("cortex-m7")
    receipt, estimator, compressor = explained(device=device)
    for after, plan in ((False, Plan()), (True, PLAN)):
        work = estimator.work(compressor.compress(plan))
        assert receipt.total("device_ms", after) == pytest.approx(analytic.latency_ms(work, device))
    assert receipt.lines[0].after.device_ms < receipt.lines[0].before.device_ms


class Late(Null):
    """Calls a layer after the last operator that is fused into it."""

    def profile(self, path, inputs, runs=20):
        return (OpTime("relu", "conv", 0.25), OpTime("conv2d", "reorder", 0.5))


def test_what_is_fused_into_a_layer_is_its_own() -> None:
    receipt, *_ = explained(target=Late())
    assert receipt.lines[0].after.profiled_ms == 0.75
    assert receipt.total("profiled_ms") == 0.75
    assert len(receipt.notes) == 1


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 3, 1), nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).flatten(1))


def test_what_costs_nothing_has_no_line() -> None:
    receipt, *_ = explained(Plan(), network(Flat, 2, 2, 2))
    assert [line.name for line in receipt.lines] == ["conv", "head"]


class Strange(Null):
    """Half of its time is of nobody knows what."""

    def profile(self, path, inputs, runs=20):
        whole = super().profile(path, inputs, runs)
        return (OpTime("", "setup", 0.25), *whole, OpTime("nothing like it", "other", 0.5))


def test_time_that_is_of_no_operator_is_told() -> None:
    receipt, *_ = explained(target=Strange())
    assert receipt.notes[-1] == "profiled, of no operator of the network: 0.7500 ms"
    assert receipt.total("profiled_ms") == pytest.approx(explained()[0].total("profiled_ms"))


def test_weights_that_are_read_twice_count_once_and_those_of_no_layer_too() -> None:
    net = network(Tied, 4, 6)
    receipt, estimator, compressor = explained(Plan(), net)
    sizes = {line.kind: 0 for line in receipt.lines}
    for line in receipt.lines:
        sizes[line.kind] += line.after.size_bytes
    assert [layer.weight for layer in net.layers] == ["one.weight"] * 2
    assert len({layer.bias for layer in net.layers}) == 2
    assert sizes == {"linear": 4 * (36 + 6 + 6), "gelu": 0, "layer_norm": 4 * 12}
    assert receipt.total("size_bytes") == (estimator.work(compressor.compress(Plan())).weight_bytes)


def test_the_reference_is_handed_on() -> None:
    reference = replace(score_of(Plan(), 0), latency_ms=2.0)
    assert explained(reference=reference)[0].reference is reference
    assert explained()[0].reference is None


def test_nothing_is_left_behind(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(explaining.tempfile, "tempdir", str(tmp_path))
    explained()
    assert list(tmp_path.iterdir()) == []
