"""Random networks: torch, the file and its simulation agree, whatever examples and plans are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fuzz_compare import FLIPS, FLOAT, check_case, rms, rows_alike
from tests.fuzz_networks import EXAMPLES, make_case

#: Networks that have every kind of input, part, tail and example among them.
SEEDS = (1, 5, 7, 8, 15, 19, 25)
PLANS = 30


@pytest.mark.parametrize("seed", SEEDS)
def test_file_simulation_and_torch_agree(seed: int, tmp_path: Path) -> None:
    assert list(check_case(seed, PLANS, tmp_path)) == []


def test_the_seeds_have_every_kind_of_network() -> None:
    cases = [make_case(seed) for seed in SEEDS]
    assert {case.kind for case in cases} == {"maps2d", "maps1d", "towers", "towers1d", "words"}
    assert {case.example for case in cases} == set(EXAMPLES)


def test_the_same_seed_makes_the_same_case() -> None:
    one, two = make_case(3), make_case(3)
    inputs = one.draw(2, torch.Generator().manual_seed(0))
    assert all(map(torch.equal, inputs, two.draw(2, torch.Generator().manual_seed(0))))
    with torch.no_grad():
        assert rms(one.model(*inputs), two.model(*inputs)) == 0


@pytest.mark.parametrize(
    ("wrong", "least"),
    [
        (lambda y: y + 0.1 * y.std(), 0.09),
        (lambda y: y[:, ::-1], 0.5),
        (lambda y: np.where(np.arange(len(y))[:, None] == 3, 2 * y, y), FLIPS),
        (lambda y: y[:, :3], np.inf),
        (lambda y: y * np.nan, np.inf),
    ],
)
def test_a_wrong_file_is_seen(wrong: Callable[[np.ndarray], np.ndarray], least: float) -> None:
    right = np.random.default_rng(0).standard_normal((24, 5))
    assert rms(wrong(right), right) >= least > FLOAT


def test_rows_count_as_alike_one_by_one() -> None:
    right = np.random.default_rng(0).standard_normal((24, 5))
    found = right.copy()
    found[:6, 2] += 0.5
    assert rows_alike(found, right) == 0.75
