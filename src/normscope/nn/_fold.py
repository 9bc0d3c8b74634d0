"""An affine map of the outputs, moved into the layer that makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normscope.core.errors import UsageError

_PASSIVE = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@torch.no_grad()
def fold(wrapper: nn.Module, scale: Tensor, shift: Tensor, inputs: Any) -> nn.Module:
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
