import pytest
import torch

from autocompress.transforms.gram import columns_of, moments
from autocompress.transforms.options import Options
from autocompress.transforms.repair import repair, round_weight
from autocompress.transforms.weights import QuantizedWeight


def problem(groups: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight, bias, correlated inputs [samples, 1, channels] and the outputs they give."""
    weight, bias = torch.randn(8, 12 // groups), torch.randn(8)
    x = torch.randn(400, 12) @ torch.randn(12, 12) + 1
    parts = x.reshape(400, groups, -1), weight.reshape(groups, 8 // groups, -1)
    y = torch.einsum("ngk,gok->ngo", *parts).reshape(400, 8) + bias
    return weight, bias, x[:, None], y


def error(weight, bias, x, y, groups: int = 1) -> float:
    parts = x[:, 0].reshape(len(x), groups, -1), weight.reshape(groups, 8 // groups, -1)
    found = torch.einsum("ngk,gok->ngo", *parts).reshape(len(x), 8) + bias
    return float((found - y).square().mean())


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_compensation_beats_rounding_to_nearest(bits: int, groups: int) -> None:
    torch.manual_seed(1)
    weight, bias, x, y = problem(groups)
    seen = moments(x.clone(), y, groups)
    errors = {}
    for on in (True, False):
        options = Options(compensate=on)
        good = repair(weight, bias, seen, bits, options, spoilt=False)
        assert isinstance(good.weight_code, QuantizedWeight)
        assert good.weight_code.bits == bits
        torch.testing.assert_close(torch.from_numpy(good.weight_code.values), good.weight)
        errors[on] = error(good.weight, good.bias, x, y, groups)
    assert errors[True] < errors[False]


@pytest.mark.parametrize("bits", [3, 8, 16, 32])
def test_the_bias_makes_outputs_right_on_average(bits: int) -> None:
    weight, _, x, y = problem()
    good = repair(weight, torch.zeros(8), moments(x.clone(), y), bits, Options(), spoilt=False)
    found = x[:, 0] @ good.weight.T + good.bias
    assert ((found - y).mean(0).abs() <= y.std(0) / 128 + 1e-5).all()
    assert good.bias_code == ("float16" if bits < 32 else None)


def test_a_bias_that_float16_would_spoil_is_float32() -> None:
    weight, bias, x, y = problem()
    x = x + 1000  # so that the bias is -1000 times the weights' sum
    good = repair(weight, bias, moments(x.clone(), y), 8, Options(), spoilt=False)
    assert good.bias_code is None
    assert error(good.weight, good.bias, x, y) < 0.01 * float(y.var(0).mean())


@pytest.mark.parametrize("bits", [4, 32])
def test_a_bias_that_must_stay_is_reckoned_with(bits: int) -> None:
    weight, bias, x, y = problem()
    x[..., 8:] = 0
    options = Options(bn=False)
    seen = moments(x.clone(), y - bias, centred=False)
    good = repair(weight, bias, seen, bits, options, spoilt=True)
    assert torch.equal(good.bias, bias)
    rounded = round_weight(weight, bits, options)[0]
    assert error(good.weight, bias, x, y) < error(rounded, bias, x, y)


def test_spoilt_inputs_are_made_good_by_a_refit() -> None:
    weight, bias, x, y = problem()
    x = torch.cat([x[..., :8], torch.zeros(400, 1, 4)], 2)  # what pruning took away
    seen = moments(x.clone(), y)
    left, good = (
        repair(weight, bias, seen, 32, Options(refit=on), spoilt=True) for on in (False, True)
    )
    assert error(good.weight, good.bias, x, y) < 0.9 * error(left.weight, left.bias, x, y)


def test_rounding_alone_at_every_width() -> None:
    weight = torch.randn(6, 40)
    last = float("inf")
    for bits in (2, 3, 4, 5, 6, 7, 8, 16):
        value, code = round_weight(weight, bits, Options())
        now = float((value - weight).square().mean())
        assert now < last
        last = now
    assert code == "float16"
    assert round_weight(weight, 32, Options()) == (weight, None)


def test_columns_are_in_the_order_of_the_samples() -> None:
    weight = torch.randn(4, 3, 2, 2)
    x = torch.randn(5, 4, 3)  # [samples, cells, channels]
    expected = torch.einsum("nkc,ock->no", x, weight.flatten(2))
    torch.testing.assert_close(x.flatten(1) @ columns_of(weight, 1)[0], expected)
