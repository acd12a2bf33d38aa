"""The predicted floor: the least of what a budget limits that any plan of a space may have."""

import math
from typing import TYPE_CHECKING

from autocompress.core.budget import LIMITS
from autocompress.core.plan import Plan, split_name
from autocompress.engine.study import Study

if TYPE_CHECKING:
    from autocompress.engine.evaluator import Evaluator

__all__ = ["predicted_floor"]

# Estimates that may be spent on the descent to one figure's floor.
_ESTIMATES = 300


def predicted_floor(study: Study, evaluator: "Evaluator") -> tuple[dict[str, float], list[Plan]]:
    """Return the least that is predicted over the space for every figure that the budget limits.

    Less the prediction's error, by name of the limit; and the plans of which that is predicted.
    From the lowest uniform plans, and where those are over the limit from what cost tables say is
    cheapest, one value at a time is changed as long as that lowers the figure, within a few hundred
    estimates. Where nothing is predicted of some of these plans, there is no floor.
    """
    space, floor, lowest = study.parameters.space, dict[str, float](), list[Plan]()
    low = {name: values[0] for name, values in space.knobs.items()}

    def near(plan: Plan) -> Plan:
        """The lowest plan but for the bits that a uniform plan has, where the space has them."""
        wanted = {name: plan.get(*split_name(name)) for name in low}
        kept = {n: v for n, v in wanted.items() if v in space.knobs[n] and not n.endswith("/keep")}
        return space.plan({**low, **kept})

    starts = [Plan(low), *(near(plan) for plan in (Plan(), *(p for _, p in space.baselines())))]
    estimates = [(plan, evaluator.estimate(plan)) for plan in dict.fromkeys(starts)]
    for limit, field in LIMITS.items():
        most = getattr(study.budget, limit)
        if most is None:
            continue
        pairs = [(plan, estimate.least(field)) for plan, estimate in estimates]
        known = not any(math.isnan(least) for _, least in pairs)
        plan, best = min(pairs, key=lambda pair: pair[1])
        if known and best > most and (cheap := evaluator.cheapest(space, field)) is not None:
            pairs.append((cheap, evaluator.estimate(cheap).least(field)))
            plan, best = min(pairs, key=lambda pair: pair[1])
        left, before = _ESTIMATES, math.inf
        while known and most < best < before and left > 0:
            before, chosen = best, space.choices(plan)
            for name, value in ((n, v) for n, values in space.knobs.items() for v in values):
                other = space.plan({**chosen, name: value})
                if value == chosen[name] or left <= 0:
                    continue
                left -= 1
                found = evaluator.estimate(other).least(field)
                known = known and not math.isnan(found)
                if found < best:
                    best, plan, chosen = found, other, space.choices(other)
        if known:
            floor[limit] = best
            lowest.append(plan)
    return floor, lowest
