"""Losses by name: ``mse``, ``cross_entropy``, or any callable (outputs, targets) -> scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normscope.core.errors import UsageError, unknown

LOSSES = ("mse", "cross_entropy")
Loss = str | Callable[[Any, Any], Tensor] | None


def loss_name(loss: Loss, targets: Any) -> str:
    """What `loss_value` will compute, in words for a report."""
    if loss is None:
        if targets is None:
            return "random cotangent"
        return "mse" if isinstance(targets, Tensor) and targets.is_floating_point() else "cross_entropy"
    if callable(loss):
        return getattr(loss, "__name__", type(loss).__name__)
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    if targets is None:
        raise UsageError(f"loss={loss!r} needs targets; got None. Pass targets, or leave the loss away as well.")
    return loss


def loss_value(loss: Loss, output: Tensor, whole: Any, targets: Any) -> Tensor:
    r"""The scalar that is differentiated.

    ``cross_entropy``: mean over samples (and positions) of the softmax cross-entropy, classes on the last axis, or
    on the second axis of images; targets of class indices, negative ones ignored. ``mse``: torch's mean over all
    entries; integer targets (n,) become one-hot rows. No loss and no targets: $\frac1n \sum \epsilon \cdot f$ with
    standard normal $\epsilon$ (a random cotangent), so that gradient flow can be seen without a task.
    A callable gets the model's whole output and the targets.
    """
    if callable(loss):
        value = loss(whole, targets)
        if not (isinstance(value, Tensor) and value.numel() == 1):
            raise UsageError(
                f"The loss must return a scalar tensor; {loss_name(loss, targets)} returned {_what(value)}."
            )
        return value.reshape(())
    match loss_name(loss, targets):
        case "random cotangent" if not output.dim():
            return output  # the model returns its own loss
        case "random cotangent":
            return (output * torch.randn_like(output)).sum() / len(output)
        case "mse":
            if not isinstance(targets, Tensor):
                raise UsageError(f"mse needs a tensor of targets; got {_what(targets)}.")
            wanted = _one_hot(output, targets) if not targets.is_floating_point() else targets
            if wanted.shape != output.shape:
                raise UsageError(f"mse needs targets of the outputs' shape {_what(output)}; got {_what(targets)}.")
            return nn.functional.mse_loss(output, wanted.to(output.dtype))
        case _:
            return _cross_entropy(output, targets)


def _cross_entropy(output: Tensor, targets: Any) -> Tensor:
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        raise UsageError(f"cross_entropy needs integer class targets; got {_what(targets)}.")
    if output.dim() == targets.dim() + 1 and output.shape[:-1] == targets.shape:
        logits, wanted = output.reshape(-1, output.shape[-1]), targets.reshape(-1)
    elif output.dim() == targets.dim() + 1 and output.shape[:1] + output.shape[2:] == targets.shape:
        logits, wanted = output.movedim(1, -1).reshape(-1, output.shape[1]), targets.reshape(-1)
    else:
        raise UsageError(
            f"cross_entropy needs outputs (n, c) for targets (n,); the model returned {_what(output)} for targets "
            f"{_what(targets)}."
        )
    if wanted.numel() and int(wanted.max()) >= logits.shape[1]:
        raise UsageError(
            f"Targets must be class indices below the number of outputs, {logits.shape[1]}; the largest is "
            f"{int(wanted.max())}. Give the model that many outputs, or pass other targets."
        )
    if not (wanted >= 0).any():
        raise UsageError("All targets are negative, which means: ignore them. Pass at least one class index.")
    wanted = torch.where(wanted < 0, -100, wanted.long())
    return nn.functional.cross_entropy(
        logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits, wanted
    )


def _one_hot(output: Tensor, targets: Tensor) -> Tensor:
    known = targets.numel() == 0 or (int(targets.min()) >= 0 and int(targets.max()) < output.shape[1])
    if output.dim() != 2 or targets.shape != output.shape[:1] or not known:
        raise UsageError(
            f"mse with class targets needs targets (n,) from 0 to c - 1 for outputs (n, c); got {_what(output)}."
        )
    return nn.functional.one_hot(targets.long(), output.shape[1])


def _what(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
