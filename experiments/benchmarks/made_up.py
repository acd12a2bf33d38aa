"""A guide on a network's own knobs and cost tables, whose effects and sizes are made up."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from autocompress.core.plan import Plan
from autocompress.core.space import SearchSpace
from autocompress.cost.estimate import Estimator
from autocompress.engine.proposers.guided.allocation import total
from autocompress.engine.proposers.guided.cost_tables import cost_tables
from autocompress.engine.proposers.guided.guide import Guide
from autocompress.engine.proposers.guided.sensitivity import companions_of, groups_of, profile
from autocompress.engine.proposers.guided.sensitivity_cache import SensitivityCache
from autocompress.models.trace import trace
from autocompress.registry import find_space, resolve_space
from autocompress.targets import make_target
from autocompress.tasks.images import make_network

__all__ = ["MadeUp", "made_up"]


class MadeUp(NamedTuple):
    """A guide, its space, and what its cache and its estimate say of a plan."""

    space: SearchSpace
    guide: Guide
    effect: Callable[[Plan], float]
    size: Callable[[Plan], float]


def made_up(name: str) -> MadeUp:
    """Return the guide of a network on the shape of Fashion-MNIST's images, in the space ptq."""
    target = make_target("onnxruntime")
    network = trace(make_network(name).eval(), (torch.randn(1, 1, 28, 28),))
    space = resolve_space(find_space("ptq"), network, target)
    estimator = Estimator(network, target.abilities, target.prepare(network))
    tables = cost_tables(space, estimator, ["size_bytes"])["size_bytes"]
    generator = np.random.default_rng(0)
    worth = {
        name: dict(zip(values, np.sort(generator.exponential(1, len(values)))[::-1], strict=True))
        for name, values in space.knobs.items()
    }

    def effect(plan: Plan) -> float:
        return 1e-3 * sum(worth[n].get(v, 0.0) for n, v in space.choices(plan).items())

    def size(plan: Plan) -> float:
        return total(tables, {n: space.knobs[n].index(v) for n, v in space.choices(plan).items()})

    cache = SensitivityCache(effect)
    guide = Guide(
        space, cache, profile(space, cache, companions_of(network, space)),
        groups_of(network, space), [tables], lambda plan: (size(plan),),
        objectives=1, limits=[math.inf],
    )  # fmt: skip
    return MadeUp(space, guide, effect, size)
