"""Norms over the batch, taken apart: recentre, rescale, or both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from normscope.core.errors import UsageError
from normscope.gaussian import Function, product_moment
from normscope.linalg import Array, centred
from normscope.nn.norms.integrals import (
    batch_norm_gram,
    batch_norm_pull,
    batch_norm_push,
    linear_batch_norm_pull,
)
from normscope.nn.norms.norm import EPS, Norm, reciprocal_root, widened

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class OverBatch(Norm):
    """Statistics of each feature over the samples: what rescales couples them, and pairs are not enough."""

    over: ClassVar[Literal["", "batch", "features"]] = "batch"

    def make(self, features: int, *, affine: bool = True, eps: float = EPS) -> nn.Module:
        """`BatchNorm` with these switches."""
        return BatchNorm(features, recenter=self.recenter, rescale=self.rescale, affine=affine, eps=eps)

    def recognises(self, module: nn.Module) -> bool:
        """Torch's and ours, unless it takes running statistics."""
        if not isinstance(module, BatchNorm | nn.BatchNorm1d) or not (module.training or module.running_mean is None):
            return False
        switches = (getattr(module, "recenter", True), getattr(module, "rescale", True))
        return switches == (self.recenter, self.rescale)

    def rows(self, z: NDArray[Any], eps: float = EPS, *, is_centred: bool = False) -> NDArray[Any]:
        """The features are rows."""
        if self.recenter and not is_centred:
            z -= z.mean(-1, keepdims=True)
        if self.rescale:
            z *= reciprocal_root(np.einsum("rij,rij->ri", z, z) / z.shape[-1], eps)[:, :, None]
        return z

    def gram(self, moments: Array, means: Array | None = None) -> Array:
        """Of what only recentres."""
        return centred(moments) if self.recenter else moments

    def pull(self, outer: Array, squares: Array, means: Array | None = None) -> Array:
        """Of what only recentres."""
        return centred(outer) if self.recenter else outer

    def samples(self, phi: Function, first: bool) -> bool:
        """The integrals want the leaky family, and a norm of the Gaussian rows themselves."""
        return self.rescale and not (phi.homogeneous and (first or phi.linear))

    def forward(self, covariance: Array, phi: Function, first: bool, points: Array | None) -> Array:
        """An integral over the size of a row, or an average over rows."""
        if not self.rescale:
            return super().forward(covariance, phi, first, points)
        if not self.samples(phi, first):
            assert phi.slope is not None
            return batch_norm_gram(covariance, phi.slope, recenter=self.recenter)
        u = self._neurons(covariance, phi, first, points)[None]
        h = phi.apply(self.rows(u, 0.0)) if first else self.rows(phi.apply(u), 0.0)
        return np.asarray(h[0].T @ h[0] / h.shape[1])

    def backward(self, covariance: Array, outer: Array, phi: Function, first: bool, points: Array | None) -> Array:
        """The same, backwards; infinite where the size of a row has too few degrees of freedom."""
        if not self.rescale:
            return super().backward(covariance, outer, phi, first, points)
        seen = centred(covariance) if self.recenter else covariance
        if np.linalg.matrix_rank(seen, tol=1e-12 * np.trace(covariance), hermitian=True) <= 2:
            return np.full_like(outer, math.inf)  # E 1/sigma^2 is infinite with two degrees of freedom
        if phi.linear:
            return linear_batch_norm_pull(covariance, outer, self.recenter)
        if phi.slope is not None and first:
            return batch_norm_pull(covariance, outer, phi.slope, self.recenter)
        return self._pull_rows(self._neurons(covariance, phi, first, points), outer, phi, first)

    def push(self, covariance: Array, inner: Array, phi: Function, first: bool, points: Array | None) -> Array:
        """The other way round: norm and activation do not commute."""
        if not self.rescale:
            slopes = product_moment(phi, self.gram(covariance) if first else covariance, derivative=True)
            return self.gram(inner) * slopes if first else self.gram(inner * slopes)
        if (
            phi.linear
            or np.linalg.matrix_rank(
                centred(covariance) if self.recenter else covariance, tol=1e-12 * np.trace(covariance), hermitian=True
            )
            <= 2
        ):
            return self.backward(covariance, inner, phi, first, points)
        if phi.slope is not None and first:
            return batch_norm_push(covariance, inner, phi.slope, self.recenter)
        return self._push_rows(self._neurons(covariance, phi, first, points), inner, phi, first)

    def _normed(self, x: Array) -> tuple[Array, Array]:
        """Neurons (m, n) behind the norm, and the factor of each: that of a dead one is 0."""
        if self.recenter:
            x = x - x.mean(1, keepdims=True)
        root = np.sqrt(np.square(x).mean(1, keepdims=True))
        inverse = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
        return x * inverse, inverse

    def _push_rows(self, u: Array, inner: Array, phi: Function, first: bool) -> Array:
        """E J inner J^T over neurons u (m, n): A = (P - y y^T / n) / sigma of the norm, D of the activation."""
        y, inverse = self._normed(u if first else phi.phi(u))
        n = u.shape[1]
        if not first:  # A D inner D A
            e = phi.derivative(u) * inverse
            z = e * ((e * y) @ inner)  # rows of D inner D y / sigma^2
            whole = inner * (e.T @ e)
            if self.recenter:
                whole, z = len(u) * centred(whole / len(u)), z - z.mean(1, keepdims=True)
            moment = whole - (y.T @ z + z.T @ y) / n + (y * np.sum(y * z, 1, keepdims=True)).T @ y / n**2
            return np.asarray(moment / len(u))
        s = centred(inner) if self.recenter else inner
        e = phi.derivative(y) * inverse
        z = y @ s
        f, g = e * y, e * z
        moment = s * (e.T @ e) - (f.T @ g + g.T @ f) / n + (f * np.sum(y * z, 1, keepdims=True)).T @ f / n**2
        return np.asarray(moment / len(u))

    def _neurons(self, covariance: Array, phi: Function, first: bool, points: Array | None) -> Array:
        """Pre-activations of m neurons, (m, n), quasi-random; recentred where that comes first."""
        assert points is not None
        s = centred(covariance) if self.recenter and (first or phi.linear) else covariance
        values, vectors = np.linalg.eigh(s)
        return np.asarray((points * np.sqrt(values.clip(0))) @ vectors.T)

    def _pull_rows(self, u: Array, outer: Array, phi: Function, first: bool) -> Array:
        """E J^T outer J over neurons u (m, n)."""
        y, inverse = self._normed(u if first else phi.phi(u))
        n = u.shape[1]
        if first:
            d = phi.derivative(y)
            e = d * inverse  # rows of D / sigma
            b = e * ((e * y) @ outer)  # D Pi D y / sigma^2
            moment = outer * (e.T @ e) - (y.T @ b + b.T @ y) / n
            moment += (y * np.sum(b * y, 1, keepdims=True)).T @ y / n**2
            moment /= len(u)
            return centred(moment) if self.recenter else np.asarray(moment)
        d = phi.derivative(u) * inverse
        pi = centred(outer) if self.recenter else outer
        z = y @ pi
        f = d * y
        g = d * z
        moment = pi * (d.T @ d) - (f.T @ g + g.T @ f) / n + (f * np.sum(y * z, 1, keepdims=True)).T @ f / n**2
        return np.asarray(moment / len(u))

    def order(self, q: Array) -> tuple[Array, float] | None:
        """The spread of a feature over a large batch is q_1 - q_2; without recentring it is another in each feature."""
        spread = q[0] - q[1]
        if not self.rescale:
            return np.array([spread, 0.0]), 1.0
        if not self.recenter:
            return None
        if not spread > 0:
            raise UsageError("All samples coincide (q_1 = q_2), so batch norm has nothing to rescale.")
        return np.array([1.0, 0.0]), float(1 / spread)


class BatchNorm(nn.Module):
    r"""Batch norm in three switches, for inputs (n, d, ...): channel $k$ of the output is

    $(u_k - \mu_k) / \sqrt{v_k + \epsilon} \cdot \gamma_k + \beta_k$.

    ``recenter``: subtract $\mu_k$, the mean over samples and positions; off: $\mu_k = 0$ everywhere.
    ``rescale``: divide by the root of $v_k$ = mean of $(u_k-\mu_k)^2$ (biased, 1/n); off: the denominator is 1.
    So ``rescale`` alone divides by the root mean square, the batch norm of Daneshmand et al. 2020 and 2021.
    ``affine``: trainable $\gamma$ (1 at the start) and $\beta$ (0).

    In training mode the statistics are those of the batch, and the running ones move as in torch (running
    variance from the unbiased estimate of the centred case, 1/n without recentring). In eval mode the running
    statistics are used; before any training they are 0 and 1, so the layer does nothing.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        features: int,
        *,
        recenter: bool = True,
        rescale: bool = True,
        affine: bool = True,
        eps: float = EPS,
        momentum: float = 0.1,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__()
        self.features, self.eps, self.momentum = features, eps, momentum
        self.recenter, self.rescale, self.affine = recenter, rescale, affine
        self.track_running_stats = track_running_stats
        self.weight = nn.Parameter(torch.ones(features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(features) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones(features) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if track_running_stats else None)

    def forward(self, x: Float[Tensor, "n d *positions"]) -> Float[Tensor, "n d *positions"]:
        """Normalize; raises ``ValueError`` for a batch of one value per channel in training mode."""
        if x.dim() < 2 or x.shape[1] != self.features:
            raise ValueError(f"BatchNorm expects (n, {self.features}, ...); got {tuple(x.shape)}")
        over = [i for i in range(x.dim()) if i != 1]
        shape = [1, self.features] + [1] * (x.dim() - 2)
        dtype, x = x.dtype, widened(x)
        x = standardised(x, *self._statistics(x, over), self.eps)
        if self.weight is not None and self.bias is not None:
            x = x * self.weight.reshape(shape) + self.bias.reshape(shape)
        return x.to(dtype)

    def _statistics(self, x: Tensor, over: list[int]) -> tuple[Tensor | None, Tensor | None]:
        """Mean (``None`` without recentring) and variance (``None`` without rescaling) in force."""
        if not self.training and self.running_mean is not None and self.running_var is not None:
            return (self.running_mean if self.recenter else None), (self.running_var if self.rescale else None)
        count = x.numel() // self.features
        if count < 2:
            raise ValueError(
                f"BatchNorm needs more than one value per channel for batch statistics; got {tuple(x.shape)}"
            )
        mean = x.mean(over) if self.recenter else None
        centred = x if mean is None else x - mean.reshape([1, -1] + [1] * (x.dim() - 2))
        var = centred.square().mean(over) if self.rescale else None
        if self.training and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                if mean is not None and self.running_mean is not None:
                    self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                if var is not None and self.running_var is not None:
                    unbiased = var * (count / (count - 1)) if self.recenter else var
                    self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return mean, var

    def extra_repr(self) -> str:
        """The switches."""
        return (
            f"{self.features}, recenter={self.recenter}, rescale={self.rescale}, affine={self.affine}, eps={self.eps}"
        )


def standardised(x: Tensor, mean: Tensor | None, var: Tensor | None, eps: float) -> Tensor:
    """Channels of axis 1 minus their ``mean``, over the root of their ``var`` + eps, where these are given.

    Known to torch's modes as one function.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(standardised, (x,), x, mean, var, eps)
    shape = [1, -1] + [1] * (x.dim() - 2)
    if mean is not None:
        x = x - mean.reshape(shape)
    return x if var is None else x / (var + eps).sqrt().reshape(shape)


OverBatch("batch", "Batch norm: each feature to mean 0 and mean square 1 over the batch.", True, True, 0).register()
OverBatch("batch_rescale", "Batch norm without recentring: each feature to mean square 1.", False, True, 5).register()
OverBatch("batch_recenter", "Batch norm without rescaling: each feature to mean 0.", True, False, 4).register()
