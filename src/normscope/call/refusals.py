"""Whose exception it is that a forward pass ended in: a layer's that refuses the batch, or the user's own."""

from __future__ import annotations

import dis
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import tensors
from normscope.call.targets import what
from normscope.core.errors import DoesNotRun, UsageError

#: What torch's layers raise of a batch that they do not take; others are signals of its own, or the user's.
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError, KeyError)
_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parents[1])


def refusal_of(error: BaseException, root: nn.Module, given: Any) -> DoesNotRun:
    """The error for a layer of torch's that refuses a batch: which layer, what it got, what torch says, what came
    in.
    """
    module, got = None, ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        inner = frame.f_locals.get("self")
        if isinstance(inner, nn.Module) and frame.f_code.co_name == "forward":
            module, got = (
                inner,
                ", ".join(what(v) for k, v in frame.f_locals.items() if k != "self" and isinstance(v, Tensor)),
            )
    shown = f" got {got};" if module is not None and got else ""
    came = ", ".join(what(x) for x in list(tensors(given))[:4])
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    bytes_in = any(not (x.is_floating_point() or x.is_complex()) for x in tensors(given))
    cast = " Integers into a layer of floating-point weights: pass inputs.float(), scaled." if bytes_in else ""
    return DoesNotRun(
        f"The model must run on the inputs; {where(error, root)}{shown} refuses them (torch: {said}). The inputs were "
        f"{came}. Pass a batch as the model takes it in training.{cast}"
    )


def where(error: BaseException, root: nn.Module) -> str:
    """The innermost module whose ``forward`` was under way when the error was raised, in words."""
    names = {id(m): n for n, m in root.named_modules()}
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and names.get(id(module)):
            return f"layer {names[id(module)]!r} ({type(module).__name__})"
    return f"{type(root).__name__} itself"


def is_torchs(error: BaseException) -> bool:
    """Whether torch raised the exception (a layer or an operation that refuses what it got), and no ``raise`` of the
    user's.
    """
    if not isinstance(error, _REFUSALS) or isinstance(error, UsageError):
        return False
    tb, last = error.__traceback__, None
    while tb is not None:
        if not tb.tb_frame.f_code.co_filename.startswith(_OURS):  # an observer between the user and torch
            last = tb
        tb = tb.tb_next
    if last is None:
        return False
    code = last.tb_frame.f_code
    raised = code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return code.co_filename.startswith(_TORCH) or (isinstance(error, RuntimeError) and not raised)
