"""What a script computes between its models and the loss that it differentiates: written down, to be computed again."""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import mapped, tensors
from normscope.core.modes import Mode


@dataclass
class Entry:
    """One call: of a module with parameters (``module``), or of a function of what such modules gave."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    module: nn.Module | None = None
    #: Indices of the entries that made its arguments: a tensor written in place has several makers, one after another.
    sources: tuple[int, ...] = ()
    place: str = ""
    #: The tensors of the result as it came: an object may make more of them as it is asked.
    made: tuple[Tensor, ...] = ()
    #: Where the numbers of its arguments lay: the same tensors, or others of equal numbers.
    origin: tuple[int, ...] = ()

    def inputs(self) -> Any:
        """The arguments of a model's call in the shape of `Step`'s inputs."""
        args, kwargs = self.args, {k: v for k, v in self.kwargs.items() if v is not None}
        if not kwargs:
            return args[0] if len(args) == 1 and isinstance(args[0], Tensor) else tuple(args)
        if not args:
            return kwargs
        names = [p.name for p in inspect.signature(self.call.forward).parameters.values()]  # type: ignore[attr-defined]
        return dict(zip(names, args, strict=False)) | kwargs


@dataclass
class Tape:
    """Calls in order. A tensor is known by ``id``; the tape holds all of them, so that none is reused."""

    entries: list[Entry] = field(default_factory=list)
    made: dict[int, int] = field(default_factory=dict)
    #: Calls that merged the first axis of data with others, by the ``id`` of what they gave: targets flattened for a
    #: loss.
    merged: dict[int, Entry] = field(default_factory=dict)
    #: What was called before the step of another optimizer, and which of these calls were taken from there: by the
    #: ``id`` of the call, what stands for it here.
    earlier: Tape | None = None
    taken: dict[int, Entry] = field(default_factory=dict)
    #: Copies of tensors that the script made, by ``id`` and version, with the tensor: one that goes to several calls
    #: stays one.
    twins: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    #: What distributions gave as the logarithm of their density, by ``id``.
    densities: set[int] = field(default_factory=set)
    #: Backward passes.
    passes: int = 0
    #: How often each tensor had been written into when it was last on the tape, by ``id``.
    versions: dict[int, int] = field(default_factory=dict)
    #: Where a tensor came in that something unseen filled with the numbers of another one, which has a gradient.
    copied: list[str] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Write a call down, and which tensors it made."""
        read = list(tensors((entry.args, entry.kwargs)))
        entry.sources = tuple(self.made[id(t)] for t in read if id(t) in self.made)
        self.entries.append(entry)
        entry.made = tuple(tensors(entry.result))
        for t in entry.made:
            self.made[id(t)] = len(self.entries) - 1
            self.versions[id(t)] = _version(t)

    def untouched(self, t: Tensor) -> bool:
        """Whether a tensor on the tape holds what was made there: nothing unseen (a collective) wrote into it."""
        return t.requires_grad or _version(t) == self.versions[id(t)]

    def holds(self, t: Tensor) -> bool:
        """Whether another tensor on the tape, with a gradient, has the same numbers."""
        others = (x for e in self.entries for x in e.made if x.requires_grad and x.shape == t.shape)
        return bool((t != 0).any()) and any(torch.equal(x.detach(), t) for x in others)

    def follows(self, *values: Any) -> bool:
        """Whether any of these tensors was made by a call on the tape, or on the one before (as the samples that a
        discriminator and then, by other weights, a generator learns from): its calls are on this one too, then.
        """
        read = list(tensors(values))
        for t in read:
            if self.earlier is not None and t.grad_fn is not None and id(t) not in self.made:
                self._take(self.earlier, t)
        return any(id(t) in self.made for t in read)

    def _take(self, earlier: Tape, made: Tensor) -> None:
        """The calls behind a tensor, unless they reach back further still."""
        behind, older = earlier.behind(made), {id(e) for e in earlier.taken.values()}
        if any(id(e) in older for e in behind):
            return
        for e in behind:
            if id(e) not in self.taken:
                self.taken[id(e)] = replace(e)
                self.add(self.taken[id(e)])

    def models(self) -> list[nn.Module]:
        """The modules with parameters that were called, each once, the outermost ones."""
        called = {id(e.module): e.module for e in self.entries if e.module is not None}
        inner = {id(x) for m in called.values() for x in m.modules() if x is not m}
        return [m for k, m in called.items() if k not in inner]

    def behind(self, loss: Tensor) -> list[Entry]:
        """The calls that a tensor was made by, in order, those that wrote into what it was made of too."""
        wanted, queue = set(), [self.made[id(loss)]] if id(loss) in self.made else []
        while queue:
            i = queue.pop()
            if i in wanted:
                continue
            wanted.add(i)
            queue += self.entries[i].sources
        return [self.entries[i] for i in sorted(wanted)]

    def unscaled(self, loss: Tensor) -> Tensor:
        """The loss before it was multiplied by a positive number, for accumulation or mixed precision."""
        while id(loss) in self.made:
            e = self.entries[self.made[id(loss)]]
            inner = [t for t in tensors((e.args, e.kwargs)) if id(t) in self.made and t is not loss]
            if e.call not in _SCALES or len(inner) != 1 or inner[0].numel() != 1:
                return loss
            other = [x for x in e.args if x is not inner[0] and _scalar(x)]
            if self.passes < 2 and other and not isinstance(other[0], Tensor):
                return loss  # nothing is accumulated
            if len(other) != 1 or not 0 < float(other[0]) < math.inf:
                return loss
            if isinstance(other[0], Tensor) and (e.call in _DIVIDES or math.frexp(float(other[0]))[0] != 0.5):
                return loss  # a mean over what was counted; a GradScaler multiplies by a power of two
            loss = inner[0]
        return loss


#: Calls that only scale a loss: for accumulation, or by a GradScaler.
_SCALES = {
    Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul, Tensor.div, Tensor.__truediv__, torch.div, Tensor.mul_,
    Tensor.div_, Tensor.__imul__, torch.true_divide,
}  # fmt: skip
_DIVIDES = {Tensor.div, Tensor.__truediv__, torch.div, Tensor.div_, torch.true_divide}


def _scalar(x: Any) -> bool:
    return isinstance(x, int | float) or (isinstance(x, Tensor) and x.numel() == 1)


def replay(entries: list[Entry], given: Mapping[int, Any], last: Tensor) -> Any:
    """Compute the calls again; ``given``: what stands for a tensor, by ``id``. Returns what stands for ``last``."""
    now: dict[int, Any] = dict(given)

    def other(t: Tensor) -> Any:
        new = now.get(id(t), t)
        if t.requires_grad and t.is_leaf and isinstance(new, Tensor) and not new.requires_grad:
            new = now[id(t)] = new.detach().requires_grad_()  # the script differentiates in it
        return new

    for e in entries:
        if e.made and all(id(t) in given for t in e.made):
            continue
        args, kwargs = mapped((e.args, e.kwargs), other)
        result = e.call(*args, **kwargs)
        for old, new in zip(e.made, tensors(result), strict=False):
            now[id(old)] = new.requires_grad_() if old.is_leaf and old.requires_grad and new.is_leaf else new
    return now[id(last)]


class Recorder(Mode):
    """Functions of what models gave go on the tape; inside a module nothing does."""

    def __init__(self, watch: Any) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        watch = self.watch
        if not watch.outside() or func in IGNORED or watch.full():
            return func(*args, **kwargs)
        if not watch.tape.follows(args, kwargs) and not watch.derives(args, kwargs):
            result = func(*args, **kwargs)
            if not torch.is_grad_enabled():
                watch.held_out.follow(func, args, kwargs, result)
            if func in MERGES and args[0].dim() > 1 and result.shape[:1] != args[0].shape[:1]:
                watch.tape.merged[id(result)] = Entry(func, args, kwargs, result)
            return result
        kept = frozen((args, kwargs), watch.tape)
        result = func(*args, **kwargs)
        if any(True for _ in tensors(result)):
            watch.tape.add(Entry(func, kept[0], kept[1], result, place=place()))
        return result


#: Functions that compute nothing.
IGNORED = {
    Tensor.backward, Tensor.requires_grad_, Tensor.retain_grad, Tensor.register_hook, Tensor.__repr__, Tensor.item,
    Tensor.tolist, Tensor.numpy, Tensor.is_inference,
    Tensor._version.__get__, Tensor.requires_grad.__get__,  # type: ignore[attr-defined]
}  # fmt: skip


MERGES = {Tensor.flatten, torch.flatten, Tensor.reshape, torch.reshape, Tensor.view}


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version


def frozen(value: Any, tape: Tape) -> Any:
    """Arguments as they are now: tensors that the script made get copied, before it writes into them; those of the tape
    and parameters stay themselves.
    """

    def own(t: Tensor) -> Tensor:
        if isinstance(t, nn.Parameter) or (id(t) in tape.made and tape.untouched(t)):
            return t
        if id(t) in tape.made and tape.holds(t):
            tape.copied.append(place())
        key = id(t), _version(t)
        known = tape.twins.get(key) or (tape.earlier.twins.get(key) if tape.earlier is not None else None)
        if known is not None:
            return known[1]
        with torch.no_grad():
            twin = t.detach().clone().requires_grad_(t.requires_grad and t.is_leaf)
        tape.twins[key] = t, twin
        e = tape.merged.get(id(t))
        if e is not None:
            args, kwargs = mapped((e.args, e.kwargs), own)
            tape.add(Entry(e.call, args, kwargs, twin))
        return twin

    return mapped(value, own)


#: Where a place in the user's own code is not: the packages around it.
LIBRARIES = (
    str(Path(torch.__file__).parent.parent), str(Path(__file__).parents[2]), str(Path(os.__file__).parent), "<frozen",
)  # fmt: skip


def place(beyond: object = None) -> str:
    """file:line of the innermost frame that is no library's, nor a method of this object."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        own = beyond is not None and frame.f_locals.get("self") is beyond
        if not own and not name.startswith(LIBRARIES):
            return f"{os.path.relpath(name) if os.path.isabs(name) else name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
