"""The user's own update on copies: their optimizer's twin, their loop, and what it can reach standing aside."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from normscope.call.arguments import own_call, tensors
from normscope.call.batches import read_batch
from normscope.call.step import Step
from normscope.call.traceless import Kept
from normscope.training.handed import HandedLoss
from normscope.training.held import borrowed, held_by, twin
from normscope.training.short import ShortRuns, Update, untouched


class Own:
    """The user's own update on copies: their ``train_step``, or the usual one, with a twin of their optimizer.

    ``around`` is the surroundings of a run: of the user's loop what it can reach stands aside, optimizers, schedulers,
        scalers.
    """

    def __init__(self, at: Step) -> None:
        assert at.optimizer is not None
        self.at, self.optimizer = at, at.optimizer
        #: Norms of the gradients that the first optimizer to step was handed, and of those of the loss, in two runs of
        #: the loop's body; and who stepped in each, with what it trains.
        self.handed: list[tuple[float, float]] = []
        self.steppers: list[dict[int, frozenset[int]]] = []
        self.kept: list[Any] = []  # so that no two have one id
        self.twin = at.optimizer
        #: Whether the user's loop hands the model other inputs than those of the batch.
        self.changed = False
        #: Whether it runs the model in eval mode where it differentiates.
        self.evaluates = False

    def begin(self, copies: Mapping[int, Tensor]) -> Update:
        """See `ShortRuns.run`."""
        at, own = self.at, self.twin
        if at.train_step is None:
            to_its_rate(own)  # nobody tells when a scheduler would be stepped
            return ShortRuns(at).plain(lambda _: own)(copies)
        loss = at.loss if callable(at.loss) else at.criterion.value

        def update(args: tuple[Any, ...], kwargs: dict[str, Any], targets: Any) -> Tensor:
            if len(self.steppers) < 2:
                with self._noted(copies, args, kwargs, targets):
                    return step(args, kwargs, targets)
            return step(args, kwargs, targets)

        def step(args: tuple[Any, ...], kwargs: dict[str, Any], targets: Any) -> Tensor:
            inputs = kwargs if kwargs else args[0] if len(args) == 1 else args
            if isinstance(at.step, HandedLoss):
                inputs, targets = read_batch(inputs)
            value = at.train_step(at.root, own, loss, inputs, targets)  # type: ignore[misc]
            if isinstance(value, Tensor) and value.numel() == 1:
                return value.detach().reshape(())
            if isinstance(value, int | float):
                return torch.tensor(float(value))
            with torch.no_grad():  # a body that returns nothing: the loss of the same batch afterwards
                return at.value(at.whole(args, kwargs), targets)

        return update

    @contextmanager
    def _noted(self, copies: Mapping[int, Tensor], args: Any, kwargs: Any, targets: Any) -> Iterator[None]:
        """One step of the user's loop, with the size of the gradient that reaches the optimizer beside the loss's
        own.
        """
        wanted = [p for p in copies.values() if p.requires_grad]
        with torch.random.fork_rng(devices=[]), untouched(self.at.root):
            own_args, own_kwargs, _ = own_call(args, kwargs, grad=False)
            again = isinstance(self.at.step, HandedLoss)  # it is what the loop's body says: nothing to compare
            value = torch.zeros(()) if again else self.at.value(self.at.whole(own_args, own_kwargs), targets)
            found = torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else []
        true = _norm(found)

        def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if not self.steppers[-1]:
                self.handed.append((_norm([p.grad for g in optimizer.param_groups for p in g["params"]]), true))
            self.steppers[-1][id(optimizer)] = frozenset(id(p) for g in optimizer.param_groups for p in g["params"])
            self.kept.append(optimizer)

        self.steppers.append({})
        given = [t.clone() for t in tensors((args, kwargs))]

        def enter(_: Any, now: Any, more: Any) -> None:
            got = list(tensors((now, more)))
            same = [a.shape == b.shape and torch.equal(a, b) for a, b in zip(given, got, strict=False)]
            self.changed |= not all(same)
            self.evaluates |= torch.is_grad_enabled() and not self.at.root.training

        hooks = [
            register_optimizer_step_pre_hook(look),
            self.at.root.register_forward_pre_hook(enter, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

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


def to_its_rate(optimizer: torch.optim.Optimizer) -> None:
    """A warm-up starts near zero; the rate that it goes to counts."""
    for group in optimizer.param_groups:
        for key in ("initial_lr", "max_lr"):
            if _number(group.get(key)) and _number(group.get("lr")):
                group["lr"] = max(group["lr"], group[key])


def rate_of(group: Mapping[str, Any]) -> float:
    """The rate of a group of parameters, of a warm-up the one that it goes to."""
    return max(float(group.get(key, 0.0)) for key in ("lr", "initial_lr", "max_lr"))


def wants_a_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step evaluates the loss itself, as L-BFGS does: there is no single step to look at."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _norm(grads: Any) -> float:
    return float(sum(g.detach().float().square().sum() for g in grads if g is not None)) ** 0.5


def _number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)
