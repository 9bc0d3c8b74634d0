"""Models whose outputs lose their mean, or pass a batch norm; and that map moved into the layer that makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normscope.core.errors import UsageError
from normscope.nn.norms import BatchNorm

_PASSIVE = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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


@torch.no_grad()
def _fold(wrapper: nn.Module, scale: Tensor, shift: Tensor, inputs: Any) -> nn.Module:
    """``wrapper.model`` with its last layer's outputs times ``scale`` plus ``shift``, per output."""
    model: nn.Module = wrapper.model  # type: ignore[assignment]
    layer = _last(model, len(shift))
    scaled = bool((scale != 1).any())
    weight = layer.weight
    if scaled and sum(p is weight for m in model.modules() for p in m._parameters.values()) > 1:
        raise UsageError(
            "The last layer's weight is tied to another module, so it cannot take up a scale. Keep the wrapper."
        )
    expected = _run(wrapper, inputs)
    before = weight.detach().clone(), layer.bias
    shape = [-1] + [1] * (weight.dim() - 1)
    if scaled:
        weight.copy_(weight.to(scale.dtype) * scale.to(weight.device).reshape(shape))
    bias = torch.zeros_like(shift) if before[1] is None else before[1].detach().to(shift.dtype)
    new = (bias.to(shift.device) * scale + shift).to(weight.device, weight.dtype)
    layer.bias = nn.Parameter(new, requires_grad=weight.requires_grad)
    found = _run(model, inputs)
    if expected is not None and found is not None:
        error, size = float((found - expected).abs().max()), float(expected.abs().max())
        if not error <= 100 * torch.finfo(weight.dtype).eps * max(size, 1.0):
            weight.copy_(before[0])
            layer.bias = before[1]
            raise UsageError(
                f"Folding needs a last layer that nothing follows; here the outputs would change by {error:.2g}. Keep "
                "the wrapper."
            )
    return model


def _last(model: nn.Module, outputs: int) -> Any:
    """The Linear or Conv layer that ends the model, or ``UsageError``."""
    leaves = [m for m in model.modules() if not any(True for _ in m.children()) and not isinstance(m, _PASSIVE)]
    last = leaves[-1] if leaves else model
    if not isinstance(last, _LAYERS) or last._parameters.get("weight") is None or len(last.weight) != outputs:
        raise UsageError(
            f"Folding needs a Linear or Conv layer of {outputs} outputs at the model's end; there is a "
            f"{type(last).__name__}. Keep the wrapper."
        )
    return last


def _run(model: nn.Module, inputs: Any) -> Tensor | None:
    """Eval-mode outputs for the inputs; flags as before."""
    if inputs is None:
        return None
    flags = [(m, m.training) for m in model.modules()]
    for m, _ in flags:
        m.training = False
    try:
        if isinstance(inputs, Mapping):
            return model(**inputs)
        return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
    finally:
        for m, flag in flags:
            m.training = flag
