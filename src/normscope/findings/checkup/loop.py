"""One or two real steps of the user's own loop body, on copies: what it calls in which order, and what moves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.step import Step
from normscope.call.traceless import Kept
from normscope.findings.checkup.update import to_its_rate, twin
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
    first = log[0]
    clips = [i for i, e in enumerate(first) if e.startswith("clip")]
    backs = [i for i, e in enumerate(first) if e == "backward"]
    second = log[1] if len(log) > 1 else []
    until = second.index("backward") if "backward" in second else len(second)
    cleared = "clear" in second[:until] or "clear" in first[(first.index("step") if "step" in first else 0) :]
    return {
        "events": first, "moved": unmoved.count(False), "stepped": "step" in first, "backward": bool(backs),
        "clip_early": bool(clips) and bool(backs) and clips[0] < backs[0] and not any(c > backs[0] for c in clips),
        "never_cleared": "step" in first and "step" in second and not cleared,
        "cleared_late": bool(backs) and "clear" in first[backs[-1] :] and "step" in first
        and first.index("step") > backs[-1] + first[backs[-1] :].index("clear"),
    }  # fmt: skip


class Own:
    """The user's own update on copies: their ``train_step``, or the usual one, with a twin of their optimizer.

    ``around`` is the surroundings of a run: of the user's loop what it can reach stands aside, optimizers, schedulers, scalers.
    """

    def __init__(self, at: Step) -> None:
        assert at.optimizer is not None
        self.at, self.optimizer = at, at.optimizer
        self.twin = at.optimizer

    def begin(self, copies: Mapping[int, Tensor]) -> Update:
        """See `ShortRuns.run`."""
        at, own = self.at, self.twin
        if at.train_step is None:
            to_its_rate(own)  # nobody tells when a scheduler would be stepped
            return ShortRuns(at).plain(lambda _: own)(copies)
        loss = at.loss if callable(at.loss) else at.criterion.value

        def update(args: tuple[Any, ...], kwargs: dict[str, Any], targets: Any) -> Tensor:
            inputs = kwargs if kwargs else args[0] if len(args) == 1 else args
            value = at.train_step(at.root, own, loss, inputs, targets)  # type: ignore[misc]
            if isinstance(value, Tensor) and value.numel() == 1:
                return value.detach().reshape(())
            if isinstance(value, int | float):
                return torch.tensor(float(value))
            with torch.no_grad():  # a body that returns nothing: the loss of the same batch afterwards
                return at.value(at.whole(args, kwargs), targets)

        return update

    @contextmanager
    def around(self, copies: Mapping[int, Tensor]) -> Iterator[None]:
        """See `ShortRuns.run`."""
        at, mine = self.at, dict(copies)
        self.twin = twin(self.optimizer, mine)
        kept = Kept(at.train_step, at.loss)
        held = [] if at.train_step is None else held_by(at.train_step)
        with kept, kept, borrowed([self.optimizer, *held], mine):
            # One and the same: what a schedule writes into the user's optimizer holds for the one that steps.
            self.optimizer.__dict__.update(param_groups=self.twin.param_groups, state=self.twin.state)
            yield


def held_by(function: Any, depth: int = 3) -> list[Any]:
    """Optimizers, schedulers and scalers that a function can reach: closure, globals that it names, defaults, its object."""
    function = getattr(function, "func", function)
    code = getattr(function, "__code__", getattr(type(function).__call__, "__code__", None))
    named = getattr(function, "__globals__", {})
    values = [named[n] for n in getattr(code, "co_names", ()) if n in named]
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):
            values.append(cell.cell_contents)
    owner = getattr(function, "__self__", None)
    values += [*(getattr(function, "__defaults__", None) or ()), *vars(owner or function).values()]
    found = []
    for value in values:
        if isinstance(value, (*_MOVED, torch.optim.Optimizer)):
            found.append(value)
        elif depth and callable(value) and hasattr(value, "__code__") and not value.__module__.startswith("torch"):
            found += held_by(value, depth - 1)
    return found


_MOVED = (torch.optim.lr_scheduler.LRScheduler, torch.optim.lr_scheduler.ReduceLROnPlateau, torch.amp.GradScaler)


@contextmanager
def borrowed(objects: list[Any], copies: dict[int, Tensor]) -> Iterator[None]:
    """Optimizers on the copies, and what they and their schedulers count put back at the end."""
    objects = list({id(o): o for o in objects}.values())
    objects += [o.optimizer for o in objects if hasattr(o, "optimizer") and o.optimizer not in objects]
    kept = [(o, dict(vars(o)), _values(o)) for o in objects]
    try:
        for o in objects:
            if isinstance(o, torch.optim.Optimizer):
                other = twin(o, copies)
                o.__dict__.update(param_groups=other.param_groups, state=other.state)
        yield
    finally:
        for o, attributes, values in kept:
            o.__dict__.clear()
            o.__dict__.update(attributes)
            o.__dict__.update(values)


def _values(o: Any) -> dict[str, Any]:
    """Copies of the lists and tensors that a scheduler or scaler counts in."""
    if isinstance(o, torch.optim.Optimizer):
        return {}
    return {
        k: v.clone() if isinstance(v, Tensor) else list(v) for k, v in vars(o).items() if isinstance(v, list | Tensor)
    }


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
