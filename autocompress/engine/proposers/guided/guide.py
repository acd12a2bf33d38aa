"""The guide: which plan to evaluate next, from effects, costs and what has been measured."""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from autocompress.core.pareto import Volume, floor_of, undominated
from autocompress.core.plan import Plan
from autocompress.core.space import SearchSpace
from autocompress.engine.proposers.guided.allocation import Table, solve, sweep, totals
from autocompress.engine.proposers.guided.loss_model import LossModel, Weighing
from autocompress.engine.proposers.guided.sensitivity import Profile
from autocompress.engine.proposers.guided.sensitivity_cache import SensitivityCache

__all__ = ["Guide", "Observed"]

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

_PRICES = 16  # levels of the prices of one draw
_DRAWS = 4  # of coefficients for a proposal
_MUTANTS = 48  # neighbours of the front among the candidates
_TRIED = 4  # candidates that the cache is asked about
_REACH = 0.35  # in log cost: as far as a plan tells of others
_NOISE = 1e-7  # what float32 cannot tell from no effect
_DEEP = math.log(1000)  # as far below the highest cost as there is anything to look for
_ESTIMATED = 24  # candidates whose costs are estimated until enough are within the limits
_ASKED = 24  # measured plans whose effect the cache is asked for at once
_MOST = 256  # known plans that the loss model is fitted to, those of most weight
_STALE = 5  # rounds of an allocation that found nothing better by more than
_BETTER = 0.98
_SECONDS = 2.0  # of integer programming in a round
_EXPLORE = 8  # every so many proposals one that the model has no say in


@dataclass(frozen=True)
class Observed:
    """A measured plan: its accuracy, its costs in the order of the guide's, its effect if known."""

    plan: Plan
    accuracy: float
    costs: tuple[float, ...]
    effect: float = math.nan


class Guide:
    """Proposes plans of a space.

    ``tables``: the cost tables, of the objectives in order and then of what else is limited;
    ``estimate``: a plan's costs in that order, exactly; ``limits`` in that order, infinite for
    none; ``slack``: how far above its limit tables may say that a cost is. ``outlook``: the share
    of the hypervolume that was still to be gained, by the model, at the last proposal; NaN before.
    """

    def __init__(
        self,
        space: SearchSpace,
        cache: SensitivityCache,
        known: Profile,
        groups: Mapping[str, str],
        tables: Sequence[Sequence[Table]],
        estimate: Callable[[Plan], tuple[float, ...]],
        *,
        objectives: int,
        limits: Sequence[float],
        slack: Sequence[float] = (),
    ) -> None:
        self.space, self.cache, self.estimate = space, cache, estimate
        self.losses = LossModel(known.effects, groups, known.base, _neighbours(known, tables))
        self.costs, self.objectives, self.limits = tables, objectives, np.array(limits)
        self._slack = np.array(slack or [1.02] * len(limits))
        self.sizes = {name: len(space.knobs[name]) for name in self.losses.knobs}
        self.outlook = math.nan
        self._alone = self.losses.tables()
        self._whole = np.array([size - 1 for size in self.sizes.values()])
        self._known: dict[Plan, Places | None] = {}
        # what the cache knows and is no single value
        self._seen: Places = np.empty((0, len(self._whole)), dtype=np.intp)
        self._seen_costs: Floats = np.empty((0, len(tables)))
        self._effects: Floats = np.empty(0)
        self._read = 0
        cheapest = self._table(sweep([], list(tables), np.eye(len(tables))))
        self._high = np.minimum(_logs(self._totals(self._whole[None])[0]), np.log(self.limits))
        self._low = np.maximum(_logs(self._totals(cheapest).min(0)), self._high - _DEEP)
        self._high = np.maximum(self._high, self._low + 1e-6)

    def _plan(self, places: Places) -> Plan:
        values = zip(self.sizes, places.tolist(), strict=True)
        return self.space.plan({name: self.space.knobs[name][place] for name, place in values})

    def _places_of(self, plan: Plan) -> Places | None:
        """Return the places of a plan's values, None if it is not of the space."""
        if plan not in self._known:
            places = None
            if self.space.contains(plan):
                values = self.space.choices(plan)
                places = np.array(
                    [self.space.knobs[name].index(values[name]) for name in self.sizes]
                )
            self._known[plan] = places
        return self._known[plan]

    def _table(self, chosen: Sequence[Mapping[str, int]]) -> Places:
        """Return choices as places, [choices, knobs]; what no table depends on stays as it is."""
        full = dict(zip(self.sizes, self._whole.tolist(), strict=True))
        return np.array([[one.get(name, full[name]) for name in self.sizes] for one in chosen])

    def _totals(self, places: Places) -> Floats:
        """Return what the tables say that choices cost, [choices, costs]."""
        names = list(self.sizes)
        return np.stack([totals(tables, names, places) for tables in self.costs], axis=1)

    def propose(
        self,
        observed: Sequence[Observed],
        generator: np.random.Generator,
        tried: Collection[Plan] = (),
        running: Collection[Plan] = (),
    ) -> Plan:
        """Return the plan to evaluate next: none that was observed, or tried without success.

        Nor one that is ``running``: of those it expects what its model says, so that what it
        proposes beside them is something else. The more there are, the fewer candidates the cache
        is asked about: the workers must not wait for it. Where all that it can think of are known,
        one at random.
        """
        number = len(observed) + len(running)
        every = (self._places_of(p) for p in (*(o.plan for o in observed), *tried, *running))
        known = {places.tobytes() for places in every if places is not None}
        link = self._link(observed)
        weighing = self.weigh(self._level(number, generator))
        pool = self._candidates(weighing, observed, generator)
        places = pool[[row.tobytes() not in known for row in pool]]
        if not len(places):
            return self._plan(generator.integers(self._whole + 1))
        effects = self.losses.base + self.losses.rows(places) @ weighing.means
        expected, costs = link(np.maximum(effects, _NOISE)), self._totals(places)
        volume, held = self._held(observed)
        held = np.maximum(held, self._expected(running, volume, link, weighing))
        gain = self._gains(volume, held, expected, costs)
        best_yet = max((o.accuracy for o in observed), default=math.inf)
        self._outlook(volume, held, np.minimum(expected, best_yet), costs)
        if number % _EXPLORE == _EXPLORE - 1 or gain.max() <= 0:
            return self._plan(places[generator.integers(len(places))])
        count = _TRIED // (1 + len(running))
        best: dict[Plan, Floats] = {}
        spare: dict[Plan, Floats] = {}
        for place in np.argsort(-gain)[:_ESTIMATED]:
            plan = self._plan(places[place])
            exact = np.nan_to_num(np.array(self.estimate(plan)), nan=1e300)
            (best if (exact <= self.limits).all() else spare)[plan] = exact
            if len(best) == max(count, 1):
                break
        chosen = best or dict(itertools.islice(spare.items(), max(count, 1)))
        if count < 2:
            return next(iter(chosen))
        answers = link(np.array([max(self.cache(plan), _NOISE) for plan in chosen]))
        gain = self._gains(volume, held, answers, np.stack(list(chosen.values())))
        return list(chosen)[int(gain.argmax())]

    def _expected(
        self,
        running: Collection[Plan],
        volume: Volume,
        link: Callable[[Floats], Floats],
        weighing: Weighing,
    ) -> Floats:
        """Return the best accuracy at the volume's points of what is running, by the model."""
        rows = [row for plan in running if (row := self._places_of(plan)) is not None]
        places = np.array(rows, dtype=np.intp).reshape(-1, len(self._whole))
        effects = self.losses.base + self.losses.rows(places) @ weighing.means
        costs = self._totals(places) if rows else np.empty((0, len(self.costs)))
        fit = (costs <= self.limits).all(1)
        accuracies = link(np.maximum(effects, _NOISE))[fit]
        return volume.best(accuracies.tolist(), _logs(costs[fit, : self.objectives]))

    def allocate(self, limits: Sequence[float], generator: np.random.Generator) -> Plan | None:
        """Return the plan of least effect found whose costs are within limits, None if none is.

        ``limits``: of all costs in order. What the model thinks best is tried on the calibration
        inputs, the model fitted again, and so on, until nothing better was found for a while.
        """
        bounds, least, stale = np.array(limits, dtype=np.float64), math.inf, 0
        while True:
            weighing = self.weigh(np.log(bounds))
            best, effect = self._best(bounds)
            stale = 0 if effect < _BETTER * least else stale + 1
            least = min(effect, least)
            if stale == _STALE:
                return None if best is None else self._plan(best)
            pairs = zip(weighing.means, self._alone, strict=True)
            loss = [Table(table.knobs, weight * table.values) for weight, table in pairs]
            exact = solve(loss, self.costs, limits, seconds=_SECONDS, gap=1e-2)
            if exact is None:
                return None
            found = [self._table([exact]), self._solutions(weighing, generator)]
            if best is not None:
                found.append(self._beside(best[None], generator))
            pool = np.unique(np.concatenate(found), axis=0)
            pool = pool[self._within(pool, bounds)]
            order = np.argsort(self.losses.rows(pool) @ weighing.means)
            plans = (self._plan(row) for row in pool[order])
            for plan in itertools.islice((p for p in plans if p not in self.cache.known), _TRIED):
                self.cache(plan)

    def _best(self, bounds: Floats) -> tuple[Places | None, float]:
        """Return the known choice of least effect within bounds, and its effect."""
        within = (self._seen_costs <= bounds * (1 + 1e-9)).all(1)
        if not within.any():
            return None, math.inf
        place = int(np.where(within, self._effects, math.inf).argmin())
        return self._seen[place], float(self._effects[place])

    def _within(self, places: Places, bounds: Floats) -> NDArray[np.bool_]:
        return np.asarray((self._totals(places) <= bounds * (1 + 1e-9)).all(1))

    def _level(self, number: int, generator: np.random.Generator) -> Floats:
        """Return the log costs that a fit is to be good at, spread over all there may be."""
        part = (number * 0.6180339887498949 + 0.1 * generator.random(len(self._low))) % 1.0
        return np.asarray(self._low + part * (self._high - self._low))

    def weigh(self, level: Floats) -> Weighing:
        """Return the loss model's coefficients near log costs, after all plans that are known."""
        self._catch_up()
        apart = ((_logs(self._seen_costs) - level) / _REACH)[:, : self.objectives]
        weights = np.exp(-(apart**2).sum(1) / 2) + 0.01
        most = np.argsort(-weights, kind="stable")[:_MOST]
        return self.losses.fit(
            self.losses.rows(self._seen[most]), self._effects[most], weights[most]
        )

    def _catch_up(self) -> None:
        """Take note of what the cache has answered since."""
        news = list(itertools.islice(self.cache.known.items(), self._read, None))
        self._read += len(news)
        told = [
            (places, max(loss, _NOISE))
            for plan, loss in news
            if 0 < loss < math.inf
            and (places := self._places_of(plan)) is not None
            and (places < self._whole).sum() > 1  # what one does alone is where it starts
        ]
        if told:
            places = np.stack([places for places, _ in told])
            self._seen = np.concatenate([self._seen, places])
            self._seen_costs = np.concatenate([self._seen_costs, self._totals(places)])
            self._effects = np.append(self._effects, [loss for _, loss in told])

    def _candidates(
        self, weighing: Weighing, observed: Sequence[Observed], generator: np.random.Generator
    ) -> Places:
        """Return solutions, and neighbours of the measured front, within limits if any are."""
        found = [self._solutions(weighing, generator)]
        front = [self._places_of(o.plan) for o in _front(observed)]
        if own := [places for places in front if places is not None]:
            found.append(self._beside(np.stack(own), generator))
        pool = np.unique(np.concatenate(found), axis=0)
        within = self._within(pool, self._slack * self.limits)
        return pool[within] if within.any() else pool

    def _solutions(self, weighing: Weighing, generator: np.random.Generator) -> Places:
        """Return what is best at many prices, for the coefficients' means and for several draws."""
        spans = np.array([sum(float(np.ptp(t.values)) for t in tables) for tables in self.costs])
        worth = float(sum(np.ptp(values) for values in self.losses.effects.values()))
        drawn = [weighing.means, *(weighing.draw(generator) for _ in range(_DRAWS - 1))]
        mixes = generator.dirichlet(np.ones(len(self.costs)), _DRAWS)
        steps = (np.arange(_PRICES) + generator.random((_DRAWS, _PRICES))) / _PRICES
        scale = 10 ** (-4 + 6.5 * steps)
        prices = (scale[..., None] * mixes[:, None]).reshape(-1, len(self.costs))
        prices = prices * worth / np.maximum(spans, 1e-300)
        return self._table(
            sweep(self._alone, self.costs, prices, np.repeat(drawn, _PRICES, axis=0))
        )

    def _beside(self, places: Places, generator: np.random.Generator) -> Places:
        """Return choices a few steps beside some of those given."""
        near = places[generator.integers(len(places), size=_MUTANTS)]
        for row in near:
            for knob in generator.integers(len(row), size=int(generator.integers(1, 4))):
                step = 1 if generator.random() < 0.5 else -1
                row[knob] = min(max(row[knob] + step, 0), self._whole[knob])
        return near

    def _link(self, observed: Sequence[Observed]) -> Callable[[Floats], Floats]:
        """Return accuracy as a falling function of the effect, after what was measured."""
        for one in observed:
            if not math.isnan(one.effect):
                self.cache.learn(one.plan, one.effect)
        new = [o.plan for o in (*_front(observed), *reversed(observed))]
        for plan in itertools.islice((p for p in new if p not in self.cache.known), _ASKED):
            self.cache(plan)
        pairs = sorted(
            (math.log(max(effect, _NOISE)), o.accuracy)
            for o in observed
            if (effect := self.cache.known.get(o.plan)) is not None
        )
        if not pairs:
            return lambda effects: -np.log(effects)
        x, y = np.array(pairs).T
        smooth = isotonic_regression(y, increasing=False).x
        x = x + 1e-9 * np.arange(len(x))
        slope = -1e-4 * float(np.ptp(y) or 1.0)  # of equals, the one of less effect
        return lambda e: np.asarray(np.interp(np.log(e), x, smooth) + slope * np.log(e))

    def _held(self, observed: Sequence[Observed]) -> tuple[Volume, Floats]:
        """Return the volume over the objectives' costs, and the best accuracy at its points."""
        count = self.objectives
        floor = floor_of([o.accuracy for o in observed])
        volume = Volume(self._low[:count], self._high[:count], floor=floor)
        within = [o for o in observed if (np.array(o.costs) <= self.limits).all()]
        logs = _logs([o.costs[:count] for o in within])
        return volume, volume.best([o.accuracy for o in within], logs)

    def _gains(self, volume: Volume, held: Floats, accuracies: Floats, costs: Floats) -> Floats:
        """Return the hypervolume that each candidate is expected to add.

        Of one that does not fit, by how much it exceeds the limits, below zero.
        """
        gains = volume.added(accuracies, _logs(costs[:, : self.objectives]), held)
        excess = (costs / self.limits - 1).max(1)
        return np.asarray(np.where(excess <= 0, gains, -excess))

    def _outlook(self, volume: Volume, held: Floats, accuracies: Floats, costs: Floats) -> None:
        """Note the share of the hypervolume that all candidates together are expected to add."""
        fits = (costs <= self.limits).all(1)
        accuracies, logs = accuracies[fits], _logs(costs[fits, : self.objectives])
        rise = np.maximum(volume.best(accuracies.tolist(), logs) - held, 0).mean()
        now = float((held - volume.floor).mean())
        self.outlook = float(rise) / now if now > 1e-9 else math.nan


def _logs(costs: Floats | Sequence[Sequence[float]]) -> Floats:
    return np.log(np.maximum(np.asarray(costs, dtype=np.float64), 1e-12))


def _neighbours(known: Profile, tables: Sequence[Sequence[Table]]) -> list[tuple[str, str]]:
    """Return the pairs of profiled knobs that some cost depends on together."""
    scopes = (sorted(set(table.knobs) & set(known.effects)) for many in tables for table in many)
    return sorted({pair for scope in scopes for pair in itertools.combinations(scope, 2)})


def _front(observed: Sequence[Observed]) -> list[Observed]:
    """Return the non-dominated observations."""
    if not observed:
        return []
    figures = np.array([(-o.accuracy, *o.costs) for o in observed])
    return [observed[place] for place in undominated(figures)]
