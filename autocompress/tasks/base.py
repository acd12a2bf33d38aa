"""The task: what a search needs to know of a model, its data and its metric."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from autocompress.errors import TaskError

__all__ = ["Predict", "Task", "accuracy_of"]

Array = npt.NDArray[Any]
Predict = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Task:
    """A trained model with the data and the metric that it is compressed for.

    ``model`` is in eval mode with float32 parameters. ``example_inputs`` is a tuple of tensors
    with a batch (first dimension) of 1. ``calibration`` is an iterable of such tuples, unlabelled,
    any batch size. ``evaluate(predict)`` calls ``predict(*arrays) -> array(s)`` with batches of any
    size on the validation split and returns a score, higher is better: a number, or the
    per-example scores (1-d array) whose mean it is, which gives intervals. ``test`` is the same
    on a split that the search never sees. ``train()``, optional, yields an epoch of labelled
    batches (inputs, labels). ``fingerprint`` stands for data that calibration does not show.

    Raises TaskError for anything else.
    """

    model: nn.Module
    example_inputs: tuple[Tensor, ...]
    calibration: Iterable[tuple[Tensor, ...]]
    evaluate: Callable[[Predict], Any]
    test: Callable[[Predict], Any] | None = None
    train: Callable[[], Iterable[tuple[Tensor, ...]]] | None = None
    name: str = "custom"
    fingerprint: str = ""

    def __post_init__(self) -> None:
        _check_model(self.model)
        examples = self.example_inputs
        if not isinstance(examples, tuple) or not all(isinstance(x, Tensor) for x in examples):
            found = [type(x).__name__ for x in examples] if isinstance(examples, tuple) else []
            raise TaskError(
                "example_inputs must be a tuple of tensors, not "
                f"{f'one of {found}' if found else type(examples).__name__}; for one input write "
                "(x,), for an array torch.from_numpy(x)."
            )
        if not examples or any(x.ndim == 0 or x.shape[0] != 1 for x in examples):
            shapes = [tuple(x.shape) for x in examples]
            raise TaskError(
                f"example_inputs must have a batch (first dimension) of 1, not {shapes}; "
                "write x[:1]."
            )
        object.__setattr__(self, "example_inputs", tuple(x.detach() for x in examples))
        for name in ("evaluate", "test", "train"):
            value = getattr(self, name)
            if not callable(value) and not (value is None and name != "evaluate"):
                raise TaskError(f"{name} must be a function, not {type(value).__name__}.")
        if not isinstance(self.calibration, Iterable):
            raise TaskError(
                "calibration must be an iterable of input tuples, not "
                f"{type(self.calibration).__name__}; for one batch write [(x,)]."
            )
        object.__setattr__(self, "calibration", tuple(self._checked(b) for b in self.calibration))
        if not self.calibration:
            raise TaskError("calibration must hold at least one batch; it is empty.")

    def _checked(self, batch: Any) -> tuple[Tensor, ...]:
        if isinstance(batch, Tensor):
            batch = (batch,)
        batch = tuple(batch) if isinstance(batch, (list, tuple)) else (batch,)
        wanted = [(tuple(x.shape[1:]), x.dtype) for x in self.example_inputs]
        found = [(tuple(x.shape[1:]), x.dtype) for x in batch if isinstance(x, Tensor)]
        if found != wanted or len(batch) != len(wanted):
            raise TaskError(
                "Every calibration batch must be a tuple of tensors shaped like example_inputs "
                f"but for the batch: expected (*, …) {wanted}, found {found or type(batch[0])}."
            )
        if len({len(x) for x in batch}) > 1:
            raise TaskError(
                "The inputs of a calibration batch must have the same first dimension, not "
                f"{[len(x) for x in batch]}."
            )
        if not len(batch[0]):
            raise TaskError("Every calibration batch must hold an input; one is empty.")
        if not all(bool(torch.isfinite(x).all()) for x in batch):
            raise TaskError("Calibration inputs must be finite numbers; some are NaN or infinite.")
        return tuple(x.detach() for x in batch)


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TaskError(f"model must be a torch.nn.Module, not {type(model).__name__}.")
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        raise TaskError(
            f"model must be in eval mode; {training[0]} is in training mode: call model.eval()."
        )
    for name, value in model.named_parameters():
        if value.dtype != torch.float32:
            raise TaskError(
                f"model must have float32 parameters; {name} is {value.dtype}: call model.float()."
            )
        if value.device.type != "cpu":
            raise TaskError(f"model must be on the CPU; {name} is on {value.device}: model.cpu().")


def accuracy_of(inputs: Array, labels: Array, batch_size: int = 250) -> Callable[[Predict], Array]:
    """Return an ``evaluate`` that gives 1 for each example whose largest logit is its label.

    ``inputs`` are (N, …) and ``labels`` (N,); logits are (batch, classes).
    """

    def evaluate(predict: Predict) -> Array:
        hits = []
        for start in range(0, len(labels), batch_size):
            logits = np.asarray(predict(inputs[start : start + batch_size]))
            hits.append(logits.argmax(axis=-1) == labels[start : start + batch_size])
        return np.concatenate(hits).astype(np.float64)

    return evaluate
