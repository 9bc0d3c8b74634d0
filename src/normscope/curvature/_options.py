"""How a model is turned into a function of its parameters: which of them, which outputs, in what memory."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope.core.errors import UsageError, flag, shown, unknown
from normscope.core.memory import available

ROUTES = ("auto", "linearize", "jvp", "double_vjp")
Outputs = Sequence[int] | slice | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class Options:
    """How a model is turned into a function of its parameters; see ``jacobian`` for each field."""

    parameters: str | Sequence[str] | None = None
    outputs: Outputs = None
    dtype: torch.dtype | None = None
    route: str = "auto"
    memory: float | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        flag("checkpoint", self.checkpoint)
        picked = self.outputs
        numbers = (
            isinstance(picked, Iterable) and not isinstance(picked, str) and all(isinstance(i, int) for i in picked)
        )
        if not (picked is None or callable(picked) or isinstance(picked, slice) or numbers):
            raise UsageError(
                "outputs must be column numbers, a slice, or a function of what the model returns; got "
                f"{shown(picked)}. Pass [0]."
            )
        if self.route not in ROUTES:
            raise unknown("route", self.route, ROUTES)
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise UsageError(
                f"dtype must be a floating torch dtype; got {shown(self.dtype)}. Use torch.float64 or torch.float32."
            )
        if self.memory is not None and not (isinstance(self.memory, int | float) and self.memory >= 0):
            raise UsageError(
                f"memory must be a number of bytes >= 0; got {shown(self.memory)}. Leave it out for half of what is "
                "free."
            )


def select(model: nn.Module, patterns: str | Sequence[str] | None) -> list[tuple[str, nn.Parameter]]:
    """The trainable parameters whose names match one of the patterns (shell style); shared ones once."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise UsageError(
            f"{type(model).__name__} has no trainable parameter; curvature needs at least one with requires_grad=True."
        )
    if patterns is None:
        return named
    globs = [patterns] if isinstance(patterns, str) else list(patterns)
    if not globs:
        raise UsageError("parameters must name at least one parameter; got none. Leave it out for all trainable ones.")

    def matches(name: str, glob: str) -> bool:
        return fnmatch.fnmatchcase(name, glob) or name.startswith(glob.rstrip(".") + ".")

    known = [n for n, _ in named]
    for glob in globs:
        if not isinstance(glob, str) or not any(matches(n, glob) for n in known):
            raise unknown("trainable parameter", glob, known)
    return [(n, p) for n, p in named if any(matches(n, glob) for glob in globs)]


def memory_budget(given: float | None, device: torch.device) -> float:
    """Bytes that kept graphs may take: ``given``, else half of what is free."""
    if given is not None:
        return float(given)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2
    return available() / 2
