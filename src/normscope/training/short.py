"""Short runs of training from where a model is: on copies, a few dozen steps, the losses kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import mapped, own_call, read_inputs
from normscope.call.step import Step
from normscope.core.memory import check_copies

#: A run ends at a loss that is this many times the first one and more than this above it, or no number.
BLOWN = 1e4
#: Where eval mode is worse by this share, so many passes without updates let running statistics catch up.
SETTLED, PASSES = 0.5, 30

#: One update of the parameters with one batch, (args, kwargs, targets) -> the loss before it.
Update = Callable[[tuple[Any, ...], dict[str, Any], Any], Tensor]
#: An update made for the copies, by the ``id`` of the parameters that they stand for.
Begin = Callable[[Mapping[int, Tensor]], Update]


@dataclass(frozen=True)
class Course:
    """What a short run did. losses: before each update. ``blown``: it ended early, at no number or far above its start.

    fastest: seconds of the quickest update.
    """

    losses: tuple[float, ...]
    fastest: float
    blown: bool = False
    #: What ``look`` returned at the end.
    seen: Any = None

    def end(self, share: float = 0.2) -> float:
        """The mean loss of the last part of the steps; infinite where it is blown."""
        if self.blown or not self.losses:
            return math.inf
        last = self.losses[-max(1, round(share * len(self.losses))) :]
        return sum(last) / len(last)


class ShortRuns:
    """Short runs of one step's model, each from the same start, with the same batches and random numbers.

    batches: (inputs, targets) each, taken in turn; without any the step's own batch is taken again and again.
    The model, its buffers and the batches are copies: nothing is left behind.
    """

    def __init__(self, at: Step, batches: Sequence[tuple[Any, Any]] = ()) -> None:
        self.at = at
        self.batches = [self._read(x, t) for x, t in batches] or [(at.args, at.kwargs, at.targets)]

    def _read(self, inputs: Any, targets: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        if self.at.step is not None:
            return (inputs if targets is None else (inputs, targets),), {}, None
        args, kwargs = read_inputs(self.at.root, inputs)
        return args, kwargs, targets

    def batch(self, i: int) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
        """Private copies of a batch, on the model's device."""
        args, kwargs, targets = self.batches[i % len(self.batches)]
        device = self.at.device
        own, named, _ = own_call(args, kwargs, grad=False, device=device)
        return own, named, mapped(targets, lambda t: t.detach().to(device, copy=True))

    def run(
        self,
        begin: Begin,
        steps: int,
        *,
        until: Callable[[list[float]], bool] | None = None,
        look: Callable[[], Any] | None = None,
        around: Callable[[Mapping[int, Tensor]], AbstractContextManager[Any]] | None = None,
    ) -> Course:
        """``steps`` updates; ``until(losses)`` may end them early; ``look()`` sees the model at the end, inside the
        run.

        around: what else stands in for the user's objects while it runs.
        """
        parts = list(self.at.root.parameters())
        moved = [p for p in parts if p.requires_grad]
        check_copies([*parts, *moved, *moved], 1, "a copy, gradients, and what the optimizer keeps")
        copies = {id(p): leaf(p) for p in self.at.root.parameters()}
        losses: list[float] = []
        blown = [False]
        fastest = [math.inf]

        def work() -> Any:
            update = begin(copies)
            for i in range(steps):
                start = time.perf_counter()
                try:
                    value = float(update(*self.batch(i)))
                except Exception:
                    if not i or around is not None:  # the user's own loop, or it never ran
                        raise
                    value = math.nan  # outputs beyond what the loss takes
                fastest[0] = min(fastest[0], time.perf_counter() - start)
                losses.append(value)
                blown[0] = not math.isfinite(value) or abs(value - losses[0]) > BLOWN * max(abs(losses[0]), 1e-3)
                if blown[0] or (until is not None and until(losses)):
                    break
            return None if look is None or blown[0] else look()

        with nullcontext() if around is None else around(copies):
            seen = self.at.run(work, copies)
        return Course(tuple(losses), fastest[0], blown[0], seen)

    def plain(self, make: Callable[[list[Tensor]], torch.optim.Optimizer]) -> Begin:
        """The usual update: clear, forward, backward, step, with an optimizer of all parameters that train."""

        def begin(copies: Mapping[int, Tensor]) -> Update:
            optimizer = make([p for p in copies.values() if p.requires_grad])

            def update(args: tuple[Any, ...], kwargs: dict[str, Any], targets: Any) -> Tensor:
                optimizer.zero_grad()
                value = self.value(args, kwargs, targets)
                if value.requires_grad:
                    value.backward()
                    for p in copies.values():
                        if p.grad is not None and p.grad.is_sparse:  # most optimizers take none
                            p.grad = p.grad.to_dense()
                    optimizer.step()
                return value.detach()

            return update

        return begin

    def value(self, args: tuple[Any, ...], kwargs: dict[str, Any], targets: Any) -> Tensor:
        """The loss of one batch; inside a run."""
        return self.at.value(self.at.whole(args, kwargs), targets)


def leaf(p: Tensor) -> Tensor:
    """A leaf with a tensor's numbers, a parameter of one."""
    value = p.detach().clone()
    return nn.Parameter(value, requires_grad=p.requires_grad) if isinstance(p, nn.Parameter) else value.requires_grad_()


@contextmanager
def untouched(root: nn.Module) -> Iterator[None]:
    """Buffers and modes of a model are as before behind it: what is only looked at moves no running statistics."""
    modes = [(m, m.training) for m in root.modules()]
    held = [(m, k, b, b.clone()) for m in root.modules() for k, b in m._buffers.items() if b is not None]
    try:
        yield
    finally:
        for m, k, b, value in held:
            m._buffers[k] = b
            b.copy_(value)
        for m, training in modes:
            m.training = training


def level(runs: ShortRuns, training: bool | None) -> Callable[[], float]:
    """The mean loss of the first batches, in a mode (``None``: as it is); inside a run, and without a trace in it."""

    def look() -> float:
        with untouched(runs.at.root), torch.no_grad():
            for m in runs.at.root.modules() if training is not None else ():
                m.training = bool(training)
            values = [float(runs.value(*runs.batch(i))) for i in range(min(8, len(runs.batches)))]
        return sum(values) / len(values)

    return look


def both_modes(runs: ShortRuns, training: bool | None) -> tuple[float, float]:
    """The mean loss of the first batches in a mode (``None``: as it is), and in eval mode; inside a run.

    Where eval mode is much worse, passes without updates let running statistics catch up with the weights first.
    """
    as_it_trains, evaluated = level(runs, training)(), level(runs, False)
    seen = evaluated()
    if seen > as_it_trains + SETTLED * abs(as_it_trains):
        with torch.no_grad():
            for i in range(PASSES):
                runs.value(*runs.batch(i))
        seen = min(seen, evaluated())
    return as_it_trains, seen
