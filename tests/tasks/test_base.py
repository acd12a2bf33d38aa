import numpy as np
import pytest
import torch
from torch import nn

from autocompress.errors import TaskError
from autocompress.tasks.base import Task, accuracy_of

X = torch.randn(1, 4)


def make(**changes):
    values = {
        "model": nn.Linear(4, 2).eval(),
        "example_inputs": (X,),
        "calibration": [(torch.randn(3, 4),)],
        "evaluate": lambda predict: 1.0,
    }
    return Task(**{**values, **changes})


def test_a_good_task_is_taken_and_its_calibration_kept():
    task = make(calibration=((torch.randn(n, 4),) for n in (1, 2, 3)))
    assert [len(batch[0]) for batch in task.calibration] == [1, 2, 3]
    assert make(calibration=[torch.randn(5, 4)]).calibration[0][0].shape == (5, 4)


def test_gradients_are_left_behind():
    assert not make(example_inputs=(X.clone().requires_grad_(),)).example_inputs[0].requires_grad


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "net"}, "nn.Module"),
        ({"model": nn.Linear(4, 2).train()}, r"model\.eval\(\)"),
        ({"model": nn.Sequential(nn.Dropout(), nn.Linear(4, 2)).eval().append(nn.ReLU())}, "eval"),
        ({"model": nn.Linear(4, 2).double().eval()}, r"model\.float\(\)"),
        ({"example_inputs": X}, r"\(x,\)"),
        ({"example_inputs": ()}, "batch"),
        ({"example_inputs": (torch.randn(2, 4),)}, r"x\[:1\]"),
        ({"calibration": []}, "empty"),
        ({"calibration": [(torch.randn(3, 4),), (torch.randn(0, 4),)]}, "one is empty"),
        ({"example_inputs": (np.zeros((1, 4)),)}, "from_numpy"),
        ({"calibration": [(torch.randn(3, 5),)]}, "calibration"),
        ({"calibration": [(torch.zeros(3, 4, dtype=torch.long),)]}, "calibration"),
        ({"calibration": [(torch.randn(3, 4), torch.zeros(3))]}, "calibration"),
        ({"calibration": [3]}, "calibration"),
        ({"calibration": None}, "iterable"),
        ({"calibration": [(torch.full((3, 4), torch.nan),)]}, "finite"),
        (
            {"example_inputs": (X, X), "calibration": [(torch.zeros(3, 4), torch.zeros(2, 4))]},
            "same first dimension",
        ),
        ({"evaluate": 0.9}, "evaluate"),
        ({"evaluate": None}, "evaluate"),
        ({"test": "x"}, "test"),
    ],
)
def test_what_cannot_be_used_is_one_clear_error(changes, words):
    with pytest.raises(TaskError, match=words):
        make(**changes)


def test_accuracy_of_counts_hits_in_batches():
    inputs = np.eye(3, dtype=np.float32)[[0, 1, 2, 1, 0]]
    evaluate = accuracy_of(inputs, np.array([0, 1, 2, 2, 0]), batch_size=2)
    sizes = []

    def predict(x):
        sizes.append(len(x))
        return x

    assert evaluate(predict).tolist() == [1, 1, 1, 0, 1]
    assert sizes == [2, 2, 1]
