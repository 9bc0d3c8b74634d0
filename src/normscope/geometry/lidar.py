"""LiDAR: the rank of what tells samples apart beside what tells views of one sample apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from normscope.core.errors import UsageError

if TYPE_CHECKING:
    from jaxtyping import Float


def lidar(x: Float[Tensor, "views n d"], delta: float = 1e-4) -> float:
    r"""Effective rank of linear discriminant analysis, each sample a class and its views its members (LiDAR).

    $\exp(-\sum_i p_i \log p_i)$, $p_i$ the normalized eigenvalues of
    $\Sigma_w^{-1/2} \Sigma_b \Sigma_w^{-1/2}$: $\Sigma_b = \frac{1}{n-1} \sum_i (\mu_i - \mu)(\mu_i - \mu)^T$ of the
    samples' means, $\Sigma_w = \frac{1}{n (q - 1)} \sum_{i,j} (x_{ij} - \mu_i)(x_{ij} - \mu_i)^T + \delta I$ of the q
    views around them. Between 1 and min(n - 1, d).

    It needs views: augmentations of one input, or passes with dropout. A batch with one view of each sample has no
    $\Sigma_w$, so that this is no metric of `measure`; without views read `entropy_rank` (RankMe).
    delta: added to the variances within, in the square of the unit of x.
    Raises ``UsageError`` for fewer than two views or samples. Reference: thilak2024.
    """
    if not isinstance(x, Tensor) or x.dim() != 3 or x.shape[0] < 2 or x.shape[1] < 2:
        came = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise UsageError(
            f"lidar() needs a tensor (views, n, d) of two views and two samples at least; got {came}. Stack the "
            "outputs for several views of the same batch: torch.stack([f(a), f(b)])."
        )
    x = x.detach().to(torch.float64)
    q, n, d = x.shape
    means = x.mean(0)
    between = (means - means.mean(0)) / (n - 1) ** 0.5
    within = (x - means).flatten(0, 1)
    values, vectors = torch.linalg.eigh(within.T @ within / (n * (q - 1)) + delta * torch.eye(d).to(x))
    whitened = between @ vectors / values.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    p = torch.linalg.svdvals(whitened).square()
    return float(torch.special.entr(p / p.sum()).sum().exp())


def lidar_null(views: int, n: int, d: int, draws: int = 16, seed: int = 0) -> float:
    """What i.i.d. standard normal entries give: samples that no view has in common; the mean over ``draws``."""
    rng = np.random.default_rng(seed)
    return float(np.mean([lidar(torch.from_numpy(rng.standard_normal((views, n, d)))) for _ in range(draws)]))
