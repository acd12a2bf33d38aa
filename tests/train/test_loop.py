import math

import pytest
import torch
from torch import nn

from autocompress.errors import InputError
from autocompress.train.loop import TrainConfig, distillation_loss, fit


def data(n=200):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, generator=generator)
    y = (x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) > 0).long()
    return [(x[i : i + 20], y[i : i + 20]) for i in range(0, n, 20)]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def hits(model):
    with torch.no_grad():
        return float(torch.cat([(model(x).argmax(1) == y).float() for x, y in data()]).mean())


def test_training_learns_and_is_reproducible():
    before, one, two = hits(net()), net(), net()
    for model in (one, two):
        torch.manual_seed(3)
        fit(model, data, TrainConfig(epochs=10))
    assert hits(one) > max(before, 0.95)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not one.training


def test_the_best_epoch_is_kept_and_patience_ends_training():
    scores = iter([0.2, 0.9, 0.5, 0.4, 0.3, 0.1])
    states, epochs = [], []

    def validate(model):
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        return next(scores)

    model = net()
    best = fit(
        model, data, TrainConfig(epochs=6, patience=2), validate=validate, progress=epochs.append
    )
    assert best == 0.9
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4]
    assert epochs[0].score == 0.2
    for name, value in model.state_dict().items():
        assert torch.equal(value, states[1][name])


def test_without_validation_the_score_is_nan():
    assert math.isnan(fit(net(), data, TrainConfig(epochs=1)))


def test_distillation_loss_is_zero_for_equal_logits_and_matches_the_definition():
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    assert float(distillation_loss(teacher, teacher, 4.0)) == pytest.approx(0, abs=1e-6)
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    expected = 4 * (p * (p / q).log()).sum(-1).mean()
    assert float(distillation_loss(student, teacher, 2.0)) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_a_student_comes_closer_to_its_teacher():
    teacher, student = net(), nn.Linear(4, 2)
    fit(teacher, data, TrainConfig(epochs=10))
    x = torch.randn(500, 4)
    before = float(distillation_loss(student(x), teacher(x), 1.0).detach())
    fit(student, data, TrainConfig(epochs=10, distillation=1.0), teacher=teacher)
    assert float(distillation_loss(student(x), teacher(x), 1.0).detach()) < before


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"learning_rate": 0}, {"distillation": 2}])
def test_recipes_are_checked(bad):
    with pytest.raises(InputError):
        TrainConfig(**bad)
