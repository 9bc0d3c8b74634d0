r"""One infinitely wide layer of a spec: forwards from Gram to Gram, backwards from gradient moment to gradient moment.

Weights of variance $g^2$ / fan_in make the pre-activations of a neuron Gaussian over the batch, $u \sim N(0, C)$ with
$C = g^2 G + b^2 11^T$ (Gram = $X X^T$ / features). Then $G' = E\, h h^T$, $h$ = norm and activation of $u$. Backwards,
under the gradient-independence assumption (forward weights and back-propagated gradients taken as independent),
$\Pi_{l-1} = g^2\, E[J(u)^T \Pi_l J(u)]$, J the Jacobian of norm and activation over the batch and $\Pi$ (n, n) the
sum over neurons of the products of loss gradients of two samples. What stands for norm and activation is theirs:
`normscope.nn.maps`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import special

from normscope.core.errors import UsageError
from normscope.core.spec import Spec
from normscope.linalg import Array
from normscope.nn.maps import LayerMap
from normscope.nn.nets import weight_scale

_LAWS_WITHOUT_MEAN = ("gaussian", "uniform", "orthogonal", "xavier", "xavier_normal", "torch")


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
    def map(self) -> LayerMap:
        """Norm and activation."""
        return LayerMap.of(self.spec)

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
        return self.map.forward(self.covariance(gram), self.points)

    def backward(self, gram: Array, outer: Array) -> Array:
        """The gradient moment before the layer from ``outer``, the one after it; ``gram``: the layer's input."""
        inner = self.map.backward(self.covariance(gram), outer, self.points)
        skip = self.spec.skip
        return np.asarray(inner * (self.gain**2 if skip is None else 1 + (skip * self.gain) ** 2))

    def push(self, gram: Array, kernel: Array, own: Array) -> Array:
        """The tangent kernel behind the layer, from the one before it and that of its ``own`` weights."""
        skip = self.spec.skip
        inner = self.gain**2 * kernel + own if skip is None else kernel + skip**2 * (self.gain**2 * kernel + own)
        return self.map.push(self.covariance(gram), inner, self.points)


def check_weights(spec: Spec) -> None:
    """Raise ``UsageError`` for weights that are not random with mean zero."""
    if spec.weights not in _LAWS_WITHOUT_MEAN:
        raise UsageError(
            f"predict() needs random weights of mean zero; weights={spec.weights!r} are not. "
            "Use simulate() at finite width."
        )


def check_wide(spec: Spec) -> None:
    """Raise ``UsageError`` where an infinitely wide layer of this spec has no Gram recursion."""
    check_weights(spec)
    if not closes(spec):
        layer = LayerMap.of(spec)
        raise UsageError(
            "With a skip connection the recursion closes on Gram matrices only for activation 'identity' without batch "
            f"rescaling; got activation={layer.phi.name!r}, norm={layer.norm.name!r}. Use simulate() at finite width."
        )


def closes(spec: Spec) -> bool:
    """Does the recursion close on Gram matrices: is what a skip passes on Gaussian?"""
    layer = LayerMap.of(spec)
    return spec.skip is None or not (layer.norm.rescales_batch or not layer.linear)


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
