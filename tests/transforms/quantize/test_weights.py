import numpy as np
import pytest

from autocompress.transforms.quantize.weights import (
    Grid,
    QuantizedWeight,
    best_scale,
    nearest,
    saturates,
    short,
)


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 5])
def test_nearest_is_the_nearest_of_all_values(bits: int, odd: bool) -> None:
    grid = Grid(bits, odd)
    values = np.arange(grid.low, grid.high + 1, grid.step)
    assert len(values) == 2**bits
    weights = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    scale = np.full((5, 1), 0.3, dtype=np.float32)
    codes = nearest(weights, scale, grid)
    assert set(np.unique(codes)) <= set(values)
    least = np.abs(weights[..., None] - values * 0.3).min(-1)
    np.testing.assert_allclose(np.abs(weights - codes * 0.3), least, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_best_scale_is_no_worse_than_a_fine_search(bits: int) -> None:
    grid = Grid(bits)
    weights = np.random.default_rng(1).standard_t(4, size=(6, 100)).astype(np.float32)
    scale = best_scale(weights, grid)
    found = ((weights - nearest(weights, scale[:, None], grid) * scale[:, None]) ** 2).sum(1)
    for row, error in zip(weights, found, strict=True):
        best = min(
            ((row - nearest(row, np.float32(s), grid) * s) ** 2).sum()
            for s in np.linspace(0.02, 1, 400) * np.abs(row).max() / grid.high
        )
        assert error <= best * 1.1


def test_best_scale_heeds_importance_and_survives_zeros() -> None:
    weights = np.array([[0.1] * 9 + [5.0], [0.0] * 10], dtype=np.float32)
    heavy = np.array([[1.0] * 9 + [0.0]], dtype=np.float32)
    scale = best_scale(weights, Grid(3), heavy, (0.02, 0.1, 0.5, 1.0))
    assert abs(nearest(weights[0, :1], scale[:1], Grid(3)) * scale[0] - 0.1) < 0.02
    assert np.all(np.isfinite(scale))
    assert np.all(scale > 0)


@pytest.mark.parametrize("odd", [False, True])
def test_codes_values_and_digits(odd: bool) -> None:
    grid = Grid(2, odd)
    codes = np.array([[grid.low, grid.high], [grid.high, grid.low]], dtype=np.int8)
    weight = QuantizedWeight(codes, np.array([0.5, 2.0], dtype=np.float32), 2, odd)
    assert weight.unsigned.tolist() == [[0, 3], [3, 0]]
    np.testing.assert_array_equal(weight.values, codes * np.array([[0.5], [2.0]]))


@pytest.mark.parametrize(("codes", "odd"), [([2], False), ([-3], False), ([2], True), ([5], True)])
def test_codes_off_the_grid_are_refused(codes: list[int], odd: bool) -> None:
    with pytest.raises(ValueError, match="2-bit grid"):
        QuantizedWeight(np.array(codes, dtype=np.int8), np.ones(1, dtype=np.float32), 2, odd)


@pytest.mark.parametrize(("bits", "odd"), [(1, False), (9, False), (8, True)])
def test_impossible_grids_are_refused(bits: int, odd: bool) -> None:
    with pytest.raises(ValueError, match="bits"):
        Grid(bits, odd)


def test_float16_where_it_is_exact() -> None:
    assert short(np.array([0.5, -3.0, 2.0**-24], np.float32)).dtype == np.float16
    for values in ([1e5, 1.0], [0.1, 1.0], [3.1e-8, 1.0]):
        kept = short(np.array(values, np.float32))
        assert kept.dtype == np.float32
        np.testing.assert_array_equal(kept, np.array(values, np.float32))


@pytest.mark.parametrize(("bits", "low", "high"), [(8, -64, 64), (7, -64, 63), (4, -8, 7)])
def test_a_limit_cuts_the_grid(bits: int, low: int, high: int) -> None:
    grid = Grid(bits, limit=64)
    assert (grid.low, grid.high) == (low, high)
    assert nearest(np.array([[-9.0, 9.0]]), np.array([[0.01]]), grid).tolist() == [[low, high]]


def test_odd_codes_stay_odd_at_a_limit() -> None:
    grid = Grid(7, odd=True, limit=64)
    assert (grid.low, grid.high) == (-63, 63)


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ([64, 64, 0], False), ([-64, -64, 3], False), ([65, 64, 0], True), ([127, 0, 1], False),
        ([127, -128, 1], False), ([-127, 0, -2], True), ([127], False), ([-65, 5, -64], True),
    ],
)  # fmt: skip
def test_codes_saturate_where_two_products_do(row: list[int], wrong: bool) -> None:
    """By the slow way: every pair of codes of a row, each times 255."""
    pairs = [255 * (a + b) for i, a in enumerate(row) for b in row[i + 1 :]]
    assert any(not -(2**15) <= both < 2**15 for both in pairs) == wrong
    assert saturates(np.array([row, [0] * len(row)], dtype=np.int8)) == wrong
