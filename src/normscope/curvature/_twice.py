"""Convolution and batch norm whose backward pass, as a linear map of the slope, has a fast transpose.

J w is the derivative of <J^T z, w> in z (``Batch``): only the slope of each backward pass is differentiated again,
never inputs or weights. torch's own second derivatives serve all three: through a convolution they compute one that
nobody asked for, through batch norm dozens of elementwise passes. In the slope alone they are as cheap as a forward
pass: two convolutions, and the batch norm's own backward kernel, which is symmetric.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normscope.call.surroundings import saved_hooks
from normscope.core.modes import Mode

CONVOLUTIONS: dict[Callable[..., Any], int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


class LinearBackward(Mode):
    """Inside, convolutions and batch norms in training mode are the ones of this file: for J^T v and J w only.

    Second derivatives in the parameters through them would be wrong without a word. Where the model checkpoints a part
    of itself, torch's own run: that part runs again inside the backward pass, where no mode reaches it, and must do the
    same.
    """

    def __enter__(self) -> Any:
        self._outer = saved_hooks(False)
        return super().__enter__()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if (func in CONVOLUTIONS or func is F.batch_norm) and saved_hooks(False) != self._outer:
            return func(*args, **kwargs)
        if func in CONVOLUTIONS:
            return _convolution(func, *args, **kwargs)
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _convolution(
    func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    axes = CONVOLUTIONS[func]
    if isinstance(padding, str) or input.dim() != axes + 2 or not _plain(input, weight, bias):
        return func(input, weight, bias, stride, padding, dilation, groups)
    sizes = [_each(s, axes) for s in (stride, padding, dilation)]
    return _Convolution.apply(input, weight, bias, (*sizes, False, [0] * axes, groups))


def _each(size: Any, axes: int) -> list[int]:
    given = [size] if isinstance(size, int) else list(size)
    return given * axes if len(given) == 1 else given


def _plain(*tensors: Tensor | None) -> bool:
    """Whether all are ordinary floating-point tensors of one dtype, so that an unusual call fails as torch's own
    does.
    """
    return len({t.dtype if type(t) in (Tensor, torch.nn.Parameter) else None for t in tensors if t is not None}) == 1


class _Convolution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, how: Any) -> Tensor:
        return torch.ops.aten.convolution(x, weight, bias, *how)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, ctx.how = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[:3])
        return (*_ConvolutionBack.apply(slope, x.detach(), weight.detach(), ctx.how, mask), None)


class _ConvolutionBack(torch.autograd.Function):
    """slope -> gradients of input, weight and bias; transposed: the tangent of the convolution."""

    generate_vmap_rule = True

    @staticmethod
    def forward(slope: Tensor, x: Tensor, weight: Tensor, how: Any, mask: list[bool]) -> Any:
        return torch.ops.aten.convolution_backward(slope, x, weight, [weight.shape[0]], *how, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, x, weight, ctx.how, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None) -> Any:
        x, weight = ctx.saved_tensors
        out = None
        if dweight is not None:
            out = torch.ops.aten.convolution(x, dweight, None, *ctx.how)
        if dx is not None:
            more = torch.ops.aten.convolution(dx, weight, None, *ctx.how)
            out = more if out is None else out + more
        if dbias is not None:
            rows = dbias.reshape(-1, *[1] * (x.dim() - 2))
            out = rows.expand(_shape(x, weight, ctx.how)) if out is None else out + rows
        return out, None, None, None, None


def _shape(x: Tensor, weight: Tensor, how: Any) -> Sequence[int]:
    return torch.ops.aten.convolution(x, weight, None, *how).shape


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    if not training or (weight is None) != (bias is None) or not _plain(input, weight, bias):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if input.numel() == input.shape[1]:  # one value a channel: torch says so
        return F.batch_norm(input, None, None, weight, bias, True, momentum, eps)
    if running_mean is not None or running_var is not None:  # what the model may read back
        with torch.no_grad():
            F.batch_norm(input, running_mean, running_var, None, None, True, momentum, eps)
    return _BatchNorm.apply(input, weight, bias, eps)[0]


class _BatchNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        return torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, ctx.eps = inputs
        _, mean, inverse = output
        ctx.mark_non_differentiable(mean, inverse)
        ctx.save_for_backward(x, weight, mean, inverse)

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Any) -> Any:
        x, weight, mean, inverse = ctx.saved_tensors
        fixed = None if weight is None else weight.detach()
        mask = list(ctx.needs_input_grad[:3])
        return (*_BatchNormBack.apply(slope, x.detach(), fixed, mean, inverse, ctx.eps, mask), None)


class _BatchNormBack(torch.autograd.Function):
    r"""slope -> gradients of input, gamma and beta; transposed: the tangent of the batch norm.

    In its input a batch norm's Jacobian is $\frac{\gamma}{\sigma}(1 - \frac1n 11^T - \frac1n \hat x\hat x^T)$,
    symmetric; in gamma it is $\hat x$, in beta 1.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        slope: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inverse: Tensor, eps: float, mask: list[bool]
    ) -> Any:
        return torch.ops.aten.native_batch_norm_backward(slope, x, weight, None, None, mean, inverse, True, eps, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, x, weight, mean, inverse, ctx.eps, _ = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, mean, inverse)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None, dgamma: Tensor | None, dbeta: Tensor | None) -> Any:
        x, weight, mean, inverse = ctx.saved_tensors
        out = None
        if dx is not None:
            out = torch.ops.aten.native_batch_norm_backward(
                dx, x, weight, None, None, mean, inverse, True, ctx.eps, [True, False, False]
            )[0]
        if dgamma is not None or dbeta is not None:
            shape = (1, -1, *[1] * (x.dim() - 2))
            scale = inverse * (torch.zeros_like(mean) if dgamma is None else dgamma)
            shift = -mean * scale if dbeta is None else dbeta - mean * scale
            more = torch.addcmul(shift.view(shape), x, scale.view(shape))
            out = more if out is None else out + more
        return out, None, None, None, None, None, None
