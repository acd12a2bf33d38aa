"""What every registered sampler must do, with and without a budget."""

from pathlib import Path

import pytest

from autocompress.core.budget import Budget
from autocompress.engine.loop import drive
from autocompress.engine.proposers import SAMPLERS, make_sampler
from autocompress.errors import InputError
from tests.engine.fakes import SPACE, FakeEvaluator
from tests.engine.test_study import study_at

pytestmark = pytest.mark.parametrize("name", sorted(SAMPLERS))
TRIALS = 24  # the baselines are about half of them


def searched(path: Path, name: str, budget: Budget | None = None, fail=None) -> FakeEvaluator:
    evaluator = FakeEvaluator(fail=fail, budget=budget or Budget())
    drive(study_at(path, name, budget), evaluator, TRIALS, lambda _: None)
    return evaluator


@pytest.mark.parametrize("budget", [None, Budget(latency_ms=2.5, max_size_bytes=200)])
def test_plans_are_of_the_space_and_never_twice(name: str, budget, tmp_path: Path) -> None:
    plans = searched(tmp_path / "study.log", name, budget).calls
    assert len(plans) == len(set(plans)) == TRIALS
    labels = {plan for _, plan in SPACE.baselines()}
    assert all(SPACE.contains(plan) or plan in labels for plan in plans)
    assert len(set(plans) - labels) >= 5


def test_the_seed_decides(name: str, tmp_path: Path) -> None:
    first, second = (searched(tmp_path / f"{i}.log", name).calls for i in range(2))
    assert first == second


def test_failed_trials_are_lived_with(name: str, tmp_path: Path) -> None:
    evaluator = searched(tmp_path / "study.log", name, fail=lambda call: call % 4 == 2)
    assert len(evaluator.calls) > TRIALS


def test_an_unknown_name_is_answered_with_the_nearest(name: str) -> None:
    with pytest.raises(InputError, match=f"Did you mean '{name}'"):
        make_sampler(f"{name}_", 0)


def test_it_goes_on_from_what_is_in_the_study(name: str, tmp_path: Path) -> None:
    """A sampler that counts generations finds the baselines, and its own trials, in one."""
    path = tmp_path / "study.log"
    searched(path, name)
    study = study_at(path, name)
    for trial in study._memory.get_trials(deepcopy=False):
        assert "NSGAIISampler:generation" in trial.system_attrs
    drive(study, FakeEvaluator(), TRIALS + 4, lambda _: None)
    assert study.completed == TRIALS + 4
