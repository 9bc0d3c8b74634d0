r"""Averages over Gaussian rows that batch norm divides by their size, as integrals over one variable.

$1/\sigma^2 = \int e^{-s\sigma^2} ds$ tilts a Gaussian row into another one: what is averaged over neurons is known
under each tilt, and the integral over s is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from normscope.core.errors import UsageError
from normscope.gaussian import half_plane
from normscope.linalg import Array, centred
from normscope.nn.norms.nodes import few_nodes


def batch_norm_gram(covariance: Array, slope: float = 0.0, recenter: bool = True) -> Array:
    r"""E h h^T for h = phi(u / rms(u)), u ~ N(0, S), phi of the leaky family: a one-dimensional integral.

    $$\int_0^\infty \det(I + 2sS/n)^{-1/2} K_a\big(S (I + 2sS/n)^{-1}\big)\,ds,\qquad S = P C P \text{ or } C,$$
    because $1/\sigma^2 = \int e^{-s\sigma^2} ds$ with $\sigma^2 = |u|^2/n$, and the tilted law is Gaussian again
    (yang2019, Thm 2; decomposed, section 2). $K_a$ is the homogeneous kernel of slope a: 1 identity, 0 ReLU, -1 abs.

    covariance: C (n, n). Returns (n, n). Trapezoid rule in log s, 433 nodes: error below 1e-12 of the trace; above 48
    samples those 6 to 40 of them that tell the others: within 1e-11 of the largest entry of that (1e-14 for most
        batches).
    """
    s = centred(covariance) if recenter else covariance
    values, vectors = (x.numpy() for x in torch.linalg.eigh(torch.from_numpy(s)))
    kept = values > 1e-15 * values[-1]
    if not values[-1] > 0:
        raise UsageError(
            "The batch has no variance left (all samples are equal), so batch norm has nothing to rescale."
        )
    log_weights, tilted = _tilted(np.where(kept, values, 0))
    # K is homogeneous: its argument to trace n, and the trace into the weights, which then are shares of the integral.
    size = tilted.mean(1)
    weights, tilted, vectors = np.exp(log_weights) * size, tilted[:, kept] / size[:, None], vectors[:, kept]
    if len(s) > _FEW:
        nodes, weights = few_nodes(weights, _some_entries(s, tilted, vectors))
        tilted = tilted[nodes]
    return _kernel_sum(weights, tilted, vectors, slope)


#: Samples up to which all nodes cost less than to look for a few; and numbers held at a time (1 MB).
_FEW, _HELD = 48, 1 << 17


def _kernel_sum(weights: Array, tilted: Array, vectors: Array, slope: float) -> Array:
    """sum_m weight_m K_a(V diag(tilted_m) V^T), (n, n): the upper triangle in blocks of rows, all nodes of a block at
    once.
    """
    n, m = len(vectors), len(weights)
    variances = tilted @ np.square(vectors).T
    scale = np.sqrt(variances)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    out = np.empty((n, n))
    size = max(1, _HELD // (m * n))
    for i in range(0, n, size):
        rows = slice(i, i + size)
        left = vectors[rows] * tilted[:, None, :] * inverse[:, rows, None]
        c = (left.reshape(-1, left.shape[-1]) @ vectors[i:].T).reshape(m, -1, n - i) * inverse[:, None, i:]
        kernel = slope * c + (1 - slope) ** 2 * half_plane(c)
        kernel *= (weights[:, None] * scale[:, rows])[:, :, None] * scale[:, None, i:]
        out[rows, i:] = kernel.sum(0)
    index = np.arange(n)
    out[index, index] = weights @ variances * (1 + slope**2) / 2
    return np.asarray(np.triu(out) + np.triu(out, 1).T)


def _some_entries(s: Array, tilted: Array, vectors: Array) -> Array:
    """Some entries of K_0(V diag(tilted_m) V^T) at all nodes m, (m, 3n + 120), for a rule that serves all entries of
    every K_a.

    The variances; each sample with the one most correlated with it (c near 1 or -1 bends the kernel most) and with one
    at random; all pairs of the 16 largest. K_a is linear in the covariance and in K_0: both lie in the span of these.
    """
    i, j = _some_pairs(s)
    variances = tilted @ np.square(vectors).T
    t = tilted @ (vectors[i] * vectors[j]).T
    root = np.sqrt(variances[:, i] * variances[:, j])
    return np.concatenate([variances, root * half_plane(np.divide(t, root, out=np.zeros_like(t), where=root > 0))], 1)


def _some_pairs(s: Array) -> tuple[Array, Array]:
    n, scale = len(s), np.sqrt(np.diagonal(s).clip(0))
    correlation = np.abs(s) * np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)  # times the row's scale
    np.fill_diagonal(correlation, -1)
    one, other = np.argsort(scale)[-16:][np.array(np.triu_indices(16, 1))]
    i = np.concatenate([np.arange(n), np.arange(n), one])
    j = np.concatenate([correlation.argmax(1), np.random.default_rng(0).permutation(n), other])
    return i, j


def batch_norm_pull(covariance: Array, outer: Array, slope: float, recenter: bool) -> Array:
    r"""$E[J^T \Pi J]$ for h = phi(u / rms(u)), u ~ N(0, S), phi of the leaky family, as one integral over the tilt.

    $J = \sigma^{-1} D (P - y y^T / n)$, $y = u / \sigma$, D the slopes, those of u. Under a tilt u ~ N(0, T), and by
    Stein's lemma only moments of pairs are left: with $Q_{jk} = \Pi_{jk} E\phi'(u_j)\phi'(u_k)$, to whose diagonal
    $Q'$ adds $\sum_j \Pi_{jk} E\phi(u_j)\phi''(u_k)$,
    $$\int w \big[Q - \tfrac{s}{n}(T Q' + Q' T) + \tfrac{s^2}{n^2}(T\,\mathrm{tr}(T Q')/2 + T Q' T)\big]\,ds.$$
    """
    total = np.zeros_like(outer)
    for w, share, t in _tilts(covariance, slope, recenter):
        both, mixed = _slopes(*_correlations(t), slope)
        q = outer * both
        more = q + np.diag((outer * mixed).sum(0))
        product = share * (t @ more)
        total += w * (q - product - product.T + share * (t * (np.trace(product) / 2) + product @ t))
    return centred(total) if recenter else total


def batch_norm_push(covariance: Array, inner: Array, slope: float, recenter: bool) -> Array:
    r"""$E[J \Lambda J^T]$ for the same J, in the same way.

    With $M = T \Lambda$, $N = T \Lambda T$, $A = E\phi'\phi'$, $K = E\phi\phi$ and $R_{jk} = E\phi(u_j)\phi''(u_k)$
    the integral of $w [\Lambda \circ A - \frac{s}{n}(B + B^T) + \frac{s^2}{2n^2}(K\,\mathrm{tr} M + C + C^T)]$,
    $B_{ik} = M_{ik} A_{ik} + R_{ik} M_{kk}$, $C_{ik} = N_{ik} A_{ik} + R_{ik} N_{kk}$.
    """
    inner = centred(inner) if recenter else inner
    total = np.zeros_like(inner)
    for w, share, t in _tilts(covariance, slope, recenter):
        scale, c = _correlations(t)
        both, mixed = _slopes(scale, c, slope)
        m = share * (t @ inner)
        b, c2 = (x * both + mixed * np.diagonal(x) for x in (m, share * (m @ t)))
        k = slope * t + (1 - slope) ** 2 * np.outer(scale, scale) * half_plane(c)
        total += w * (inner * both - b - b.T + (share * np.trace(m) * k + c2 + c2.T) / 2)
    return np.asarray(total)


def _correlations(t: Array) -> tuple[Array, Array]:
    """Deviations (n,) and correlations (n, n)."""
    scale = np.sqrt(np.diagonal(t).clip(0))
    root = np.outer(scale, scale)
    c = np.divide(t, root, out=np.zeros_like(t), where=root > 0).clip(-1, 1)
    np.fill_diagonal(c, 1)  # arccos(1 - 1e-16) is 1e-8
    return scale, c


def _slopes(left: Array, c: Array, slope: float, right: Array | None = None) -> tuple[Array, Array]:
    """E phi'(u_j) phi'(u_k) and E phi(u_j) phi''(u_k), phi'' = (1 - slope) delta; ``left``: deviations of u_j, of u_k
    too if these are the same samples.
    """
    jump = (1 - slope) ** 2 / (2 * np.pi)
    above, below = (left[:, None], left) if right is None else (left, right)
    ratio = np.divide(above, below, out=np.zeros_like(c), where=below > 0)
    return slope + jump * (np.pi - np.arccos(c)), jump * np.sqrt((1 - c) * (1 + c)) * ratio


def _tilts(covariance: Array, slope: float, recenter: bool) -> Iterator[tuple[float, float, Array]]:
    """(w, s tr T / n^2, n T / tr T) at nodes for pulls and pushes: all, or few that tell products of tilted moments."""
    s = centred(covariance) if recenter else covariance
    values, vectors = np.linalg.eigh(s)
    log_weights, tilted = _tilted(values.clip(0), 0)
    weights, size = np.exp(log_weights - log_weights.max()), tilted.mean(1)
    # The grid's s, recovered from T of the largest eigenvalue: 1/T - 1/S = 2 s / n.
    shares, tilted = (1 / tilted[:, -1] - 1 / values[-1]) / 2 * size, tilted / size[:, None]
    if len(s) > _FEW:
        i, j = _some_pairs(s)
        variances, t = tilted @ np.square(vectors).T, tilted @ (vectors[i] * vectors[j]).T
        left, right = np.sqrt(variances[:, i]), np.sqrt(variances[:, j])
        root = left * right
        c = np.divide(t, root, out=np.zeros_like(t), where=root > 0).clip(-1, 1)
        both, mixed = _slopes(left, c, slope, right)
        a, b, r = np.roll(t, 1, 1), np.roll(t, len(s) // 2, 1), shares[:, None] * len(s)
        family = [np.ones_like(r), both, r * variances, r * a, r * a * both, r * a * mixed]
        family += [r**2 * a * b * both, r**2 * a * b * mixed, r**2 * t * a]
        nodes, weights = few_nodes(weights, np.concatenate(family, 1))
        shares, tilted = shares[nodes], tilted[nodes]
    weights = weights * math.exp(log_weights.max())
    for w, share, row in zip(weights.tolist(), shares.tolist(), tilted, strict=True):
        yield w, share, (vectors * row) @ vectors.T


def rescaled_spectrum(values: Array) -> Array:
    r"""$n\,E[\lambda_i w_i^2 / \sum_k \lambda_k w_k^2]$, w ~ N(0, I_n): the eigenvalues after linear batch norm.

    At infinite width the eigenvectors stay (daneshmand2021, eq. 13 and 15 with the exponent put right). The result
        sums to n.
    values: (n,) eigenvalues of the (centred) Gram, any order, not all zero.
    """
    values = np.asarray(values, dtype=np.float64)
    log_weights, tilted = _tilted(values)
    p = np.exp(log_weights) @ tilted
    return np.asarray(p * (len(values) / p.sum()))


def _tilted(values: Array, power: int = 1) -> tuple[Array, Array]:
    """Weights ds det(I + 2 s S / n)^(-1/2) and eigenvalues of S (I + 2 s S / n)^(-1), on a grid of log s, where an
    integrand of that ``power`` in these counts.
    """
    n = len(values)
    grid, step = np.linspace(-42, 66, 433, retstep=True)
    s = np.exp(grid) * n / (2 * values.max())
    growth = 1 + 2 * np.outer(s, values) / n
    log_weights = np.log(s) - 0.5 * np.log(growth).sum(1) + math.log(step)
    size = log_weights + power * np.log((values / growth).max(1))
    keep = size > size.max() - 45  # the rest is below 1e-19 of the integral
    return log_weights[keep], (values / growth)[keep]


def linear_batch_norm_pull(c: Array, outer: Array, recenter: bool) -> Array:
    r"""$E[J^T \Pi J]$, $J = \sigma^{-1}(P - u u^T/|u|^2)$, $\sigma^2 = |u|^2/n$, $u \sim N(0, S)$, as integrals over
    a tilt.

    With $T = S(I+2sS/n)^{-1}$ and weight $w(s) = \det(I+2sS/n)^{-1/2}$, from $x^{-k} = \int s^{k-1} e^{-sx} ds /
    (k-1)!$: $\Pi \int w - \frac1n \int s w (T\Pi + \Pi T) + \frac{1}{2n^2} \int s^2 w (T\,\mathrm{tr}(\Pi T) + 2 T
    \Pi T)$.
    """
    n = len(c)
    s_matrix, pi = (centred(c), centred(outer)) if recenter else (c, outer)
    values, vectors = np.linalg.eigh(s_matrix)
    values = values.clip(0)
    pi = vectors.T @ pi @ vectors
    log_weights, t = _tilted(values)
    w = np.exp(log_weights)
    # The grid's s, recovered from T of the largest eigenvalue: 1/T - 1/S = 2 s / n.
    s = (1 / t[:, -1] - 1 / values[-1]) * n / 2
    first, second = w.sum(), (w * s) @ t / n
    weights = w * s**2 / (2 * n**2)
    traces = t @ np.diagonal(pi)
    third = np.diag((weights * traces) @ t) + 2 * pi * ((weights[:, None] * t).T @ t)
    out = pi * first - pi * (second[:, None] + second[None, :]) + third
    return np.asarray(vectors @ out @ vectors.T)
