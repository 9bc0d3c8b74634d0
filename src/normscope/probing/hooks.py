"""Hooks that stay with their tracker, and what time and stack say of the calls under way."""

from __future__ import annotations

import atexit
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Hook:
    """A hook that does not follow its module into copies and pickles: there it does nothing."""

    def __init__(self, method: Callable[..., None] | None = None) -> None:
        self.method = method

    def __call__(self, *args: Any) -> None:
        """Hand on what torch gives a hook."""
        if self.method is not None and not torch.compiler.is_compiling():  # compiled, it is nothing
            self.method(*args)

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()


class Clock:
    """Seconds spent inside ``with clock``, entered several times over or not."""

    def __init__(self) -> None:
        self.seconds, self._depth, self._start = 0.0, 0, 0.0

    def __enter__(self) -> None:
        if not self._depth:
            self._start = time.perf_counter()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self.seconds += time.perf_counter() - self._start


def calls_of(module: nn.Module) -> int:
    """How many calls of the module are under way: read off the stack, so an interrupt cannot make it wrong."""
    code, frame, calls = nn.Module._call_impl.__code__, sys._getframe(1), 0
    while frame is not None:
        calls += frame.f_code is code and frame.f_locals.get("self") is module
        frame = frame.f_back  # type: ignore[assignment]
    return calls


def closing_at_exit(tracker: Any) -> Callable[[], None]:
    """Closed when the interpreter ends, unless it was closed, or forgotten, before."""
    alive = weakref.ref(tracker)

    def close() -> None:
        tracker = alive()
        if tracker is not None:
            tracker.close()

    atexit.register(close)
    return close
