"""The Gaussian process over the terms of a family: what the times of two of them share.

Two terms' times are the more alike the nearer their sizes are, in logs, the fewer kernels' tiles
only one of the two fills, and where the formats around them are the same.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky

from autocompress.cost.latency_terms import TILES, Term

__all__ = ["Alike", "Floats", "Ints", "Rows", "cholesky_of", "compare", "rows_of"]

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_STEPS = 2 * len(TILES) + 1  # numbers of tiles that only one of two terms may fill
_COUNTS = np.array([mask.bit_count() for mask in range(4 ** len(TILES))], dtype=np.intp)


class Rows(NamedTuple):
    """Terms as numbers, one a row: logs of sizes, which tiles these fill, formats by number.

    ``scale``: the order of a term's time in arbitrary units, that of which it may deviate.
    """

    into: Floats
    out: Floats
    tiles: Ints
    before: Ints
    after: Ints
    scale: Floats

    def take(self, places: Any) -> "Rows":
        """Return some of the rows."""
        return Rows(*(part[places] for part in self))


def rows_of(terms: Sequence[Term], formats: dict[str, int]) -> Rows:
    """Return terms as numbers; ``formats`` numbers the formats, and takes in those that are new."""
    sizes = np.array([(t.into, t.out) for t in terms], dtype=np.intp).reshape(-1, 2)
    logs = np.log(np.maximum(sizes, 1))
    tiles = np.zeros(len(terms), dtype=np.intp)
    for place, tile in enumerate(TILES):
        tiles |= ((sizes % tile == 0) << (2 * place, 2 * place + 1)).sum(1)
    around = [
        [formats.setdefault(given, len(formats)) for given in (t.before, t.after)] for t in terms
    ]
    before, after = np.array(around, dtype=np.intp).reshape(-1, 2).T
    scale = np.array([_scale(term) for term in terms], dtype=np.float64)
    return Rows(logs[:, 0], logs[:, 1], tiles, before, after, scale)


def _scale(term: Term) -> float:
    macs = term.work * term.into * term.out
    moved = term.area * (term.into + term.out) if term.work else term.area
    return macs * 5e-8 + moved * 2e-7 + 2e-3


def compare(a: Rows, b: Rows) -> tuple[Floats, Ints]:
    """Return squared distances [a, b] in log sizes of terms of a family, and how else they differ.

    The latter counts the tiles that only one of two fills, and one or two times ``_STEPS`` more
    where the formats before or after are others, three times where both are.
    """
    distance: Floats = (a.into[:, None] - b.into) ** 2
    distance += (a.out[:, None] - b.out) ** 2
    differ: Ints = _COUNTS[a.tiles[:, None] ^ b.tiles]
    differ += _STEPS * (a.before[:, None] != b.before)
    differ += 2 * _STEPS * (a.after[:, None] != b.after)
    return distance, differ


class Alike:
    """The correlation of terms of one family.

    ``constants``: length in log sizes, cost of another tile, of other formats before and after,
    and the share that tiles leave alone.
    """

    def __init__(self, constants: Floats) -> None:
        self._constants = constants
        _, tile, before, after, plain = constants
        steps = (plain + np.exp(-tile * np.arange(_STEPS))) / (1 + plain)
        formats = np.outer([1, 1 / (1 + after)], [1, 1 / (1 + before)])
        self._left: Floats = np.outer(formats, steps).ravel()  # by how two differ

    def __call__(self, distance: Floats, differ: Ints) -> Floats:
        """Return the correlation of terms that were compared."""
        alike: Floats = np.exp(distance * (-0.5 / self._constants[0] ** 2))
        alike *= self._left[differ]
        return alike

    def slopes(self, distance: Floats, differ: Ints, weighed: Floats) -> Floats:
        """Return the derivatives, by the logs of the constants, of a sum of weighed correlations.

        ``weighed``: each correlation times its weight.
        """
        length, tile, before, after, plain = self._constants
        sums = np.bincount(differ.ravel(), weighed.ravel(), 4 * _STEPS).reshape(2, 2, _STEPS)
        count = np.arange(_STEPS)
        by_count, fall = sums.sum((0, 1)), np.exp(-tile * count)
        return np.array(
            [
                np.vdot(weighed, distance) / length**2,
                -(by_count * tile * count * fall / (plain + fall)).sum(),
                -before / (1 + before) * sums[:, 1].sum(),
                -after / (1 + after) * sums[1].sum(),
                (by_count * (plain / (plain + fall) - plain / (1 + plain))).sum(),
            ]
        )


def cholesky_of(covariance: Floats) -> Floats:
    """Return the lower Cholesky factor of a covariance, helped where rounding spoilt it."""
    for share in (0.0, 1e-12, 1e-10, 1e-8):
        try:
            helped = covariance + np.diag(share * covariance.diagonal())
            return np.asarray(cholesky(helped, lower=True))
        except np.linalg.LinAlgError:
            continue
    raise ValueError("A covariance must be finite and not negative.")
