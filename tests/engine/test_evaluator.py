"""One plan in, one score out, on the null target."""

import json
import math
from dataclasses import replace
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch

from autocompress.core.budget import Budget
from autocompress.core.plan import Plan, Recipe
from autocompress.core.score import Score
from autocompress.cost.hardware import read_hardware
from autocompress.cost.latency_model import Prediction
from autocompress.engine import evaluator as evaluating
from autocompress.engine.evaluator import Evaluator
from autocompress.errors import ArtifactError, InputError
from autocompress.models.trace import trace
from autocompress.report.front import Pick
from autocompress.targets import make_target
from autocompress.targets.checkfile import check_path
from autocompress.targets.probe import SATURATES
from autocompress.targets.timing import Timing
from autocompress.tasks.base import Task, accuracy_of


def make_evaluator(directory: Path, evaluate=None, test=True, network=None, **options) -> Evaluator:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 24), torch.nn.ReLU(), torch.nn.Linear(24, 4)
    ).eval()
    inputs = torch.randn(200, 6)
    labels = model(inputs).argmax(1).numpy()
    task = Task(
        model=model,
        example_inputs=(inputs[:1],),
        calibration=[(inputs[:100],)],
        evaluate=evaluate or accuracy_of(inputs[:100].numpy(), labels[:100]),
        test=accuracy_of(inputs[100:].numpy(), labels[100:]) if test else None,
    )
    network = network or trace(task.model, task.example_inputs)
    return Evaluator(task, network, make_target("null"), directory, **options)


PLAN = Plan({"0/w_bits": 4, "2/w_bits": 3, "0/keep": 0.5})


def test_a_score_is_of_the_file(tmp_path: Path) -> None:
    evaluator = make_evaluator(tmp_path, seed=3)
    score = evaluator(PLAN, Recipe(seed=3), "named")
    assert (score.outcome, score.baseline, score.seed) == ("ok", "named", 3)
    path = tmp_path / "artifacts" / score.artifact
    assert path == evaluator.path(PLAN, Recipe(seed=3))
    assert score.size_bytes == path.stat().st_size
    opened = evaluator.target.open(path)
    assert score.accuracy == float(np.mean(evaluator.task.evaluate(opened)))
    assert score.accuracy_low <= score.accuracy <= score.accuracy_high
    assert score.macs == 6 * 12 + 12 * 4
    assert score.parameters == 6 * 12 + 12 + 12 * 4 + 4
    assert set(score.seconds) == {"compress", "build", "open", "check", "accuracy", "latency"}
    assert math.isnan(score.test_accuracy)


def test_figures_are_not_taken_where_a_file_is_wrong(tmp_path: Path, monkeypatch) -> None:
    evaluator = make_evaluator(tmp_path)
    wide = Plan({f"{name}/{knob}": 8 for name in "02" for knob in ("w_bits", "a_bits")})
    assert evaluator(wide, Recipe()).portable is False
    assert evaluator(PLAN, Recipe()).portable is True
    monkeypatch.setattr(type(evaluator.target), "saturates", lambda self: True)
    there = make_evaluator(tmp_path)
    score = there(wide, Recipe())
    assert score.outcome == "failed"
    assert "no VNNI" in score.message
    assert there(PLAN, Recipe()).outcome == "ok"
    assert SATURATES in there(PLAN, Recipe()).cpu
    assert SATURATES not in evaluator.cpu


def test_the_reference_is_the_uncompressed_model(tmp_path: Path) -> None:
    first = make_evaluator(tmp_path)
    assert first.path(Plan(), Recipe()).exists()
    assert first(Plan(), Recipe()).latency_ms == first.reference_ms
    assert make_evaluator(tmp_path, reference_ms=7.0).reference_ms == 7.0


def test_a_file_is_its_simulation_and_has_a_check(tmp_path: Path) -> None:
    evaluator = make_evaluator(tmp_path)
    rounded = Plan({"0/w_bits": 6, "2/w_bits": 6, "0/a_bits": 8, "2/a_bits": 8})
    for plan in (Plan(), PLAN, rounded):
        score = evaluator(plan, Recipe())
        assert score.difference < 1e-3
        assert score.differs == ""
        found = Pick(score, tmp_path / "artifacts" / score.artifact).verify()
        assert found.alike
        assert found.total == 32


def test_a_file_that_is_not_its_simulation_is_marked(tmp_path: Path, monkeypatch) -> None:
    evaluator = make_evaluator(tmp_path)
    opened = type(evaluator.target).open

    def wrong(self, path):
        session = opened(self, path)
        session._params["2.bias"] = session._params["2.bias"] + 1
        return session

    monkeypatch.setattr(type(evaluator.target), "open", wrong)
    score = evaluator(PLAN, Recipe())
    assert score.outcome == "ok"
    assert score.difference > 0.1
    assert score.differs.startswith("the file is not its simulation")


def test_an_uncompressed_file_that_is_not_the_model_marks_every_file(tmp_path: Path) -> None:
    evaluator = make_evaluator(tmp_path)
    assert evaluator.differs == ""
    other = make_evaluator(tmp_path / "other", network=trace(
        torch.nn.Sequential(torch.nn.Linear(6, 24), torch.nn.ReLU(), torch.nn.Linear(24, 4)).eval(),
        evaluator.task.example_inputs,
    ))  # fmt: skip
    assert other.differs.startswith("the uncompressed file is not the torch model")
    elsewhere = cloudpickle.loads(cloudpickle.dumps(other))
    assert elsewhere(PLAN, Recipe()).differs == other.differs


def test_a_model_that_does_otherwise_on_one_input_marks_every_file(tmp_path: Path) -> None:
    class Branch(torch.nn.Sequential):
        def forward(self, x):
            found = super().forward(x)
            return found if len(x) > 1 else -found

    task = make_evaluator(tmp_path / "plain").task
    network = trace(task.model, task.example_inputs)
    task = replace(task, model=Branch(*task.model).eval())
    other = Evaluator(task, network, make_target("null"), tmp_path)
    assert "on a batch of 1 from the calibration inputs" in other.differs


def test_made_inputs_that_do_not_suit_a_network_leave_the_check_out(tmp_path, monkeypatch) -> None:
    evaluator = make_evaluator(tmp_path)

    def unsuited(*_):
        raise InputError("a mask must not be empty")

    monkeypatch.setattr(evaluating, "make_check", unsuited)
    score = evaluator(PLAN, Recipe())
    assert score.outcome == "ok"
    with pytest.raises(InputError, match="must lie beside the model"):
        Pick(score, tmp_path / "artifacts" / score.artifact).verify()


@pytest.mark.parametrize(
    ("result", "text"),
    [(math.nan, "finite"), ("good", "must return numbers"), (np.zeros((2, 2)), "shape")],
)
def test_a_bad_evaluation_is_a_sentence(tmp_path: Path, result: object, text: str) -> None:
    score = make_evaluator(tmp_path, evaluate=lambda predict: result)(PLAN, Recipe())
    assert score.outcome == "failed"
    assert text in score.message


def test_what_the_users_function_raises_is_a_sentence(tmp_path: Path) -> None:
    def evaluate(predict):
        raise KeyError("labels")

    score = make_evaluator(tmp_path, evaluate=evaluate)(PLAN, Recipe())
    assert score.outcome == "failed"
    assert score.message.startswith("KeyError: 'labels' (")
    assert "test_evaluator.py, line" in score.message


def test_a_damaged_file_is_built_again_and_scored_on_the_test_split(tmp_path: Path) -> None:
    evaluator = make_evaluator(tmp_path)
    score = evaluator(PLAN, Recipe())
    pick = Pick(score, tmp_path / "artifacts" / score.artifact)
    before = evaluator.test(score)
    pick.path.write_bytes(pick.path.read_bytes()[:-3])
    evaluator.restore(score)
    assert evaluator.test(score) == before
    pick.path.unlink()
    check_path(pick.path).unlink()
    evaluator.restore(score)
    assert pick.verify().alike
    assert pick.path.stat().st_size == score.size_bytes
    with pytest.raises(ArtifactError, match="sha256"):
        evaluator.restore(replace(score, sha256="0" * 64))


def test_a_damaged_reference_is_built_again(tmp_path: Path) -> None:
    path = make_evaluator(tmp_path).path(Plan(), Recipe())
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    make_evaluator(tmp_path)
    assert path.read_bytes() == whole


def test_a_full_disk_is_a_failure_with_a_sentence_after_a_second_try(tmp_path, monkeypatch):
    evaluator, tries = make_evaluator(tmp_path), []

    def full(handle: int) -> None:
        tries.append(handle)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    score = evaluator(PLAN, Recipe(), "named")
    assert (score.outcome, score.baseline, len(tries)) == ("failed", "named", 2)
    assert "No space left" in score.message


def test_what_a_second_try_mends_is_no_failure(tmp_path: Path) -> None:
    def evaluate(predict):
        tries.append(None)
        if len(tries) == 1:
            for path in (tmp_path / "artifacts").glob("*"):
                path.unlink()  # somebody cleans up
            raise OSError("the disk went away")
        return np.ones(3)

    evaluator, tries = make_evaluator(tmp_path, evaluate=evaluate), []
    score = evaluator(PLAN, Recipe())
    assert (score.outcome, len(tries)) == ("ok", 2)
    assert (tmp_path / "artifacts" / score.artifact).exists()


class Odd(BaseException):
    """No exception that anybody expects, without words."""

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("error", [KeyError("labels"), SystemExit(3), Odd()])
def test_what_a_second_try_cannot_mend_is_not_tried_again(tmp_path: Path, error) -> None:
    def evaluate(predict):
        tries.append(None)
        raise error

    evaluator, tries = make_evaluator(tmp_path, evaluate=evaluate), []
    score = evaluator(PLAN, Recipe())
    assert (score.outcome, len(tries)) == ("failed", 1)
    assert type(error).__name__ in score.message


def test_it_goes_to_another_process_without_model_and_sessions(tmp_path: Path) -> None:
    evaluator = make_evaluator(tmp_path, device=read_hardware("cortex-m7"), seed=3)
    score = evaluator(PLAN, Recipe(seed=3))
    copy = cloudpickle.loads(cloudpickle.dumps(evaluator))
    assert not list(copy.task.model.parameters())
    assert copy.directory.is_absolute()
    found, feedback = copy.evaluate(PLAN, Recipe(seed=3))
    same = replace(found, seconds=score.seconds, load_ms=score.load_ms)
    assert same.to_json() == score.to_json()
    assert {**feedback.long, **feedback.short}.keys() == {"0.bias", "2.bias"}
    assert copy.estimator._long == {}  # what is learnt is learnt by the driver


class Model:
    """A latency model that predicts one figure, or knows nothing, and keeps what it is told."""

    def __init__(self, ms: float = 2.0, unknown: tuple[str, ...] = ()) -> None:
        self.ms, self.unknown, self.told = ms, unknown, []

    def predict(self, terms):
        ms = math.nan if self.unknown else self.ms
        return Prediction(ms, 0.9 * ms, 1.1 * ms, unknown=self.unknown)

    def add(self, terms, ms):
        self.told.append((terms, ms))


def test_an_estimate_is_of_what_will_be_built(tmp_path: Path) -> None:
    evaluator = make_evaluator(tmp_path)
    evaluator.estimator.model = Model()
    found = evaluator.estimate(PLAN)
    assert not evaluator.path(PLAN, Recipe()).exists()
    score = evaluator(PLAN, Recipe(), "", found)
    assert abs(found.size_bytes / score.size_bytes - 1) <= 0.01
    assert (found.macs, found.activation_bytes) == (score.macs, score.activation_bytes)
    assert score.activation_bytes == 4 * (6 + 12)
    assert score.estimates == {
        "size_bytes": found.size_bytes, "macs": found.macs, "latency_ms": 2.0,
        "latency_low_ms": 1.8, "latency_high_ms": 2.2, "activation_bytes": 72.0,
    }  # fmt: skip
    assert score.latency_ms != 2.0  # it is measured
    assert evaluator(PLAN, Recipe()).estimates == {}
    assert "latency_ms" not in make_evaluator(tmp_path).estimate(PLAN).figures()


def test_a_failure_keeps_its_estimates(tmp_path: Path) -> None:
    evaluator = make_evaluator(tmp_path, evaluate=lambda predict: math.nan)
    score = evaluator(PLAN, Recipe(), "", evaluator.estimate(PLAN))
    assert score.outcome == "failed"
    assert score.estimates["macs"] == 6 * 12 + 12 * 4


def test_figures_of_a_device_stand_in_the_score(tmp_path: Path) -> None:
    device = read_hardware("cortex-m7")
    evaluator = make_evaluator(tmp_path, device=device)
    found = evaluator.estimate(PLAN)
    score = evaluator(PLAN, Recipe(), "", found)
    assert score.device == found.device == device.name
    assert score.device_latency_ms == found.device_latency_ms > 0
    assert score.energy_mj == found.energy_mj > 0
    assert score.latency_limit_ms == score.device_latency_ms != score.latency_ms
    whole = evaluator(Plan(), Recipe())
    assert whole.device_latency_ms > score.device_latency_ms
    assert whole.energy_mj > score.energy_mj
    without = make_evaluator(tmp_path)(PLAN, Recipe())
    assert without.device == ""
    assert math.isnan(without.energy_mj)
    assert math.isnan(without.device_latency_ms)


def test_a_score_over_budget_has_estimates_alone(tmp_path: Path) -> None:
    budget = Budget(latency_ms=1.2, max_size_bytes=10**6)
    evaluator = make_evaluator(tmp_path, budget=budget, seed=5)
    evaluator.estimator.model = Model()
    found = evaluator.estimate(PLAN)
    score = evaluator.over_budget(PLAN, Recipe(seed=5), found, 0.75)
    assert (score.outcome, score.seed, score.target) == ("over_budget", 5, "null")
    assert score.message == "predicted to exceed latency_ms by 50% at least"
    assert score.values(("accuracy", "size", "latency")) == (0.75, found.size_bytes, 2.0)
    assert score.constraints(budget)["latency_ms"] == pytest.approx(2 / 1.2 - 1)
    assert math.isnan(score.accuracy)
    assert math.isnan(score.size_bytes)
    assert "energy_mj" not in score.estimates
    again = Score.from_json(json.loads(json.dumps(score.to_json(), allow_nan=False)))
    assert again.constraints(budget) == score.constraints(budget)
    assert list((tmp_path / "artifacts").iterdir()) == [evaluator.path(Plan(), Recipe(seed=5))]


def test_a_device_decides_what_is_over_budget(tmp_path: Path) -> None:
    budget = Budget(latency_ms=1e-6, max_energy_mj=1e-9)
    evaluator = make_evaluator(tmp_path, budget=budget, device=read_hardware("cortex-m7"))
    evaluator.estimator.model = Model(ms=1e-7)  # of this machine, which is not asked
    found = evaluator.estimate(PLAN)
    assert found.over(budget)
    score = evaluator.over_budget(PLAN, Recipe(), found, 0.5)
    assert score.values(("accuracy", "latency", "energy")) == (
        0.5, found.device_latency_ms, found.energy_mj,
    )  # fmt: skip
    assert all(excess > 0 for excess in score.constraints(budget).values())
    assert "latency_ms by" in score.message
    assert "max_energy_mj by" in score.message


def test_what_is_measured_is_told_to_the_model(tmp_path: Path) -> None:
    evaluator = make_evaluator(tmp_path)
    evaluator.estimator.model = model = Model()
    scores = [evaluator(plan, Recipe()) for plan in (PLAN, Plan())]
    assert [ms for _, ms in model.told] == [score.latency_ms for score in scores]
    assert [term.out for term in model.told[0][0] if term.work] == [12, 4]
    assert [term.out for term in model.told[1][0] if term.work] == [24, 4]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch):
    """Let the next measurements find one latency; return what each was asked for."""
    asked: list[tuple[float, float]] = []

    def use(low: float, high: float) -> list[tuple[float, float]]:
        def measure(candidate, reference, inputs, *, max_seconds, relative_width, **_):
            asked.append((max_seconds, relative_width))
            narrow = 0.5 * (low + high)
            ends = (narrow, narrow) if len(asked) > 1 else (low, high)
            return Timing(narrow, *ends, 4.0, narrow / 4, "cpu", True, 1.0, ())

        monkeypatch.setattr(evaluating, "measure", measure)
        return asked

    return use


@pytest.mark.parametrize(
    ("low", "high", "limit", "again"),
    [
        (0.90, 1.10, 1.0, True),  # within the interval
        (1.01, 1.02, 1.0, True),  # near above it
        (0.96, 0.98, 1.0, True),  # near below it
        (1.07, 1.10, 1.0, False),
        (0.90, 0.94, 1.0, False),
        (0.90, 1.10, None, False),
    ],
)
def test_near_the_line_of_the_budget_it_is_measured_again(
    tmp_path: Path, measured, low, high, limit, again
) -> None:
    budget = Budget(latency_ms=limit)
    evaluator = make_evaluator(tmp_path, budget=budget, reference_ms=4.0)
    asked = measured(low, high)
    score = evaluator(PLAN, Recipe())
    assert len(asked) == 1 + again
    assert (score.latency_low_ms == score.latency_high_ms) == again  # the second one counts
    if again:
        (short, wide), (long, narrow) = asked
        assert long > short
        assert narrow < wide


def test_a_budget_on_a_device_is_not_measured_here(tmp_path: Path, measured) -> None:
    evaluator = make_evaluator(
        tmp_path, budget=Budget(latency_ms=1.0), reference_ms=4.0, device=read_hardware("cortex-m7")
    )
    asked = measured(0.9, 1.1)
    assert evaluator(PLAN, Recipe()).latency_ms == pytest.approx(1.0)
    assert len(asked) == 1


def test_the_reference_is_measured_longest(tmp_path: Path, measured) -> None:
    asked = measured(1.0, 1.0)
    evaluator = make_evaluator(tmp_path)
    assert evaluator.reference_ms == 4.0
    evaluator(PLAN, Recipe())
    (first, narrow), (second, wide) = asked
    assert first > second
    assert narrow < wide
