"""A script that trains, watched: its models' calls, its losses, its optimizers' steps; nothing of it is changed."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from normscope.call.arguments import tensors
from normscope.findings.why.tape import Entry, Recorder, Tape, frozen

#: After enough steps of the only pair so far, the script may go on for so many steps and seconds, unrecorded: what trains
#: first may be a part, and the training that is asked about comes behind it.
LINGER, LINGER_SECONDS = 400, 10.0
#: Calls on a tape, at most: a loop that never steps must not fill the memory.
MOST = 20_000


class Enough(BaseException):
    """Ends the script when as much was seen as was asked for: no ``except Exception`` of its own stops it."""


@dataclass
class Before:
    """A model as it was before an optimizer's first step: numbers of all parameters and buffers, and flags."""

    model: nn.Module
    values: list[tuple[Tensor, Tensor]]
    flags: list[tuple[nn.Module, bool]]

    @classmethod
    def of(cls, model: nn.Module) -> Before:
        """Copies of everything that the model registers."""
        held = [*model.parameters(), *model.buffers()]
        return cls(model, [(t, t.detach().clone()) for t in held], [(m, m.training) for m in model.modules()])

    @torch.no_grad()
    def restore(self) -> None:
        """The numbers and flags of then."""
        for t, value in self.values:
            if t.shape == value.shape:
                t.copy_(value)
        for m, flag in self.flags:
            m.training = flag

    def moved(self) -> int:
        """How many of the parameters are others now."""
        return sum(isinstance(t, nn.Parameter) and not torch.equal(t, v) for t, v in self.values)


@dataclass
class Taken:
    """One step of an optimizer: what was computed and called since the step before."""

    tape: Tape
    losses: list[tuple[Tensor, str]]
    events: list[str]
    rate: float
    moved: int = -1


@dataclass
class Pair:
    """An optimizer and its steps. state: before its first step; places: where in the script."""

    optimizer: torch.optim.Optimizer
    place: str
    state: dict[str, Any] = field(default_factory=dict)
    before: list[Before] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    count: int = 0


class Watch:
    """What is seen while a script runs; ``with watch: ...`` from the outside."""

    def __init__(self, steps: int, seconds: float, on_step: Callable[[int], None] | None = None) -> None:
        self.steps, self.seconds, self.on_step = steps, seconds, on_step
        self.start = time.monotonic()
        self.tape, self.losses, self.events = Tape(), [], []  # type: ignore[var-annotated]
        self.pairs: dict[int, Pair] = {}
        self.built: dict[int, str] = {}
        self.backwards = 0
        self._local = threading.local()
        self._process = os.getpid()
        self._enough_since: float | None = None

    def outside(self) -> bool:
        """Whether no module is running in this thread, and this is the script's own process."""
        return getattr(self._local, "depth", 0) == 0 and os.getpid() == self._process

    # What the patches call

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A module's call: outermost ones with gradients on go on the tape."""
        if not self.outside() or not torch.is_grad_enabled() or len(self.tape.entries) > MOST:
            return self._inside(original, module, args, kwargs)
        holds = any(True for _ in module.parameters())
        follows = self.tape.follows(args, kwargs)
        if not holds and not follows:
            return self._inside(original, module, args, kwargs)
        kept = frozen((args, kwargs), self.tape)
        result = self._inside(original, module, args, kwargs)
        self.tape.add(Entry(module, kept[0], kept[1], result, module if holds else None))
        return result

    def _inside(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        self._local.depth = getattr(self._local, "depth", 0) + 1
        try:
            return original(module, *args, **kwargs)
        finally:
            self._local.depth -= 1

    def backward(self, roots: Any) -> None:
        """A backward pass begins."""
        if os.getpid() != self._process:
            return
        self.backwards += 1
        self.events.append("backward")
        root = next(tensors(roots), None)
        if root is not None:
            self.losses.append((root, place()))

    def about_to_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """An optimizer is about to step."""
        if os.getpid() != self._process or getattr(self._local, "stepping", None) not in (None, optimizer):
            return
        self._local.stepping = optimizer
        pair = self.pairs.setdefault(id(optimizer), Pair(optimizer, self.built.get(id(optimizer), "")))
        if not pair.taken:
            pair.before = [Before.of(m) for m in self.tape.models()]
            held = optimizer.state.items()
            pair.state = {
                "state": {p: {k: v.clone() if isinstance(v, Tensor) else v for k, v in s.items()} for p, s in held},
                "groups": [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
            }

    def stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """An optimizer has stepped."""
        if os.getpid() != self._process or getattr(self._local, "stepping", None) is not optimizer:
            return
        self._local.stepping = None
        pair = self.pairs[id(optimizer)]
        rate = max((float(g.get("lr", 0.0)) for g in optimizer.param_groups), default=0.0)
        taken = Taken(self.tape, self.losses, [*self.events, "step"], rate)
        if not pair.taken:
            taken.moved = sum(b.moved() for b in pair.before)
        pair.count += 1
        if pair.count <= self.steps:
            pair.taken.append(taken)
        self.tape, self.losses, self.events = Tape(), [], []
        if self.on_step is not None:
            self.on_step(pair.count)
        if self.late() or self._enough(pair):
            raise Enough

    def _enough(self, pair: Pair) -> bool:
        """Whether every pair that still trains has been seen for long enough."""
        now = time.monotonic()
        if pair.count < self.steps or any(
            p.count < self.steps and p.count > pair.count / 8 for p in self.pairs.values()
        ):
            self._enough_since = None
            return False
        self._enough_since = self._enough_since or now
        return pair.count >= self.steps + LINGER or now - self._enough_since > LINGER_SECONDS

    def late(self) -> bool:
        """Whether the seconds are over."""
        return time.monotonic() - self.start > self.seconds

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The patches, and torch as it was at the end."""
        calls, inits, clears, module_clears = (
            nn.Module.__call__, torch.optim.Optimizer.__init__, torch.optim.Optimizer.zero_grad, nn.Module.zero_grad,
        )  # fmt: skip
        backward = torch.autograd.backward
        watch = self

        def module_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return watch.call(calls, module, args, kwargs)

        def build(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
            watch.built.setdefault(id(optimizer), place())
            inits(optimizer, *args, **kwargs)

        def clear(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            watch.events.append("clear")
            return clears(optimizer, *args, **kwargs)

        def clear_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            watch.events.append("clear")
            return module_clears(module, *args, **kwargs)

        def go_back(roots: Any, *args: Any, **kwargs: Any) -> Any:
            watch.backward(roots)
            return backward(roots, *args, **kwargs)

        def clipping(original: Callable[..., Any]) -> Callable[..., Any]:
            def clip(*args: Any, **kwargs: Any) -> Any:
                watch.events.append("clip")
                return original(*args, **kwargs)

            return clip

        def eager(model: Any = None, **_: Any) -> Any:
            return model if model is not None else lambda f: f

        utils = torch.nn.utils
        patches: list[tuple[Any, str, Any]] = [
            (nn.Module, "__call__", module_call), (torch.optim.Optimizer, "__init__", build),
            (torch.optim.Optimizer, "zero_grad", clear), (nn.Module, "zero_grad", clear_module),
            (torch.autograd, "backward", go_back), (torch, "compile", eager), (nn.Module, "compile", lambda *_, **__: None),
        ]  # fmt: skip
        for name in ("clip_grad_norm_", "clip_grad_value_"):
            patched = clipping(getattr(utils, name))
            patches += [(utils, name, patched), (utils.clip_grad, name, patched)]
        with ExitStack() as stack:
            for owner, name, new in patches:
                stack.callback(setattr, owner, name, owner.__dict__[name])
                setattr(owner, name, new)
            for register, hook in (
                (register_optimizer_step_pre_hook, self.about_to_step),
                (register_optimizer_step_post_hook, self.stepped),
            ):
                stack.callback(register(hook).remove)
            with Recorder(self):
                yield


#: Where a place in the user's own code is not: the packages around it.
_LIBRARIES = (
    str(Path(torch.__file__).parent.parent), str(Path(__file__).parents[2]), str(Path(os.__file__).parent), "<frozen",
)  # fmt: skip


def place() -> str:
    """file:line of the innermost frame that is no library's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_LIBRARIES):
            return f"{os.path.relpath(name) if os.path.isabs(name) else name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
