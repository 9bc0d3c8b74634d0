"""What a model returns as rows of outputs (n, c), and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normscope.call.arguments import first_tensor
from normscope.call.targets import by_class, class_axis, what
from normscope.core.errors import UsageError, noted
from normscope.curvature._options import Outputs


def tidy(whole: Any, outputs: Outputs = None, targets: Any = None, torchs: bool = False) -> tuple[Tensor, int]:
    """The outputs as (n, c), then the chosen columns; the second value is the number of positions a sample, or 1.

    Of outputs (m, positions, c), as of a language model, or (m, c, height, width), as of a segmentation, each position
    is a sample: n = m positions.
    """
    out: Any
    if callable(outputs):
        with noted("the function outputs"):
            out = outputs(whole)
    else:
        out = whole if isinstance(whole, Tensor) else first_tensor(whole)
    if callable(outputs) and not isinstance(out, Tensor):
        raise UsageError(
            f"outputs must return a tensor (n, c); the function returned {what(out)}. Pick one of what it gets."
        )
    if not isinstance(out, Tensor):
        raise UsageError(
            f"The model must return a tensor (n, c), or something with .logits; it returned {type(whole).__name__}. "
            "Pick the tensor: outputs=lambda out: out.last_hidden_state[:, 0]."
        )
    if out.is_complex() or not out.is_floating_point():
        raise UsageError(
            f"Curvature needs real floating-point outputs; the model returned {what(out)}. Return the scores."
        )
    if out.dim() not in (1, 2, 3, 4):
        cure = {0: "outputs=lambda out: the scores behind the loss"}.get(
            out.dim(), "outputs=lambda out: out.flatten(1)"
        )
        raise UsageError(
            "Curvature needs outputs of shape (n, c), (n, positions, c) or (n, c, height, width); the model returned "
            f"{tuple(out.shape)}. Say {cure}."
        )
    first = len(out)
    out = by_class(out, targets, torchs)
    positions = max(1, len(out) // max(first, 1))
    if outputs is not None and not callable(outputs):
        index = outputs if isinstance(outputs, slice) else torch.as_tensor(list(outputs), device=out.device)
        try:
            out = out[:, index]
        except IndexError:
            raise UsageError(
                f"outputs={outputs!r} picks columns that are not there; the model has {out.shape[1]}."
            ) from None
    return out, positions


def unrowed(rows: Tensor, like: Tensor, targets: Any, torchs: bool) -> Tensor:
    """`by_class` undone: rows (n, c) in the shape of the outputs."""
    if like.dim() == 1:
        return rows[:, 0]
    axis = class_axis(like, targets, torchs)
    moved = like.movedim(axis, -1).shape
    return rows.reshape(moved).movedim(-1, axis)
