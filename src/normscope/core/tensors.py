"""What tensors, dtypes and devices an argument may be, said in one place; and the size of a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normscope.core.errors import UsageError, shown


def check_plain(name: str, *found: Tensor) -> None:
    """``UsageError`` for a tensor that is not a dense array of numbers: on the meta device, sparse, nested or
    quantized.
    """
    for x in found:
        if x.is_nested:
            raise UsageError(f"{name} must be plain tensors; got a nested one. Pass x.to_padded_tensor(0.0).")
        if x.layout is not torch.strided:
            raise UsageError(
                f"{name} must be dense tensors; got a sparse one of shape {tuple(x.shape)}. Pass x.to_dense()."
            )
        if x.is_quantized:
            raise UsageError(f"{name} must not be quantized; got {x.dtype}. Pass x.dequantize().")
        if x.is_meta:
            raise UsageError(f"{name} must hold numbers; got a meta tensor of shape {tuple(x.shape)}. Pass a real one.")


def floating_dtype(value: Any) -> torch.dtype:
    """The ``dtype=`` that was asked for; ``UsageError`` for what is no real floating one."""
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise UsageError(
            f"dtype must be a floating torch dtype; got {shown(value)}. Use torch.float64 or torch.float32."
        )
    return value


def device_of(name: str | torch.device, option: str = "device") -> torch.device:
    """The device of a name, if it works here; ``option``: as the user wrote it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:  # each backend raises its own
        raise UsageError(
            f"{option} must be one that works here; {str(name)!r} does not ({str(error).splitlines()[0]})."
        ) from None
    return device


def checked_generator(value: Any) -> torch.Generator:
    """``value``; ``UsageError`` for what is no generator of torch's."""
    if not isinstance(value, torch.Generator):
        raise UsageError(f"generator must be a torch.Generator; got {shown(value)}. Leave it out, and pass seed=.")
    return value


def rms(x: Tensor) -> float:
    """Root mean square entry, summed in float64."""
    return float(x.detach().double().square().mean().sqrt())


def moves(grad: Tensor | None) -> bool:
    """Whether a gradient, dense or sparse, is there and not 0 throughout."""
    return grad is not None and bool((grad.to_dense() != 0).any())
