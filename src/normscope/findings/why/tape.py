"""What a script computes between its models and the loss that it differentiates: written down, to be computed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normscope.call.arguments import mapped, tensors


@dataclass
class Entry:
    """One call: of a module with parameters (``module``), or of a function of what such modules gave."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    module: nn.Module | None = None


@dataclass
class Tape:
    """Calls in order. A tensor is known by ``id``; the tape holds all of them, so that none is reused."""

    entries: list[Entry] = field(default_factory=list)
    made: dict[int, int] = field(default_factory=dict)
    #: Calls that merged the first axis of data with others, by the ``id`` of what they gave: targets flattened for a loss.
    merged: dict[int, Entry] = field(default_factory=dict)

    def add(self, entry: Entry) -> None:
        """Write a call down, and which tensors it made."""
        self.entries.append(entry)
        for t in tensors(entry.result):
            self.made[id(t)] = len(self.entries) - 1

    def follows(self, *values: Any) -> bool:
        """Whether any of these tensors was made by a call on the tape."""
        return any(id(t) in self.made for t in tensors(values))

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
            e = self.entries[i]
            queue += [
                self.made[id(t)] for t in tensors((e.args, e.kwargs)) if id(t) in self.made and self.made[id(t)] < i
            ]
        return [self.entries[i] for i in sorted(wanted)]


def replay(entries: list[Entry], given: Mapping[int, Any], last: Tensor) -> Any:
    """Compute the calls again; ``given``: what stands for a tensor, by ``id``. Returns what stands for ``last``."""
    now: dict[int, Any] = dict(given)

    def other(t: Tensor) -> Any:
        return now.get(id(t), t)

    for e in entries:
        done = list(tensors(e.result))
        if done and all(id(t) in given for t in done):
            continue
        args, kwargs = mapped((e.args, e.kwargs), other)
        result = e.call(*args, **kwargs)
        for old, new in zip(done, tensors(result), strict=False):
            now[id(old)] = new
    return now[id(last)]


class Recorder(TorchFunctionMode):
    """Functions of what models gave go on the tape; inside a module nothing does."""

    def __init__(self, watch: Any) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        watch = self.watch
        if not watch.outside() or func in IGNORED:
            return func(*args, **kwargs)
        if not watch.tape.follows(args, kwargs):
            result = func(*args, **kwargs)
            if func in MERGES and args[0].dim() > 1 and result.shape[:1] != args[0].shape[:1]:
                watch.tape.merged[id(result)] = Entry(func, args, kwargs, result)
            return result
        kept = frozen((args, kwargs), watch.tape)
        result = func(*args, **kwargs)
        if any(True for _ in tensors(result)):
            watch.tape.add(Entry(func, kept[0], kept[1], result))
        return result


#: Functions that compute nothing.
IGNORED = {
    Tensor.backward, Tensor.requires_grad_, Tensor.retain_grad, Tensor.register_hook, Tensor.__repr__, Tensor.item,
    Tensor.tolist, Tensor.numpy,
}  # fmt: skip


MERGES = {Tensor.flatten, torch.flatten, Tensor.reshape, torch.reshape, Tensor.view}


def frozen(value: Any, tape: Tape) -> Any:
    """Arguments as they are now: tensors that the script made get copied, before it writes into them; those of the tape
    and parameters stay themselves.
    """

    def own(t: Tensor) -> Tensor:
        if id(t) in tape.made or isinstance(t, nn.Parameter):
            return t
        with torch.no_grad():
            twin = t.detach().clone()
        e = tape.merged.get(id(t))
        if e is not None:
            args, kwargs = mapped((e.args, e.kwargs), own)
            tape.add(Entry(e.call, args, kwargs, twin))
        return twin

    return mapped(value, own)
