r"""Cluster + odd point, the equiangular state, and gradient rates (our analysis of nachum2024's phenomenon; yang2019).

n samples, one of them odd, the others exchangeable; leaky slope a (0 ReLU, 1 identity, -1 abs); infinite width. The
state is t = (variance of a cluster sample) / (variance of the odd one), both centred: $t_0 = 1/(n-1)^2$ perfect
cluster, 1 equiangular.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq

from normscope.core import spec
from normscope.core.errors import UsageError
from normscope.gaussian import half_plane, product_moment
from normscope.linalg import contrasts


def perfect_odd(n: int, slope: float = 0.0) -> dict[str, float]:
    """The exactly invariant state under recentring (no rescaling): its shape, and how it grows per layer.

    ``norm_ratio`` |odd| / |cluster| = n - 1; ``cosine`` -2a/(1+a^2); ``distance_factor`` on |odd - cluster|^2 per
    layer; ``spread_factor`` on the relative spread within an almost perfect cluster (above 1: it opens up, 1 + 2/n
    for ReLU).
    """
    if n < 3:
        raise UsageError(f"One odd point and a cluster need n >= 3 samples; got {n!r}.")
    a = slope
    c = 2 * a / (1 + a**2)
    distance = ((1 + a**2) * ((n - 1) ** 2 + 1) / 2 + 2 * a * (n - 1)) / n**2
    return {
        "norm_ratio": float(n - 1),
        "cosine": -c,
        "distance_factor": distance,
        "spread_factor": n**2 / (n**2 - 2 * (n - 1) * (1 - c)),
    }


def reduced_map(t: float, n: float, slope: float = 0.0, rescale: bool = False) -> float:
    """t of the next layer: recentring then the leaky activation, with or without rescaling; n may be any real > 2.

    Exact at infinite width. With rescaling the average over neurons is an integral over a tilt s, 900 nodes in log s.
    """
    if not (n > 2 and t >= 1 / (n - 1) ** 2 * (1 - 1e-9)):
        raise UsageError(f"reduced_map needs n > 2 and t >= 1/(n-1)^2; got n={n!r}, t={t!r}.")
    l1 = n / (n - 1)
    tau = max(0.0, (t - 1 / (n - 1) ** 2) * (n - 1) / (n - 2))
    if not rescale:
        moments = _moments(l1, tau, n, slope)
    else:
        grid = np.linspace(-45, 70, 900)
        s = np.exp(grid) * n / (2 * (l1 + (n - 2) * tau))
        weight = s * (1 + 2 * s * l1 / n) ** -0.5 * (1 + 2 * s * tau / n) ** (-(n - 2) / 2)
        moments = _moments(l1 / (1 + 2 * s * l1 / n), tau / (1 + 2 * s * tau / n), n, slope) @ weight
    p, q, r, s_ = moments
    x, y = (p + (n - 1) * r) / n, (r + q + (n - 2) * s_) / n
    m2 = (p + 2 * (n - 1) * r + (n - 1) * (q + (n - 2) * s_)) / n**2
    return float((q - 2 * y + m2) / (p - 2 * x + m2))


def _moments(l1: object, tau: object, n: float, a: float) -> np.ndarray:
    """Kernel K_a at (odd, odd), (cluster, cluster), (odd, cluster), (cluster, other cluster)."""
    l1, tau = np.asarray(l1, float), np.asarray(tau, float)
    odd, own = l1 * (n - 1) / n, l1 / (n * (n - 1)) + tau * (n - 2) / (n - 1)
    cross, other = -l1 / n, l1 / (n * (n - 1)) - tau / (n - 1)

    def kernel(qi: np.ndarray, qj: np.ndarray, g: np.ndarray) -> np.ndarray:
        root = np.sqrt(qi * qj)
        return np.asarray(a * g + (1 - a) ** 2 * root * half_plane(g / np.where(root > 0, root, 1)))

    half = (1 + a**2) / 2
    return np.stack([half * odd, half * own, kernel(odd, own, cross), kernel(own, own, other)])


def odd_fixed_point(n: float, slope: float = 0.0) -> float | None:
    """t* of the fuzzy cluster + odd point, recentring without rescaling; ``None`` below the threshold n* = 6.107."""
    found = _crossings(n, slope)
    return found[0] if len(found) == 2 else None


def odd_saddle(n: float, slope: float = 0.0) -> float | None:
    """The unstable fixed point between the odd and the equiangular state: t below it flows to the odd state."""
    found = _crossings(n, slope)
    return found[1] if len(found) == 2 else None


def _crossings(n: float, slope: float) -> list[float]:
    low = 1 / (n - 1) ** 2
    # t* - t_0 is about 44 t_0 / n^2, so look on a grid of log(t - t_0).
    excess = np.geomspace(1e-9 * low, (1 - low) * (1 - 1e-3 / n), 4000)

    def f(e: float) -> float:
        return reduced_map(low + e, n, slope) - low - e

    values = np.array([f(e) for e in excess])
    turns = np.flatnonzero(np.sign(values[:-1]) != np.sign(values[1:]))
    return [low + float(brentq(f, excess[i], excess[i + 1], xtol=1e-15, rtol=1e-13)) for i in turns]


def stability(n: int, t: float, slope: float = 0.0) -> np.ndarray:
    r"""Growth factors per layer of every small deviation from the state t, recentring without rescaling; descending.

    Eigenvalues of the Jacobian of the centred, trace-normalized Gram map $S \to P K(S) P / \mathrm{tr}$ on all centred
    symmetric matrices, n(n-1)/2 of them, by central differences (good to 1e-6). t should be a fixed point
    (`odd_fixed_point`, `odd_saddle`, 1 for the equiangular state). All below 1: stable against every deviation.
    """
    if n < 3 or not 1 / (n - 1) ** 2 < t <= 1:
        raise UsageError(f"The state needs n >= 3 and 1/(n-1)^2 < t <= 1; got n = {n!r}, t = {t!r}.")
    basis = contrasts(n)
    tau = (t - 1 / (n - 1) ** 2) * (n - 1) / (n - 2)
    state = np.full((n, n), 1 / (n - 1) ** 2 - tau / (n - 1))
    state[0, :] = state[:, 0] = -1 / (n - 1)
    np.fill_diagonal(state, [1.0] + [t] * (n - 1))
    state /= np.trace(state)
    i, j = np.triu_indices(n - 1)
    weight = np.where(i == j, 1.0, math.sqrt(0.5))  # an orthonormal basis of the symmetric matrices
    columns = []
    for a, b, w in zip(i, j, weight, strict=True):
        step = np.zeros((n - 1, n - 1))
        step[a, b] = step[b, a] = 1e-5 * w / n
        change = basis @ step @ basis.T
        images = product_moment(f"leaky_relu({slope})", np.stack([state + change, state - change]))
        images = basis.T @ images @ basis
        images /= np.trace(images, axis1=1, axis2=2)[:, None, None]
        columns.append((images[0] - images[1])[i, j] / weight / (2e-5 / n))
    return np.sort(np.linalg.eigvals(np.array(columns).T).real)[::-1]


def odd_share(t: float, n: float) -> float:
    r"""$R_2 = n/((n-1)(1+(n-1)t))$: share of the centred energy in the contrast of the odd point against the rest."""
    return n / ((n - 1) * (1 + (n - 1) * t))


def equiangular_cosine(n: int, slope: float = 0.0) -> float:
    r"""Cosine of every pair in the state that complete batch norm reaches, $K_a(r)/K_a(1)$ at $r = -1/(n-1)$; ReLU:
    -> 1/pi. yang2019, Thm 5.
    """
    r = -1 / (n - 1)
    return float((slope * r + (1 - slope) ** 2 * half_plane(r)) * 2 / (1 + slope**2))


def equiangular_rates(n: int, rescale: bool = True) -> tuple[float, float]:
    r"""Factors per layer on deviations from the ReLU equiangular state: of the norms (n-1 modes), of the angles
    (n(n-3)/2 modes).

    With rescaling both are (n-1)/(n+1) times those of recentring alone (equal to yang2019, Thm 6).
    """
    if n < 4:
        raise UsageError(f"Both kinds of modes exist for n >= 4; got {n!r}.")
    r = -1 / (n - 1)
    slope = (math.pi - math.acos(r)) / (2 * math.pi)
    mu = 0.5 - float(half_plane(r))
    b = -slope / n + (1 - 2 / n) * math.sqrt(1 - r**2) / (4 * math.pi)
    norms, angles = ((1 - 2 / n) / 2 - 2 * b) / ((1 - 1 / n) * mu), slope / ((1 - 1 / n) * mu)
    factor = (n - 1) / (n + 1) if rescale else 1.0
    return factor * norms, factor * angles


def winner_takes_all(u: float, slope: float = 0.0) -> float:
    r"""Large n: variance of one sample relative to the equiangular bulk, next layer:
    $u' = u + \beta(\sqrt u - 1)^2$, ReLU: beta = 1/(pi-1).
    """
    a = (1 - slope) ** 2 / (2 * math.pi)
    return u + a / ((1 + slope**2) / 2 - a) * (math.sqrt(u) - 1) ** 2


def gradient_explosion(n: int, activation: str = "identity", recenter: bool = True) -> float:
    r"""Factor per layer on the squared gradient norm behind batch norm, at the equiangular state, infinite width.

    identity: (n-1)/(n-2), recentred (n-2)/(n-3); relu (recentred): the closed form below, pi/(pi-1) for large n.
        yang2019, Thm 8. Infinite where the variance has too few degrees of freedom.
    """
    slope = spec.activation(activation).slope
    if slope == 1:
        free = n - 1 if recenter else n
        return (free - 1) / (free - 2) if free > 2 else math.inf
    if slope != 0 or not recenter:
        raise UsageError("Known rates: identity (recentred or not), relu (recentred). predict() computes the others.")
    if n <= 3:
        return math.inf
    r = -1 / (n - 1)
    q, f = 0.25 + math.asin(r) / (2 * math.pi), float(half_plane(r))
    inner = (n - 1) ** 2 / (2 * n) + (n - 1) * q / n - 0.5 + (0.5 + (n - 1) * f) / n
    return n / ((0.5 - f) * (n - 3) * (n - 1)) * inner


def relu_angle(theta: float) -> float:
    r"""Angle of two samples after a plain wide ReLU layer, $\arccos(2f(\cos\theta))$;
    $\theta_l \approx 3\pi/l$ far on.
    """
    return math.acos(min(1.0, 2 * float(half_plane(math.cos(theta)))))
