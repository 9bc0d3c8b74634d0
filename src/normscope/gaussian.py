r"""Gaussian moments of activations: $E\varphi$, $E\varphi(u)\varphi(v)$ and the same for $\varphi'$.

Everything the infinite-width recursions need; which activations there are is said in `normscope.nn.activations`.

$(u, v)$ is centred Gaussian with variances $q_i, q_j$ and covariance $G_{ij}$. Closed forms for identity, relu,
leaky_relu, abs (the leaky family) and erf, sin; quadrature for all.

Quadrature cuts the real line at 0, where the kinks of the activations lie, and uses Gauss-Legendre on each half: the
integrand is smooth there. Beyond 12 standard deviations the Gaussian weight is below 1e-31. Error, against the closed
forms and a finer rule: 1e-12 in one variable; in two, 1e-11 for variances up to 5 and 1e-8 at 30 (1e-6 for sin).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normscope.core import spec
from normscope.core.errors import UsageError

Array = NDArray[np.float64]
_ROOT_TAU = np.sqrt(2 * np.pi)


@dataclass(frozen=True, kw_only=True)
class Function:
    """An activation as functions of numpy arrays, and what is special about it.

    derivative: 0.5 or either side at a kink (a null set). odd: phi(-x) = -phi(x).
    slope: for the leaky family x -> x (x > 0), slope * x (x < 0), whose moments are closed; ``None`` outside it.
    products: E phi(u) phi(v), or of phi', from the variances of u and v, their covariance, and whether it is of phi':
        a closed form outside the leaky family.
    """

    name: str
    phi: Callable[[Any], Any]
    derivative: Callable[[Any], Any]
    slope: float | None = None
    odd: bool = False
    products: Callable[[Any, Any, Any, bool], Any] | None = None

    @property
    def homogeneous(self) -> bool:
        """phi(c x) = c phi(x) for c > 0: exactly the leaky family."""
        return self.slope is not None

    @property
    def linear(self) -> bool:
        """phi(x) = x."""
        return self.slope == 1

    def apply(self, z: NDArray[Any]) -> NDArray[Any]:
        """phi of each entry, in place."""
        if self.linear:
            return z
        if self.slope == 0:
            return np.maximum(z, 0, out=z)
        z[...] = self.phi(z)
        return z


def activation(of: str | Function) -> Function:
    """The activation of a name (see `normscope.core.spec.activation`); a function is itself."""
    found: Function = spec.activation(of) if not isinstance(of, Function) else of
    return found


def special() -> Any:
    """scipy's special functions, which a probe does not wait for."""
    from scipy import special

    return special


def normal_cdf(x: Any) -> Any:
    """P(z < x)."""
    return special().ndtr(x)


def normal_pdf(x: Any) -> Any:
    """Its derivative."""
    return np.exp(-0.5 * np.square(x)) / _ROOT_TAU


# The public moments ------------------------------------------------------------------------------------------------


def mean(name: str | Function, q: Any, method: str = "auto") -> Any:
    r"""$E\varphi(\sqrt q z)$, $z \sim N(0, 1)$, for variances q of any shape."""
    a, q = activation(name), _variances(q)
    if _closed(a, method):
        if a.odd:
            return np.zeros_like(q)
        if a.slope is not None:
            return (1 - a.slope) * np.sqrt(q / (2 * np.pi))
    return one_dimensional(a.phi, q)


def second_moment(name: str | Function, q: Any, method: str = "auto", derivative: bool = False) -> Any:
    r"""$E\varphi(\sqrt q z)^2$, or $E\varphi'(\sqrt q z)^2$, for variances q of any shape."""
    a, q = activation(name), _variances(q)
    if _closed(a, method):
        return _closed_pair(a, q, q, q, derivative)
    f = a.derivative if derivative else a.phi
    return one_dimensional(lambda x: np.square(f(x)), q)


#: Numbers of a Gram that closed forms work on at a time (2 MB).
_HELD = 1 << 18


def product_moment(name: str | Function, gram: Any, method: str = "auto", derivative: bool = False) -> Array:
    r"""Matrix $E\varphi(u_i)\varphi(u_j)$ (or of $\varphi'$), $u \sim N(0, G)$, for Grams G (..., n, n).

    The kernel map of a wide layer. Diagonal entries are ``second_moment``. Correlations that rounding pushes beyond
    +-1 are clipped; a sample of variance 0 has u = 0. ``method``: "auto" (closed form where there is one, else a
    Hermite series for the pairs where its remainder is below 1e-11, else quadrature), "closed" (an error where there
    is none) or "quadrature".
    """
    a, g = activation(name), np.asarray(gram)
    q = _variances(np.diagonal(g, axis1=-2, axis2=-1).astype(np.float64))
    if _closed(a, method):
        out = np.empty(g.shape)
        size = max(1, _HELD // max(1, q.size))
        for at in range(0, g.shape[-1], size):  # rows
            rows = slice(at, at + size)
            block = g[..., rows, :].astype(np.float64, copy=False)
            out[..., rows, :] = _closed_pair(a, q[..., rows, None], q[..., None, :], block, derivative)
    else:
        g = g.astype(np.float64, copy=False)
        qi, qj = np.broadcast_arrays(q[..., :, None], q[..., None, :])
        upper = np.triu_indices(g.shape[-1], 1)
        f = a.derivative if derivative else a.phi
        u, v, w = qi[..., *upper], qj[..., *upper], g[..., *upper]
        if method == "quadrature":
            pairs = _two_dimensional(f, u, v, w)
        else:
            pairs, bound = _series(f, q, g)
            pairs, poor = pairs[..., *upper], bound[..., *upper] > _SERIES_ERROR
            pairs[poor] = _two_dimensional(f, u[poor], v[poor], w[poor])
        out = np.zeros_like(g)
        out[..., *upper] = pairs
        out = out + np.swapaxes(out, -1, -2)
    index = np.arange(g.shape[-1])
    out[..., index, index] = second_moment(name, q, method, derivative)
    return out


# Closed forms ------------------------------------------------------------------------------------------------------


def half_plane(c: Any) -> Any:
    r"""E relu(u) relu(v) at unit variances and correlation c: $(\sqrt{1-c^2} + (\pi - \arccos c) c)/2\pi$."""
    c = np.clip(c, -1, 1)
    return (np.sqrt((1 - c) * (1 + c)) + (np.pi - np.arccos(c)) * c) / (2 * np.pi)


def _closed(a: Function, method: str) -> bool:
    if method not in ("auto", "closed", "quadrature"):
        raise UsageError(f"method must be auto, closed or quadrature; got {method!r}.")
    has = a.homogeneous or a.products is not None
    if method == "closed" and not has:
        raise UsageError(f"{a.name} has no closed Gaussian moments here; use method='quadrature'.")
    return has and method != "quadrature"


def _closed_pair(a: Function, qi: Any, qj: Any, g: Any, derivative: bool) -> Any:
    """E phi phi (or of phi') from the two variances and the covariance."""
    if a.products is not None:
        return a.products(qi, qj, g, derivative)
    assert a.slope is not None
    # phi_s(x) = s x + (1-s) relu(x), so phi phi = s^2 uv + s(1-s)(u relu v + v relu u) + (1-s)^2 relu u relu v, and
    # E u relu(v) = g/2.
    s, scale = a.slope, np.sqrt(qi * qj)
    c = np.clip(np.divide(g, scale, out=np.zeros(np.broadcast(g, scale).shape), where=scale > 0), -1, 1)
    if derivative:
        # P(u>0, v>0) = (pi - arccos c) / 2pi.
        return s + (1 - s) ** 2 * (np.pi - np.arccos(c)) / (2 * np.pi)
    return s * g + (1 - s) ** 2 * scale * half_plane(c)


# Quadrature --------------------------------------------------------------------------------------------------------

_REACH = 12.0  # standard deviations


@functools.cache
def _legendre(nodes: int) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, w / 2


@functools.cache
def normal_rule(nodes: int) -> tuple[Array, Array]:
    """Nodes z and weights for E f(z), f smooth on each half line; squaring crowds the nodes towards the cut."""
    x, w = _legendre(nodes)
    z, w = _REACH * x**2, _REACH * 2 * x * w
    z, w = np.concatenate([-z[::-1], z]), np.concatenate([w[::-1], w])
    return z, w * normal_pdf(z)


@functools.cache
def hermite(nodes: int, terms: int) -> Array:
    """The normalised Hermite polynomials he_0 ... at the nodes of that rule, (terms, nodes)."""
    z, _ = normal_rule(nodes)
    he = np.empty((terms, len(z)))
    he[0], he[1] = 1, z
    for k in range(1, terms - 1):
        he[k + 1] = (z * he[k] - np.sqrt(k) * he[k - 1]) / np.sqrt(k + 1)
    return he


def one_dimensional(f: Callable[[Any], Any], q: Array, nodes: int = 160) -> Array:
    r"""$E f(\sqrt q z)$ for variances q of any shape, by the rule of ``nodes`` points."""
    z, w = normal_rule(nodes)
    return np.asarray(f(np.sqrt(q)[..., None] * z) @ w)


def _two_dimensional(f: Callable[[Any], Any], qi: Array, qj: Array, g: Array, nodes: int = 48) -> Array:
    """E f(u) f(v): outer rule over u, inner over v given u, cut where v changes sign and at its mean."""
    shape = np.shape(g)
    flat = [np.reshape(a, -1) for a in np.broadcast_arrays(qi, qj, g)]
    out = np.empty(flat[0].shape)
    block = max(1, 4_000_000 // (6 * nodes * nodes))
    for i in range(0, len(out), block):
        part = slice(i, i + block)
        out[part] = _pair_block(f, flat[0][part], flat[1][part], flat[2][part], nodes)
    return out.reshape(shape)


def _pair_block(f: Callable[[Any], Any], qi: Array, qj: Array, g: Array, nodes: int) -> Array:
    scale = np.sqrt(qi * qj)
    c = np.clip(np.divide(g, scale, out=np.zeros_like(g), where=scale > 0), -1, 1)[:, None]
    s = np.sqrt((1 - c) * (1 + c))
    z, w = normal_rule(nodes)
    x, wx = _legendre(nodes)
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = np.where(s > 0, -c * z / s, np.sign(-c * z) * _REACH)  # v = sqrt(qj) (c z + s y) is 0 at y = cut
    cut = np.clip(np.nan_to_num(cut), -_REACH, _REACH)[..., None]
    inner = np.zeros(cut.shape[:-1])
    # Three pieces: on both sides of the cut and, so that none is longer than the reach, cut at the Gaussian's centre.
    far = np.where(cut > 0, -_REACH, _REACH)
    for start, end in ((cut, -far), (cut, np.zeros_like(cut)), (np.zeros_like(cut), far)):
        length = end - start
        y = start + length * x**2
        v = np.sqrt(qj)[:, None, None] * ((c * z)[..., None] + s[..., None] * y)
        inner += np.sum(f(v) * normal_pdf(y) * np.abs(length) * 2 * x * wx, axis=-1)
    return np.asarray(np.sum(f(np.sqrt(qi)[:, None] * z) * inner * w, axis=-1))


_TERMS, _SERIES_ERROR = 64, 1e-11


def _series(f: Callable[[Any], Any], q: Array, g: Array) -> tuple[Array, Array]:
    r"""$\sum_k a_k(q_i) a_k(q_j) c_{ij}^k$ for all pairs, and a bound on the rest over $\sqrt{E f(u_i)^2 E f(u_j)^2}$
    (Mehler).

    $a_k(q) = E f(\sqrt q z) he_k(z)$, he_k the normalised Hermite polynomials, $\sum_k a_k^2 = E f^2$. What 64 terms
    leave is at most $|c|^{64} \sqrt{t_i t_j}$, t the rest of that sum: nothing for smooth activations, or away from |c|
    = 1.
    """
    z, w = normal_rule(160)
    he = hermite(160, _TERMS)
    values = f(np.sqrt(q)[..., None] * z)
    total = np.square(values) @ w
    a = (values * w) @ he.T
    rest = np.maximum(total - np.square(a).sum(-1), 1e-16 * total)
    scale = np.sqrt(q[..., :, None] * q[..., None, :])
    c = np.clip(np.divide(g, scale, out=np.zeros_like(g), where=scale > 0), -1, 1)
    out = np.zeros_like(g)
    for k in range(_TERMS - 1, -1, -1):  # Horner
        out = out * c + a[..., :, None, k] * a[..., None, :, k]
    share = np.sqrt(rest / np.where(total > 0, total, 1))
    return out, np.abs(c) ** _TERMS * share[..., :, None] * share[..., None, :]


def _variances(q: Any) -> Array:
    q = np.asarray(q, dtype=np.float64)
    if (q < -1e-12 * (1 + np.abs(q).max(initial=0))).any() or not np.isfinite(q).all():
        raise UsageError(f"Variances must be finite and not negative; got {q.min()!r} at least.")
    return q.clip(0)
