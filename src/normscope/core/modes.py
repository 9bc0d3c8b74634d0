"""Modes that watch torch's functions."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode


class Mode(TorchFunctionMode):
    """One that leaves torch's stack of modes as it found it.

    torch takes a mode off the stack while it handles a call and puts it back by a ``finally``; an interrupt between the
    two loses it, and torch's own exit then takes off another's, or fails for an empty stack.
    """

    def __enter__(self) -> Any:
        self.__dict__.setdefault("_below", []).append(_get_current_function_mode_stack())
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        restore(self.__dict__["_below"].pop())


def restore(stack: list[TorchFunctionMode]) -> None:
    """Make ``stack`` torch's stack of modes."""
    now = _get_current_function_mode_stack()
    same = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], zip(stack, now, strict=False)))
    for _ in now[same:]:
        _pop_mode()
    for mode in stack[same:]:
        _push_mode(mode)
