"""A script that trains, watched: its models' calls, its losses, its optimizers' steps; nothing of it is changed."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from normscope.call.arguments import tensors
from normscope.call.surroundings import transforms
from normscope.core.tensors import moves
from normscope.findings.checkup.loop import Thrown, sums
from normscope.findings.why.held_out import HeldOut
from normscope.findings.why.loads import Loads
from normscope.findings.why.tape import LIBRARIES, Entry, Tape, frozen, place

#: After enough steps of the only pair so far, the script may go on for so many steps and seconds, unrecorded: what
#: trains first may be a part, and the training that is asked about comes behind it.
LINGER, LINGER_SECONDS = 2000, 20.0
#: How often an optimizer that never steps loses gradients to `zero_grad` before that is told (chosen by us).
LOST = 10
#: Calls on a tape, at most: a loop that never steps must not fill the memory.
MOST = 20_000
#: A list of so many batches is a data loader: one that holds the same batch again and again is none that trains on all
#: data at once.
FEW = 4


class Enough(BaseException):
    """Ends the script when as much was seen as was asked for: no ``except Exception`` of its own stops it."""


@dataclass
class Before:
    """A model as it was before an optimizer's first step: numbers of all parameters and buffers, and flags."""

    values: list[tuple[Tensor, Tensor, bool]]
    flags: list[tuple[nn.Module, bool]]

    @classmethod
    def of(cls, held: Iterable[Tensor], modules: Iterable[nn.Module] = ()) -> Before:
        """Copies of these parameters and buffers."""
        return cls([(t, t.detach().clone(), t.requires_grad) for t in held], [(m, m.training) for m in modules])

    @property
    def parameters(self) -> list[Tensor]:
        """Those of the tensors that are parameters."""
        return [t for t, _, _ in self.values if isinstance(t, nn.Parameter)]

    @torch.no_grad()
    def restore(self) -> None:
        """The numbers and flags of then."""
        for t, value, trains in self.values:
            if t.shape == value.shape:
                t.copy_(value)
            if t.is_leaf:
                t.requires_grad_(trains)
        for m, flag in self.flags:
            m.training = flag

    def moved(self) -> int:
        """How many of the parameters are others now."""
        return sum(isinstance(t, nn.Parameter) and not torch.equal(t, v) for t, v, _ in self.values)


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
    """An optimizer and its steps. state: before its first step; place: where in the script."""

    optimizer: torch.optim.Optimizer
    place: str
    state: dict[str, Any] = field(default_factory=dict)
    before: list[Before] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    #: Loss and rate of the steps behind those.
    later: list[tuple[float, float]] = field(default_factory=list)
    count: int = 0
    #: Numbers of its first and last step among those of all optimizers.
    span: tuple[int, int] = (0, 0)
    #: Whether the batch comes from a list of batches in the script.
    listed: bool = False
    #: The data loaders of the script.
    loaders: list[Any] = field(default_factory=list)
    #: The pair that steps on the same losses right before, where it is so at every step.
    beside: Pair | None = None
    #: Whether it has stepped on gradients behind no backward pass.
    fed: bool = False
    #: The line of backward passes whose gradients it never steps on, and how many a step.
    lost: tuple[str, int] = ("", 0)
    #: How many optimizers of one line, and over the same tensors, stepped one after another, each for those before.
    optimizers: int = 1

    @property
    def held(self) -> set[int]:
        """The ``id`` of every parameter in the optimizer."""
        return {id(p) for g in self.optimizer.param_groups for p in g["params"]}


class Watch:
    """What is seen while a script runs (`patches.watching`)."""

    def __init__(self, steps: int, seconds: float, on_step: Callable[[int], None] | None = None) -> None:
        self.steps, self.seconds, self.on_step = steps, seconds, on_step
        self.start = time.monotonic()
        self.tape, self.losses, self.events = Tape(), [], []  # type: ignore[var-annotated]
        self.pairs: dict[int, Pair] = {}
        self.built: dict[int, str] = {}
        #: Optimizers that have not stepped, and how often they were cleared of gradients.
        self.cleared: dict[int, tuple[torch.optim.Optimizer, int]] = {}
        self.loads, self.held_out = Loads(), HeldOut()
        #: Whether some distribution was drawn from.
        self.drawn = False
        self.thrown = Thrown()
        self._last: tuple[Pair, Taken] | None = None
        self.backwards = self.steps_taken = 0
        self._local = threading.local()
        self._process = os.getpid()
        self._enough_since: float | None = None

    def full(self) -> bool:
        """Whether the tape has as many calls as it may."""
        return len(self.tape.entries) > MOST

    def outside(self) -> bool:
        """Whether no module is running in this thread, nor a transform of torch.func, and this is the script's own
        process.
        """
        return getattr(self._local, "depth", 0) == 0 and os.getpid() == self._process and not transforms()

    # What the patches call

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A module's call: outermost ones with gradients on go on the tape."""
        if self.outside() and not torch.is_grad_enabled():
            result = self._inside(original, module, *args, **kwargs)
            self.held_out.call(module, args, kwargs, result, self.steps_taken)
            return result
        if not self.outside() or self.full():
            return self._inside(original, module, *args, **kwargs)
        holds = any(True for _ in module.parameters())
        follows = self.tape.follows(args, kwargs)
        if not holds and not follows:
            return self._inside(original, module, *args, **kwargs)
        kept = frozen((args, kwargs), self.tape)
        origin = tuple(t.data_ptr() for t in tensors((args, kwargs)) if t.layout is torch.strided)
        result = self._inside(original, module, *args, **kwargs)
        self.tape.add(Entry(module, kept[0], kept[1], result, module if holds else None, place=place(), origin=origin))
        return result

    def apply(self, original: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """A call of an ``autograd.Function`` of the user's, which may run a module without gradients inside."""
        holder = next((a for a in args if isinstance(a, nn.Module) and any(True for _ in a.parameters())), None)
        wanted = self.outside() and torch.is_grad_enabled() and not self.full()
        if not wanted or not (holder or self.tape.follows(args)):
            return original(*args)
        kept = frozen(args, self.tape)
        result = self._inside(original, *args)
        self.tape.add(Entry(original, kept, {}, result, holder, place=place()))
        return result

    def _inside(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._local.depth = getattr(self._local, "depth", 0) + 1
        try:
            return original(*args, **kwargs)
        finally:
            self._local.depth -= 1

    def derives(self, *values: Any) -> bool:
        """Whether any of these is a leaf: the script may differentiate by it, or train it as it stands."""
        live = bool(self.built) and torch.is_grad_enabled()
        return live and any(t.requires_grad and t.is_leaf for t in tensors(values))

    def backward(self, roots: Any) -> None:
        """A backward pass begins."""
        if os.getpid() != self._process:
            return
        self.backwards += 1
        inside = getattr(self._local, "uncleared", None)
        self.events += ["summed", "backward"] if inside is not None and sums(inside) else ["backward"]
        self.tape.passes += 1
        root = next(tensors(roots), None)
        if root is not None:
            self.tape.follows(root)
            self.losses.append((root, place()))

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to be cleared of gradients."""
        self.events.append("clear")
        self._local.uncleared = None
        self.thrown.clear(optimizer)
        grads = (p.grad for g in optimizer.param_groups for p in g["params"])
        if id(optimizer) not in self.pairs and any(map(moves, grads)):
            self.cleared[id(optimizer)] = optimizer, self.cleared.get(id(optimizer), (optimizer, 0))[1] + 1

    def idle(self) -> dict[str, Any] | None:
        """The first optimizer that loses its gradients again and again, and whose tensors nothing moves."""
        held = set().union(*(p.held for p in self.pairs.values()))
        for key, (optimizer, times) in self.cleared.items():
            own = [p for g in optimizer.param_groups for p in g["params"]]
            if key not in self.pairs and times >= LOST and not held & set(map(id, own)):
                place = self.built.get(key, "the script")
                return {"kind": type(optimizer).__name__, "place": place, "tensors": len(own), "clears": times}
        return None

    def about_to_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """An optimizer is about to step."""
        if os.getpid() != self._process or getattr(self._local, "stepping", None) not in (None, optimizer):
            return
        self._local.stepping = self._local.uncleared = optimizer  # its closure may clear it
        if id(optimizer) not in self.pairs:
            self.pairs[id(optimizer)] = self._pair(optimizer)
        pair = self.pairs[id(optimizer)]
        held = [p for g in optimizer.param_groups for p in g["params"]]
        pair.lost = max(pair.lost, self.thrown.stepped(optimizer), key=itemgetter(1))
        pair.fed = pair.fed or (not self.losses and any(moves(p.grad) for p in held))
        if not pair.taken:
            pair.loaders = _loaders()
            pair.listed = _listed({at for e in self.tape.entries if e.module is not None for at in e.origin})
            models = self.tape.models()
            pair.before = [Before.of([*m.parameters(), *m.buffers()], m.modules()) for m in models]
            if not models:  # a closure computes the first loss inside of the step
                pair.before = [Before.of(held)]
            pair.state = {
                "state": {
                    p: {k: v.clone() if isinstance(v, Tensor) else v for k, v in s.items()}
                    for p, s in optimizer.state.items()
                },
                "groups": [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups],
            }

    def _pair(self, optimizer: torch.optim.Optimizer) -> Pair:
        """A new pair; or that of an optimizer of the same line over the same tensors, which this one goes on for."""
        new = Pair(optimizer, self.built.get(id(optimizer), ""))
        known = next((p for p in self.pairs.values() if p.place == new.place and p.held == new.held), None)
        if known is None or not new.place:
            return new
        known.optimizers += 1
        return known

    def stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """An optimizer has stepped."""
        if os.getpid() != self._process or getattr(self._local, "stepping", None) is not optimizer:
            return
        self._local.stepping = self._local.uncleared = None
        pair = self.pairs[id(optimizer)]
        rate = max((float(g.get("lr", 0.0)) for g in optimizer.param_groups), default=0.0)
        taken = Taken(self.tape, self.losses, [*self.events, "step"], rate)
        last, shares = self._last, False
        if last is not None and last[0] is not pair and not self.losses:  # one backward pass for two optimizers
            taken, shares = Taken(last[1].tape, last[1].losses, [*last[1].events, *taken.events], rate), True
        pair.beside = last[0] if last is not None and shares and (not pair.count or pair.beside is last[0]) else None
        if pair.count < 3:  # the first step of a warm-up may have rate 0
            taken.moved = sum(b.moved() for b in pair.before)
        pair.count += 1
        self.held_out.stepped(taken.tape)
        self.steps_taken += 1
        pair.span = (pair.span[0] or self.steps_taken, self.steps_taken)
        if pair.count <= self.steps:
            pair.taken.append(taken)
        elif taken.losses:
            pair.later.append((float(taken.tape.unscaled(taken.losses[0][0]).detach().sum()), rate))
        taken.tape.earlier = None
        self._last = (pair, taken) if not shares else last
        self.tape, self.losses, self.events = Tape(earlier=taken.tape if len(self.built) > 1 else None), [], []
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


def _variables() -> Iterator[Any]:
    """What the script's functions that run hold in their variables, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(LIBRARIES):
            yield from list(frame.f_locals.values())
        frame = frame.f_back


def _loaders() -> list[Any]:
    """The data loaders in the variables of the script."""
    return list({id(v): v for v in _variables() if isinstance(v, DataLoader)}.values())


def _listed(origins: set[int]) -> bool:
    """Whether a variable of the script, or a value of a dictionary there, is a list of batches that holds these
    tensors.
    """
    for value in _variables():
        for found in (value, *(value.values() if isinstance(value, dict) else ())):
            several = isinstance(found, list | tuple) and len(found) >= FEW
            if (
                several
                and all(isinstance(x, list | tuple | dict) for x in found)
                and any(t.data_ptr() in origins for t in tensors(found[0]) if t.layout is torch.strided)
            ):
                return True
    return False
