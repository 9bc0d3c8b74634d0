r"""What one infinitely wide layer does to the Gram matrix of a batch, $G \mapsto G'$ (Gram = $X X^T$ / features).

Weights of variance $g^2$ / fan_in make the pre-activations of a neuron Gaussian over the batch, $u \sim N(0, C)$ with
$C = g^2 G + b^2 11^T$. Then $G' = E\, h h^T$, $h$ = norm and activation of $u$. P = I - 11^T/n recentres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy import special

from normscope.core.errors import UsageError
from normscope.core.spec import Spec
from normscope.gaussian import activation, half_plane, mean, product_moment
from normscope.linalg import Array, centred
from normscope.nn.nets import weight_scale
from normscope.nn.norms import ALGEBRA
from normscope.theory._layer import apply_layer, recentres_first
from normscope.theory._nodes import few_nodes

_LAWS_WITHOUT_MEAN = ("gaussian", "uniform", "orthogonal", "xavier", "xavier_normal", "torch")


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
    n, scale = len(s), np.sqrt(np.diagonal(s).clip(0))
    correlation = np.abs(s) * np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)  # times the row's scale
    np.fill_diagonal(correlation, -1)
    one, other = np.argsort(scale)[-16:][np.array(np.triu_indices(16, 1))]
    i = np.concatenate([np.arange(n), np.arange(n), one])
    j = np.concatenate([correlation.argmax(1), np.random.default_rng(0).permutation(n), other])
    variances = tilted @ np.square(vectors).T
    t = tilted @ (vectors[i] * vectors[j]).T
    root = np.sqrt(variances[:, i] * variances[:, j])
    return np.concatenate([variances, root * half_plane(np.divide(t, root, out=np.zeros_like(t), where=root > 0))], 1)


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


def _tilted(values: Array) -> tuple[Array, Array]:
    """Weights ds det(I + 2 s S / n)^(-1/2) and eigenvalues of S (I + 2 s S / n)^(-1), on a grid of log s."""
    n = len(values)
    grid, step = np.linspace(-42, 66, 433, retstep=True)
    s = np.exp(grid) * n / (2 * values.max())
    growth = 1 + 2 * np.outer(s, values) / n
    log_weights = np.log(s) - 0.5 * np.log(growth).sum(1) + math.log(step)
    size = log_weights + np.log((values / growth).max(1))
    keep = size > size.max() - 45  # the rest is below 1e-19 of the integral
    return log_weights[keep], (values / growth)[keep]


@dataclass(frozen=True)
class WideLayer:
    """One infinitely wide layer of a spec.

    fan_in: features that it reads, if not as many as it has.
    points: for norms and activations without a closed form, (m, n) quasi-random standard normals that average over
        neurons.
    """

    spec: Spec
    points: Array | None = None
    fan_in: int | None = None

    def reading(self, features: int | None) -> WideLayer:
        """The first layer of a chain whose input has so many features; ``None``: only its Gram is known. See
        `Spec.skip`.
        """
        spec = self.spec if features == self.spec.width else replace(self.spec, skip=None)
        return replace(self, spec=spec, fan_in=features)

    @cached_property
    def gain(self) -> float:
        """Standard deviation of a weight times sqrt(fan_in)."""
        return weight_scale(self.spec, self.fan_in or self.spec.width, self.spec.width)

    @cached_property
    def bias(self) -> float:
        """Standard deviation of a bias (torch's law shrinks with the width)."""
        return 0.0 if self.spec.weights == "torch" else self.spec.bias or 0.0

    def covariance(self, gram: Array) -> Array:
        """C, the covariance of what norm and activation see."""
        c = self.gain**2 * gram + self.bias**2
        return c if self.spec.skip is None else gram + self.spec.skip**2 * c

    def forward(self, gram: Array) -> Array:
        """G' from G, both (n, n)."""
        spec, c, norm = self.spec, self.covariance(gram), ALGEBRA[self.spec.norm]
        phi = activation(spec.activation)
        if norm.rescales_batch:
            if phi.homogeneous and recentres_or_plain(spec):
                assert phi.slope is not None
                return batch_norm_gram(c, phi.slope, recenter=norm.recenter)
            h = apply_layer(self.rows(c)[None], spec, 0.0)[0]
            return np.asarray(h.T @ h / len(h))
        if spec.norm_first:
            return product_moment(spec.activation, normalized(c, spec.norm))
        kernel = product_moment(spec.activation, c)
        if norm.over == "features" and norm.recenter:
            m = mean(spec.activation, np.diagonal(c))
            kernel = kernel - np.outer(m, m)
        return normalized(kernel, spec.norm)

    def rows(self, covariance: Array) -> Array:
        """Pre-activations of m neurons, (m, n), quasi-random."""
        assert self.points is not None
        s = centred(covariance) if recentres_first(self.spec) else covariance
        values, vectors = np.linalg.eigh(s)
        return np.asarray((self.points * np.sqrt(values.clip(0))) @ vectors.T)


def normalized(c: Array, norm: str) -> Array:
    """Covariance after a norm that only centres over the batch, or scales each sample; its groups are large."""
    if ALGEBRA[norm].recenters_batch:
        return centred(c)
    if ALGEBRA[norm].over == "features":
        scale = np.sqrt(np.diagonal(c).clip(0))
        outer = np.outer(scale, scale)
        return np.divide(c, outer, out=np.zeros_like(c), where=outer > 0)
    return c


def recentres_or_plain(spec: Spec) -> bool:
    """Does the norm act on Gaussian pre-activations themselves (rather than after a non-linearity)?"""
    return spec.norm_first or spec.activation == "identity"


def needs_points(spec: Spec) -> bool:
    """Is there no integral in closed or one-dimensional form for this layer's Gram map?"""
    return ALGEBRA[spec.norm].rescales_batch and not (
        activation(spec.activation).homogeneous and recentres_or_plain(spec)
    )


def check_wide(spec: Spec) -> None:
    """Raise ``UsageError`` where an infinitely wide layer of this spec has no Gram recursion."""
    if spec.weights not in _LAWS_WITHOUT_MEAN:
        raise UsageError(
            f"predict() needs random weights of mean zero; weights={spec.weights!r} are not. "
            "Use simulate() at finite width."
        )
    if spec.skip is not None and (spec.activation != "identity" or ALGEBRA[spec.norm].rescales_batch):
        raise UsageError(
            "With a skip connection the recursion closes on Gram matrices only for activation 'identity' without batch "
            f"rescaling; got activation={spec.activation!r}, norm={spec.norm!r}. Use simulate() at finite width."
        )


def quasi_normals(n: int, log2_points: int, replicates: int, seed: int) -> list[Array]:
    """Scrambled Sobol points mapped to normals: ``replicates`` independent sets of (2^log2_points, n)."""
    from scipy.stats import qmc  # takes a second to import

    if n > qmc.Sobol.MAXDIM:
        raise UsageError(f"Quasi-random averages take at most {qmc.Sobol.MAXDIM} samples; got {n}. Use simulate().")
    sets = []
    for r in range(replicates):
        sobol = qmc.Sobol(n, rng=np.random.default_rng([seed, r])).random_base2(log2_points)
        sets.append(special.ndtri(sobol.clip(2.0**-40, 1 - 2.0**-40)))
    return sets
