import functools
import math
import random

import numpy as np
import pytest

from autocompress.core.space import SearchSpace
from autocompress.cost.estimate import Estimator
from autocompress.cost.hardware import read_hardware
from autocompress.cost.latency_model import LatencyModel
from autocompress.cost.latency_terms import terms
from autocompress.cost.workload import workload
from autocompress.engine.proposers.guided import cost_tables as module
from autocompress.engine.proposers.guided.allocation import total
from autocompress.engine.proposers.guided.cost_tables import cost_tables
from autocompress.models.students import STUDENTS
from autocompress.targets import TARGETS
from autocompress.transforms.dry_run import dry_run
from tests.targets.support import Attention, Residual, Shuffled, builder, network, wide

NETS = {
    "residual": lambda: network(Residual, 3, 8, 8),
    "shuffled": lambda: network(Shuffled, 2, 8, 8),
    "attention": lambda: network(Attention, 5, 6),
    "wide": wide,
}
CHIP = read_hardware("cortex-m7")


def space_of(net, keep=(0.4, 0.6, 0.8, 1), w_bits=(2, 4, 8, 16, 32), a_bits=(8, 32)):
    knobs = {f"{unit.name}/keep": keep for unit in net.units} if keep else {}
    for layer in net.layers:
        knobs |= {f"{layer.name}/w_bits": w_bits, f"{layer.name}/a_bits": a_bits}
    return SearchSpace({name: values for name, values in knobs.items() if values})


def estimator_of(net, target="onnxruntime", **given):
    return Estimator(net, TARGETS[target]().abilities, builder(target, net), **given)


def choices(space, count, seed=0):
    """Random choices as places, and their plans."""
    generator = random.Random(seed)
    for _ in range(count):
        chosen = {n: generator.randrange(len(v)) for n, v in space.knobs.items() if len(v) > 1}
        yield chosen, space.plan({n: space.knobs[n][place] for n, place in chosen.items()})


@functools.cache
def model(name="residual", integers=True):
    """A model of networks whose times are a sum over their operators."""
    net = NETS[name]()
    ort = TARGETS["onnxruntime"]().abilities
    space = space_of(net) if integers else space_of(net, w_bits=(32,), a_bits=(32,))
    drawn = [workload(dry_run(net, plan, ort), ort) for _, plan in choices(space, 60, seed=5)]
    return LatencyModel([(terms(work), 0.01 + work.macs * 1e-6) for work in drawn])


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("residual", "null"),
        ("residual", "onnxruntime"),
        ("shuffled", "onnxruntime"),
        ("attention", "null"),
    ],
)
def test_macs_are_exact_sums(name, target):
    net = NETS[name]()
    space, estimator = space_of(net, w_bits=(2, 8)), estimator_of(net, target)
    found = cost_tables(space, estimator, ["macs"])["macs"]
    seen = set()
    for chosen, plan in choices(space, 12):
        macs = estimator(plan).macs
        seen.add(macs)
        assert total(found, chosen) == macs
    assert len(seen) > 5
    keeps = {knob for table in found for knob in table.knobs}
    assert keeps
    assert all(knob.endswith("/keep") for knob in keeps)


@pytest.mark.parametrize(
    ("name", "target"),
    [("residual", "null"), ("shuffled", "null"), ("wide", "null"), ("wide", "onnxruntime")],
)
def test_sizes_are_right_to_a_few_percent(name, target):
    net = NETS[name]()
    space, estimator = space_of(net), estimator_of(net, target)
    found = cost_tables(space, estimator, ["size_bytes"])["size_bytes"]
    pairs = [
        (total(found, chosen), estimator(plan).size_bytes)
        for chosen, plan in choices(space, 15, seed=1)
    ]
    ratios = np.array([ours / exact for ours, exact in pairs])
    exact = np.array([exact for _, exact in pairs])
    assert np.ptp(exact) > 0.2 * exact.mean()
    assert np.abs(ratios - 1).max() < 0.1
    assert np.sqrt(((ratios - 1) ** 2).mean()) < 0.05


def test_a_file_that_is_overheads_for_the_most_part_is_told_roughly():
    net = NETS["residual"]()
    space, estimator = space_of(net), estimator_of(net)
    found = cost_tables(space, estimator, ["size_bytes"])["size_bytes"]
    ratios = [total(found, c) / estimator(p).size_bytes for c, p in choices(space, 60, seed=1)]
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)
    assert np.std(ratios) < 0.15


def test_the_tables_are_over_knobs_that_have_a_choice():
    net = NETS["residual"]()
    knobs = {**space_of(net, a_bits=(8,)).knobs, "a/w_bits": (4,)}
    knobs[f"{net.units[0].name}/keep"] = (0.5,)
    space, estimator = SearchSpace(knobs), estimator_of(net)
    found = cost_tables(space, estimator, ["macs", "size_bytes"])
    free = {name for name, values in space.knobs.items() if len(values) > 1}
    assert {knob for tables in found.values() for t in tables for knob in t.knobs} <= free
    for tables in found.values():
        for table in tables:
            assert table.values.shape == tuple(len(space.knobs[knob]) for knob in table.knobs)
    for chosen, plan in choices(space, 10):
        assert total(found["macs"], chosen) == estimator(plan).macs


def test_a_space_without_channels_has_constant_macs():
    net = NETS["residual"]()
    space, estimator = space_of(net, keep=()), estimator_of(net)
    found = cost_tables(space, estimator, ["macs"])["macs"]
    assert {table.knobs for table in found} == {()}
    assert total(found, {}) == estimator(next(choices(space, 1))[1]).macs


def test_what_nothing_predicts_has_no_tables():
    net = NETS["residual"]()
    found = cost_tables(
        space_of(net), estimator_of(net),
        ["macs", "latency_ms", "device_latency_ms", "energy_mj", "size_bytes"],
    )  # fmt: skip
    assert set(found) == {"macs", "size_bytes"}


def test_what_the_model_has_never_seen_has_no_tables():
    net = NETS["residual"]()
    estimator = estimator_of(net, model=model(integers=False))
    floats = space_of(net, w_bits=(32,), a_bits=(32,))
    assert set(cost_tables(floats, estimator, ["latency_ms"])) == {"latency_ms"}
    assert cost_tables(space_of(net), estimator, ["latency_ms"]) == {}


def test_latencies_add_up_to_about_the_prediction():
    net = NETS["residual"]()
    space, estimator = space_of(net), estimator_of(net, model=model())
    found = cost_tables(space, estimator, ["latency_ms"])["latency_ms"]
    errors, exact = [], []
    for chosen, plan in choices(space, 30, seed=2):
        ms = estimator(plan).latency.ms
        exact.append(ms)
        errors.append(total(found, chosen) / ms - 1)
    assert max(exact) > 1.5 * min(exact)
    assert np.sqrt(np.mean(np.square(errors))) < 0.08
    assert np.abs(errors).max() < 0.2


@pytest.mark.parametrize("figure", ["device_latency_ms", "energy_mj"])
def test_a_devices_figures_add_up_to_about_the_estimate(figure):
    net = NETS["residual"]()
    estimator = estimator_of(net, device=CHIP)
    for given in ({"w_bits": (2, 4, 8)}, {"keep": (0.5, 1), "w_bits": (8, 32)}):
        space = space_of(net, **given)
        found = cost_tables(space, estimator, [figure])[figure]
        for chosen, plan in choices(space, 15, seed=3):
            exact = estimator(plan).figures()[figure]
            assert total(found, chosen) == pytest.approx(exact, rel=0.01)


def test_activations_are_the_peak_where_nothing_is_compressed():
    net = NETS["residual"]()
    space, estimator = space_of(net), estimator_of(net)
    found = cost_tables(space, estimator, ["activation_bytes"])["activation_bytes"]
    full = {name: len(values) - 1 for name, values in space.knobs.items()}
    peak = estimator(space.uniform()).activation_bytes
    assert total(found, full) == pytest.approx(peak)
    drawn = [(total(found, c), estimator(p).activation_bytes) for c, p in choices(space, 40)]
    assert np.corrcoef(np.array(drawn).T)[0, 1] > 0.7
    assert all(0 < ours <= peak * (1 + 1e-9) for ours, _ in drawn)


def test_large_tables_are_averaged_over_what_matters_least(monkeypatch):
    net = NETS["residual"]()
    space, estimator = space_of(net, w_bits=(2, 8), a_bits=(8,)), estimator_of(net)
    sizes = [t.values.size for t in cost_tables(space, estimator, ["macs"])["macs"]]
    assert max(sizes) == 16
    monkeypatch.setattr(module, "_LARGEST", 4)
    found = cost_tables(space, estimator, ["macs"])["macs"]
    assert max(t.values.size for t in found) == 4
    ratios = [total(found, c) / estimator(p).macs for c, p in choices(space, 40)]
    assert np.abs(np.log(ratios)).max() > 1e-3
    assert math.exp(np.log(ratios).mean()) == pytest.approx(1, abs=0.1)
    assert np.std(ratios) < 0.4


def test_tables_are_the_same_every_time():
    net = NETS["shuffled"]()
    space, figures = space_of(net, w_bits=(2, 8)), ["macs", "size_bytes"]
    one, two = (cost_tables(space, estimator_of(net), figures) for _ in range(2))
    for figure in figures:
        assert [t.knobs for t in one[figure]] == [t.knobs for t in two[figure]]
        for first, second in zip(one[figure], two[figure], strict=True):
            assert np.array_equal(first.values, second.values)


def test_latency_is_exact_where_a_part_hangs_on_two_widths_and_four_formats():
    net = network(lambda: STUDENTS["resnet"](in_channels=1, num_classes=4, depth=1), 1, 16, 16)
    space = space_of(net, keep=(0.5, 0.625, 0.75, 0.875, 1.0), w_bits=(8,))
    ort = TARGETS["onnxruntime"]().abilities
    drawn = [workload(dry_run(net, plan, ort), ort) for _, plan in choices(space, 60, seed=5)]
    made = LatencyModel([(terms(work), 0.01 + work.macs * 1e-6) for work in drawn])
    estimator = estimator_of(net, model=made)
    found = cost_tables(space, estimator, ["latency_ms"])["latency_ms"]
    assert max(table.values.size for table in found) >= 5 * 5 * 2**3
    pairs = [(total(found, c), estimator(p).latency.ms) for c, p in choices(space, 20, seed=2)]
    ours, exact = np.array(pairs).T
    assert ours == pytest.approx(exact, rel=1e-3)
    assert np.ptp(exact) > 0.1 * exact.mean()
