r"""What every norm answers, and the norm that does nothing.

At infinite width the pre-activations of a neuron over a batch of n samples are $u \sim N(0, C)$. With $h$ = norm and
activation of $u$ a norm answers for the Gram $E\,h h^T$ and, backwards, for $E[J^T \Pi J]$: J is the Jacobian of $h$ in
$u$, and $\Pi$ (n, n) sums over neurons the products of the loss gradients of two samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normscope.core.spec import NORMS
from normscope.gaussian import Function, mean, product_moment, second_moment
from normscope.linalg import Array

if TYPE_CHECKING:
    from typing import Self

#: Added to a mean square inside the root, as torch has it.
EPS = 1e-5


@dataclass(frozen=True)
class Norm:
    """A norm, by the name that a `Spec` gives it; this one does nothing.

    summary: one line for lists. recenter: it subtracts the mean. rescale: it divides by the root of the mean square (of
        what is left) plus eps. colour: its place in the palette of the charts; ``None``: behind those that have one.
    over: ``batch``: statistics of each feature over samples (and positions); ``features``: of each sample, over groups
        of features; ``""``: none.
    """

    name: str
    summary: str
    recenter: bool = False
    rescale: bool = False
    colour: int | None = None
    over: ClassVar[Literal["", "batch", "features"]] = ""

    def register(self) -> Self:
        """Enrol it in every list, page and check."""
        NORMS.add(self.name, self)
        return self

    # The module

    def make(self, features: int, *, affine: bool = True, eps: float = EPS) -> nn.Module:
        """The module, for inputs (n, features, ...)."""
        return nn.Identity()

    def recognises(self, module: nn.Module) -> bool:
        """Is this module the norm, with the statistics of the batch at hand?"""
        return False

    def rows(self, z: NDArray[Any], eps: float = EPS, *, is_centred: bool = False) -> NDArray[Any]:
        """The norm over Z (runs, d, n), samples last, in place; a feature or sample that is zero stays zero.

        is_centred: the mean that it would subtract is zero already.
        """
        return z

    # What follows of it

    @property
    def recenters_batch(self) -> bool:
        """Does every feature leave it with mean zero over the batch?"""
        return self.over == "batch" and self.recenter

    @property
    def rescales_batch(self) -> bool:
        """Does it divide every feature by its size over the batch?"""
        return self.over == "batch" and self.rescale

    @property
    def standardises_samples(self) -> bool:
        """Does every sample leave it with mean 0 and mean square 1 over all its features?"""
        return False

    @property
    def bends(self) -> bool:
        """Is it a curve of each entry, as an activation is?"""
        return False

    # Infinite width

    def gram(self, moments: Array, means: Array | None = None) -> Array:
        """Second moments (n, n) behind the norm of what has these ``moments``, and these ``means`` over the neurons
        (``None``: zero).
        """
        return moments

    def pull(self, outer: Array, squares: Array, means: Array | None = None) -> Array:
        """The gradient moment before the norm from the one after it, ``outer``, (n, n).

        squares, means: (n,) second moments and means over the neurons of what it is applied to.
        """
        return outer

    def forward(self, covariance: Array, phi: Function, first: bool, points: Array | None) -> Array:
        """E h h^T, (n, n), for pre-activations of this covariance; ``first``: norm, then activation ``phi``.

        points: (m, n) quasi-random standard normals that average over neurons, where `samples` asks for them.
        """
        if first:
            return product_moment(phi, self.gram(covariance))
        return self.gram(product_moment(phi, covariance), mean(phi, np.diagonal(covariance)))

    def backward(self, covariance: Array, outer: Array, phi: Function, first: bool, points: Array | None) -> Array:
        """E J^T outer J, (n, n); the arguments are those of `forward`."""
        q = np.diagonal(covariance)
        if first:
            slopes = product_moment(phi, self.gram(covariance), derivative=True)
            return self.pull(outer * slopes, q)
        behind = self.pull(outer, second_moment(phi, q), mean(phi, q))
        return behind * product_moment(phi, covariance, derivative=True)

    def push(self, covariance: Array, inner: Array, phi: Function, first: bool, points: Array | None) -> Array:
        """E J inner J^T, (n, n): what a kernel of tangents in front of it becomes behind; the arguments are those of
        `forward`. J is diagonal where samples do not meet.
        """
        return self.backward(covariance, inner, phi, first, points)

    def samples(self, phi: Function, first: bool) -> bool:
        """Do `forward` and `backward` need points, having no integral in closed or one-dimensional form?"""
        return False

    def order(self, q: Array) -> tuple[Array, float] | None:
        """(q_1, q_2) behind the norm of a large batch, of pre-activations with (q_1, q_2), and the factor on the
        back-propagated signal; ``None`` where none is known. See `normscope.theory.order_parameters`.
        """
        return q, 1.0


def make_norm(name: str, features: int, *, affine: bool = True, eps: float = EPS) -> nn.Module:
    """The module of a norm's name."""
    norm: Norm = NORMS[name]
    return norm.make(features, affine=affine, eps=eps)


def reciprocal_root(squares: NDArray[Any], eps: float) -> NDArray[Any]:
    """1 / sqrt(squares + eps); 0 where that is 1/0, so that a dead feature stays dead instead of NaN."""
    if eps:
        squares = squares + squares.dtype.type(eps)
    root = np.sqrt(squares)
    return np.divide(1, root, out=np.zeros_like(root), where=root > 0)


def widened(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, in which torch's own norms take their statistics."""
    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


Norm("none", "No norm.", colour=6).register()
