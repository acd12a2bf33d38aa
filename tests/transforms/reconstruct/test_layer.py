import numpy as np
import pytest
import torch

from autocompress.transforms.options import Options
from autocompress.transforms.quantize.weights import QuantizedWeight
from autocompress.transforms.reconstruct.gram import columns_of, moments
from autocompress.transforms.reconstruct.layer import (
    Kernel,
    repair,
    round_weight,
    rounded_bias,
    widened,
)


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


def test_a_bias_is_a_whole_multiple_of_its_step() -> None:
    weight = QuantizedWeight(np.ones((3, 2), np.int8), np.array([0.5, 1.0, 2.0], np.float32), 8)
    found = rounded_bias(weight, torch.tensor([0.3, 0.3, -7.1]), 0.25)
    assert found.tolist() == [0.25, 0.25, -7.0]


def test_a_scale_is_widened_until_a_bias_fits() -> None:
    codes = np.array([[100, -50], [100, -50]], np.int8)
    weight = QuantizedWeight(codes, np.array([1e-9, 1.0], np.float32), 8)
    bias = torch.tensor([5.0, 5.0])
    found = widened(weight, bias, 1.0)
    assert found.scale[1] == 1
    assert found.scale[0] == np.float32(5 / 2**30)
    np.testing.assert_allclose(rounded_bias(found, bias, 1.0), bias, rtol=1e-6)
    assert abs(found.values[0] - weight.values[0]).max() <= found.scale[0] / 2
    assert widened(weight, torch.zeros(2), 1.0) is weight


def test_a_weight_of_a_constant_input_does_not_coarsen_the_others() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 1, 6)
    x[:, :, 2] = 0.25
    weight = torch.randn(4, 6)
    weight[:, 2] = 500.0
    wanted = x[:, 0] @ weight.T
    seen = moments(x.clone(), wanted)
    good = repair(weight, torch.zeros(4), seen, 8, Options(), spoilt=False)
    found = x[:, 0] @ good.weight.T + good.bias
    assert float((found - wanted).std() / wanted.std()) < 0.01
    largest = float(weight[:, [0, 1, 3, 4, 5]].abs().max())
    assert float(good.weight[:, 2].abs().max()) <= 1.01 * largest  # scales are float16 numbers


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_bias_step_is_fine_beside_what_the_output_does(bits: int) -> None:
    torch.manual_seed(0)
    step = 0.02
    x = torch.randn(400, 1, 6).mul_(1e-5).add_(0.5).div_(step).round_().mul_(step)
    weight = torch.randn(4, 6) * 700
    wanted = torch.randn(400, 4) * 0.1 + 1
    seen = moments(x.clone(), wanted)
    good = repair(weight, torch.zeros(4), seen, bits, Options(), Kernel(64, step), spoilt=True)
    assert isinstance(good.weight_code, QuantizedWeight)
    assert float(good.weight_code.scale.max()) * step <= 0.1 / 8 * 1.2
    bias = rounded_bias(good.weight_code, good.bias, step)
    assert float((x[:, 0] @ good.weight.T + bias - wanted).mean(0).abs().max()) < 0.02
