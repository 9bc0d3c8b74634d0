"""What a layer does to its pre-activations: norm and activation, in the order of its spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from normscope.core.spec import NORMS, Spec
from normscope.gaussian import Function, activation
from normscope.linalg import Array
from normscope.nn.norms import Norm


@dataclass(frozen=True)
class LayerMap:
    """Norm and activation; ``first``: the norm comes first."""

    norm: Norm
    phi: Function
    first: bool

    @classmethod
    def of(cls, spec: Spec) -> LayerMap:
        """That of a spec's layers."""
        return cls(NORMS[spec.norm], activation(spec.activation), spec.norm_first)

    def apply(self, z: NDArray[Any], eps: float, is_centred: bool = False) -> NDArray[Any]:
        """Of Z (runs, d, n), samples last; Z is overwritten. is_centred: the norm has no mean left to subtract."""
        if self.first:
            return self.phi.apply(self.norm.rows(z, eps, is_centred=is_centred))
        return self.norm.rows(self.phi.apply(z), eps)

    def forward(self, covariance: Array, points: Array | None = None) -> Array:
        """The Gram behind it, of pre-activations of this covariance; see `Norm.forward`."""
        return self.norm.forward(covariance, self.phi, self.first, points)

    def backward(self, covariance: Array, outer: Array, points: Array | None = None) -> Array:
        """The gradient moment before it, from the one behind it; see `Norm.backward`."""
        return self.norm.backward(covariance, outer, self.phi, self.first, points)

    def push(self, covariance: Array, inner: Array, points: Array | None = None) -> Array:
        """The tangent kernel behind it, from the one before; see `Norm.push`."""
        return self.norm.push(covariance, inner, self.phi, self.first, points)

    @property
    def samples(self) -> bool:
        """Do `forward` and `backward` need points to average over?"""
        return self.norm.samples(self.phi, self.first)

    @property
    def row_local(self) -> bool:
        """Does the norm act on each feature (row of Z) by itself, so that rows can be streamed?"""
        return self.norm.over != "features"

    @property
    def recentres_first(self) -> bool:
        """Does the norm subtract the batch mean from W H itself? Then the mean can go before the weights."""
        return self.norm.recenters_batch and (self.first or self.phi.linear)

    @property
    def output_is_centred(self) -> bool:
        """Does the layer's output have batch mean zero, exactly, in every feature?"""
        return self.norm.recenters_batch and (not self.first or self.phi.linear)

    @property
    def homogeneous(self) -> bool:
        """Does scaling the input only scale the output?"""
        return not self.norm.rescale and not self.norm.bends and self.phi.homogeneous

    @property
    def linear(self) -> bool:
        """Does nothing in it act on an entry alone but as a straight line?"""
        return self.phi.linear and not self.norm.bends

    @property
    def plain(self) -> bool:
        """Does it do nothing?"""
        return not self.norm.over and self.linear
