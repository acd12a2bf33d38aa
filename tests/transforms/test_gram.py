import pytest
import torch
import torch.nn.functional as F
from torch import nn

from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.transforms.gram import (
    choose_positions,
    moments,
    outputs_of,
    rows_of,
    window_of,
)
from autocompress.transforms.refit import refit, ridged

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


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@pytest.mark.parametrize("count", [12, 10**9])
def test_rows_times_weights_are_the_outputs(
    layer: nn.Module, shape: tuple[int, ...], count: int
) -> None:
    network, value = traced(layer, shape)
    (info,) = network.layers
    node = next(n for n in network.graph.nodes if n.name == info.node)
    weight = network.params[info.weight]
    window = window_of(node, info, weight)
    spatial = info.out_shape[1:] if window.kernel else info.out_shape[:-1]
    positions = choose_positions(spatial, 6, count, torch.Generator().manual_seed(1))
    wanted = outputs_of(network(value), window, positions)
    rows = rows_of(value, window, positions)
    rows = rows.reshape(len(rows), info.groups, -1)
    flat = weight.reshape(info.groups, -1, rows.shape[2])
    found = torch.einsum("ngk,grk->ngr", rows, flat).reshape(len(rows), -1)
    torch.testing.assert_close(found + network.params[info.bias], wanted, atol=1e-5, rtol=1e-5)


def test_rows_are_those_of_unfold() -> None:
    network, value = traced(nn.Conv2d(4, 6, 3, padding=1), (4, 6, 6))
    (info,) = network.layers
    node = next(n for n in network.graph.nodes if n.name == info.node)
    window = window_of(node, info, network.params[info.weight])
    whole = F.unfold(value, 3, padding=1).transpose(1, 2)
    torch.testing.assert_close(rows_of(value, window, None), whole.reshape(-1, 36))
    positions = choose_positions((6, 6), 6, 24, torch.Generator().manual_seed(0))
    assert positions is not None
    chosen = torch.stack([image[index] for image, index in zip(whole, positions, strict=True)])
    torch.testing.assert_close(rows_of(value, window, positions), chosen.reshape(-1, 36))


@pytest.mark.parametrize("groups", [1, 3])
def test_moments_and_refit_against_least_squares(groups: int) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(200, groups * 4, generator=generator) + 1
    outputs = torch.randn(200, groups * 2, generator=generator)
    seen = moments(rows, outputs, groups)
    weights = refit(torch.zeros(groups, 4, 2), seen, ridged(seen.gram, 1e-9))
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
    seen, start = moments(rows, outputs), torch.randn(1, 6, 2, generator=generator)
    before = start.clone()
    gram = ridged(seen.gram, 0.1)
    found = refit(start, seen, gram).double()
    ridge = 0.1 * seen.gram.diagonal(dim1=1, dim2=2).mean().double()
    normal = seen.gram.double() @ found - seen.cross + ridge * (found - start)
    assert normal.abs().max() < 1e-5
    torch.testing.assert_close(refit(start, seen, ridged(seen.gram, 1e6)), start, atol=1e-3, rtol=0)
    assert torch.equal(start, before)
