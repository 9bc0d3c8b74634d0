"""Norms over the features of one sample: layer norm, its groups, and the root mean square alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normscope.linalg import Array
from normscope.nn.norms.norm import EPS, Norm, reciprocal_root, widened

if TYPE_CHECKING:
    from jaxtyping import Float


def groups_of(features: int) -> int:
    """Groups of the group norm: the largest of 32, 16, ... that divides and leaves four features a group.

    A group of one feature is its own mean, and two leave the sign of their difference: in an MLP both erase.
    """
    return next(g for g in (32, 16, 8, 4, 2, 1) if features % g == 0 and (features // g >= 4 or g == 1))


@dataclass(frozen=True)
class OverFeatures(Norm):
    """Statistics of each sample over its features; at infinite width groups are large, and samples do not meet.

    groups: how many groups that many features make; ``None``: one.
    """

    groups: Callable[[int], int] | None = None
    over: ClassVar[Literal["", "batch", "features"]] = "features"

    def make(self, features: int, *, affine: bool = True, eps: float = EPS) -> nn.Module:
        """``GroupNorm``, or `RMSNorm`."""
        if not self.recenter:
            return RMSNorm(features, affine=affine, eps=eps)
        return nn.GroupNorm(self._groups(features), features, eps=eps, affine=affine)

    def recognises(self, module: nn.Module) -> bool:
        """Torch's modules and ours."""
        if isinstance(module, nn.GroupNorm):
            return self.recenter and (module.num_groups == 1) == (self.groups is None)
        if isinstance(module, nn.LayerNorm):
            return self.recenter and self.groups is None and len(module.normalized_shape) == 1
        return not self.recenter and isinstance(module, RMSNorm | nn.RMSNorm)

    def _groups(self, features: int) -> int:
        return 1 if self.groups is None else self.groups(features)

    def rows(self, z: NDArray[Any], eps: float = EPS, *, is_centred: bool = False) -> NDArray[Any]:
        """The samples are columns."""
        parts = z.reshape(len(z), self._groups(z.shape[1]), -1, z.shape[-1])
        if self.recenter and not is_centred:
            parts -= parts.mean(2, keepdims=True)
        if self.rescale:
            squares = np.einsum("rgij,rgij->rgj", parts, parts) / parts.shape[2]
            parts *= reciprocal_root(squares, eps)[:, :, None]
        return parts.reshape(z.shape)

    @property
    def standardises_samples(self) -> bool:
        """Layer norm does."""
        return self.recenter and self.rescale and self.groups is None

    def gram(self, moments: Array, means: Array | None = None) -> Array:
        """Cosines, of what is left without the means."""
        if self.recenter and means is not None:
            moments = moments - np.outer(means, means)
        if not self.rescale:
            return moments
        scale = np.sqrt(np.diagonal(moments).clip(0))
        outer = np.outer(scale, scale)
        return np.divide(moments, outer, out=np.zeros_like(moments), where=outer > 0)

    def pull(self, outer: Array, squares: Array, means: Array | None = None) -> Array:
        """The scales, of what is left without the means, divide; their own gradient is 1/d of it and drops out."""
        if self.recenter and means is not None:
            squares = squares - np.square(means)
        scale = np.sqrt(squares)
        return outer / np.outer(scale, scale) if self.rescale else outer

    def order(self, q: Array) -> tuple[Array, float] | None:
        """Neurons have mean zero before the activation: recentring does nothing."""
        return (np.array([1.0, q[1] / q[0]]), float(1 / q[0])) if self.rescale else (q, 1.0)


class RMSNorm(nn.Module):
    r"""Divide each sample's features by their root mean square: $u / \sqrt{\mathrm{mean}_k u_k^2 + \epsilon}$.

    Over dimension 1, whatever follows it (torch's ``nn.RMSNorm`` works on the last dimensions only).
    """

    def __init__(self, features: int, *, affine: bool = True, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features)) if affine else None

    def forward(self, x: Float[Tensor, "n d *positions"]) -> Float[Tensor, "n d *positions"]:
        """Normalize over the features."""
        dtype, x = x.dtype, widened(x)
        x = x * x.square().mean(1, keepdim=True).add(self.eps).rsqrt()
        if self.weight is not None:
            x = x * self.weight.reshape([1, -1] + [1] * (x.dim() - 2))
        return x.to(dtype)


OverFeatures("layer", "Layer norm: each sample to mean 0 and mean square 1.", True, True, 1).register()
OverFeatures("rms", "Root mean square norm: each sample to mean square 1.", False, True, 2).register()
OverFeatures("group", "Group norm: each group of a sample's features (at most 32 groups, at least 4 features in each).",
             True, True, 3, groups_of).register()  # fmt: skip
