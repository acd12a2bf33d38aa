import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import approx_fprime
from scipy.stats import spearmanr

from autocompress.cost import gaussian_process as process
from autocompress.cost import latency_model as latency
from autocompress.cost.gaussian_process import Alike, cholesky_of, compare, rows_of
from autocompress.cost.latency_model import LatencyModel
from autocompress.cost.latency_terms import TILES, Term, features

Floats = NDArray[np.float64]
Sample = tuple[tuple[Term, ...], float]

WIDTHS = (16, 24, 32, 40, 48, 56, 64)
GRIDS = (196, 196, 196, 49, 49, 49, 49)  # positions, by layer


def network(chance: random.Random, grids: Sequence[int] = GRIDS) -> tuple[Term, ...]:
    """A chain of 3×3 convolutions, a sum after every third, and a classifier."""
    found: list[Term] = []
    formats = [chance.choice("fq") for _ in grids]
    into, before = 3, "p"
    for place, (grid, own) in enumerate(zip(grids, formats, strict=True)):
        if before != own:
            size = into * grid
            found.append(
                Term(f"convert {before} to {own}", size, size, 0, size, "", "", f"n{place}")
            )
        out = chance.choice(WIDTHS)
        after = formats[place + 1] if place + 1 < len(grids) else "p"
        number = "int8" if own == "q" else "float"
        family = f"conv {number} 9 taps, stride 1, {grid} positions"
        found.append(Term(family, into, out, 9 * grid, grid, before, after, f"n{place}"))
        if place % 3 == 2:
            size = out * grid
            found.append(Term("aten.add.Tensor", 2 * size, size, 0, 3 * size, own * 2, own, "add"))
        into, before = out, own
    found.append(Term("linear float 1 taps, stride 1, 1 positions", into, 10, 1, 1, "p", "", "fc"))
    return tuple(found)


def up(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def truth(term: Term) -> float:
    """A roofline with staircases, conversions, neighbours that matter and a cost a call."""
    if not term.work:
        return 0.004 + term.area * (4e-7 if term.family.startswith("convert") else 2e-7)
    rate = 1.5e-8 if "int8" in term.family else 4e-8
    compute = term.work * up(term.into, 4) * up(term.out, 16) * rate
    memory = term.area * (term.into + term.out) * 1.5e-6
    return (0.006 + max(compute, memory)) * (1.15 if term.before != term.after else 1.0)


def measured(
    terms: Sequence[Term], chance: random.Random, noise: float = 0.005, factor: float = 1.0
) -> float:
    total = 0.05 + sum(map(truth, terms))  # a fixed cost of every network
    return factor * total * math.exp(chance.gauss(0, noise))


def samples(count: int, seed: int = 0, **options: float) -> list[Sample]:
    chance = random.Random(seed)
    return [
        (net, measured(net, chance, **options)) for net in (network(chance) for _ in range(count))
    ]


@dataclass(frozen=True)
class Slow:
    """The same posterior by the definitions: each pair of terms, dense matrices, no factors."""

    model: LatencyModel

    def of_pair(self, a: Term, b: Term) -> float:
        length, tile, before, after, plain, variance, _, _ = self.model._constants
        if a.family != b.family:
            return 0.0
        logs = [math.log(max(size, 1)) for size in (a.into, a.out, b.into, b.out)]
        value = math.exp(-((logs[0] - logs[2]) ** 2 + (logs[1] - logs[3]) ** 2) / 2 / length**2)
        steps = sum(
            (x % t == 0) != (y % t == 0)
            for x, y in ((a.into, b.into), (a.out, b.out))
            for t in TILES
        )
        value *= (plain + math.exp(-tile * steps)) / (1 + plain)
        value /= (1 + before if a.before != b.before else 1) * (
            1 + after if a.after != b.after else 1
        )
        scales = process._scale(a) * process._scale(b) * self.model._unit**2
        return float(variance * value * scales)

    def linear(self, terms: Sequence[Term]) -> dict[str, float]:
        found: dict[str, float] = {}
        for term in terms:
            for name, amount in features(term):
                rate = float(self.model._rates[self.model._columns[name]])
                found[name] = found.get(name, 0.0) + amount * rate
        return found

    def of_networks(self, a: Sequence[Term], b: Sequence[Term]) -> float:
        left, right = self.linear(a), self.linear(b)
        shared = sum(left[name] * right.get(name, 0.0) for name in left)
        share = float(self.model._constants[6])
        return share * shared + sum(self.of_pair(x, y) for x in a for y in b)

    def predict(self, terms: Sequence[Term]) -> tuple[float, float]:
        """Return mean and variance, without noise (Rasmussen & Williams 2006, eqs. 2.23, 2.24)."""
        known = [net for net, _ in self.model.samples]
        times = np.array([ms for _, ms in self.model.samples])
        whole = np.array([[self.of_networks(a, b) for b in known] for a in known])
        whole += np.diag((self.model._constants[7] * times) ** 2)
        cross = np.array([self.of_networks(terms, b) for b in known])
        rest = times - [sum(self.linear(net).values()) for net in known]
        mean = sum(self.linear(terms).values()) + cross @ np.linalg.inv(whole) @ rest
        return float(mean), float(
            self.of_networks(terms, terms) - cross @ np.linalg.inv(whole) @ cross
        )


def test_the_posterior_is_that_of_the_definitions() -> None:
    model = LatencyModel(samples(24))
    slow, chance = Slow(model), random.Random(9)
    fresh = network(chance)
    odd = tuple(t._replace(into=t.into + 1, before="x") if t.work else t for t in network(chance))
    for terms in (model.samples[3][0], fresh, odd, fresh[:1], fresh[:1] * 3):
        found = model.predict(terms)
        mean, variance = slow.predict(terms)
        assert found.ms == pytest.approx(mean, rel=1e-6)
        bar = model._bar * math.sqrt(max(variance, 0) + (model._constants[7] * mean) ** 2)
        assert found.high_ms - found.ms == pytest.approx(bar, rel=1e-4)
        assert found.low_ms == pytest.approx(max(0.0, mean - bar), rel=1e-4, abs=1e-9)


def test_parts_stand_in_order_and_sum_to_the_prediction() -> None:
    model = LatencyModel(samples(30))
    terms = network(random.Random(5))
    found = model.predict(terms)
    assert [term for term, _ in found.parts] == list(terms)  # with the operators' names
    assert sum(ms for _, ms in found.parts) == pytest.approx(found.ms)
    assert model.parts(terms) == pytest.approx([ms for _, ms in found.parts])
    assert model.parts(terms[2:3]) == pytest.approx([found.parts[2][1]])
    assert model.families >= {term.family for term in terms}
    shuffled = random.Random(0).sample(terms, len(terms))
    assert model.predict(shuffled).ms == pytest.approx(found.ms)


def test_slopes_are_those_of_the_correlations() -> None:
    chance = random.Random(1)
    family = [t for _ in range(12) for t in network(chance) if "conv int8" in t.family]
    rows = rows_of(family, {})
    pairs = compare(rows, rows)
    weight = np.random.default_rng(0).standard_normal(pairs[0].shape)
    logs = np.log([0.7, 0.4, 0.3, 0.2, 0.6])

    def total(at: Floats) -> float:
        return float((Alike(np.exp(at))(*pairs) * weight).sum())

    wanted = approx_fprime(logs, total, 1e-7)
    alike = Alike(np.exp(logs))
    found = alike.slopes(*pairs, alike(*pairs) * weight)
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert Alike(np.exp(logs))(*pairs).max() == pytest.approx(1.0)
    assert np.linalg.eigvalsh(alike(*pairs)).min() > -1e-9


@pytest.mark.parametrize("factor", [1.0, 300.0, 1e-3])
def test_a_synthetic_device_is_learnt(factor: float) -> None:
    model = LatencyModel(samples(160, factor=factor))
    fresh = samples(80, seed=1, factor=factor)
    found = [model.predict(terms) for terms, _ in fresh]
    times = np.array([ms for _, ms in fresh])
    errors = np.array([p.ms for p in found]) / times - 1
    assert np.median(abs(errors)) < 0.02
    assert abs(errors).max() < 0.1
    assert spearmanr([p.ms for p in found], times)[0] > 0.98
    held = [p.low_ms <= ms <= p.high_ms for p, ms in zip(found, times, strict=True)]
    assert np.mean(held) >= 0.85
    assert np.mean([(p.high_ms - p.ms) / p.ms for p in found]) < 0.08  # and it is no wide one
    assert np.median(abs(model.errors)) < 0.02  # held out, of the samples themselves
    assert len(model.errors) == 160


def test_staircases_and_conversions_are_seen_in_the_parts() -> None:
    chance = random.Random(3)
    nets = [network(chance) for _ in range(300)]
    model = LatencyModel([(net, measured(net, chance, 0.002)) for net in nets])
    family = "conv float 9 taps, stride 1, 196 positions"
    base = Term(family, 48, 32, 9 * 196, 196, "f", "f")
    step = model.parts((base, base._replace(out=40), base._replace(out=48)))
    true = [truth(base._replace(out=out)) for out in (32, 40, 48)]
    assert step[1] - step[0] > 2 * (step[2] - step[1])
    assert step == pytest.approx(true, rel=0.15)
    size = 48 * 196
    small, large = model.parts(
        [Term("convert f to q", s, s, 0, s, "", "") for s in (size // 2, size)]
    )
    assert 0 < small < large


def test_the_scale_of_time_does_not_matter() -> None:
    known, fresh = samples(60), [terms for terms, _ in samples(8, seed=2)]
    base = LatencyModel(known)
    for factor in (1e-3, 1e4):
        other = LatencyModel([(terms, ms * factor) for terms, ms in known])
        for terms in fresh:
            a, b = base.predict(terms), other.predict(terms)
            assert b.ms == pytest.approx(a.ms * factor, rel=1e-3)
            assert b.high_ms == pytest.approx(a.high_ms * factor, rel=1e-3)


def test_an_unknown_family_is_named_and_nothing_is_guessed() -> None:
    model = LatencyModel(samples(30))
    strange = [Term(f"aten.{name}.default", 5, 5, 0, 10, "f", "f") for name in ("sinh", "erf")]
    found = model.predict((*network(random.Random(0)), *strange))
    assert found.unknown == ("aten.erf.default", "aten.sinh.default")
    assert math.isnan(found.ms)
    assert math.isnan(found.low_ms)
    assert math.isnan(found.high_ms)
    assert found.parts == ()
    for terms, ms in samples(4, seed=3):
        model.add((*terms, *strange), ms)
    assert {term.family for term in strange} <= model.families
    assert not model.predict(strange[:1]).unknown


def test_what_is_measured_again_draws_the_prediction_to_it() -> None:
    model = LatencyModel(samples(40))
    terms = network(random.Random(77))
    before = model.predict(terms)
    wanted = before.ms * 1.2
    for count in range(8):
        model.add(terms, wanted)
        if count < 2:
            assert model.predict(terms) == before  # it counts from the next few on
    after = model.predict(terms)
    assert abs(after.ms - wanted) < 0.25 * abs(before.ms - wanted)
    assert len(model.samples) == 48


def test_every_plan_measured_refines_the_model() -> None:
    model, more, fresh = LatencyModel(samples(20)), samples(80, seed=4), samples(40, seed=5)

    def error() -> float:
        return float(np.median([abs(model.predict(terms).ms / ms - 1) for terms, ms in fresh]))

    first = error()
    for terms, ms in more:
        model.add(terms, ms)
    assert error() < 0.5 * first


def rates_of(factor: float) -> Mapping[str, float]:
    """What a profiler might tell of the synthetic device, everything too long by a factor."""
    found: dict[str, float] = {}
    for terms, _ in samples(10, seed=6):
        for term in terms:
            rate = 1.5e-2 if "int8" in term.family else 4e-2
            found[f"{term.family}: once"] = factor * (0.006 if term.work else 0.004)
            if term.work:
                found[f"{term.family}: whole tiles"] = factor * rate
            else:
                found[f"{term.family}: elements"] = factor * 4e-3
    return found


def test_a_prior_of_profiled_rates_helps_where_samples_are_few() -> None:
    fresh = samples(60, seed=8)

    def error(prior: Mapping[str, float] | None) -> float:
        model = LatencyModel(samples(14), prior)
        return float(np.mean([abs(model.predict(terms).ms / ms - 1) for terms, ms in fresh]))

    assert error(rates_of(1.0)) < 0.8 * error(None)
    assert error(rates_of(3.0)) == pytest.approx(error(rates_of(1.0)), rel=0.05)  # ratios count
    assert error({"no such feature": 1.0}) == pytest.approx(error(None))


def test_too_few_samples_and_latencies_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="needs 12 samples, not 11"):
        LatencyModel(samples(11))
    assert LatencyModel(samples(12)).predict(network(random.Random(0))).ms > 0
    for ms in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="must be above 0 and finite"):
            LatencyModel([*samples(20), (network(random.Random(0)), ms)])
    model = LatencyModel(samples(12))
    with pytest.raises(ValueError, match="not nan"):
        model.add(network(random.Random(0)), math.nan)
    assert len(model.samples) == 12


def test_large_families_are_worked_on_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = LatencyModel(samples(50))
    monkeypatch.setattr(latency, "_BLOCK", 40)
    blocks = LatencyModel(samples(50))
    monkeypatch.setattr(latency, "_SEARCHED_PAIRS", 500)
    fewer = LatencyModel(samples(50))
    for terms, ms in samples(10, seed=2):
        wanted = whole.predict(terms)
        assert blocks.predict(terms).ms == pytest.approx(wanted.ms)
        assert blocks.predict(terms).high_ms == pytest.approx(wanted.high_ms)
        assert fewer.predict(terms).ms == pytest.approx(ms, rel=0.1)


def test_results_repeat() -> None:
    models = [LatencyModel(samples(50), rates_of(1.0)) for _ in range(2)]
    for terms, ms in samples(6, seed=2):
        first, second = (model.predict(terms) for model in models)
        assert first == second
        for model in models:
            model.add(terms, ms)
    assert np.array_equal(models[0].errors, models[1].errors)


LAYER = Term("conv float 9 taps, stride 1, 49 positions", 16, 32, 441, 49, "p", "")


def varied(count: int, term: Term = LAYER) -> list[tuple[Term, ...]]:
    chance = random.Random(0)
    return [
        (term._replace(into=chance.choice(WIDTHS), out=chance.choice(WIDTHS)),)
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "given",
    [
        pytest.param([((LAYER,), 1.0)] * 40, id="identical"),
        pytest.param([((LAYER,), 1e-4)] * 12, id="identical and short"),
        pytest.param([((LAYER,), 1.0 + 0.1 * n) for n in range(30)], id="one plan, many times"),
        pytest.param([(t, 0.7) for t in varied(40)], id="constant times"),
        pytest.param([(t, truth(t[0])) for t in varied(40)], id="one layer"),
        pytest.param(
            [(t, 10.0 ** random.Random(n).uniform(-5, 4)) for n, t in enumerate(varied(60))],
            id="times of many orders",
        ),
        pytest.param(
            [(t * 10 ** (n % 5), 1e-3 * 10 ** (n % 5)) for n, t in enumerate(varied(40))],
            id="sizes of many orders",
        ),
        pytest.param(
            [(t, 1.0) for t in varied(30, LAYER._replace(work=0, area=0))], id="zero-size features"
        ),
        pytest.param(
            [
                ((Term("convert p to q", 0, 0, 0, 0, "", ""), *t), 1.0 + n)
                for n, t in enumerate(varied(30))
            ],
            id="empty tensors",
        ),
        pytest.param([((), 1.0 + n) for n in range(20)], id="no operators"),
        pytest.param(
            [(t, truth(t[0])) for t in varied(30, LAYER._replace(work=10**12, area=10**9))],
            id="huge",
        ),
    ],
)
def test_unusual_samples_make_a_model_without_warnings(given: list[Sample]) -> None:
    model = LatencyModel(given)
    for terms, ms in given[:3]:
        found = model.predict(terms)
        assert 0 <= found.low_ms <= found.high_ms < math.inf
        assert math.isfinite(found.ms)
        if len({ms for _, ms in given}) == 1:
            assert found.ms == pytest.approx(ms, rel=0.05)
    assert model.predict(()).ms == pytest.approx(0.0, abs=1e-12)
    if LAYER.family in model.families:
        for into, out, work in ((1, 1, 9), (16, 16, 0), (0, 16, 441), (16, 10**6, 441)):
            assert math.isfinite(model.predict((LAYER._replace(into=into, out=out, work=work),)).ms)
    for _ in range(4):
        model.add(*given[0])
    assert math.isfinite(model.predict(given[0][0]).ms)


def test_a_covariance_that_rounding_spoilt_has_a_factor() -> None:
    vector = np.linspace(1, 2, 30)
    flat = np.outer(vector, vector)
    lower = cholesky_of(flat)
    assert lower @ lower.T == pytest.approx(flat, rel=1e-6)
    exact = flat + np.eye(30)
    assert cholesky_of(exact) == pytest.approx(np.linalg.cholesky(exact), rel=1e-12)
    with pytest.raises(ValueError, match="must be finite"):
        cholesky_of(-exact)
