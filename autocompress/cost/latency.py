"""The latency model fitted to a runtime on a device: what plans were measured to take.

A network's time is the sum of its terms' times (:mod:`autocompress.cost.terms`), and each family
of terms is a function of sizes and formats that is learnt from whole networks' times: multiples of
a few features, as for a roofline, and beside them a Gaussian process over sizes, whether they fill
the kernels' tiles, and the formats of the neighbours. Sums of Gaussian processes are one again
(Duvenaud, Nickisch & Rasmussen 2011, eq. 5), so that every measured network tells of all its
operators, and the prediction comes with its error bar and with each operator's part.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize, nnls

from autocompress.cost.terms import TILES, Term, features

__all__ = ["LatencyModel", "Prediction"]

Floats = NDArray[np.float64]

_LEAST = 12  # samples before a model is one
_SEARCHED = 160  # samples that the process's constants are chosen on
_FOLDS = 5
# length in log sizes, cost of another tile, of other formats before and after, share without
# tiles, variance of the process and of the features' part, noise
_START = np.log([0.8, 0.5, 0.3, 0.3, 0.5, 0.05, 0.01, 0.012])
_RANGE = np.log([6, 50, 50, 50, 20, 50, 50, 2.5])


@dataclass(frozen=True)
class Prediction:
    """A predicted latency in milliseconds, with the ends of its 95 % error bar.

    ``parts``: milliseconds by term, in order. ``unknown``: families of terms that the model has
    never seen; with any, the figures are NaN: an operator is named, not guessed.
    """

    ms: float
    low_ms: float
    high_ms: float
    parts: tuple[tuple[Term, float], ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(eq=False)
class _Family:
    """The terms of one family: their sizes [n, 2] in logs, tiles [n, 6], formats and scales."""

    index: dict[Term, int] = field(default_factory=dict)

    def place(self, term: Term) -> int:
        return self.index.setdefault(term, len(self.index))

    def arrays(self, terms: Iterable[Term] | None = None) -> tuple[Any, ...]:
        listed = list(self.index if terms is None else terms)
        sizes = np.array([(max(t.into, 1), max(t.out, 1)) for t in listed], dtype=np.float64)
        tiles = np.array(
            [[size % tile == 0 for size in (t.into, t.out) for tile in TILES] for t in listed]
        )
        before = np.array([t.before for t in listed])
        after = np.array([t.after for t in listed])
        return np.log(sizes), tiles, before, after, np.array([_scale(t) for t in listed])


def _scale(term: Term) -> float:
    """Return the order of a term's time, in arbitrary units: what it may deviate by."""
    macs = term.work * term.into * term.out
    moved = term.area * (term.into + term.out) if term.work else term.area
    return macs * 5e-8 + moved * 2e-7 + 2e-3


def _covariance(a: tuple[Any, ...], b: tuple[Any, ...], constants: Floats) -> Floats:
    """Return the covariance of two lists of terms of one family."""
    length, tile, before, after, plain = constants[:5]
    distance = ((a[0][:, None, :] - b[0][None, :, :]) ** 2).sum(-1)
    steps = (a[1][:, None, :] != b[1][None, :, :]).sum(-1)
    alike: Floats = np.exp(-distance / (2 * length**2))
    alike *= (plain + np.exp(-tile * steps)) / (1 + plain)
    alike *= np.where(a[2][:, None] != b[2][None, :], 1 / (1 + before), 1.0)
    alike *= np.where(a[3][:, None] != b[3][None, :], 1 / (1 + after), 1.0)
    alike *= a[4][:, None] * b[4][None, :]
    return alike


class LatencyModel:
    """Predicts milliseconds from terms, after networks that were measured.

    ``samples``: pairs of a network's terms and its latency in milliseconds. ``prior``: for features
    by name, milliseconds a unit from the runtime's own profile; the fit is drawn to their ratios,
    not their size, since profiling slows what it measures. ``errors`` are the relative errors of
    samples that were held out in turn. Raises ValueError for too few samples.
    """

    errors: Floats

    def __init__(
        self,
        samples: Sequence[tuple[Sequence[Term], float]],
        prior: Mapping[str, float] | None = None,
    ) -> None:
        self.samples = [(tuple(t._replace(op="") for t in terms), ms) for terms, ms in samples]
        self.prior = dict(prior or {})
        self._waiting = 0
        self._constants: Floats | None = None
        self._fit()

    def add(self, terms: Sequence[Term], ms: float) -> None:
        """Take in one more measured network; it counts from the next few on."""
        self.samples.append((tuple(t._replace(op="") for t in terms), ms))
        self._waiting += 1
        if self._waiting >= max(4, len(self.samples) // 50):
            self._fit()

    @property
    def families(self) -> frozenset[str]:
        """The families of terms that the model has seen."""
        return frozenset(self._families)

    def _fit(self) -> None:
        if len(self.samples) < _LEAST:
            raise ValueError(f"A latency model needs {_LEAST} samples, not {len(self.samples)}.")
        self._waiting = 0
        self._families: dict[str, _Family] = {}
        for terms, _ in self.samples:
            for term in terms:
                self._families.setdefault(term.family, _Family()).place(term)
        count = len(self.samples)
        self._counts = {n: np.zeros((count, len(f.index))) for n, f in self._families.items()}
        for row, (terms, _) in enumerate(self.samples):
            for term in terms:
                self._counts[term.family][row, self._families[term.family].index[term]] += 1
        self._arrays = {name: family.arrays() for name, family in self._families.items()}
        self._times = np.array([ms for _, ms in self.samples])
        names = sorted(
            {n for f in self._families.values() for t in f.index for n, _ in features(t)}
        )
        self._columns = {name: place for place, name in enumerate(names)}
        self._design = np.array([self._row(terms) for terms, _ in self.samples])
        if self._constants is None:
            self._constants = self._choose()
        everyone = np.arange(count)
        self._rates, self._factor, self._weights = self._solve(everyone)
        self._fold_weights()
        self._bar = self._held_out()

    def _row(self, terms: Iterable[Term]) -> Floats:
        row = np.zeros(len(self._columns))
        for term in terms:
            for name, amount in features(term):
                row[self._columns[name]] += amount
        return row

    def _linear(self, rows: NDArray[np.int64]) -> Floats:
        """Return milliseconds a unit of every feature, least squares of relative errors, ≥ 0."""
        relative = self._design[rows] / self._times[rows, None]
        size = np.sqrt((relative**2).sum(0)) + 1e-12
        drawn = np.zeros(len(size))
        if self.prior:
            guess = np.array([self.prior.get(name, 0.0) for name in self._columns])
            told = relative @ guess
            if told.any():
                drawn = guess * (told.sum() / (told @ told)) * size
        strength = 0.1
        system = np.vstack([relative / size, strength * np.eye(len(size))])
        wanted = np.concatenate([np.ones(len(rows)), strength * drawn])
        rates: Floats = nnls(system, wanted, maxiter=50 * len(size))[0] / size
        return rates

    def _process(self, constants: Floats, rows: NDArray[np.int64]) -> Floats:
        """Return the covariance of networks' times that the terms' processes give."""
        total = np.zeros((len(rows), len(rows)))
        for name, counts in self._counts.items():
            used = counts[rows]
            seen = np.flatnonzero(used.any(0))
            arrays = tuple(part[seen] for part in self._arrays[name])
            total += used[:, seen] @ _covariance(arrays, arrays, constants) @ used[:, seen].T
        return total

    def _whole(self, constants: Floats, rows: NDArray[np.int64], rates: Floats) -> Floats:
        linear = self._design[rows] * rates
        noise = np.diag((constants[7] * self._times[rows]) ** 2)
        whole: Floats = constants[6] * (linear @ linear.T) + noise
        whole += constants[5] * self._process(constants, rows)
        return whole

    def _choose(self) -> Floats:
        """Return the process's constants of highest marginal likelihood."""
        rows = np.linspace(0, len(self._times) - 1, min(_SEARCHED, len(self._times))).astype(int)
        rates = self._linear(rows)
        rest = self._times[rows] - self._design[rows] @ rates

        def loss(logs: Floats) -> float:
            try:
                lower = cholesky(self._whole(np.exp(logs), rows, rates), lower=True)
            except np.linalg.LinAlgError:
                return 1e9
            white = solve_triangular(lower, rest, lower=True)
            return float(0.5 * white @ white + np.log(lower.diagonal()).sum())

        bounds = list(zip(_START - _RANGE, _START + _RANGE, strict=True))
        best = minimize(loss, _START, method="L-BFGS-B", bounds=bounds, options={"maxiter": 12})
        constants: Floats = np.exp(best.x)
        return constants

    def _solve(self, rows: NDArray[np.int64]) -> tuple[Floats, Any, Floats]:
        assert self._constants is not None
        rates = self._linear(rows)
        factor = cho_factor(self._whole(self._constants, rows, rates), lower=True)
        rest = self._times[rows] - self._design[rows] @ rates
        return rates, factor, cho_solve(factor, rest)

    def _fold_weights(self) -> None:
        """Prepare what every prediction multiplies by."""
        assert self._constants is not None
        self._pulls = {
            name: self._constants[5] * (counts.T @ self._weights)
            for name, counts in self._counts.items()
        }
        linear = self._design * self._rates
        self._slope = self._rates * (1 + self._constants[6] * (linear.T @ self._weights))

    def _held_out(self) -> float:
        """Return the multiple of the standard deviation that 95 % of held-out errors stay in."""
        assert self._constants is not None
        count = len(self._times)
        whole = self._whole(self._constants, np.arange(count), self._rates)
        misses, relative = [], []
        for fold in range(_FOLDS):
            out = np.arange(fold, count, _FOLDS)
            kept = np.setdiff1d(np.arange(count), out)
            rates = self._linear(kept)
            factor = cho_factor(whole[np.ix_(kept, kept)], lower=True)
            cross = whole[np.ix_(out, kept)]
            rest = self._times[kept] - self._design[kept] @ rates
            found = self._design[out] @ rates + cross @ cho_solve(factor, rest)
            spread = whole.diagonal()[out] - (cross * cho_solve(factor, cross.T).T).sum(1)
            misses.append((found - self._times[out]) / np.sqrt(np.maximum(spread, 1e-18)))
            relative.append(found / self._times[out] - 1)
        self.errors = np.concatenate(relative)
        return max(1.0, float(np.quantile(np.abs(np.concatenate(misses)), 0.95)))

    def parts(self, terms: Sequence[Term]) -> Floats:
        """Return the expected milliseconds of each term; its family must be known."""
        assert self._constants is not None
        found = np.zeros(len(terms))
        for place, term in enumerate(terms):
            arrays = self._families[term.family].arrays([term])
            shared = _covariance(arrays, self._arrays[term.family], self._constants)
            found[place] = float(shared[0] @ self._pulls[term.family])
            for name, amount in features(term):
                found[place] += amount * self._slope[self._columns[name]]
        return found

    def predict(self, terms: Sequence[Term]) -> Prediction:
        """Return the latency of a network of these terms."""
        unknown = sorted({t.family for t in terms} - set(self._families))
        if unknown:
            return Prediction(math.nan, math.nan, math.nan, unknown=tuple(unknown))
        assert self._constants is not None
        groups: dict[str, list[int]] = {}
        for place, term in enumerate(terms):
            groups.setdefault(term.family, []).append(place)
        parts = np.zeros(len(terms))
        cross = np.zeros(len(self._times))
        own = 0.0
        variance = self._constants[5]
        for name, places in groups.items():
            arrays = self._families[name].arrays(terms[place] for place in places)
            shared = _covariance(arrays, self._arrays[name], self._constants)
            parts[places] = shared @ self._pulls[name]
            cross += variance * (self._counts[name] @ shared.sum(0))
            own += variance * float(_covariance(arrays, arrays, self._constants).sum())
        row = self._row(terms)
        for place, term in enumerate(terms):
            parts[place] += sum(
                amount * self._slope[self._columns[name]] for name, amount in features(term)
            )
        linear = row * self._rates
        cross += self._constants[6] * ((self._design * self._rates) @ linear)
        own += self._constants[6] * float(linear @ linear)
        ms = float(parts.sum())
        spread = own - float(cross @ cho_solve(self._factor, cross))
        noise = (self._constants[7] * ms) ** 2
        bar = self._bar * float(np.sqrt(max(spread, 0.0) + noise))
        listed = tuple(zip(terms, parts.tolist(), strict=True))
        return Prediction(ms, max(0.0, ms - bar), ms + bar, listed)
