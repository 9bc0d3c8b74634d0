"""The loss that a loop's body hands to its backward pass, where it cannot be had from outputs and targets alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from normscope.call.batches import read_batch
from normscope.call.step import Step
from normscope.call.traceless import Kept
from normscope.core.errors import UsageError
from normscope.core.modes import Mode
from normscope.training.held import borrowed, held_by


class HandedLoss:
    """``step`` of a `Step`: one run of ``train_step`` whose optimizer stands still and whose backward pass is not run;
    returns the sum of what it is called on.
    """

    def __init__(self, train_step: Callable[..., Any], loss: Any, optimizer: torch.optim.Optimizer) -> None:
        self.train_step, self.loss, self.optimizer = train_step, loss, optimizer
        self.__name__ = "the loss of train_step"

    def __call__(self, model: Any, batch: Any) -> Tensor:
        """The loss of a batch, (inputs, targets) or as the loader gives it."""
        inputs, targets = read_batch(batch)
        kept, held = Kept(self.train_step, self.loss), [self.optimizer, *held_by(self.train_step)]
        with kept, kept, borrowed(held, {}), _Handed() as handed:  # schedules write into the optimizer, too
            still: Any = copy.copy(self.optimizer)
            still.step = lambda closure=None: None if closure is None else closure()
            still.zero_grad = lambda *_, **__: None
            returned = self.train_step(model, still, self.loss, inputs, targets)
        given = handed.losses or ([returned] if isinstance(returned, Tensor) else [])
        if not given:
            raise UsageError("train_step must call backward on its loss, or return it; it did neither.")
        return torch.stack([x.reshape(()) for x in given]).sum() if len(given) > 1 else given[0]


class _Handed(Mode):
    """Tensors that ``backward`` is called on, instead of the pass."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.backward:
            self.losses.append(args[0])
            return None
        return func(*args, **(kwargs or {}))


def by_its_loop(at: Step) -> Step:
    """The step as it is; with the loss of ``train_step`` where ``loss(model(inputs), targets)`` cannot be computed, as
    where the loop reshapes or shifts them, or makes the targets itself.
    """
    if at.train_step is None or at.optimizer is None or at.step is not None:
        return at
    try:
        _value(at)
    except Exception as error:
        own = at.loss if callable(at.loss) else at.criterion.value
        handed = replace(at, step=HandedLoss(at.train_step, own, at.optimizer))
        try:
            _value(handed)
        except Exception as other:
            error.add_note(f"normscope: train_step gave no loss either: {type(other).__name__}: {other}")
            raise error from None
        first = (str(error).splitlines() or [type(error).__name__])[0]
        handed.notes.append(f"the loss is what train_step calls backward on; of outputs and targets alone: {first}")
        return handed
    return at


def _value(at: Step) -> None:
    def work() -> None:
        args, kwargs, _ = at.arguments()
        at.value(at.whole(args, kwargs), at.own_targets())

    at.run(work)
