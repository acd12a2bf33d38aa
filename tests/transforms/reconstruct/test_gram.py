import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.transforms.reconstruct.gram import Samples, columns_of, moments, weight_of
from autocompress.transforms.reconstruct.least_squares import factorise, refit, ridged

LAYERS = [
    (nn.Conv2d(4, 6, 3, 2, 1), (4, 9, 8)),
    (nn.Conv2d(4, 6, (3, 1), 1, "same", dilation=(2, 1)), (4, 9, 8)),
    (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 6, 6)),
    (nn.Conv2d(4, 6, 3, padding="valid", groups=2), (4, 6, 6)),
    (nn.Conv1d(3, 5, 4, 2, 3), (3, 11)),
    (nn.Conv3d(2, 3, 2, padding=(0, 1, 0)), (2, 4, 3, 5)),
    (nn.Linear(5, 3), (7, 5)),
    (nn.Linear(5, 3), (5,)),
]


def traced(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Network, torch.Tensor]:
    network = trace(nn.Sequential(layer).eval(), (torch.randn(1, *shape),))
    return network, torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))


def chosen(network: Network, count: int) -> Samples:
    (info,) = network.layers
    node = next(n for n in network.graph.nodes if n.name == info.node)
    generator, weight = torch.Generator().manual_seed(1), network.params[info.weight]
    source, result = (6, *info.in_shape), (6, *info.out_shape)
    return Samples.choose(node, weight, source, result, count, generator)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@pytest.mark.parametrize("count", [12, 10**9])
def test_inputs_times_columns_are_the_outputs(
    layer: nn.Module, shape: tuple[int, ...], count: int
) -> None:
    network, value = traced(layer, shape)
    (info,) = network.layers
    samples, weight = chosen(network, count), network.params[info.weight]
    columns = columns_of(weight, info.groups)
    assert torch.equal(weight_of(columns, weight.shape), weight)
    inputs = samples.inputs(value)
    split = inputs.reshape(*inputs.shape[:2], info.groups, -1).transpose(1, 2).flatten(2)
    found = torch.einsum("ngk,gkr->ngr", split, columns).flatten(1) + network.params[info.bias]
    wanted = samples.outputs(network(value))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert samples.nbytes >= 8 * len(wanted)


def test_inputs_are_those_of_unfold() -> None:
    network, value = traced(nn.Conv2d(4, 6, 3, padding=1), (4, 6, 6))
    whole = F.unfold(value, 3, padding=1).transpose(1, 2).reshape(-1, 4, 9).transpose(1, 2)
    last = value.contiguous(memory_format=torch.channels_last)
    for given in (value, last):
        assert torch.equal(chosen(network, 10**9).inputs(given), whole)
        some = chosen(network, 24)
        assert len(some.written) == 24
        assert torch.equal(some.inputs(given), whole[some.written.long()])


@pytest.mark.parametrize("groups", [1, 3])
def test_moments_and_refit_against_least_squares(groups: int) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(200, groups * 4, generator=generator) + 1
    outputs = torch.randn(200, groups * 2, generator=generator)
    seen = moments(rows[:, None].clone(), outputs, groups)
    gram, strength = ridged(seen.gram, 1e-9)
    weights = refit(torch.zeros(groups, 4, 2), seen.cross, factorise(gram), strength)
    bias = seen.bias(weights).reshape(groups, 2)
    ones = torch.ones(200, 1)
    for group in range(groups):
        x = torch.cat([rows[:, 4 * group : 4 * group + 4], ones], 1)
        best = torch.linalg.lstsq(x, outputs[:, 2 * group : 2 * group + 2]).solution
        torch.testing.assert_close(weights[group], best[:4], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(bias[group], best[4], atol=1e-4, rtol=1e-3)


def test_the_ridge_draws_to_the_weights_given() -> None:
    generator = torch.Generator().manual_seed(3)
    rows, outputs = (torch.randn(50, n, generator=generator) for n in (6, 2))
    seen, start = moments(rows[:, None], outputs), torch.randn(1, 6, 2, generator=generator)
    before = start.clone()
    gram, strength = ridged(seen.gram, 0.1)
    found = refit(start, seen.cross, factorise(gram), strength).double()
    assert float(strength) == pytest.approx(0.1 * float(seen.gram.diagonal(dim1=1, dim2=2).mean()))
    normal = seen.gram.double() @ found - seen.cross + strength * (found - start)
    assert normal.abs().max() < 1e-5
    gram, strength = ridged(seen.gram, 1e6)
    far = refit(start, seen.cross, factorise(gram), strength)
    torch.testing.assert_close(far, start, atol=1e-3, rtol=0)
    assert torch.equal(start, before)


@pytest.mark.parametrize("size", [6, 127, 128, 200])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_gram_matrix_of_any_width_is_that_of_its_columns(size: int, groups: int) -> None:
    rows = torch.randn(300, groups * size)
    seen = moments(rows[:, None].clone(), torch.zeros(300, groups), groups, centred=False)
    parts = rows.reshape(300, groups, size).transpose(0, 1)
    torch.testing.assert_close(seen.gram, parts.mT @ parts / 300)
