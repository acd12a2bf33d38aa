"""Closed-form refit: the weights that reproduce wanted outputs from given inputs."""

import torch
from torch import Tensor

from autocompress.transforms.gram import Moments

__all__ = ["refit", "ridged"]


def ridged(gram: Tensor, ridge: float) -> Tensor:
    """Return G + λI in float64, λ = ``ridge`` times the mean of the diagonal of each group."""
    gram = gram.double()
    diagonal = gram.diagonal(dim1=1, dim2=2)
    extent = diagonal.mean(1).clamp_min(1e-12)
    return gram + torch.diag_embed((ridge * extent)[:, None].expand_as(diagonal))


def refit(weights: Tensor, moments: Moments, gram: Tensor) -> Tensor:
    """Return the weights [groups, K, rows] with the least error, drawn towards those given.

    Minimises |Y - Wᵀ X|² + λ |W - W_S|²: W = W_S + (G + λI)⁻¹ (C - G W_S) with G, C the Gram and
    cross moments and W_S the ``weights``; ``gram`` is G + λI (see :func:`ridged`). He et al. 2017,
    eq. 3, has λ draw towards 0.
    """
    start = weights.double()
    wanted = moments.cross.double() - moments.gram.double() @ start
    step = torch.cholesky_solve(wanted, torch.linalg.cholesky(gram))
    return (start + step).float()
