"""The guide: which plan to evaluate next, from effects, costs and what has been measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from autocompress.models.network import Network
from autocompress.searching.allocation import Table, sweep, total
from autocompress.searching.losses import LossModel, Weighing
from autocompress.searching.oracle import Oracle
from autocompress.spec.plan import Plan, split_name
from autocompress.spec.space import SearchSpace

__all__ = ["Guide", "Observed", "groups_of", "profile"]

Floats = NDArray[np.float64]
Choice = dict[str, int]

_PRICES = 16  # levels of the prices of one draw
_DRAWS = 4  # of coefficients for a proposal
_MUTANTS = 48  # neighbours of the front among the candidates
_TRIED = 4  # candidates that the oracle is asked about
_POINTS = 512  # at which the gain in hypervolume is sampled
_REACH = 0.35  # in log cost: as far as a plan tells of others
_EXPLORE = 8  # every so many proposals one that the model has no say in


@dataclass(frozen=True)
class Observed:
    """A measured plan: its accuracy, and its costs in the order of the guide's."""

    plan: Plan
    accuracy: float
    costs: tuple[float, ...]


def groups_of(network: Network, space: SearchSpace) -> dict[str, str]:
    """Return the kind and stage of every knob: what it sets, and the size of what that is in."""
    units = {unit.name: network.layer(unit.producers[0]) for unit in network.units}
    found = {}
    for name in space.knobs:
        owner, knob = split_name(name)
        layer = units[owner] if knob == "keep" else network.layer(owner)
        shape = layer.out_shape[1:] if layer.kind != "linear" else layer.out_shape[:-1]
        found[name] = f"{knob} {shape}"
    return found


def profile(
    space: SearchSpace, oracle: Oracle, progress: Callable[[int, int], None] = lambda *_: None
) -> dict[str, list[float]]:
    """Return by knob the effect of each of its values alone; ``progress`` is told done and all."""
    wanted = [(name, v) for name, values in space.knobs.items() if len(values) > 1 for v in values]
    rest = {name: values[-1] for name, values in space.knobs.items()}
    found: dict[str, list[float]] = {}
    for done, (name, value) in enumerate(wanted):
        progress(done, len(wanted))
        found.setdefault(name, []).append(oracle(space.plan({**rest, name: value})))
    progress(len(wanted), len(wanted))
    return found


class Guide:
    """Proposes plans of a space.

    ``effects``: the profile; ``tables``: by figure the cost tables, of the objectives in order and
    then of what else is limited; ``estimate``: a plan's costs in that order, exactly; ``limits``:
    by place among the costs.
    """

    def __init__(
        self,
        space: SearchSpace,
        oracle: Oracle,
        effects: Mapping[str, Sequence[float]],
        groups: Mapping[str, str],
        tables: Sequence[Sequence[Table]],
        estimate: Callable[[Plan], tuple[float, ...]],
        *,
        objectives: int,
        limits: Sequence[float],
    ) -> None:
        self.space, self.oracle, self.estimate = space, oracle, estimate
        self.losses = LossModel(effects, groups)
        self.costs, self.objectives, self.limits = tables, objectives, tuple(limits)
        self.sizes = {name: len(v) for name, v in space.knobs.items() if len(v) > 1}
        self._floor = max(min(v for v in _positive(effects)), 1e-9) if _positive(effects) else 1e-9
        full = {name: size - 1 for name, size in self.sizes.items()}
        self._high = np.log([max(total(t, full), 1e-12) for t in tables])
        cheapest = sweep([], list(tables), np.eye(len(tables)))
        self._low = np.log([max(total(t, c), 1e-12) for t, c in zip(tables, cheapest, strict=True)])
        self._high = np.minimum(self._high, np.log(np.array(limits, dtype=np.float64)))
        self._high = np.maximum(self._high, self._low + 1e-6)

    def plan(self, chosen: Mapping[str, int]) -> Plan:
        """Return the plan of a choice."""
        return self.space.plan({k: self.space.knobs[k][place] for k, place in chosen.items()})

    def choice(self, plan: Plan) -> Choice:
        """Return the places of a plan's values."""
        values = self.space.choices(plan)
        return {name: self.space.knobs[name].index(values[name]) for name in self.sizes}

    def propose(self, observed: Sequence[Observed], generator: np.random.Generator) -> Plan:
        """Return the plan to evaluate next: one that has not been."""
        number = len(observed)
        known = {entry.plan for entry in observed}
        level = self._level(number, generator)
        weighing = self.weigh(level)
        pool = self._candidates(weighing, observed, generator)
        fresh = {plan: chosen for chosen in pool if (plan := self.plan(chosen)) not in known}
        if not fresh:
            return self.plan({n: int(generator.integers(size)) for n, size in self.sizes.items()})
        plans: list[Plan] = list(fresh)
        if number % _EXPLORE == _EXPLORE - 1:
            return plans[int(generator.integers(len(plans)))]
        rows = np.stack([self.losses.row(fresh[plan]) for plan in plans])
        expected = np.maximum(rows @ weighing.means, self._floor)
        costs = np.array([[total(t, fresh[plan]) for t in self.costs] for plan in plans])
        link = self._link(observed)
        gain = self._gains(link(expected), costs, observed, generator)
        best = np.argsort(-gain)[:_TRIED]
        tried: list[Plan] = [plans[place] for place in best]
        effects = np.array([max(self.oracle(plan), self._floor) for plan in tried])
        exact = np.array([self.estimate(plan) for plan in tried])
        gain = self._gains(link(effects), exact, observed, generator)
        return tried[int(gain.argmax())]

    def _level(self, number: int, generator: np.random.Generator) -> Floats:
        """Return the log costs that a fit is to be good at, spread over all there may be."""
        part = (number * 0.6180339887498949 + 0.1 * generator.random(len(self._low))) % 1.0
        return np.asarray(self._low + part * (self._high - self._low))

    def weigh(self, level: Floats) -> Weighing:
        """Return the loss model's coefficients near log costs, after all plans that are known."""
        rows, losses, weights = [], [], []
        for plan, loss in self.oracle.known.items():
            if not (self.space.contains(plan) and math.isfinite(loss) and loss > 0):
                continue
            chosen = self.choice(plan)
            if sum(chosen[n] < size - 1 for n, size in self.sizes.items()) < 2:
                continue  # what it does alone is where the model starts
            costs = np.log([max(total(t, chosen), 1e-12) for t in self.costs])
            apart = float((((costs - level) / _REACH) ** 2)[: self.objectives].sum())
            rows.append(self.losses.row(chosen))
            losses.append(max(loss, self._floor))
            weights.append(math.exp(-apart / 2) + 0.01)
        if not rows:
            count = len(self.losses.knobs)
            return Weighing(np.ones(count), 0.3 * np.eye(count))
        return self.losses.fit(np.stack(rows), np.array(losses), np.array(weights))

    def _candidates(
        self, weighing: Weighing, observed: Sequence[Observed], generator: np.random.Generator
    ) -> list[Choice]:
        """Return solutions at many prices, for several draws of coefficients, and neighbours."""
        found: list[Choice] = []
        spans = np.array([sum(float(np.ptp(t.values)) for t in tables) for tables in self.costs])
        worth = float(sum(np.ptp(values) for values in self.losses.effects.values()))
        for draw in range(_DRAWS):
            weights = weighing.means if draw == 0 else weighing.draw(generator)
            mix = generator.dirichlet(np.ones(len(self.costs)))
            scale = 10 ** (-4 + 5 * (np.arange(_PRICES) + generator.random(_PRICES)) / _PRICES)
            prices = scale[:, None] * mix * worth / np.maximum(spans, 1e-300)
            found += sweep(self.losses.tables(weights), self.costs, prices)
        front = [o for o in _front(observed) if self.space.contains(o.plan)]
        for _ in range(_MUTANTS if front else 0):
            chosen = self.choice(front[int(generator.integers(len(front)))].plan)
            names = list(self.sizes)
            for _ in range(int(generator.integers(1, 4))):
                name = names[int(generator.integers(len(names)))]
                step = -1 if generator.random() < 0.5 else 1
                chosen[name] = min(max(chosen[name] + step, 0), self.sizes[name] - 1)
            found.append(chosen)
        return [c for c in found if self._within(c)] or found

    def _within(self, chosen: Choice) -> bool:
        return all(
            total(t, chosen) <= 1.02 * limit
            for t, limit in zip(self.costs, self.limits, strict=True)
        )

    def _link(self, observed: Sequence[Observed]) -> Callable[[Floats], Floats]:
        """Return accuracy as a falling function of the effect, after what was measured."""
        pairs = sorted(
            (math.log(max(self.oracle(o.plan), self._floor)), o.accuracy) for o in observed
        )
        if not pairs:
            return lambda effects: -np.log(effects)
        x, y = np.array(pairs).T
        smooth = isotonic_regression(y, increasing=False).x
        x = x + 1e-9 * np.arange(len(x))
        # beyond what was seen it goes on as slowly as a coin falls
        slope = -1e-4
        return lambda e: np.asarray(np.interp(np.log(e), x, smooth) + slope * np.log(e))

    def _gains(
        self,
        accuracies: Floats,
        costs: Floats,
        observed: Sequence[Observed],
        generator: np.random.Generator,
    ) -> Floats:
        """Return the hypervolume over log costs that each candidate is expected to add."""
        count = self.objectives
        low, high = self._low[:count], self._high[:count]
        points = low + generator.random((_POINTS, count)) * (high - low)
        within = [o for o in observed if self._meets(o.costs)]
        least = min((o.accuracy for o in observed), default=0.0)
        best = np.full(_POINTS, least)
        if within:
            known = np.log(np.maximum([o.costs[:count] for o in within], 1e-12))
            under = (known[:, None, :] <= points).all(-1)
            values = np.array([o.accuracy for o in within])
            best = np.maximum(best, np.where(under, values[:, None], least).max(0))
        logs = np.log(np.maximum(costs[:, :count], 1e-12))
        under = (logs[:, None, :] <= points).all(-1)
        gains = np.where(under, np.maximum(accuracies[:, None] - best, 0), 0).mean(1)
        fits = np.array([self._meets(tuple(row)) for row in costs])
        return np.asarray(np.where(fits, gains, gains - 1.0))

    def _meets(self, costs: Sequence[float]) -> bool:
        return all(cost <= limit for cost, limit in zip(costs, self.limits, strict=True))


def _positive(effects: Mapping[str, Sequence[float]]) -> list[float]:
    return [v for values in effects.values() for v in values if 0 < v < math.inf]


def _front(observed: Sequence[Observed]) -> list[Observed]:
    """Return the non-dominated observations."""
    return [
        o
        for o in observed
        if not any(
            p.accuracy >= o.accuracy
            and all(a <= b for a, b in zip(p.costs, o.costs, strict=True))
            and (p.accuracy, p.costs) != (o.accuracy, o.costs)
            for p in observed
        )
    ]
