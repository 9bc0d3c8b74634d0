"""What a script asks its models without gradients, in eval mode: held-out batches, and how their loss went."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import mapped, tensors
from normscope.call.step import Step
from normscope.findings.why.tape import LIBRARIES, Entry, Tape, frozen
from normscope.training.short import ShortRuns, both_modes

#: Of each evaluation so many batches are kept, and of each place in the script so many evaluations.
BATCHES, ROUNDS = 8, 16
#: Calls on the tape, and bytes that they hold on to, at most.
MOST, BYTES = 2000, 2**28
#: So many samples that were trained on are known again.
SAMPLES = 200_000
#: Held out is what was trained on to this share at most.
KNOWN = 0.1
#: Functions that leave numbers as they are.
SHAPES = {"squeeze", "view", "reshape", "flatten", "ravel", "unsqueeze", "transpose", "permute", "float", "double"}


@dataclass
class Asked:
    """One call of a model, with its result as it came. index: of its entry; ``at``: the place in the script, with those
    that called it; ``step``: behind how many steps.
    """

    entry: Entry
    index: int
    result: Any
    at: tuple[tuple[str, int], ...]
    step: int


@dataclass
class HeldOut:
    """The calls, and on the tape what was computed of their results."""

    tape: Tape = field(default_factory=Tape)
    asked: list[Asked] = field(default_factory=list)
    held: int = 0
    #: A number for each sample that was trained on.
    trained: set[float] = field(default_factory=set)

    def stepped(self, tape: Tape) -> None:
        """An optimizer has stepped, behind these calls."""
        if len(self.trained) < SAMPLES:
            self.trained |= _rows([(e.args, e.kwargs) for e in tape.entries if e.module is not None])

    def call(self, module: nn.Module, args: Any, kwargs: Any, result: Any, step: int) -> None:
        """A module ran without gradients."""
        if module.training or not any(True for _ in module.parameters()):
            self.follow(module, args, kwargs, result)
            return
        here = _stack()
        steps = [a.step for a in self.asked if a.entry.module is module and a.at == here]
        first = not steps or step == steps[0]  # inputs are kept of the first evaluation
        wanted = steps.count(step) < BATCHES and (step in steps or len(set(steps)) < ROUNDS)
        if wanted and self._fits((args, kwargs) if first else (), result, result):
            kept = frozen((args, kwargs), self.tape) if first else ((), {})
            entry = Entry(module, kept[0], kept[1], result, module)
            self.tape.add(entry)
            own = mapped(result, lambda t: t.detach().clone())
            self.asked.append(Asked(entry, len(self.tape.entries), own, here, step))

    def _fits(self, *values: Any) -> bool:
        """Whether these tensors can be held too; then they count."""
        size = sum(t.numel() * t.element_size() for t in tensors(values))
        fits = len(self.tape.entries) <= MOST and self.held + size <= BYTES
        self.held += size if fits else 0
        return fits

    def follow(self, call: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Something was computed without gradients: kept, if of these results."""
        if self.tape.follows(args, kwargs) and self._fits(args, kwargs, result):
            kept = frozen((args, kwargs), self.tape)
            self.tape.add(Entry(call, kept[0], kept[1], result))

    def of(self, model: nn.Module, like: Tensor | None) -> list[list[tuple[Asked, Tensor | None]]]:
        """By place: the calls of a model, each with its targets, which have the shape of ``like`` but for the number of
        samples; calls without any are left out. Where ``like`` is None the model gets them itself.
        """
        found: dict[tuple[tuple[str, int], ...], list[tuple[Asked, Tensor | None]]] = {}
        for a in self.asked:
            targets = None if like is None or a.entry.module is not model else self._targets(a, like)
            if a.entry.module is model and (like is None or targets is not None):
                found.setdefault(a.at, []).append((a, targets))
        return list(found.values())

    def _targets(self, asked: Asked, like: Tensor) -> Tensor | None:
        """What the result of a call was compared with: of class numbers after whatever was done to it, else as it came:
        a metric may be in other units.
        """
        n = next((len(t) for t in asked.entry.made if t.dim()), 0)
        made = {id(t) for t in asked.entry.made}
        for e in self.tape.entries[asked.index :]:
            read = list(tensors((e.args, e.kwargs)))
            if not any(id(t) in made for t in read):
                continue
            for t in read:
                alike = t.numel() == n * like[0].numel() and t.is_floating_point() == like.is_floating_point()
                if id(t) not in self.tape.made and alike and t.dim() and t.dtype is not torch.bool:
                    return t.clone().reshape(n, *like.shape[1:]).to(like.dtype)
            if not like.is_floating_point() or getattr(e.call, "__name__", "") in SHAPES:
                made |= {id(t) for t in e.made}
        return None


def beside(step: Step, held_out: HeldOut, losses: Sequence[float]) -> tuple[Step, dict[str, Any]]:
    """The step with the batches that the script held out, where there are any, and what is known of them.

    rounds: of each evaluation the loss of the training in the steps before, and that of the held-out batches;
    ``again``, ``eval_after``: that of training batches now, in training and in eval mode. losses: of all steps.
    """
    given = isinstance(step.inputs, dict) and step.targets is None
    if not given and not (isinstance(step.targets, Tensor) and step.targets.dim()):
        return step, {}
    best: tuple[list[tuple[float, float]], list[Any]] | None = None
    for calls in held_out.of(step.root, None if given else step.targets):
        own = _rows([a.entry.inputs() for a, _ in calls if a.step == calls[0][0].step])
        if len(own & held_out.trained) > KNOWN * len(own):
            continue
        every = [(n, list(g)) for n, g in groupby(calls, lambda pair: pair[0].step)]
        values = [(n, [_value(step, *call) for call in group]) for n, group in every]
        kept = _alike([v for _, v in values])
        rounds = [
            (statistics.fmean(losses[max(0, n - 3) : n]), statistics.fmean(v[i] for i in kept if i < len(v)))
            for n, v in values if 0 < n <= len(losses) and len(v) > min(kept)
        ]  # fmt: skip
        first = [(mapped(a.entry.inputs(), torch.clone), t) for a, t in every[0][1]]
        pairs = [x if given else (x, t) for i, (x, t) in enumerate(first) if i in kept]
        if rounds and (best is None or rounds[-1][1] < best[0][-1][1]):
            best = rounds, pairs
    now = ShortRuns(step, [b if isinstance(b, tuple) else (b, None) for b in step.data or ()])
    modes = now.run(lambda _: lambda *_: torch.zeros(()), 0, look=lambda: both_modes(now, True)).seen
    found: dict[str, Any] = dict(zip(("again", "eval_after"), modes, strict=True))
    if best is not None:
        step, found["rounds"] = replace(step, valid=best[1]), best[0]
    return step, found


def _value(step: Step, asked: Asked, targets: Tensor | None) -> float:
    with torch.no_grad():
        return float(step.value(mapped(asked.result, torch.clone), targets))


def _alike(rounds: list[list[float]]) -> list[int]:
    """Of evaluations the places in their order at which the loss is no more than twice the lowest: one of them may be
    of other data on purpose (noisy, shifted, of another domain).
    """
    places = range(max(map(len, rounds)))
    means = [statistics.fmean(v[i] for v in rounds if i < len(v)) for i in places]
    return [i for i in places if means[i] <= 2 * abs(min(means))] or list(places)


def _rows(batches: Sequence[Any]) -> set[float]:
    """A number for each sample of these inputs: the same ones have the same."""
    first = [next((t for t in tensors(b) if t.dim()), None) for b in batches]
    return {s for t in first if t is not None for s in _sums(t)}


def _sums(t: Tensor) -> list[float]:
    flat = t.detach().reshape(len(t), -1)
    flat = flat[:, :: max(1, flat.shape[1] // 512)].double()
    return [float(s) for s in (flat * torch.linspace(1, 2, flat.shape[1], dtype=torch.float64)).sum(1)]


def _stack() -> tuple[tuple[str, int], ...]:
    found = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(LIBRARIES):
            found.append((frame.f_code.co_filename, frame.f_lasti))
        frame = frame.f_back
    return tuple(found)
