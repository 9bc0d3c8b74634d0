"""One or two real steps of the user's own loop body, on copies: what it calls in which order, and what moves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.step import Step
from normscope.training.own import Own
from normscope.training.short import ShortRuns, Update


def of_loop(at: Step) -> dict[str, Any]:
    """The order of backward, clipping, clearing and stepping, and whether anything moved; see NS610 to NS612."""
    if at.train_step is None or at.optimizer is None:
        return {}
    log: list[list[str]] = []
    unmoved: list[bool] = []
    own = Own(at)

    def begin(copies: Mapping[int, Tensor]) -> Update:
        update = own.begin(copies)
        start = {k: c.detach().clone() for k, c in copies.items()}

        def listened(args: tuple[Any, ...], kwargs: dict[str, Any], targets: Any) -> Tensor:
            events: list[str] = []
            log.append(events)
            if not any(c.grad is not None and bool((c.grad != 0).any()) for c in copies.values()):
                events.append("clear")
            with listening(events):
                value = update(args, kwargs, targets)
            unmoved[:] = [torch.equal(copies[k], start[k]) for k in start]
            return value

        return listened

    ShortRuns(at).run(begin, 2, around=own.around)
    still = all(g.get("lr", 1.0) == 0 for g in at.optimizer.param_groups)  # as a warm-up leaves it: nothing is to move
    return order_of(log, -1 if still else unmoved.count(False))


def order_of(log: list[list[str]], moved: int) -> dict[str, Any]:
    """What the order of two steps' events says. moved: how many parameters the first steps changed."""
    first = log[0]
    clips = [i for i, e in enumerate(first) if e.startswith("clip")]
    backs = [i for i, e in enumerate(first) if e == "backward"]
    second = log[1] if len(log) > 1 else []
    until = second.index("backward") if "backward" in second else len(second)
    cleared = "clear" in second[:until] or "clear" in first[(first.index("step") if "step" in first else 0) :]
    return {
        "events": first, "moved": moved, "stepped": "step" in first, "backward": bool(backs),
        "clip_early": bool(clips) and bool(backs) and clips[0] < backs[0] and not any(c > backs[0] for c in clips),
        "never_cleared": "step" in first and "step" in second and not cleared,
        "cleared_late": bool(backs) and "clear" in first[backs[-1] :] and "step" in first
        and first.index("step") > backs[-1] + first[backs[-1] :].index("clear"),
    }  # fmt: skip


@contextmanager
def listening(events: list[str]) -> Iterator[None]:
    """Write down calls of torch's own training functions; a profiler that was there is put back."""
    known: dict[Any, str] = {
        torch.optim.Optimizer.zero_grad.__code__: "clear",
        nn.Module.zero_grad.__code__: "clear",
        Tensor.backward.__code__: "backward",
    }
    clip = torch.nn.utils.clip_grad
    for function in (clip.clip_grad_norm_, clip.clip_grad_value_):
        inner: Callable[..., Any] = function
        while hasattr(inner, "__wrapped__"):
            inner = inner.__wrapped__
        known[inner.__code__] = "clip"

    def listen(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            name = known.get(frame.f_code)
            if (
                name is None
                and frame.f_code.co_name == "step"
                and isinstance(frame.f_locals.get("self"), torch.optim.Optimizer)
            ):
                name = "step"
            if name is not None and not (name == "step" and events and events[-1] == "step"):
                events.append(name)

    before = sys.getprofile()
    sys.setprofile(listen)
    try:
        yield
    finally:
        sys.setprofile(before)
