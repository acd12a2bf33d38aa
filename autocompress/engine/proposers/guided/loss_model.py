"""The loss model: how far a plan moves the outputs, from what each of its values does alone.

Effects of single values do not add up far from the original network: what one layer does depends on
what the others have left. So the sum is weighted, with a coefficient for every knob, and has a term
for every pair of neighbours: to second order the divergence of two errors is the sum of theirs and
of a mixed one, which is between ±2 times the root of their product. Coefficients are drawn towards
those of their kind and stage, and fitted to plans whose whole effect is known, above all to those
of about the same cost.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag, cho_factor, cho_solve

from autocompress.engine.proposers.guided.allocation import Table

__all__ = ["LossModel", "Weighing"]

Floats = NDArray[np.float64]

# Standard deviations of coefficients about 1: of all together, of a kind in a stage, of a knob;
# and of those of pairs about 0.
_ALL, _GROUP, _OWN = 1.0, 0.6, 0.5
_PAIRS, _PAIR = 0.3, 0.3
_NOISE = 0.15  # relative, of what the model cannot say
_LEAST = 0.05  # of a coefficient: nothing that is done to a network is for free


@dataclass(frozen=True, eq=False)
class Weighing:
    """Coefficients of knobs and then of pairs: their ``means``, and draws from what is believed.

    ``root``: a square root of the prior covariance; ``system``: [plans, coefficients], what was
    seen times the coefficients gives ``wanted`` but for errors with deviations ``errors``;
    ``gain``: [plans, coefficients], what an error of each tells of the coefficients.
    """

    means: Floats
    knobs: int
    root: Floats
    system: Floats
    wanted: Floats
    errors: Floats
    gain: Floats

    def draw(self, generator: np.random.Generator) -> Floats:
        """Return coefficients drawn at random from what is believed of them.

        A draw from the prior, corrected by how far it is from what was seen (Matheron's rule,
        Wilson et al. 2021, eq. 9).
        """
        drawn = self.root @ generator.standard_normal(len(self.root))
        drawn[: self.knobs] += 1
        noise = self.errors * generator.standard_normal(len(self.errors))
        drawn += self.gain.T @ (self.wanted - self.system @ drawn - noise)
        return _possible(drawn, self.knobs)


def _possible(coefficients: Floats, knobs: int) -> Floats:
    """Return coefficients with those of knobs above a least one, and those of pairs within ±2."""
    pairs = np.clip(coefficients[knobs:], -2, 2)
    return np.concatenate([np.maximum(coefficients[:knobs], _LEAST), pairs])


class LossModel:
    """``effects``: by knob the effect of each of its values alone; ``groups``: kind and stage.

    ``base``: the effect of the plan that all effects are measured from, which comes on top of any;
    ``pairs``: knobs that are neighbours. Effects are made to fall from value to value: the rest is
    noise of the data they come from. An infinite one, of NaN or infinite outputs, counts as ten
    times the greatest other.
    """

    def __init__(
        self,
        effects: Mapping[str, Sequence[float]],
        groups: Mapping[str, str],
        base: float = 0.0,
        pairs: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.base = base
        self.knobs, self.pairs = tuple(effects), tuple(pairs)
        most = max((v for values in effects.values() for v in values if v < math.inf), default=0.0)
        self.effects = {
            knob: np.maximum.accumulate(np.minimum(values, 10 * most)[::-1])[::-1]
            for knob, values in effects.items()
        }
        ones = _covariance([groups[knob] for knob in self.knobs], _GROUP, _OWN) + _ALL**2
        mixed = [" × ".join(sorted((groups[a], groups[b]))) for a, b in pairs]
        self._prior = block_diag(ones, _covariance(mixed, _PAIRS, _PAIR))
        self._root = np.asarray(np.linalg.cholesky(self._prior), dtype=np.float64)

    def rows(self, places: NDArray[np.intp]) -> Floats:
        """Return what coefficients multiply in choices, [choices, knobs and pairs].

        ``places``: [choices, knobs].
        """
        columns = {knob: self.effects[knob][places[:, k]] for k, knob in enumerate(self.knobs)}
        mixed = [np.sqrt(columns[a] * columns[b]) for a, b in self.pairs]
        return np.stack([*columns.values(), *mixed], axis=1)

    def fit(self, rows: Floats, losses: Floats, weights: Floats) -> Weighing:
        """Return the coefficients after plans whose loss is known.

        ``rows``: [plans, coefficients]; ``losses``: [plans], above 0; ``weights``: [plans], above
        0, how much each tells. A linear model with Gaussian beliefs (Rasmussen 2006, eq. 2.8), of
        relative errors.
        """
        system, wanted = rows / losses[:, None], np.maximum(1 - self.base / losses, 0)
        errors = _NOISE / np.sqrt(np.maximum(weights, 1e-6))
        cross = system @ self._prior
        gain = cho_solve(cho_factor(cross @ system.T + np.diag(errors**2)), cross)
        knobs = len(self.knobs)
        means = gain.T @ (wanted - system[:, :knobs].sum(1))
        means[:knobs] += 1
        means = _possible(means, knobs)
        return Weighing(means, knobs, self._root, system, wanted, errors, gain)

    def tables(self) -> list[Table]:
        """Return the loss above the base as tables, each of which its coefficient multiplies."""
        return [Table((knob,), values) for knob, values in self.effects.items()] + [
            Table(pair, np.sqrt(np.outer(*(self.effects[knob] for knob in pair))))
            for pair in self.pairs
        ]


def _covariance(names: Sequence[str], group: float, own: float) -> Floats:
    """Return the covariance of coefficients that share a deviation with those of the same name."""
    same = np.array(names)[:, None] == np.array(names)
    return np.asarray(group**2 * same + own**2 * np.eye(len(names)))
