import numpy as np
import pytest
import torch

from autocompress.errors import InputError
from autocompress.transforms.quantize.ranges import METHODS, ActivationRange, observe


def sample(kind: str) -> torch.Tensor:
    value = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0))
    value[0, 0, 0] = 30.0
    return {"both": value, "relu": value.relu(), "negative": -value.relu(), "shifted": value + 40}[
        kind
    ]


def error(value: torch.Tensor, chosen: ActivationRange) -> float:
    return float((chosen.simulate(value) - value).square().sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["both", "relu", "negative", "shifted"])
def test_zero_is_exact_and_codes_fit(method: str, kind: str) -> None:
    value = sample(kind)
    chosen = observe(value, method)
    assert chosen.simulate(torch.zeros(1)).item() == 0
    assert chosen.high == 255
    if kind in ("relu", "shifted"):
        assert chosen.zero_point == 0
    codes = torch.round(value / chosen.scale) + chosen.zero_point
    wanted = (codes.clamp(0, chosen.high) - chosen.zero_point) * chosen.scale
    torch.testing.assert_close(chosen.simulate(value), wanted)


def test_minmax_covers_everything() -> None:
    value = sample("both")
    chosen = observe(value, "minmax")
    assert float((chosen.simulate(value) - value).abs().max()) <= chosen.scale * 1.01
    wanted = (float(value.max()) - float(value.min())) / 255
    assert chosen.scale == pytest.approx(wanted)


def test_percentile_is_that_of_numpy() -> None:
    value = torch.randn(200_001, generator=torch.Generator().manual_seed(1))
    value[0] = 500.0
    chosen = observe(value[:100_001], "percentile")
    low, high = np.percentile(value[:100_001].numpy(), [0.01, 99.99])
    assert chosen.scale * 255 == pytest.approx(high - low, rel=0.05)
    assert observe(value[:100_001], "minmax").scale > 20 * chosen.scale


@pytest.mark.parametrize("kind", ["both", "relu"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_mse_is_near_the_best_of_a_brute_force_search(kind: str, bits: int) -> None:
    value = sample(kind)
    least, greatest = float(value.min()), float(value.max())
    best = min(
        error(value, ActivationRange.covering(least * a, greatest * b, bits))
        for a in np.linspace(0.05, 1, 20)
        for b in np.linspace(0.05, 1, 20)
    )
    found = error(value, observe(value, "mse", bits))
    assert found <= 1.2 * best
    assert found <= error(value, observe(value, "minmax", bits)) * 1.001


def test_constant_and_bad_values() -> None:
    assert observe(torch.zeros(5)).scale == 2.0**-20
    assert observe(torch.full((5,), 3.0)).simulate(torch.tensor([3.0])).item() == pytest.approx(3)
    with pytest.raises(InputError, match="finite"):
        observe(torch.tensor([1.0, float("nan")]))
    with pytest.raises(InputError, match="Did you mean 'minmax'"):
        observe(torch.ones(3), "minmaks")
    with pytest.raises(InputError, match="empty"):
        observe(torch.ones(0))


@pytest.mark.parametrize("arguments", [(0.0, 0), (1.0, 256), (1.0, -1), (1.0, 0, 9)])
def test_impossible_ranges_are_refused(arguments: tuple[float, int]) -> None:
    with pytest.raises(ValueError, match=r"range|zero point"):
        ActivationRange(*arguments)


LAYOUTS = {
    "channels first": lambda count, width: (count, width, 16, 16),
    "channels last": lambda count, width: (count, width, 16, 16),
    "sequence": lambda count, width: (count, width, 256),
    "tokens": lambda count, width: (count, 256, width),
}


def channelled(layout: str, count: int, width: int, special: int) -> torch.Tensor:
    """Return values of which one channel alone is far from 0."""
    value = torch.randn(LAYOUTS[layout](count, width), generator=torch.Generator().manual_seed(0))
    dim = 2 if layout == "tokens" else 1
    value.select(dim, special).mul_(0.1).add_(40.0)
    last = torch.channels_last
    return value.contiguous(memory_format=last) if layout == "channels last" else value


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [3, 7, 12, 32, 90])
def test_no_channel_is_missed_however_much_data_there_is(
    method: str, layout: str, width: int
) -> None:
    for count in (8, 31, 64):
        for special in (0, width - 1):
            value = channelled(layout, count, width, special)
            chosen = observe(value, method)
            rounded = (chosen.simulate(value) - value).square().mean().sqrt()
            assert float(rounded) < 0.6 * chosen.scale  # nothing is clipped by much
            assert chosen.scale < 0.2


@pytest.mark.parametrize("method", METHODS)
def test_a_range_does_not_depend_on_how_values_lie_in_memory(method: str) -> None:
    value = channelled("channels first", 64, 24, 5)
    chosen = observe(value, method)
    assert chosen == observe(value.contiguous(memory_format=torch.channels_last), method)
    assert chosen == observe(value.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2), method)
    both = torch.cat([value, -value], 1)
    assert chosen == observe(both.chunk(2, 1)[0], method)  # a part of a larger tensor


@pytest.mark.parametrize("rare", [1, 5, 40])
def test_what_is_rare_and_large_is_weighed_as_it_is(rare: int) -> None:
    value = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    value[torch.arange(rare) * 9973] = 25.0
    errors = {
        greatest: error(value, ActivationRange.covering(float(value.min()), greatest))
        for greatest in (5.0, 7.5, 10.0, 12.5, 17.5, 20.0, 22.5, 25.0)
    }
    assert error(value, observe(value)) <= 1.1 * min(errors.values())


@pytest.mark.parametrize("kind", ["normal", "heavy", "relu"])
def test_more_values_are_not_worse(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    value = torch.randn(1_000_000, generator=generator)
    value = {"normal": value, "heavy": value**3, "relu": value.relu()}[kind]
    whole = error(value, observe(value))
    assert whole <= 1.02 * error(value, observe(value[:100_000]))  # of which each is looked at
    assert whole <= 1.02 * error(value, observe(value[:250_000]))
