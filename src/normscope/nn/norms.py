"""Normalization taken apart: recentre, rescale, affine; over the batch, or over the features of one sample.

`ALGEBRA` has the rule of every norm that a `Spec` may name. `make_norm` makes the module, `normalize` does the same to
arrays, and theory reads off the rule what it must know of a norm: none of them has a copy of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normscope.core.registry import Registry
from normscope.nn._fold import fold as _fold

if TYPE_CHECKING:
    from jaxtyping import Float

#: Added to a mean square inside the root, as torch has it.
EPS = 1e-5


def groups_of(features: int) -> int:
    """Groups of the group norm: the largest of 32, 16, ... that divides and leaves four features a group.

    A group of one feature is its own mean, and two leave the sign of their difference: in an MLP both erase.
    """
    return next(g for g in (32, 16, 8, 4, 2, 1) if features % g == 0 and (features // g >= 4 or g == 1))


@dataclass(frozen=True)
class Norm:
    """The rule of a norm: what it subtracts and divides by.

    over: ``batch``: statistics of each feature over samples (and positions); ``features``: of each sample, over groups
        of features; ``""``: none.
    recenter: subtract the mean. rescale: divide by the root of the mean square (of what is left) plus eps.
    groups: how many groups that many features make, for ``over="features"``.
    """

    over: str
    recenter: bool
    rescale: bool
    groups: Callable[[int], int] = lambda features: 1

    @property
    def recenters_batch(self) -> bool:
        """Does every feature leave it with mean zero over the batch?"""
        return self.over == "batch" and self.recenter

    @property
    def rescales_batch(self) -> bool:
        """Does it divide every feature by its size over the batch?"""
        return self.over == "batch" and self.rescale


#: The norms of ``core.spec.NORMS``, by name.
ALGEBRA: Registry[Norm] = Registry("norm")
ALGEBRA.add("none", Norm("", False, False))
ALGEBRA.add("batch", Norm("batch", True, True))
ALGEBRA.add("batch_rescale", Norm("batch", False, True))
ALGEBRA.add("batch_recenter", Norm("batch", True, False))
ALGEBRA.add("layer", Norm("features", True, True))
ALGEBRA.add("rms", Norm("features", False, True))
ALGEBRA.add("group", Norm("features", True, True, groups_of))


def normalize(z: NDArray[Any], name: str, eps: float = EPS, *, is_centred: bool = False) -> NDArray[Any]:
    """The norm of this name over Z (runs, d, n), samples last, in place; a feature or sample that is zero stays zero.

    is_centred: the mean that it would subtract is zero already.
    """
    norm = ALGEBRA[name]
    if not norm.over:
        return z
    groups = norm.groups(z.shape[1])
    parts = z if norm.over == "batch" else z.reshape(len(z), groups, -1, z.shape[-1])
    axis = -1 if norm.over == "batch" else 2
    if norm.recenter and not is_centred:
        parts -= parts.mean(axis, keepdims=True)
    if norm.rescale:
        sums = np.einsum("rij,rij->ri" if norm.over == "batch" else "rgij,rgij->rgj", parts, parts)
        parts *= np.expand_dims(_reciprocal_root(sums / parts.shape[axis], eps), axis)
    return parts.reshape(z.shape)


def _reciprocal_root(squares: NDArray[Any], eps: float) -> NDArray[Any]:
    """1 / sqrt(squares + eps); 0 where that is 1/0, so that a dead feature stays dead instead of NaN."""
    if eps:
        squares = squares + squares.dtype.type(eps)
    root = np.sqrt(squares)
    return np.divide(1, root, out=np.zeros_like(root), where=root > 0)


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
        dtype, x = x.dtype, _widened(x)
        mean, var = self._statistics(x, over)
        if mean is not None:
            x = x - mean.reshape(shape)
        if var is not None:
            x = x / (var + self.eps).sqrt().reshape(shape)
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


def _widened(x: Tensor) -> Tensor:
    """float16 and bfloat16 as float32, in which torch's own norms take their statistics."""
    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


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
        dtype, x = x.dtype, _widened(x)
        x = x * x.square().mean(1, keepdim=True).add(self.eps).rsqrt()
        if self.weight is not None:
            x = x * self.weight.reshape([1, -1] + [1] * (x.dim() - 2))
        return x.to(dtype)


class CenterOutputs(nn.Module):
    r"""A model whose outputs lose their mean over the batch: $f_k(x_i) - \frac1n\sum_j f_k(x_j) + \beta_k$.

    Mean subtraction in the last layer (Karakida, Akaho, Amari 2019). In training mode the mean is the batch's;
    a running mean stands in for it in eval mode. The model's output must be a tensor (n, c, ...).
    """

    def __init__(self, model: nn.Module, outputs: int, *, affine: bool = False, momentum: float = 0.1) -> None:
        super().__init__()
        self.model = model
        self.center = BatchNorm(outputs, rescale=False, affine=False, momentum=momentum)
        self.bias = nn.Parameter(torch.zeros(outputs)) if affine else None

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """The model's outputs, centred over the batch."""
        out = self.center(self.model(*args, **kwargs))
        return out if self.bias is None else out + self.bias.reshape([1, -1] + [1] * (out.dim() - 2))

    def fold_(self, inputs: object = None) -> nn.Module:
        """The plain model for inference: the running mean goes into the bias of its last layer. Returns that model.

        In eval mode its outputs are those of this module up to rounding. ``inputs``, a batch as ``forward`` takes it,
        lets the outputs be compared first; without it the last module of the tree must be the Linear or Conv layer that
        makes them.
        Raises ``UsageError`` if no such layer ends the model; then nothing has changed.
        """
        mean = self.center.running_mean
        assert mean is not None
        shift = -mean if self.bias is None else self.bias.detach() - mean
        return _fold(self, torch.ones_like(mean), shift, inputs)


class NormalizeOutputs(nn.Module):
    r"""A model whose outputs pass a batch norm: $(f_k(x_i) - \mu_k)/\sqrt{v_k + \epsilon}\cdot\gamma_k + \beta_k$.

    Batch norm in the last layer (Karakida, Akaho, Amari 2019). The model's output must be a tensor (n, c, ...). A
    trainable $\gamma, \beta$ (``affine``) add eigenvalues equal to 1 to the Fisher matrix of the squared error.
    """

    def __init__(self, model: nn.Module, outputs: int, *, affine: bool = True, momentum: float = 0.1) -> None:
        super().__init__()
        self.model = model
        self.norm = BatchNorm(outputs, affine=affine, momentum=momentum)

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """The model's outputs, normalized over the batch."""
        return self.norm(self.model(*args, **kwargs))

    def fold_(self, inputs: object = None) -> nn.Module:
        """The plain model for inference: running statistics, gain and shift go into its last layer; see
        `CenterOutputs`.
        """
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert var is not None
        scale = (var + self.norm.eps).rsqrt() * (1 if self.norm.weight is None else self.norm.weight.detach())
        shift = -mean * scale + (0 if self.norm.bias is None else self.norm.bias.detach())
        return _fold(self, scale, shift, inputs)


def make_norm(name: str, features: int, *, affine: bool = True, eps: float = EPS) -> nn.Module:
    """The module of a norm's name (see `ALGEBRA`)."""
    norm = ALGEBRA[name]
    if not norm.over:
        return nn.Identity()
    if norm.over == "batch":
        return BatchNorm(features, recenter=norm.recenter, rescale=norm.rescale, affine=affine, eps=eps)
    if not norm.recenter:
        return RMSNorm(features, affine=affine, eps=eps)
    return nn.GroupNorm(norm.groups(features), features, eps=eps, affine=affine)
