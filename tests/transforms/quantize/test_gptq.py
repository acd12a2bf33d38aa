import numpy as np
import pytest
import torch

from autocompress.transforms.quantize.gptq import (
    Rounded,
    compensate,
    descend,
    feedback,
    refit_scale,
)
from autocompress.transforms.quantize.gptq import _forward as forward
from autocompress.transforms.quantize.weights import Array, Grid, best_scale, nearest
from autocompress.transforms.reconstruct.least_squares import factorise


def problem(groups: int = 1, size: int = 70, rows: int = 5, seed: int = 0) -> tuple[Array, Array]:
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(groups, size, size)) / size**0.5
    samples = random.normal(size=(groups, 4 * size, size)) @ mixing
    gram = samples.swapaxes(1, 2) @ samples / (4 * size) + 1e-3 * np.eye(size)
    return random.normal(size=(groups, size, rows)).astype(np.float32), gram


def factor_of(gram: Array) -> Array:
    return factorise(torch.from_numpy(gram)).numpy()


def to_nearest(weights: Array, grid: Grid) -> Rounded:
    groups, size, rows = weights.shape
    flat = weights.swapaxes(1, 2).reshape(-1, size)
    scale = best_scale(flat, grid)
    codes = nearest(flat, scale[:, None], grid).reshape(groups, rows, size)
    return Rounded(codes.swapaxes(1, 2).copy(), scale.reshape(groups, rows))


def output_error(weights: Array, gram: Array, rounded: Rounded) -> Array:
    """The squared output error of each row, [groups, rows]."""
    errors = weights - rounded.values
    return np.asarray(np.sum(errors * (gram.astype(np.float32) @ errors), axis=1))


def test_feedback_factors_the_gram_matrix() -> None:
    _, gram = problem(groups=2, size=9)
    lower, pivots = feedback(factor_of(gram))
    unit = np.swapaxes(lower, 1, 2)
    np.testing.assert_allclose(unit * pivots[:, None, :] @ unit.swapaxes(1, 2), gram, atol=1e-5)
    np.testing.assert_array_equal(np.triu(lower), np.broadcast_to(np.eye(9), (2, 9, 9)))


def test_the_feedback_pass_is_gptq() -> None:
    """Against the algorithm as published: inverse, Cholesky, updates of all later columns."""
    weights, gram = problem(size=40)
    scale = np.full((1, 5), 0.4, dtype=np.float32)
    codes = forward(weights / np.float32(0.4), feedback(factor_of(gram))[0], Grid(3))
    upper = np.linalg.cholesky(np.linalg.inv(gram[0])).T
    left = weights[0].astype(np.float64)
    for k in range(40):
        wanted = nearest(left[k], scale[0], Grid(3))
        np.testing.assert_array_equal(codes[0, k], wanted)
        error = (left[k] - wanted * scale[0]) / upper[k, k]
        left[k + 1 :] -= upper[k, k + 1 :, None] * error


@pytest.mark.parametrize("groups", [1, 3])
def test_descent_is_the_column_by_column_optimum(groups: int) -> None:
    weights, gram = problem(groups, size=40)
    grid = Grid(3)
    start = to_nearest(weights, grid)
    found = descend(weights, gram.astype(np.float32), start, grid)
    for group in range(groups):
        errors = weights[group] - start.codes[group] * start.scale[group]
        for k in range(40):
            pull = gram[group, k] @ errors / gram[group, k, k]
            code = nearest(weights[group, k] - errors[k] + pull, start.scale[group], grid)
            errors[k] = weights[group, k] - code * start.scale[group]
            np.testing.assert_array_equal(found.codes[group, k], code)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("groups", [1, 4])
def test_compensation_beats_rounding_to_nearest(bits: int, odd: bool, groups: int) -> None:
    weights, gram = problem(groups)
    grid = Grid(bits, odd)
    kept = weights.copy(), gram.copy()
    plain = output_error(weights, gram.astype(np.float32), to_nearest(weights, grid))
    found = compensate(weights, gram, factor_of(gram), grid, sweeps=int(bits == 2))
    error = output_error(weights, gram.astype(np.float32), found)
    assert found.codes.shape == weights.shape
    assert np.all(error < plain)
    assert error.sum() < 0.7 * plain.sum()
    assert found.codes.min() >= grid.low
    assert found.codes.max() <= grid.high
    np.testing.assert_array_equal(weights, kept[0])
    np.testing.assert_array_equal(gram, kept[1])


def test_sweeps_and_scales_never_make_it_worse() -> None:
    weights, gram = problem()
    small, factor = gram.astype(np.float32), factor_of(gram)
    errors = [
        output_error(weights, small, compensate(weights, gram, factor, Grid(2), sweeps=n)).sum()
        for n in range(4)
    ]
    assert errors == sorted(errors, reverse=True)
    start = to_nearest(weights, Grid(2))
    assert np.all(
        output_error(weights, small, refit_scale(weights, small, start))
        <= output_error(weights, small, start) * (1 + 1e-5)
    )


def test_the_scale_is_the_least_squares_one() -> None:
    weights, gram = problem(size=12, rows=2)
    gram = gram.astype(np.float32)
    start = to_nearest(weights, Grid(3))
    best = refit_scale(weights, gram, start)
    for factor in (0.98, 1.02):
        moved = Rounded(best.codes, best.scale * np.float32(factor))
        assert np.all(output_error(weights, gram, moved) > output_error(weights, gram, best))
