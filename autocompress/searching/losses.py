"""The loss model: how far a plan moves the outputs, from what each of its values does alone.

Effects of single values do not add up far from the original network: what one layer does hangs on
what the others have left. So the sum is weighted, with a coefficient for every knob, drawn towards
those of its kind and stage, and fitted to plans whose whole effect is known, above all to those of
about the same cost.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.searching.allocation import Table

__all__ = ["LossModel", "Weighing"]

Floats = NDArray[np.float64]

# Standard deviations of coefficients about 1: of all together, of a kind in a stage, of a knob.
_ALL, _GROUP, _OWN = 1.0, 0.6, 0.4
_NOISE = 0.25  # relative, of what the model cannot say
_LEAST = 0.05  # of a coefficient: nothing that is done to a network is for free
_MOST = 256  # plans that a fit looks at


@dataclass(frozen=True, eq=False)
class Weighing:
    """Coefficients by knob: their means, and a square root of their covariance."""

    means: Floats
    root: Floats

    def draw(self, generator: np.random.Generator) -> Floats:
        """Return coefficients drawn at random from what is believed of them."""
        drawn = self.means + self.root @ generator.standard_normal(self.root.shape[1])
        return np.maximum(drawn, _LEAST)


class LossModel:
    """``effects``: by knob the effect of each of its values alone; ``groups``: kind and stage.

    ``base``: the effect of the plan that all effects are measured from, which comes on top of any.
    Effects are made to fall from value to value: the rest is noise of the data they come from. An
    infinite one, of outputs that are no numbers, counts as ten times the greatest other.
    """

    def __init__(
        self,
        effects: Mapping[str, Sequence[float]],
        groups: Mapping[str, str],
        base: float = 0.0,
    ) -> None:
        self.base = base
        self.knobs = tuple(effects)
        most = max((v for values in effects.values() for v in values if v < math.inf), default=0.0)
        self.effects = {
            knob: np.maximum.accumulate(np.minimum(values, 10 * most)[::-1])[::-1]
            for knob, values in effects.items()
        }
        names = np.array([groups[knob] for knob in self.knobs])
        same = names[:, None] == names
        count = len(self.knobs)
        self._prior = _ALL**2 + _GROUP**2 * same + _OWN**2 * np.eye(count)

    def rows(self, places: NDArray[np.intp]) -> Floats:
        """Return the effects of the values of choices, [choices, knobs], both in knobs' order."""
        columns = [self.effects[knob][places[:, k]] for k, knob in enumerate(self.knobs)]
        return np.stack(columns, axis=1)

    def fit(self, rows: Floats, losses: Floats, weights: Floats) -> Weighing:
        """Return the coefficients after plans whose loss is known.

        ``rows``: [plans, knobs]; ``losses``: [plans], above 0; ``weights``: [plans], above 0, how
        much each tells. A linear model with Gaussian beliefs (Rasmussen 2006, eq. 2.8), of relative
        errors.
        """
        if len(losses) > _MOST:
            best = np.argsort(-weights)[:_MOST]
            rows, losses, weights = rows[best], losses[best], weights[best]
        system, wanted = rows / losses[:, None], np.maximum(1 - self.base / losses, 0)
        cross = system @ self._prior
        whole = cross @ system.T
        whole[np.diag_indices(len(losses))] += _NOISE**2 / np.maximum(weights, 1e-6)
        lower = np.linalg.cholesky(whole)
        half = np.linalg.solve(lower, cross)
        rest = np.linalg.solve(lower, wanted - system.sum(1))
        means = 1 + half.T @ rest
        after = self._prior - half.T @ half
        values, vectors = np.linalg.eigh(after)
        root = vectors * np.sqrt(np.maximum(values, 0))
        return Weighing(np.maximum(means, _LEAST), root)

    def tables(self, coefficients: Floats) -> list[Table]:
        """Return the loss above the base as a sum of tables."""
        return [
            Table((knob,), weight * self.effects[knob])
            for knob, weight in zip(self.knobs, coefficients, strict=True)
        ]
