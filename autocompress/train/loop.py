"""The training loop: cross-entropy and distillation, one cosine cycle, early stop."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import InputError

__all__ = ["Epoch", "TrainConfig", "distillation_loss", "fit"]

Batches = Callable[[], Iterable[tuple[Tensor, ...]]]


@dataclass(frozen=True)
class TrainConfig:
    """How to train: SGD with Nesterov momentum, a warm-up and one cosine cycle.

    ``patience`` is the number of epochs without a better validation score that ends training,
    None never; ``temperature`` and ``distillation`` (the weight of the soft targets, from 0 to 1)
    apply where a teacher is given; ``bfloat16`` computes forward passes in that type.
    """

    epochs: int = 10
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: float = 0.15
    label_smoothing: float = 0.0
    temperature: float = 4.0
    distillation: float = 0.5
    patience: int | None = None
    bfloat16: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.learning_rate <= 0 or not 0 <= self.distillation <= 1:
            raise InputError(
                "Training needs epochs ≥ 1, learning_rate > 0 and distillation from 0 to 1, not "
                f"{self.epochs}, {self.learning_rate}, {self.distillation}."
            )


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: its number from 1, the mean loss, the validation score (or NaN)."""

    number: int
    loss: float
    score: float


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T²·KL(teacher ‖ student) of softened logits (N, classes), averaged over N.

    Source: Hinton, Vinyals and Dean 2015, section 2.
    """
    soft = F.log_softmax(teacher / temperature, dim=-1)
    own = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(own, soft, reduction="batchmean", log_target=True) * temperature**2


def fit(
    model: nn.Module,
    batches: Batches,
    recipe: TrainConfig,
    *,
    teacher: nn.Module | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    device: str = "cpu",
    progress: Callable[[Epoch], None] | None = None,
) -> float:
    """Train a model in place and leave it in eval mode with its best weights.

    ``batches()`` yields an epoch of (inputs, labels); the same number of them every epoch.
    With ``validate`` the best epoch's weights are kept and its score is returned, else the last
    ones and NaN. Randomness is the caller's global generator: seed it.
    """
    model.to(device).train()
    if teacher is not None:
        teacher.to(device).eval()
    optimizer = torch.optim.SGD(
        model.parameters(),
        recipe.learning_rate,
        recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )
    best, best_state, stale = -math.inf, None, 0
    for number in range(1, recipe.epochs + 1):
        total, count = 0.0, 0
        epoch = list(batches())
        for step, (inputs, labels) in enumerate(epoch):
            done = (number - 1 + step / len(epoch)) / recipe.epochs
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(done, recipe.warm_up)
            inputs, labels = inputs.to(device), labels.to(device)
            with torch.autocast(device, torch.bfloat16, enabled=recipe.bfloat16):
                logits = model(inputs)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
            if teacher is not None:
                with torch.no_grad():
                    target = teacher(inputs)
                soft = distillation_loss(logits.float(), target.float(), recipe.temperature)
                loss = (1 - recipe.distillation) * loss + recipe.distillation * soft
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total, count = total + float(loss.detach()), count + 1
        score = math.nan
        if validate is not None:
            model.eval()
            score = validate(model)
            model.train()
            stale += 1
            if score > best:
                best, stale = score, 0
                best_state = {k: v.detach().clone() for k, v in model.state_dict().items()}
        if progress is not None:
            progress(Epoch(number, total / max(count, 1), score))
        if recipe.patience is not None and stale >= recipe.patience:
            break
    if best_state is not None:
        model.load_state_dict(best_state)
    model.eval()
    return best if best_state is not None else math.nan


def _schedule(done: float, warm_up: float) -> float:
    """Return the factor of the learning rate at a fraction of the training."""
    if done < warm_up:
        return 0.1 + 0.9 * done / warm_up
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))
