"""How a spectrum decays: of representations, and of weight matrices beside a matrix without structure."""

from __future__ import annotations

import torch
from torch import Tensor

from normscope.geometry.metric import register
from normscope.geometry.statistic import Statistic

#: Variances below this share of the largest are left out of the fit (chosen by us: rounding begins at 1e-15 of it).
LEAST = 1e-10


@register(
    title="Decay of the variances", short="alpha", unit="1", needs="eigenvalues",
    source="agrawal2022 (alpha-ReQ); stringer2019",
)  # fmt: skip
def alpha_req(s: Statistic) -> Tensor:
    r"""Exponent of the power law of the covariance's eigenvalues, $\lambda_i \propto i^{-\alpha}$ (alpha-ReQ).

    Minus the slope of $\log \lambda_i$ over $\log i$, by least squares with weights 1/i, of the centred covariance's
    eigenvalues above 1e-10 of the largest, i from 1. NaN for fewer than three of them. Near 1: the balance that the
    papers find best; larger: few directions hold all; smaller: noise. A finite batch raises it: look at ``null``.
    """
    values = s.variances
    known = (values > LEAST * values[..., :1]) & (values > 0)
    place = torch.arange(1, values.shape[-1] + 1, dtype=torch.float64, device=values.device)
    x, y = place.log().expand_as(values), torch.where(known, values, 1.0).log()
    w = known / place
    w = w / w.sum(-1, keepdim=True)
    dx, dy = (z - (w * z).sum(-1, keepdim=True) for z in (x, y))
    slope = (w * dx * dy).sum(-1) / (w * dx.square()).sum(-1)
    return torch.where(s.finite & (known.sum(-1) >= 3), -slope, torch.nan)


@register(
    title="Stable rank", short="stable rank", unit="dimensions", log=True, needs="eigenvalues", low=1.0, spectral=True,
    source="rudelson2007 (numerical rank)",
)  # fmt: skip
def stable_rank(s: Statistic) -> Tensor:
    r"""Energy over that of the strongest direction, between 1 and the rank.

    $\|X\|_F^2 / \|X\|_2^2 = \sum_i \lambda_i / \lambda_1$.
    """
    return s.eigenvalues.sum(-1) / s.eigenvalues[..., 0]


@register(
    title="Largest singular value of the weights", short="|W|", unit="x", log=True, needs="eigenvalues",
    invariant="rotation permutation", signal="weight", source="operator norm",
)  # fmt: skip
def weight_spectral_norm(s: Statistic) -> Tensor:
    """Largest singular value of a weight matrix: by how much it stretches at most."""
    return s.singular_values[..., 0]


@register(
    title="Stable rank of the weights", short="W stable rank", unit="dimensions", log=True, needs="eigenvalues",
    low=1.0, signal="weight", source="rudelson2007 (numerical rank)",
)  # fmt: skip
def weight_stable_rank(s: Statistic) -> Tensor:
    r"""Energy of a weight matrix over that of its strongest direction, $\|W\|_F^2 / \|W\|_2^2$."""
    return s.eigenvalues.sum(-1) / s.eigenvalues[..., 0]


@register(
    title="Edge of the weights' spectrum", short="W edge", unit="1", needs="eigenvalues", signal="weight",
    source="marchenko1967; martin2021",
)  # fmt: skip
def weight_edge_ratio(s: Statistic) -> Tensor:
    r"""Largest eigenvalue over the edge of the Marchenko-Pastur bulk; near 1 for i.i.d. entries, above: structure.

    $\sigma_1^2 / (\tau^2 (\sqrt n + \sqrt d)^2)$, $\tau^2 = \|W\|_F^2 / (n d)$ the mean square of an entry of the
    (n, d) matrix. Orthogonal weights lie below 1: square ones at 1/4.
    """
    n, d = s.samples, s.features
    return s.eigenvalues[..., 0] * (n * d) / (s.eigenvalues.sum(-1) * (n**0.5 + d**0.5) ** 2)
