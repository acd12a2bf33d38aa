import torch

from autocompress.transforms.reconstruct.least_squares import factorise, refit, ridged


def random_gram(groups: int, size: int, samples: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(groups, samples, size) @ torch.randn(groups, size, size)
    return x, x.mT @ x / samples


def test_the_factor_is_upper_and_gives_the_matrix() -> None:
    _, gram = random_gram(2, 7)
    factor = factorise(gram.double())
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(factor @ factor.mT, gram.double(), atol=1e-6, rtol=1e-6)


def test_the_ridge_is_a_share_of_each_groups_mean_variance() -> None:
    _, gram = random_gram(2, 5)
    before = gram.clone()
    found, strength = ridged(gram, 0.1)
    assert torch.equal(gram, before)
    torch.testing.assert_close(strength, 0.1 * gram.diagonal(dim1=1, dim2=2).mean(1))
    torch.testing.assert_close(
        found - gram, strength[:, None, None] * torch.eye(5),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip


def test_refit_is_the_least_squares_solution_drawn_to_where_it_starts() -> None:
    """Against the same problem written as one tall least-squares system."""
    x, _ = random_gram(1, 6)
    y = torch.randn(200, 4)
    start = torch.randn(1, 6, 4)
    gram, strength = ridged((x.mT @ x / 200), 0.5)
    found = refit(start, x.mT @ y / 200, factorise(gram), strength)[0]
    weight = strength.sqrt() * 200**0.5
    tall = torch.cat([x[0].double(), weight * torch.eye(6).double()])
    wanted = torch.cat([y.double(), weight * start[0].double()])
    expected = torch.linalg.lstsq(tall, wanted).solution.float()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_weights_that_are_right_already_stay() -> None:
    _, raw = random_gram(2, 5)
    start = torch.randn(2, 5, 3)
    gram, strength = ridged(raw, 0.3)
    torch.testing.assert_close(
        refit(start, raw @ start, factorise(gram), strength), start, rtol=1e-4, atol=1e-4
    )
