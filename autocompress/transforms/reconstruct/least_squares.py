"""Closed-form refit: the weights that reproduce wanted outputs from given inputs."""

import torch
from torch import Tensor

__all__ = ["factorise", "refit", "ridged"]


def ridged(gram: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Return G + λI and λ, ``ridge`` times the mean of the diagonal of each group.

    In float64 where the ridge is too small for float32.
    """
    gram = gram.to(gram.dtype if ridge >= 1e-3 else torch.float64, copy=True)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    strength = ridge * diagonal.mean(1).clamp_min(1e-12)
    diagonal.add_(strength[:, None])
    return gram, strength


def factorise(gram: Tensor) -> Tensor:
    """Return the upper triangular R with R Rᵀ = G, batched; G must be positive definite."""
    lower: Tensor = torch.linalg.cholesky(gram.flip(1, 2))
    return lower.flip(1, 2)


def refit(weights: Tensor, cross: Tensor, factor: Tensor, strength: Tensor) -> Tensor:
    """Return the weights [groups, K, rows] with the least error, drawn towards those given.

    Minimises |Y - Wᵀ X|² + λ |W - W_S|²: W = (G + λI)⁻¹ (C + λ W_S) with ``cross`` C, W_S the
    ``weights``, ``factor`` that of G + λI and ``strength`` λ (see :func:`ridged`). He et al. 2017,
    eq. 3, has λ draw towards 0.
    """
    wanted = cross.to(factor.dtype) + strength[:, None, None] * weights
    half = torch.linalg.solve_triangular(factor, wanted, upper=True)
    found: Tensor = torch.linalg.solve_triangular(factor.mT, half, upper=False)
    return found.float()
