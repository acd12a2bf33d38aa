"""One plan in, one score out, on the null target."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autocompress.errors import ArtifactError, RunError
from autocompress.models.trace import trace
from autocompress.report.front import Pick
from autocompress.searching.evaluate import Evaluator
from autocompress.spec.plan import Plan, Recipe
from autocompress.targets import make_target
from autocompress.tasks.base import Task, accuracy_of


def make_evaluator(directory: Path, evaluate=None, test=True, **options) -> Evaluator:
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
    network = trace(task.model, task.example_inputs)
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
    assert set(score.seconds) == {"compress", "build", "open", "accuracy", "latency"}
    assert math.isnan(score.test_accuracy)


def test_the_reference_is_the_uncompressed_model(tmp_path: Path) -> None:
    first = make_evaluator(tmp_path)
    assert first.path(Plan(), Recipe()).exists()
    assert first(Plan(), Recipe()).latency_ms == first.reference_ms
    assert make_evaluator(tmp_path, reference_ms=7.0).reference_ms == 7.0


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
    assert "test_evaluate.py, line" in score.message


def test_a_damaged_file_is_built_again_and_scored_on_the_test_split(tmp_path: Path) -> None:
    evaluator = make_evaluator(tmp_path)
    score = evaluator(PLAN, Recipe())
    pick = Pick(score, tmp_path / "artifacts" / score.artifact)
    before = evaluator.test(pick)
    pick.path.write_bytes(pick.path.read_bytes()[:-3])
    evaluator.restore(pick)
    assert evaluator.test(pick) == before
    pick.path.unlink()
    evaluator.restore(pick)
    assert pick.path.stat().st_size == score.size_bytes
    with pytest.raises(ArtifactError, match="sha256"):
        evaluator.restore(replace(pick, score=replace(score, sha256="0" * 64)))


def test_a_damaged_reference_is_built_again(tmp_path: Path) -> None:
    path = make_evaluator(tmp_path).path(Plan(), Recipe())
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    make_evaluator(tmp_path)
    assert path.read_bytes() == whole


def test_a_full_disk_is_no_fault_of_the_plan(tmp_path: Path, monkeypatch) -> None:
    evaluator = make_evaluator(tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space left"):
        evaluator(PLAN, Recipe())
