r"""Batch norm and rank (daneshmand2020): the bound, the drift behind the square root of d, collapse without norm.

Setting: width d, N samples, second moment $M = H H^T / N$ (d, d) with unit diagonal after batch norm without
    recentring.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import psi

from normscope.core.errors import UsageError
from normscope.linalg import Array


def rank_bound(gram: Any, tau: float = 0.5) -> float:
    r"""Lemma 1: $rank_\tau \ge (1-\tau)^2 r$, r the participation ratio; deterministic.

    gram: X X^T (n, n) or the second moment (d, d); tau in [0, 1), on eigenvalues whose mean over the d features is 1.
    """
    if not 0 <= tau < 1:
        raise UsageError(f"tau must lie in [0, 1); got {tau!r}.")
    g = np.asarray(gram, dtype=np.float64)
    return float((1 - tau) ** 2 * np.trace(g) ** 2 / np.square(g).sum())


def lyapunov_exponents(d: int) -> Array:
    r"""Growth rates per layer of the d directions under products of N(0, 1) matrices:
    $\mu_i = \frac12(\ln 2 + \psi(\frac{d-i+1}2))$.
    """
    if d < 1:
        raise UsageError(f"The width must be >= 1; got {d!r}.")
    return np.asarray(0.5 * (math.log(2) + psi((d - np.arange(d)) / 2)))


def collapse_depth(d: int) -> float:
    r"""Layers over which $\sigma_2/\sigma_1$ of a plain linear net falls by e: $1/(\mu_1 - \mu_2) \approx 2d$."""
    mu = lyapunov_exponents(max(d, 2))
    return float(1 / (mu[0] - mu[1]))


def drift(second_moment: Any, gamma: float) -> float:
    r"""$E\|M^+\|_F^2 - \|M\|_F^2$ after one layer $BN(H + \gamma W H)$, to order $\gamma^2$ (error O(gamma^4)).

    $\gamma^2(2d^2 - 2F - 8\,tr M^3 + 8\sum_i s_i^2)$, $F = \|M\|_F^2$, $s_i = (M^2)_{ii}$; W of unit variance,
    symmetric, finite fourth moment. M (d, d) must have a unit diagonal. Derived.
    """
    m = np.asarray(second_moment, dtype=np.float64)
    if m.ndim != 2 or m.shape[0] != m.shape[1] or np.abs(np.diag(m) - 1).max() > 1e-8:
        raise UsageError("The second moment after batch norm has unit diagonal; divide rows and columns first.")
    d, square = len(m), m @ m
    s = np.diag(square)
    return float(gamma**2 * (2 * d**2 - 2 * np.square(m).sum() - 8 * np.trace(square @ m) + 8 * np.square(s).sum()))


def stationary_sides(second_moment: Any) -> tuple[float, float]:
    r"""Both sides of $4E[tr M^3 - \sum_i s_i^2] = d^2 - E\|M\|_F^2$, which hold equal at stationarity as gamma -> 0."""
    m = np.asarray(second_moment, dtype=np.float64)
    square = m @ m
    return (
        float(4 * (np.trace(square @ m) - np.square(np.diag(square)).sum())),
        float(len(m) ** 2 - np.square(m).sum()),
    )


def transverse_growth(d: int, k: int, *, layers: int = 4000, chains: int = 8, seed: int = 0) -> tuple[float, float]:
    r"""Growth rate per layer of an infinitesimal (k+1)-th direction on the stationary rank-k chain, and its standard
    error.

    Recursion $H_{l+1} = BN(W H_l)$ (no skip). Positive: rank k is repelling, a chain of higher rank keeps it; the
    largest rank that persists, k*(d), is the smallest k with a rate <= 0. Outside the range of H, W delta is an
    independent Gaussian vector, so one layer needs d (k + 1) normals only. Found by us; not in the paper.
    """
    if not 1 <= k < d:
        raise UsageError(f"k must lie between 1 and d - 1 = {d - 1}; got {k!r}.")
    rng = np.random.default_rng([seed, d, k])
    factor = np.broadcast_to(np.eye(k), (chains, k, k))
    total, burn = np.zeros((layers, chains)), layers // 5
    for layer in range(layers + burn):
        g = rng.standard_normal((chains, d, k + 1))
        z = g[:, :, :k] @ factor
        scale = 1 / np.sqrt(np.square(z).sum(-1, keepdims=True))
        q, factor = np.linalg.qr(z * scale)
        delta = g[:, :, k:] * scale
        delta = delta - q @ (q.transpose(0, 2, 1) @ delta)
        if layer >= burn:
            total[layer - burn] = 0.5 * np.log(np.square(delta).sum((1, 2)) / d)
        factor = factor / math.sqrt(d)
    means = total.mean(0)
    return float(means.mean()), float(means.std(ddof=1) / math.sqrt(chains))


def asymptotic_rank(d: int, *, layers: int = 4000, chains: int = 8, seed: int = 0) -> int:
    """k*(d): the number of directions that a long chain of batch norm keeps (2, 4, 6, 9, 14, 20 for d = 4 ... 128)."""
    k = 1
    while k < d - 1 and transverse_growth(d, k, layers=layers, chains=chains, seed=seed)[0] > 0:
        k += 1
    return k
