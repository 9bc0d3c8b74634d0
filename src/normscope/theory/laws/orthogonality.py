r"""Linear batch norm orthogonalizes (daneshmand2021): bounds as proved, with errata, and sharper laws of ours.

Setting: n samples, width d, $H_{l+1} = BN(W_l H_l)/\sqrt d$, Gaussian weights, no recentring (with recentring: the
    same on n - 1 samples), so that the squared singular values $\sigma_1^2 \ge \dots \ge \sigma_n^2$ sum to 1. $V =
    \|H^T H - I/n\|_F$ is the orthogonality gap, $\hat V = 1/n - \sigma_n^2$ the Lyapunov function.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import gammaln, psi

from normscope.core.errors import UsageError
from normscope.linalg import Array
from normscope.nn.norms.integrals import rescaled_spectrum


def _checked(n: int, d: int | None = None) -> None:
    if n < 2 or (d is not None and d < n):
        raise UsageError(f"These laws need n >= 2 samples and width d >= n; got n={n}, d={d}.")


def _spectrum(values: Any) -> Array:
    """Squared singular values (n,), scaled to sum 1."""
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 1 or len(v) < 2 or (v < 0).any() or not v.sum() > 0:
        raise UsageError("Squared singular values must be a vector of n >= 2 numbers >= 0, not all zero.")
    return v / v.sum()


def lyapunov(values: Any) -> float:
    r"""$\hat V = 1/n - \sigma_n^2$ from the squared singular values (scaled to sum 1);
    0 iff orthogonal, at most 1/n. Eq. 11.
    """
    v = _spectrum(values)
    return float(1 / len(v) - v.min())


def gap_bound(n: int, d: int, depth: int, alpha: float) -> float:
    r"""Theorem 1: $E V(H_{l+1}) \le 2(1 - \frac23\alpha)^l + 3n/(\alpha\sqrt d)$, l = ``depth``.

    Assumes A1: $\sigma_n(H_k)^2 \ge \alpha$ for k = 1..l, almost surely. Erratum: the proof needs $\alpha$ for the
    *squared* singular value, so $\alpha \le 1/n$; read for $\sigma_n$ itself the rate is false at large width.
    Vacuous (above $\sqrt{1 - 1/n}$) unless $d > 9n^5/(n-1)$.
    """
    _checked(n, d)
    if not 0 < alpha <= 1 / n:
        raise UsageError(
            f"alpha bounds the squared smallest singular value, so 0 < alpha <= 1/n = {1 / n:g}; got {alpha!r}."
        )
    return float(2 * (1 - 2 * alpha / 3) ** depth + 3 * n / (alpha * math.sqrt(d)))


def lyapunov_bound(vhat: float, n: int, d: int) -> float:
    r"""Theorem 5: $E[\hat V(H_{l+1}) | H_l] \le (1 - \frac23(\frac1n - \hat V))\hat V + 1/\sqrt d$.

    No assumption on the spectrum.
    """
    _checked(n, d)
    return float((1 - 2 / 3 * (1 / n - vhat)) * vhat + 1 / math.sqrt(d))


def average_bound(vhat_start: float, depth: int, d: int) -> float:
    r"""Appendix B.1: bound on $\frac1l\sum_k E\,\hat V(H_k)(1/n - \hat V(H_k))$: $3\hat V(H_0)/(2l) + 3/(2\sqrt d)$.

    It cannot exclude that $\sigma_n \to 0$: the summand vanishes at both ends.
    """
    return float(1.5 * vhat_start / depth + 1.5 / math.sqrt(d))


def gap_from_lyapunov(vhat: float, n: int, sharp: bool = True) -> float:
    r"""Lemma 4: $V \le 2n\hat V$; sharp: $V \le \sqrt{n(n-1)}\,\hat V$, equality when $\sigma_2 = \dots = \sigma_n$."""
    return float((math.sqrt(n * (n - 1)) if sharp else 2 * n) * vhat)


def mean_spectrum(values: Any) -> Array:
    r"""$p_i = E[\sigma_i^2 w_i^2 / \sum_k \sigma_k^2 w_k^2]$:
    the mean Gram after a layer, diagonal in the eigenbasis. Eq. 13, 15.
    """
    v = _spectrum(values)
    return rescaled_spectrum(v) / len(v)


def fluctuation(values: Any, d: int, exact: bool = True) -> float:
    r"""Lemma 6: $E\|C_{l+1} - E C_{l+1}\|_F^2 \le 1/d$; exactly $(1 - \sum_i p_i^2)/d$."""
    return float((1 - np.square(mean_spectrum(values)).sum()) / d if exact else 1 / d)


def contraction_bound(least: float, n: int, sharp: bool = True) -> float:
    r"""Lemma 8: bound on $1/n - p_n$ from ``least`` $= \sigma_n^2$: $(1 - c\sigma_n^2)(1/n - \sigma_n^2)$.

    c = 2/3 as stated; sharp: c = 2n/(n+2), which the proof gives and which is tight at isometry.
    """
    if not 0 <= least <= 1 / n:
        raise UsageError(f"sigma_n^2 lies between 0 and 1/n; got {least!r} for n={n}.")
    c = 2 * n / (n + 2) if sharp else 2 / 3
    return float((1 - c * least) * (1 / n - least))


def contraction(n: int, recenter: bool = False) -> float:
    """Factor per layer on the Gram's deviation from isometry, infinite width: n/(n+2), recentred (n-1)/(n+1).

    Derived.
    """
    m = n - 1 if recenter else n
    return m / (m + 2)


def stationary_gap(n: int, d: int, recenter: bool = False, root_mean_square: bool = False) -> float:
    r"""Orthogonality gap that a long chain settles at: $E V^2 = v^2 = \frac{(n-1)(n+2)^2}{4n(n+1)d}$. Derived.

    $E V = v\sqrt{2/D}\,\Gamma(\frac{D+1}2)/\Gamma(\frac D2)$, $D = n(n+1)/2 - 1$; or $v$ itself. Recentred: the law
    for n - 1 samples and the floor $1/(n-1) - 1/n$. Within 3 % for n <= sqrt(d)/2, 5 % for n <= sqrt(d); beyond about
    1.8 sqrt(d) the chain loses dimensions and the law fails (`keeps_rank`).
    """
    m = n - 1 if recenter else n
    _checked(m, d)
    square = (m - 1) * (m + 2) ** 2 / (4 * m * (m + 1) * d)
    dim = m * (m + 1) / 2 - 1
    shape = 1.0 if root_mean_square else math.sqrt(2 / dim) * math.exp(gammaln((dim + 1) / 2) - gammaln(dim / 2))
    floor = 1 / m - 1 / n
    return float(math.sqrt(square * shape**2 + floor))


def stationary_cosine(d: int) -> float:
    r"""$E|\cos|$ of two samples in a long chain, $\sqrt{4/(3\pi d)}$ (n = 2). Derived."""
    return math.sqrt(4 / (3 * math.pi * d))


def wasserstein_bound(mean_gap: float, n: int) -> float:
    r"""Lemma 2: bound on $W_2$ between W H and a matrix of i.i.d. N(0, 1/(nd)): $\sqrt{2n\,E V}$.

    What is Gaussian is W H, not H.
    """
    return math.sqrt(2 * n * mean_gap)


def stationary_wasserstein(n: int, d: int) -> float:
    r"""The same distance in a long chain, at most $\sqrt{(n-1)(n+2)^2/(16(n+1)d)}$:
    width^(-1/2), not the -1/4 of Corollary 3.
    """
    _checked(n, d)
    return math.sqrt((n - 1) * (n + 2) ** 2 / (16 * (n + 1) * d))


def keeps_rank(n: int, d: int) -> bool | None:
    r"""Does a long chain keep n directions? Yes for $n \le 1.5\sqrt d$, no for $n \ge 2\sqrt d$, ``None`` between
    (measured, d = 64..256).
    """
    ratio = n / math.sqrt(d)
    return True if ratio <= 1.5 else (False if ratio >= 2 else None)


def vanilla_log_sine(d: int, depth: int) -> float:
    r"""$E\log\sin^2\theta_l - \log\sin^2\theta_0$ of two samples under l Gaussian matrices:
    $l[\psi(\frac{d-1}2) - \psi(\frac d2)]$, exact.
    """
    return float(depth * (psi((d - 1) / 2) - psi(d / 2)))


def vanilla_log_det(n: int, d: int, depth: int) -> float:
    r"""$E\log\det C_l - \log\det C_0$ under l matrices of entries N(0, 1/d):
    $l\sum_{i<n}[\psi(\frac{d-i}2) + \log\frac2d]$, exact.
    """
    _checked(n, d)
    i = np.arange(n)
    return float(depth * (psi((d - i) / 2) + math.log(2 / d)).sum())
