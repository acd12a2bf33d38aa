"""The Optuna parameters of a search space, ordinal wherever values are ordered."""

from collections.abc import Mapping

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import Trial

from autocompress.core.plan import Plan
from autocompress.core.space import SearchSpace

__all__ = ["Parameters"]

Value = float | int
Ordinal = IntDistribution | FloatDistribution


class Parameters:
    """Plans as parameters named ``<layer or unit>/<knob>``.

    Evenly spaced integers and binary fractions are numbers with a step; others (2, 3, 4, 6, 8) are
    the index into the ascending values. Knobs with one value are no parameters.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.distributions: Mapping[str, Ordinal] = {
            name: _distribution(values) for name, values in space.knobs.items() if len(values) > 1
        }

    def suggest(self, trial: Trial) -> Plan:
        """Return the plan that the study's sampler proposes."""
        chosen: dict[str, Value] = {}
        for name, d in self.distributions.items():
            if isinstance(d, IntDistribution):
                chosen[name] = self._value(
                    name, trial.suggest_int(name, d.low, d.high, step=d.step)
                )
            else:
                value = trial.suggest_float(name, d.low, d.high, step=d.step)
                chosen[name] = self._value(name, value)
        return self.space.plan(chosen)

    def of(self, plan: Plan) -> dict[str, Value] | None:
        """Return the parameters of a plan, None for a plan outside the space."""
        if not self.space.contains(plan):
            return None
        chosen = self.space.choices(plan)
        return {
            name: self.space.knobs[name].index(chosen[name]) if _indexed(d) else chosen[name]
            for name, d in self.distributions.items()
        }

    def _value(self, name: str, value: Value) -> Value:
        return self.space.knobs[name][int(value)] if _indexed(self.distributions[name]) else value


def _indexed(distribution: Ordinal) -> bool:
    return isinstance(distribution, IntDistribution) and distribution.low == 0


def _distribution(values: tuple[Value, ...]) -> Ordinal:
    step = values[1] - values[0]
    even = all(v == values[0] + i * step for i, v in enumerate(values))
    # Optuna counts steps in decimals: of floats, only those that are short in both suit it
    exact = all(float(v * 1024).is_integer() for v in values)
    if even and all(isinstance(v, int) for v in values):
        return IntDistribution(int(values[0]), int(values[-1]), step=int(step))
    if even and exact:
        return FloatDistribution(values[0], values[-1], step=step)
    return IntDistribution(0, len(values) - 1)
