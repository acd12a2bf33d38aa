import dataclasses
import functools
import itertools
import json
import math
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.core.plan import Plan
from autocompress.core.space import SearchSpace
from autocompress.cost import fit_latency as module
from autocompress.cost.fit_latency import (
    Calibration,
    calibrate,
    calibration_path,
    load_calibration,
    random_plans,
)
from autocompress.cost.latency_terms import Term, features, terms
from autocompress.cost.workload import workload
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.targets.base import Array, OpTime
from autocompress.targets.null import Null
from autocompress.targets.onnxruntime import OnnxRuntime
from autocompress.targets.timing import measure
from autocompress.transforms.dry_run import dry_run
from tests.targets.support import Residual, Shuffled, builder, network


class Tiny(nn.Module):
    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride, 1)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.body(F.relu(self.stem(x)))).mean((2, 3)))
        return logits


@functools.cache
def tiny(width: int = 8, stride: int = 1, seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return trace(Tiny(width, stride).eval(), (torch.randn(1, 1, 8, 8),))


def space(net: Network) -> SearchSpace:
    knobs: dict[str, tuple[float, ...]] = {
        f"{u.name}/keep": (0.25, 0.5, 0.75, 1) for u in net.units
    }
    for layer in net.layers:
        knobs |= {f"{layer.name}/w_bits": (2, 4, 8, 32), f"{layer.name}/a_bits": (8, 32)}
    return SearchSpace(knobs)


@functools.cache
def made() -> Calibration:
    return calibrate(tiny(), Null(), space(tiny()), seconds=0)


def test_a_calibration_has_baselines_and_random_plans_and_makes_a_model() -> None:
    found, net = made(), tiny()
    assert len(found.samples) == 40  # at least, however short the time
    wanted = [plan for label, plan in space(net).baselines() if label != "uncompressed"]
    wanted += itertools.islice(random_plans(space(net)), 40 - len(wanted))
    for plan, (listed, ms) in zip(wanted, found.samples, strict=True):
        drawn = dry_run(net, plan, Null.abilities)
        assert listed == terms(workload(drawn, Null.abilities))
        assert ms == pytest.approx(0.01 + 1e-6 * len(builder("null", net).content(drawn)))
    model = found.model()
    assert model.predict(found.samples[5][0]).ms > 0
    assert model.prior == found.rates
    assert found.device["target"] == "null"
    assert found.device["version"] == "null 1"
    whole = builder("null", net).content(dry_run(net, Plan(), Null.abilities))
    assert found.reference_ms == pytest.approx(0.01 + 1e-6 * len(whole))


def test_the_model_is_scaled_to_the_reference_as_it_is_now() -> None:
    found = made()
    base, twice = found.model(), found.model(2 * found.reference_ms)
    for listed, _ in found.samples[::8]:
        assert twice.predict(listed).ms == pytest.approx(2 * base.predict(listed).ms, rel=1e-3)
    assert found.model(found.reference_ms).predict(listed) == base.predict(listed)


def test_plans_are_measured_for_the_time_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = itertools.count(), list[float]()
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) / 100)
    found = calibrate(tiny(), Null(), space(tiny()), seconds=3, progress=told.append)
    assert 60 < len(found.samples) < 330
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] <= 1
    monkeypatch.setattr(module, "_MOST", 30)
    assert len(calibrate(tiny(), Null(), space(tiny()), seconds=1e9).samples) == 30


def test_seeds_differ_and_results_repeat(tmp_path: Path) -> None:
    again = calibrate(tiny(), Null(), space(tiny()), seconds=0)
    other = calibrate(tiny(), Null(), space(tiny()), seconds=0, seed=1)
    for name, found in (("made", made()), ("again", again), ("other", other)):
        found.save(tmp_path / name)
    contents = [(tmp_path / name).read_bytes() for name in ("made", "again", "other")]
    assert contents[0] == contents[1] != contents[2]


def test_what_is_saved_is_read_exactly(tmp_path: Path) -> None:
    found = made()
    found.samples.append((found.samples[0][0], math.pi / 1e3))
    try:
        found.save(tmp_path / "deep" / "file.json")
        read = Calibration.read(tmp_path / "deep" / "file.json")
        plain = [(tuple(t._replace(op="") for t in listed), ms) for listed, ms in found.samples]
        assert read.samples == plain
        assert (read.device, read.reference_ms, read.rates) == (
            found.device, found.reference_ms, found.rates,
        )  # fmt: skip
        assert all(isinstance(term, Term) for listed, _ in read.samples for term in listed)
        for listed, _ in found.samples[:3]:
            assert read.model().predict(listed) == found.model().predict(listed)
        read.save(tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == (
            tmp_path / "deep" / "file.json"
        ).read_bytes()
        assert len((tmp_path / "again.json").read_bytes()) < 40_000  # terms are listed once
    finally:
        found.samples.pop()


def test_the_path_tells_target_and_kinds_of_layers_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    base = calibration_path(tiny(), Null())
    assert base.parent == tmp_path / "latency"
    assert base.name.startswith("null-1-1-")
    assert calibration_path(tiny(seed=1), Null()) == base  # weights do not matter
    assert calibration_path(tiny(width=16), Null()) == base  # nor do widths
    others = [
        calibration_path(tiny(), Null(threads=2)),
        calibration_path(tiny(), Null(batch_size=4)),
        calibration_path(tiny(), OnnxRuntime()),
        calibration_path(tiny(stride=2), Null()),
        calibration_path(network(Shuffled, 2, 8, 8), Null()),
    ]
    assert len({base, *others}) == 1 + len(others)
    assert not any(tmp_path.iterdir())  # nothing is written by asking


def test_the_cache_is_the_users_unless_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUTOCOMPRESS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert calibration_path(tiny(), Null()).parent == tmp_path / "autocompress" / "latency"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    assert calibration_path(tiny(), Null()).is_relative_to(tmp_path / "me" / ".cache")


def test_a_calibration_of_this_device_is_used(tmp_path: Path) -> None:
    assert load_calibration(tmp_path / "none.json", Null()) == (None, "")
    made().save(tmp_path / "a.json")
    found, note = load_calibration(tmp_path / "a.json", Null())
    assert note == ""
    assert found is not None
    assert found.samples[0][1] == made().samples[0][1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"processor": "Cray-1"}, r"was of Cray-1, this is .+: it is measured again"),
        ({"version": "null 0"}, "was of null 0, this is null 1: it"),
        ({"target": "other", "threads": 4}, "was of other, 4, this is null, 1: it"),
        ({"batch_size": 8}, "was of 8, this is 1"),
    ],
)
def test_one_of_another_device_is_not_and_that_is_said(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "a.json"
    dataclasses.replace(made(), device={**made().device, **change}).save(path)
    found, note = load_calibration(path, Null())
    assert found is None
    assert re.search(said, note)
    assert path.exists()


def documents() -> Iterator[Any]:
    """Files that are no calibrations, most of them by one part."""
    yield from (b"", b"\xff\xfe", b"[]", b"3", b"null", b'"a"', b"{}", b"{")
    good = {
        "format": module._FORMAT, "device": {}, "reference_ms": 1.0, "rates": {"a": 1.0},
        "terms": [["f", 1, 1, 1, 1, "", ""]], "samples": [[1.0, [0]]],
    }  # fmt: skip
    bad: dict[str, tuple[Any, ...]] = {
        "format": (0, 99, None, "1"),
        "device": ([1], 5, None),
        "reference_ms": ("x", None, 0, -1.0, math.nan),
        "rates": ([1], 5, {"a": "x"}, {"a": None}),
        "terms": ([5], [["f"]], 3, {}),
        "samples": ([[1.0, [1]]], [[1.0]], [["x", [0]]], [[0, [0]]], [[math.inf, [0]]], 5, [5]),
    }
    for key, values in bad.items():
        yield {name: value for name, value in good.items() if name != key}
        for value in values:
            yield {**good, key: value}


@pytest.mark.parametrize("document", [*documents()], ids=lambda d: str(d)[:80])
def test_a_file_that_is_no_calibration_is_not_used_and_that_is_said(
    tmp_path: Path, document: Any
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    found, note = load_calibration(path, Null())
    assert found is None
    assert note == f"the latency calibration {path} cannot be read and is measured again"


def test_a_torn_file_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    made().save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        assert load_calibration(path, Null())[0] is None
    path.unlink()
    path.mkdir()
    assert "cannot be read" in load_calibration(path, Null())[1]


def test_random_plans_stay_in_the_space_and_repeat() -> None:
    knobs = space(network(Residual, 3, 8, 8))
    first, second, other = (
        list(itertools.islice(random_plans(knobs, seed), 40)) for seed in (3, 3, 4)
    )
    assert first == second != other
    assert all(knobs.contains(plan) for plan in first)
    assert len(set(first)) == 40
    single = SearchSpace({"a/w_bits": (8,), "a/a_bits": (8, 32)})
    assert {p.get("a", "w_bits") for p in itertools.islice(random_plans(single), 20)} == {8}


def test_random_plans_cover_every_value_and_the_extremes() -> None:
    knobs = space(network(Residual, 3, 8, 8))
    plans = list(itertools.islice(random_plans(knobs), 300))
    for name, values in knobs.knobs.items():
        layer, _, knob = name.rpartition("/")
        counts = [sum(plan.get(layer, knob) == value for plan in plans) for value in values]
        assert min(counts) > 300 / len(values) / 3
    for knob in ("keep", "w_bits", "a_bits"):
        means = []
        for plan in plans:
            chosen = {n: v for n, v in knobs.choices(plan).items() if n.endswith(knob)}
            places = [
                knobs.knobs[n].index(v) / (len(knobs.knobs[n]) - 1) for n, v in chosen.items()
            ]
            means.append(sum(places) / len(places))
        assert min(means) < 0.15
        assert max(means) > 0.85
    keeps, bits = (
        [sum(v for n, v in knobs.choices(p).items() if n.endswith(knob)) for p in plans]
        for knob in ("keep", "a_bits")
    )
    assert abs(torch.corrcoef(torch.tensor([keeps, bits], dtype=torch.float64))[0, 1]) < 0.2


class Told(Null):
    """A target whose profile is given: milliseconds by node."""

    times: Iterable[tuple[str, float]] = ()

    def profile(self, path: Path, inputs: tuple[Array, ...], runs: int = 20) -> tuple[OpTime, ...]:
        assert path.is_file()
        return tuple(OpTime(node, "Op", ms) for node, ms in self.times)


def test_profiled_times_are_those_of_the_terms_behind_them(tmp_path: Path) -> None:
    net = network(Shuffled, 2, 8, 8)
    target = Told()
    bench = module.Bench(net, target, builder("null", net), tmp_path)
    nodes = [node.name for node in net.graph.nodes if node.op == "call_function"]
    plan = Plan({f"left/{knob}": 8 for knob in ("w_bits", "a_bits")})
    assert {"conv2d", "relu", "split", "getitem", "cat", "view_1", "view_2"} < set(nodes)
    Told.times = [
        ("x", 1.0),  # conversions are called after what they convert
        ("conv2d", 2.0), ("relu", 0.5),  # a layer and what is fused into it
        ("getitem", 4.0), ("split", 0.25),  # a view is its source
        ("cat", 8.0), ("cat", 0.125),  # several kernels of one operator
        ("view_1", 16.0), ("", 100.0), ("nothing", 100.0),
    ]  # fmt: skip
    found = {ms: listed for listed, ms in bench.profile(plan)}
    families = {
        ms: [term.family.partition(",")[0] for term in listed] for ms, listed in found.items()
    }
    assert families == {
        1.0: ["convert p to f"],
        2.5: ["conv float 9 taps", "convert f to p"],
        4.25: ["aten.split_with_sizes.default", "convert p to q"],
        8.125: ["aten.cat.default"],
        16.0: ["aten.permute.default", "convert p to f"],
    }


def test_rates_are_found_again_from_nodes_that_they_made() -> None:
    listed = [term for net, _ in made().samples for term in net]
    names = sorted({name for term in listed for name, _ in features(term)})
    true = {name: 0.5 + 0.25 * place for place, name in enumerate(names)}
    nodes = [
        (list(pair), sum(true[name] * x for term in pair for name, x in features(term)))
        for pair in itertools.pairwise(listed)
    ]
    rates = module._rates(nodes)
    for pair, ms in nodes[::50]:
        told = sum(rates.get(name, 0.0) * x for term in pair for name, x in features(term))
        assert told == pytest.approx(ms, rel=0.05)
    assert all(rate > 0 for rate in rates.values())
    assert module._rates([]) == {}
    assert module._rates([(list(pair), 0.0) for pair, _ in nodes]) == {}


def test_plans_that_load_faster_take_the_same_time() -> None:
    net, target = network(Residual, 3, 8, 8), OnnxRuntime()
    bench = object.__new__(module.Bench)
    bench.network, bench.target = net, target
    for plan in itertools.islice(random_plans(space(net)), 12):
        quick = bench._quick(plan)
        assert terms(workload(dry_run(net, quick, target.abilities), target.abilities)) == terms(
            workload(dry_run(net, plan, target.abilities), target.abilities)
        )
        assert all(value >= 8 for _, value in quick.of("w_bits"))
    bench.target = Null()
    assert bench._quick(plan) is plan


def test_a_runtime_is_calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def quick(*sessions: Any, **options: Any) -> Any:
        return measure(*sessions, **{**options, "max_seconds": 0.01})

    monkeypatch.setattr(module, "measure", quick)
    monkeypatch.setattr(module, "_LEAST", 24)
    net, target = tiny(), OnnxRuntime()
    found = calibrate(net, target, space(net), builder=builder("onnxruntime", net), seconds=0)
    assert len(found.samples) == 24
    assert all(0 < ms < 1e3 for _, ms in found.samples)
    assert found.rates
    known = {name for listed, _ in found.samples for t in listed for name, _ in features(t)}
    assert set(found.rates) <= known
    assert any("convert" in name for name in found.rates)
    found.save(tmp_path / "a.json")
    read, note = load_calibration(tmp_path / "a.json", target)
    assert note == ""
    assert read is not None
    predicted = read.model().predict(found.samples[0][0])
    assert 0 <= predicted.low_ms <= predicted.ms <= predicted.high_ms < math.inf
    assert load_calibration(tmp_path / "a.json", OnnxRuntime(threads=2))[0] is None
