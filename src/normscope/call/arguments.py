"""What goes into a model and what comes out: parameters by name, inputs of any structure, outputs as (n, c)."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normscope.core.errors import UsageError, unknown

Outputs = Sequence[int] | slice | Callable[[Any], Tensor] | None


def select(model: nn.Module, patterns: str | Sequence[str] | None) -> list[tuple[str, nn.Parameter]]:
    """The trainable parameters whose names match one of the patterns (shell style); shared ones once."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"A model must be a torch.nn.Module; got {type(model).__name__}.")
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise UsageError(
            f"{type(model).__name__} has no trainable parameter; curvature needs at least one with requires_grad=True."
        )
    if patterns is None:
        return named
    globs = [patterns] if isinstance(patterns, str) else list(patterns)
    known = [n for n, _ in named]
    for glob in globs:
        if not any(fnmatch.fnmatchcase(n, glob) or n.startswith(glob.rstrip(".") + ".") for n in known):
            raise unknown("trainable parameter", glob, known)
    return [
        (n, p)
        for n, p in named
        if any(fnmatch.fnmatchcase(n, glob) or n.startswith(glob.rstrip(".") + ".") for glob in globs)
    ]


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precisions, else the dtype itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def floats(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Floating tensors in ``dtype``, others as they are."""
    return x.to(dtype) if x.is_floating_point() else x


def cast(x: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Tensors inside any structure, moved to the device; floating ones in ``dtype``."""
    if isinstance(x, Tensor):
        return floats(x.detach().to(device), dtype)
    if isinstance(x, Mapping):
        return {k: cast(v, dtype, device) for k, v in x.items()}
    if isinstance(x, tuple) and not hasattr(x, "_fields"):
        return tuple(cast(v, dtype, device) for v in x)
    return x


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tensor is the one argument, a tuple the positional arguments, a dictionary the keyword arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


def by_position(x: Tensor) -> Tensor:
    """Images (m, c, height, width) with their channels last; anything else as it is."""
    return x.movedim(1, -1) if x.dim() == 4 else x


def tidy(out: Any, outputs: Outputs = None) -> tuple[Tensor, int]:
    """The outputs as (n, c): the tensor, ``.logits``, or the first of a tuple; then the chosen columns.

    Of outputs (m, positions, c), as of a language model, or (m, c, height, width), as of a segmentation, each position is a
    sample: n = m positions. The second value is the number of positions, otherwise 1.
    """
    if callable(outputs):
        out = outputs(out)
    elif not isinstance(out, Tensor):
        if getattr(out, "logits", None) is not None:
            out = out.logits
        elif isinstance(out, Mapping) and "logits" in out:
            out = out["logits"]
        elif isinstance(out, (tuple, list)) and out and isinstance(out[0], Tensor):
            out = out[0]
    if not isinstance(out, Tensor):
        raise UsageError(
            f"The model must return a tensor (n, c), or something with .logits; it returned {type(out).__name__}. "
            "Pick the tensor: outputs=lambda out: out.last_hidden_state[:, 0]."
        )
    positions = 1
    if out.dim() in (3, 4):
        out = by_position(out)
        positions = out.shape[1:-1].numel()
        out = out.flatten(0, -2)
    if out.dim() != 2:
        cures = {0: "outputs=lambda out: the scores behind the loss", 1: "outputs=lambda out: out[:, None]"}
        cure = cures.get(out.dim(), "outputs=lambda out: out.flatten(1)")
        raise UsageError(
            "Curvature needs outputs of shape (n, c), (n, positions, c) or (n, c, height, width); the model returned "
            f"{tuple(out.shape)}. Say {cure}."
        )
    if not out.is_floating_point():
        raise UsageError(f"Curvature needs floating-point outputs; the model returned {out.dtype}. Return the scores.")
    if outputs is not None and not callable(outputs):
        index = outputs if isinstance(outputs, slice) else torch.as_tensor(list(outputs), device=out.device)
        try:
            out = out[:, index]
        except IndexError:
            raise UsageError(
                f"outputs={outputs!r} picks columns that are not there; the model has {out.shape[1]}."
            ) from None
    return out, positions
