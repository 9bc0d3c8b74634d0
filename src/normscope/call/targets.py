"""Targets as losses by name read them, and the axis of the outputs that runs over classes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normscope.call.arguments import mapped
from normscope.core.errors import UsageError

HALF = (torch.float16, torch.bfloat16)


def by_class(output: Tensor, targets: Any = None, torchs: bool = False) -> Tensor:
    """Outputs as rows (n, c): each position of (m, positions, c), or of (m, c, ...) as images have it, is a sample.

    The class axis is the one without which the outputs have the targets' shape; where two axes do, and without targets,
    the second of images (m, c, h, w) and the last of all others. ``torchs``: always the second, as torch's own losses
    have it. Outputs (n,) are one column.
    """
    if output.dim() == 1:
        return output[:, None]
    axis = class_axis(output, targets, torchs)
    return output.movedim(axis, -1).flatten(0, -2)


def class_axis(output: Tensor, targets: Any = None, torchs: bool = False) -> int:
    """The axis of the outputs that runs over classes; see `by_class`."""
    last = output.dim() - 1
    usual = 1 if output.dim() == 4 or (torchs and last > 1) else last
    if not torchs and isinstance(targets, Tensor) and targets.dim() == last and last > 1:
        fits = [a for a in (1, last) if output.shape[:a] + output.shape[a + 1 :] == targets.shape]
        return fits[0] if len(fits) == 1 else usual
    return usual


def rows_in(output: Tensor) -> int:
    """Samples n of outputs (n, c), (m, positions, c) or (m, c, h, w)."""
    return output.numel() // (output.shape[class_axis(output)] if output.dim() > 1 else 1) if output.dim() else 1


def is_soft(targets: Tensor) -> bool:
    """Whether targets are probabilities, not class indices."""
    return targets.is_floating_point()


def broadcasts(a: Tensor, b: Tensor) -> bool:
    """Whether two shapes broadcast."""
    try:
        torch.broadcast_shapes(a.shape, b.shape)
    except RuntimeError:
        return False
    return True


def classes(name: str, soft: bool, output: Tensor, targets: Tensor) -> Tensor:
    """Class indices with negative ones at -100, or (``soft``) probabilities as (..., c); checked against the
    outputs.
    """
    if targets.dtype is torch.bool or targets.is_complex():
        raise UsageError(f"{name} needs integer class targets; got {what(targets)}. Pass targets.long().")
    if targets.shape == output.shape and output.dim() > 1 and soft:
        axis = class_axis(output)
        probable = targets.to(output.dtype if output.dtype not in HALF else torch.float32).movedim(axis, -1)
        if not bool(torch.isfinite(probable).all()):
            raise UsageError("The targets must be finite; they hold NaN or infinity. Clean the data.")
        if not targets.is_floating_point() and not bool(
            ((probable == 0) | (probable == 1)).all() & (probable.sum(-1) == 1).all()
        ):
            raise UsageError(
                f"{name} needs class indices, or rows with a single one, as integers; got {what(targets)}. Use "
                "bce_with_logits for several labels a sample."
            )
        return probable
    if targets.is_floating_point():
        raise UsageError(
            f"{name} needs integer class targets, or probabilities of the outputs' shape {tuple(output.shape)}; got "
            f"{what(targets)}. Pass targets.long(), or loss='mse'."
        )
    axis = class_axis(output, targets)
    if output.dim() < 2 or output.shape[:axis] + output.shape[axis + 1 :] != targets.shape:
        raise UsageError(
            f"{name} needs outputs (n, c) for targets (n,); the model returned {what(output)} for targets "
            f"{what(targets)}. Give one class index a sample (a position)."
        )
    c = output.shape[axis]
    if targets.numel() and int(targets.max()) >= c:
        raise UsageError(
            f"Targets must be class indices below the number of outputs, {c}; the largest is {int(targets.max())}. "
            "Give the model that many outputs, or pass other targets."
        )
    if not bool((targets >= 0).any()):
        raise UsageError("All targets are negative, which means: ignore them. Pass at least one class index.")
    return torch.where(targets < 0, -100, targets.long())


def one_hot(name: str, output: Tensor, targets: Tensor) -> Tensor:
    """Class indices (n,) as rows (n, c); checked against the outputs."""
    known = targets.numel() == 0 or (
        targets.dtype is not torch.bool and int(targets.min()) >= 0 and int(targets.max()) < output.shape[-1]
    )
    if output.dim() != 2 or targets.shape != output.shape[:1] or not known:
        raise UsageError(
            f"{name} with class targets needs targets (n,) from 0 to c - 1 for outputs (n, c); got {what(targets)} "
            f"from {_ends(targets)} for outputs {what(output)}. Pass floating-point targets of the outputs' shape."
        )
    return F.one_hot(targets.long(), output.shape[1])


def _ends(targets: Tensor) -> str:
    return f"{int(targets.min())} to {int(targets.max())}" if targets.numel() else "nothing"


def cast_targets(targets: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Private copies of the targets on the model's device; floating ones in ``dtype``, if it is given."""

    def own(x: Tensor) -> Tensor:
        x = x.detach().to(device)
        return x.to(dtype) if dtype is not None and x.is_floating_point() else x.clone()

    return mapped(targets, own)


def what(value: Any) -> str:
    """A value in the words of an error: dtype and shape of a tensor, else its type."""
    return (
        f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else type(value).__name__
    )
