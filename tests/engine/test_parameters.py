import random

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution

from autocompress.core.plan import Plan
from autocompress.core.space import SearchSpace
from autocompress.engine.parameters import Parameters

SPACE = SearchSpace(
    {
        "a/w_bits": (2, 3, 4, 5, 6),
        "a/a_bits": (8, 32),
        "a/keep": (0.5, 0.625, 0.75, 0.875, 1.0),
        "b/w_bits": (2, 3, 4, 6, 8),
        "b/keep": (0.1, 0.2, 1.0),
        "c/w_bits": (8,),
    }
)


def test_even_values_are_themselves_and_others_an_index() -> None:
    found = Parameters(SPACE).distributions
    assert found["a/w_bits"] == IntDistribution(2, 6)
    assert found["a/a_bits"] == IntDistribution(8, 32, step=24)
    assert found["a/keep"] == FloatDistribution(0.5, 1.0, step=0.125)
    assert found["b/w_bits"] == IntDistribution(0, 4)
    assert found["b/keep"] == IntDistribution(0, 2)
    assert "c/w_bits" not in found


def test_every_plan_goes_to_parameters_and_back() -> None:
    parameters, generator = Parameters(SPACE), random.Random(0)
    study = optuna.create_study()
    for _ in range(200):
        plan = SPACE.plan({n: generator.choice(values) for n, values in SPACE.knobs.items()})
        given = parameters.of(plan)
        assert given is not None
        study.enqueue_trial(given)
        assert parameters.suggest(study.ask(parameters.distributions)) == plan


@pytest.mark.parametrize("plan", [Plan(), Plan({"a/w_bits": 7}), Plan({"d/w_bits": 4})])
def test_a_plan_outside_has_no_parameters(plan: Plan) -> None:
    assert Parameters(SPACE).of(plan) is None


@pytest.mark.parametrize("values", [(0.7, 0.8, 0.9, 1.0), (1 / 3, 2 / 3, 1.0), (0.5, 0.6, 0.7)])
def test_decimal_steps_are_an_index(values: tuple[float, ...]) -> None:
    parameters = Parameters(SearchSpace({"a/keep": values}))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = {parameters.suggest(study.ask()).get("a", "keep") for _ in range(60)}
    assert found == set(values)
