r"""Gradient second moments through one infinitely wide layer, backwards: $\Pi_{l} \mapsto \Pi_{l-1}$.

$\Pi$ (n, n) is the sum over neurons of the products of loss gradients of two samples. Under the gradient-independence
assumption (forward weights and back-propagated gradients taken as independent), with J the Jacobian of norm and
activation over the batch, $\Pi_{l-1} = g^2\, E[J(u)^T \Pi_l J(u)]$, $u \sim N(0, C)$.
"""

from __future__ import annotations

import math

import numpy as np

from normscope.gaussian import activation, product_moment, second_moment
from normscope.linalg import Array, centred
from normscope.nn.norms import ALGEBRA
from normscope.theory.grams import WideLayer, _tilted, normalized


def backward(layer: WideLayer, gram: Array, outer: Array) -> Array:
    """Gradient moment before the layer from the one after it (``outer``); ``gram``: the layer's input. All (n, n)."""
    spec, c, norm = layer.spec, layer.covariance(gram), ALGEBRA[layer.spec.norm]
    if norm.rescales_batch:
        recenter = norm.recenter
        rank = np.linalg.matrix_rank(centred(c) if recenter else c, tol=1e-12 * np.trace(c), hermitian=True)
        if rank <= 2:  # E 1/sigma^2 is infinite with two degrees of freedom
            return np.full_like(outer, math.inf)
        linear = spec.activation == "identity"
        inner = _through_linear_batch_norm(c, outer, recenter) if linear else _through_rows(layer, c, outer)
    elif spec.norm_first:
        t = normalized(c, spec.norm)
        inner = outer * product_moment(spec.activation, t, derivative=True)
        inner = centred(inner) if norm.recenters_batch else inner / _scales(c, spec.norm)
    else:
        scaled = centred(outer) if norm.recenters_batch else outer / _scales(_after(layer, c), spec.norm)
        inner = scaled * product_moment(spec.activation, c, derivative=True)
    if spec.skip is not None:
        return np.asarray(inner * (1 + (spec.skip * layer.gain) ** 2))
    return np.asarray(layer.gain**2 * inner)


def _after(layer: WideLayer, c: Array) -> Array:
    """Second moments of the activation that a norm then divides by (variances for layer norm)."""
    from normscope.gaussian import mean

    q = np.diagonal(c)
    squares = second_moment(layer.spec.activation, q)
    norm = ALGEBRA[layer.spec.norm]
    if norm.over == "features" and norm.recenter:
        squares = squares - np.square(mean(layer.spec.activation, q))
    return np.diag(squares)


def _scales(c: Array, norm: str) -> Array | float:
    if ALGEBRA[norm].over != "features":
        return 1.0
    scale = np.sqrt(np.diagonal(c))
    return np.outer(scale, scale)


def _through_linear_batch_norm(c: Array, outer: Array, recenter: bool) -> Array:
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


def _through_rows(layer: WideLayer, c: Array, outer: Array) -> Array:
    """The same average over quasi-random neurons, for any activation and either order."""
    spec, n = layer.spec, len(c)
    phi = activation(spec.activation)
    recenter = ALGEBRA[spec.norm].recenter
    u = layer.rows(c)
    x = u if spec.norm_first else phi.phi(u)
    if recenter:
        x = x - x.mean(1, keepdims=True)
    root = np.sqrt(np.square(x).mean(1, keepdims=True))
    inverse = np.divide(1, root, out=np.zeros_like(root), where=root > 0)  # dead neurons stay dead
    y = x * inverse
    if spec.norm_first:
        d = phi.derivative(y)
        e = d * inverse  # rows of D / sigma
        b = e * ((e * y) @ outer)  # D Pi D y / sigma^2
        moment = outer * (e.T @ e) - (y.T @ b + b.T @ y) / n
        moment += (y * np.sum(b * y, 1, keepdims=True)).T @ y / n**2
        moment /= len(u)
        return centred(moment) if recenter else np.asarray(moment)
    d = phi.derivative(u) * inverse
    pi = centred(outer) if recenter else outer
    z = y @ pi
    f = d * y
    g = d * z
    moment = pi * (d.T @ d) - (f.T @ g + g.T @ f) / n + (f * np.sum(y * z, 1, keepdims=True)).T @ f / n**2
    return np.asarray(moment / len(u))
