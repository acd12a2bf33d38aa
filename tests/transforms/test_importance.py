import pytest
import torch

from autocompress.transforms.importance import (
    Consumer,
    count_kept,
    energy_orders,
    magnitude_order,
    removal_order,
)
from autocompress.transforms.reconstruct.gram import moments
from autocompress.transforms.reconstruct.least_squares import ridged
from autocompress.transforms.reference import Reference
from tests.transforms.nets import Mixer, Residual, calibration, trained


def consumer(channels: int, cells: int, seed: int) -> Consumer:
    generator = torch.Generator().manual_seed(seed)
    size = channels * cells
    rows = torch.randn(300, size, generator=generator) @ torch.randn(
        size, size, generator=generator
    )
    gram = moments(rows[:, None].clone(), rows).gram[0]
    weights = torch.randn(size, 3, generator=generator)
    columns = [torch.arange(c * cells, (c + 1) * cells) for c in range(channels)]
    return Consumer(weights, gram, columns)


def missing(found: Consumer, kept: list[int]) -> float:
    """The refitted error with only some channels, relative to the output's energy."""
    gram = ridged(found.gram.double().unsqueeze(0), 1e-3)[0][0]
    weights = found.weights.double()
    index = torch.cat([found.columns[c] for c in kept])
    cross = gram[index] @ weights
    explained = cross * torch.linalg.solve(gram[index][:, index], cross)
    energy = (weights * (gram @ weights)).sum()
    return float((energy - explained.sum()) / energy)


def test_the_order_is_greedy_and_its_errors_are_true() -> None:
    both = [consumer(7, 2, 0), consumer(7, 3, 1)]
    order, errors = removal_order(both, 7)
    assert sorted(order) == list(range(7))
    alive = list(range(7))
    for channel, error in zip(order, errors.tolist(), strict=False):
        totals = {c: sum(missing(x, [a for a in alive if a != c]) for x in both) for c in alive}
        assert totals[channel] == pytest.approx(min(totals.values()), rel=1e-6)
        assert error == pytest.approx(totals[channel], rel=1e-6)
        alive.remove(channel)


def test_columns_of_unequal_number() -> None:
    found = consumer(4, 2, 3)
    uneven = [torch.arange(0, 3), torch.arange(3, 4), torch.arange(4, 6), torch.arange(6, 8)]
    order, errors = removal_order([Consumer(found.weights, found.gram, uneven)], 4)
    best = min(
        missing(Consumer(found.weights, found.gram, uneven), [a for a in range(4) if a != c])
        for c in range(4)
    )
    assert errors[0].item() == pytest.approx(best, rel=1e-6)
    assert sorted(order) == [0, 1, 2, 3]


@pytest.mark.parametrize("power", [1, 2])
def test_magnitudes_are_sums_over_all_producers(power: int) -> None:
    network = trained(Residual)
    unit = next(unit for unit in network.units if len(unit.producers) > 1)
    producers = [layer for layer in network.layers if layer.name in unit.producers]
    scores = sum(
        (network.params[layer.weight].double().abs() ** power).flatten(1).sum(1)
        for layer in producers
    )
    assert isinstance(scores, torch.Tensor)
    assert magnitude_order(unit, network, power) == tuple(scores.argsort().tolist())


@pytest.mark.parametrize("kind", [Residual, Mixer])
def test_every_unit_has_an_order(kind: type[torch.nn.Module]) -> None:
    network = trained(kind)
    orders = energy_orders(Reference(network, calibration()))
    for unit in network.units:
        assert sorted(orders[unit.name]) == list(range(unit.channels))


@pytest.mark.parametrize(
    ("keep", "channels", "count"), [(0.5, 16, 8), (0.01, 16, 1), (0.5, 5, 3), (0.99, 4, 4)]
)
def test_how_many_stay(keep: float, channels: int, count: int) -> None:
    assert count_kept(keep, channels) == count
