"""The latency model fitted to a runtime on a device: what plans were measured to take.

A network's time is the sum of its terms' times (:mod:`autocompress.cost.latency_terms`), and each
family of terms is a function of sizes and formats that is learnt from whole networks' times:
multiples of a few features, as for a roofline, and beside them a Gaussian process over sizes,
whether they fill the kernels' tiles, and the formats of the neighbours. Sums of Gaussian processes
are one again (Duvenaud, Nickisch & Rasmussen 2011, eq. 5), so that every measured network tells of
all its operators, and the prediction comes with its error bar and with each operator's part.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize, nnls
from scipy.sparse import csr_array

from autocompress.cost.gaussian_process import (
    Alike,
    Floats,
    Ints,
    Rows,
    cholesky_of,
    compare,
    rows_of,
)
from autocompress.cost.latency_terms import Term, features

__all__ = ["LatencyModel", "Prediction"]

_LEAST = 12  # samples before a model is one
_SEARCHED = 300  # samples that the process's constants are chosen on, fewer where these have
_SEARCHED_PAIRS = 2**23  # more pairs of different terms
_BLOCK = 2**21  # pairs that are compared at once
_FOLDS = 5
# length in log sizes, cost of another tile, of other formats before and after, share without
# tiles, variance of the process and of the features' part, noise
_START = np.log([0.8, 0.5, 0.3, 0.3, 0.5, 0.2, 0.01, 0.012])
_RANGE = np.log([20, 100, 100, 100, 50, 100, 500, 3])


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


class LatencyModel:
    """Predicts milliseconds from terms, after networks that were measured.

    ``samples``: pairs of a network's terms and its latency in milliseconds. ``prior``: for features
    by name, milliseconds a unit from the runtime's own profile; the fit is drawn to their ratios,
    not their size, since profiling slows what it measures. ``errors`` are the relative errors of
    samples that were held out in turn. Raises ValueError for too few samples, and for a latency
    that is not above 0.
    """

    errors: Floats

    def __init__(
        self,
        samples: Sequence[tuple[Sequence[Term], float]],
        prior: Mapping[str, float] | None = None,
    ) -> None:
        if len(samples) < _LEAST:
            raise ValueError(f"A latency model needs {_LEAST} samples, not {len(samples)}.")
        self.samples = [_sample(terms, ms) for terms, ms in samples]
        self.prior = dict(prior or {})
        self._waiting = 0
        self._constants = np.exp(_START)
        self._chosen_on = 0  # as many samples
        self._fit()

    def add(self, terms: Sequence[Term], ms: float) -> None:
        """Take in one more measured network; it counts from the next few on."""
        self.samples.append(_sample(terms, ms))
        self._waiting += 1
        if self._waiting >= max(4, len(self.samples) // 50):
            self._fit()

    @property
    def families(self) -> frozenset[str]:
        """The families of terms that the model has seen."""
        return frozenset(self._families)

    def _fit(self) -> None:
        self._waiting = 0
        self._index_terms()
        self._times = np.array([ms for _, ms in self.samples])
        orders = np.maximum(self._counts @ self._rows.scale, 1e-9)
        self._unit = float(np.median(self._times / orders))
        if len(self._times) >= 1.5 * self._chosen_on:
            self._constants, self._chosen_on = self._choose(), len(self._times)
        everyone = np.arange(len(self._times))
        self._rates = self._linear(everyone)
        whole = self._whole()
        self._lower = cholesky_of(whole)
        weights = cho_solve((self._lower, True), self._times - self._design @ self._rates)
        # what every prediction multiplies by
        variance, share = self._constants[5] * self._unit**2, self._constants[6]
        self._pulls = variance * (self._counts.T @ weights) * self._rows.scale
        self._slope = self._rates * (1 + share * ((self._design * self._rates).T @ weights))
        self._bar = self._held_out(whole)

    def _index_terms(self) -> None:
        """Number the different terms, those of one family in a row, and count them by sample."""
        families: dict[str, dict[Term, None]] = {}
        for terms, _ in self.samples:
            for term in terms:
                families.setdefault(term.family, {})[term] = None
        distinct = [term for found in families.values() for term in found]
        self._places = {term: place for place, term in enumerate(distinct)}
        self._families: dict[str, slice] = {}
        for name, found in families.items():
            start = self._places[next(iter(found))]
            self._families[name] = slice(start, start + len(found))
        self._formats: dict[str, int] = {}
        self._rows = rows_of(distinct, self._formats)
        places = [self._places[term] for terms, _ in self.samples for term in terms]
        ends = np.cumsum([0, *(len(terms) for terms, _ in self.samples)])
        shape = (len(self.samples), len(distinct))
        self._counts = csr_array((np.ones(len(places)), places, ends), shape=shape)
        self._counts.sum_duplicates()
        names = sorted({name for term in distinct for name, _ in features(term)})
        self._columns = {name: place for place, name in enumerate(names)}
        self._amounts = self._amounts_of(distinct)
        self._design: Floats = (self._counts @ self._amounts).toarray()

    def _amounts_of(self, terms: Sequence[Term]) -> Any:
        """Return the features of terms, sparse [terms, features]; those that no sample has: 0."""
        values, columns, ends = [], [], [0]
        for term in terms:
            for name, amount in features(term):
                if name in self._columns:
                    values.append(amount)
                    columns.append(self._columns[name])
            ends.append(len(values))
        return csr_array((values, columns, ends), shape=(len(terms), len(self._columns)))

    def _linear(self, rows: Ints) -> Floats:
        """Return milliseconds a unit of every feature, least squares of relative errors, ≥ 0."""
        relative = self._design[rows] / self._times[rows, None]
        size: Floats = np.sqrt((relative**2).sum(0)) + 1e-12
        if not len(size):  # networks of views alone
            return size
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

    def _by_family(self, rows: Ints) -> Iterator[tuple[Any, Rows]]:
        """Yield how often samples have a family's terms, times the terms' scales, and the terms.

        The former are sparse [samples, terms].
        """
        counts = self._counts[rows].tocsc()
        for place in self._families.values():
            used = np.diff(counts.indptr[place.start : place.stop + 1]) > 0
            seen = place.start + np.flatnonzero(used)
            terms = self._rows.take(seen)
            yield (counts[:, seen] * terms.scale).tocsr(), terms

    def _whole(self) -> Floats:
        """Return the covariance of the samples' times."""
        alike = Alike(self._constants[:5])
        count = len(self._times)
        process = np.zeros((count, count))
        for used, terms in self._by_family(np.arange(count)):
            step = max(1, _BLOCK // len(terms.into))
            for start in range(0, len(terms.into), step):
                block = slice(start, start + step)
                shared = alike(*compare(terms, terms.take(block)))
                process += used[:, block] @ (used @ shared).T
        variance, share, noise = self._constants[5:]
        linear = self._design * self._rates
        whole: Floats = variance * self._unit**2 * process + share * (linear @ linear.T)
        whole[np.diag_indices(count)] += (noise * self._times) ** 2
        return whole

    def _choose(self) -> Floats:
        """Return the process's constants of highest marginal likelihood."""
        count = min(_SEARCHED, len(self._times))
        while True:
            rows = np.linspace(0, len(self._times) - 1, count).astype(np.intp)
            families = list(self._by_family(rows))
            if count <= 40 or sum(len(t.into) ** 2 for _, t in families) <= _SEARCHED_PAIRS:
                break
            count //= 2
        compared = [(used, used.T.tocsr(), *compare(t, t)) for used, t in families]
        times = self._times[rows] / self._unit
        linear = self._design[rows] * self._linear(rows) / self._unit
        rest = times - linear.sum(1)

        def loss(logs: Floats) -> tuple[float, Floats]:
            """Return minus the log of the likelihood, and its slopes (Rasmussen 2006, eq. 5.9)."""
            constants = np.exp(logs)
            variance, share, noise = constants[5:]
            alike = Alike(constants[:5])
            shared = [alike(distance, differ) for _, _, distance, differ in compared]
            process = np.zeros((count, count))
            for (used, _, _, _), found in zip(compared, shared, strict=True):
                process += used @ (used @ found).T
            whole = variance * process + share * (linear @ linear.T)
            whole[np.diag_indices(count)] += (noise * times) ** 2
            lower = cholesky_of(whole)
            weights = cho_solve((lower, True), rest)
            pull = (cho_solve((lower, True), np.eye(count)) - np.outer(weights, weights)) / 2
            slopes = np.zeros(len(constants))
            for (_, back, distance, differ), found in zip(compared, shared, strict=True):
                found *= back @ (back @ pull).T
                slopes[:5] += variance * alike.slopes(distance, differ, found)
            slopes[5] = variance * np.vdot(pull, process)
            slopes[6] = share * np.vdot(pull @ linear, linear)
            slopes[7] = 2 * noise**2 * (pull.diagonal() @ times**2)
            return float(0.5 * rest @ weights + np.log(lower.diagonal()).sum()), slopes

        bounds = list(zip(_START - _RANGE, _START + _RANGE, strict=True))
        best = minimize(
            loss, _START, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40}
        )
        constants: Floats = np.exp(best.x)
        return constants

    def _held_out(self, whole: Floats) -> float:
        """Return the multiple of the standard deviation that 95 % of held-out errors stay in."""
        count = len(self._times)
        misses, relative = [], []
        for fold in range(_FOLDS):
            out = np.arange(fold, count, _FOLDS)
            kept = np.setdiff1d(np.arange(count), out)
            rates = self._linear(kept)
            lower = cholesky_of(whole[np.ix_(kept, kept)])
            cross = solve_triangular(lower, whole[np.ix_(kept, out)], lower=True)
            rest = self._times[kept] - self._design[kept] @ rates
            found = self._design[out] @ rates + solve_triangular(lower, rest, lower=True) @ cross
            spread = whole.diagonal()[out] - (cross**2).sum(0)
            misses.append((found - self._times[out]) / np.sqrt(np.maximum(spread, 1e-18)))
            relative.append(found / self._times[out] - 1)
        self.errors = np.concatenate(relative)
        return max(1.0, float(np.quantile(np.abs(np.concatenate(misses)), 0.95)))

    def parts(self, terms: Sequence[Term]) -> Floats:
        """Return the expected milliseconds of each term; its family must be known."""
        return self._expect(terms)[0]

    def _expect(self, terms: Sequence[Term]) -> tuple[Floats, Floats, Floats, float]:
        """Return what is expected of each term, and what the error of their sum depends on.

        That is the sum's features, and the covariance of its process with every known term and
        with itself.
        """
        alike = Alike(self._constants[:5])
        groups: dict[str, list[int]] = {}
        for place, term in enumerate(terms):
            groups.setdefault(term.family, []).append(place)
        order = [place for found in groups.values() for place in found]
        rows, amounts = self._find([terms[place]._replace(op="") for place in order])
        parts: Floats = amounts @ self._slope
        cross = np.zeros(len(self._places))
        own, stop = 0.0, 0
        for name, found in groups.items():
            here, known = slice(stop, stop + len(found)), self._families[name]
            some, others, stop = rows.take(here), self._rows.take(known), here.stop
            shared = alike(*compare(some, others))
            parts[here] += some.scale * (shared @ self._pulls[known])
            cross[known] = (some.scale @ shared) * others.scale
            own += float(some.scale @ alike(*compare(some, some)) @ some.scale)
        in_order = np.empty_like(parts)
        in_order[order] = parts
        return in_order, np.asarray(amounts.sum(0)), cross, own

    def _find(self, terms: Sequence[Term]) -> tuple[Rows, Any]:
        """Return terms as numbers, and their features: those of known ones are at hand."""
        places = np.array([self._places.get(term, -1) for term in terms], dtype=np.intp)
        new = np.flatnonzero(places < 0)
        if len(new) == len(places):
            return rows_of(terms, self._formats), self._amounts_of(terms)
        rows, amounts = self._rows.take(places), self._amounts[places]
        if len(new):
            unseen = [terms[place] for place in new.tolist()]
            for part, fresh in zip(rows, rows_of(unseen, self._formats), strict=True):
                part[new] = fresh
            amounts = amounts.toarray()
            amounts[new] = self._amounts_of(unseen).toarray()
        return rows, amounts

    def predict(self, terms: Sequence[Term]) -> Prediction:
        """Return the latency of a network of these terms."""
        unknown = sorted({term.family for term in terms} - set(self._families))
        if unknown:
            return Prediction(math.nan, math.nan, math.nan, unknown=tuple(unknown))
        variance, share, noise = self._constants[5:]
        variance *= self._unit**2
        parts, amounts, between, own = self._expect(terms)
        linear = amounts * self._rates
        cross = variance * (self._counts @ between)
        cross += share * (self._design @ (self._rates * linear))
        white = solve_triangular(self._lower, cross, lower=True)
        spread = variance * own + share * float(linear @ linear) - float(white @ white)
        ms = float(parts.sum())
        bar = self._bar * math.sqrt(max(spread, 0.0) + (noise * ms) ** 2)
        listed = tuple(zip(terms, parts.tolist(), strict=True))
        return Prediction(ms, max(0.0, ms - bar), ms + bar, listed)


def _sample(terms: Sequence[Term], ms: float) -> tuple[tuple[Term, ...], float]:
    if not 0 < ms < math.inf:
        raise ValueError(f"A latency must be above 0 and finite, not {ms}.")
    return tuple(term._replace(op="") for term in terms), float(ms)
