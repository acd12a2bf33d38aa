import itertools
from dataclasses import replace

import pytest

from autocompress.core.budget import Budget
from autocompress.core.plan import Plan
from autocompress.cost.latency_model import Prediction
from autocompress.engine.loop import drive
from tests.engine.fakes import SPACE, FakeEvaluator, size_of
from tests.engine.test_scheduler import BASELINES, searched
from tests.engine.test_study import study_at


class Odd(FakeEvaluator):
    """Half of the layers run slowest at 2 and 8 bits, as layers do whose kernels are missing."""

    def odd(self, plan):
        slow = {2: 3.0, 3: 2.0, 4: 1.5, 6: 1.2, 8: 1.6, 32: 9.0}
        ms = sum(slow[plan.get(f"l{i}", "w_bits")] for i in (0, 2))
        ms += sum(plan.get(f"l{i}", "w_bits") / 10 for i in (1, 3))
        return ms * (2 - plan.get("l0", "keep"))

    def estimate(self, plan):
        ms = self.odd(plan)
        return replace(super().estimate(plan), latency=Prediction(ms, 0.95 * ms, 1.05 * ms))


class Joint(FakeEvaluator):
    """All layers at 6 bits are smaller than any step from any uniform plan shows."""

    def size(self, plan):
        joint = all(plan.get(f"l{i}", "w_bits") == 6 for i in range(4))
        return 20.0 if joint and plan.get("l0", "keep") == 0.75 else size_of(plan)

    def estimate(self, plan):
        return replace(super().estimate(plan), size_bytes=self.size(plan))

    def cheapest(self, space, field):
        assert field == "size_bytes"
        return Plan({"l0/keep": 0.75} | {f"l{i}/w_bits": 6 for i in range(4)})


def test_what_cost_tables_say_is_cheapest_counts_for_the_floor(tmp_path):
    budget = Budget(max_size_bytes=25)
    study = study_at(tmp_path / "study.log", budget=budget)
    note = drive(study, Joint(budget=budget), 40, lambda _: None)
    assert study.note("floor") == {"max_size_bytes": pytest.approx(20 * 0.99)}
    assert "no plan is predicted" not in note


def test_the_floor_is_the_least_of_the_space(tmp_path):
    every = itertools.product(*SPACE.knobs.values())
    evaluator = Odd()
    plans = [SPACE.plan(dict(zip(SPACE.knobs, values, strict=True))) for values in every]
    wanted = min(map(evaluator.odd, plans)) * 0.95
    budget = Budget(latency_ms=wanted * 0.99)
    evaluator.budget, study = budget, study_at(tmp_path / "study.log", budget=budget)
    note = drive(study, evaluator, 40, lambda _: None)
    assert "no plan is predicted to meet latency_ms" in note
    assert study.note("floor") == {"latency_ms": pytest.approx(wanted)}
    budget = Budget(latency_ms=wanted * 1.01)  # none of the plans that it starts from fits
    evaluator, study = Odd(budget=budget), study_at(tmp_path / "other.log", budget=budget)
    assert min(evaluator.odd(plan) for _, plan in BASELINES) * 0.95 > budget.latency_ms
    drive(study, evaluator, len(BASELINES) + 1, lambda _: None)
    assert evaluator.odd(evaluator.calls[-1]) * 0.95 == pytest.approx(wanted)


def test_where_mixed_plans_cannot_be_predicted_there_is_no_floor(tmp_path):
    def unknown(plan):
        return plan.get("l1", "w_bits") != plan.get("l2", "w_bits")

    study, _, note = searched(tmp_path / "study.log", Budget(0.3), 20, unknown=unknown)
    assert note == ""
    assert study.note("floor") == {}
    study, _, note = searched(tmp_path / "b.log", Budget(0.3), 20)
    assert "no plan is predicted" in note
