"""The user's own update on copies: their optimizer's twin, their loop, and what it can reach standing aside."""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from normscope.call.arguments import own_call, tensors
from normscope.call.batches import read_batch
from normscope.call.step import Step
from normscope.call.traceless import Kept
from normscope.training.handed import HandedLoss
from normscope.training.short import ShortRuns, Update, untouched

_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


class Own:
    """The user's own update on copies: their ``train_step``, or the usual one, with a twin of their optimizer.

    ``around`` is the surroundings of a run: of the user's loop what it can reach stands aside, optimizers, schedulers,
        scalers.
    """

    def __init__(self, at: Step) -> None:
        assert at.optimizer is not None
        self.at, self.optimizer = at, at.optimizer
        #: Norms of the gradients that the first optimizer to step was handed, and of those of the loss, in two runs of
        #: the loop's body; and who stepped in each.
        self.handed: list[tuple[float, float]] = []
        self.steppers: list[set[int]] = []
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
            self.steppers[-1].add(id(optimizer))
            self.kept.append(optimizer)

        self.steppers.append(set())
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


def held_by(function: Any, depth: int = 3) -> list[Any]:
    """Optimizers, schedulers and scalers that a function can reach: closure, globals that it names, defaults, its
    object.
    """
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


def twin(optimizer: torch.optim.Optimizer, copies: dict[int, Tensor], **changes: Any) -> torch.optim.Optimizer:
    """The same optimizer on other tensors: settings and state copied, hooks and a scheduler's wrappers left out."""

    def other(p: Tensor) -> Tensor:
        if id(p) not in copies:
            copies[id(p)] = p.detach().clone().requires_grad_(p.requires_grad)
        return copies[id(p)]

    new = type(optimizer).__new__(type(optimizer))
    plain = {k: v for k, v in vars(optimizer).items() if k not in ("step", "param_groups", "state", *_HOOKS)}
    new.__dict__.update(plain)
    for hook in _HOOKS:
        new.__dict__[hook] = OrderedDict()
    new.param_groups = []
    for group in optimizer.param_groups:
        own = {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
        own |= {k: v for k, v in changes.items() if k in own}
        new.param_groups.append({**own, "params": [other(p) for p in group["params"]]})
    new.state = type(optimizer.state)(dict)
    for p, state in optimizer.state.items():
        if isinstance(p, Tensor):
            new.state[other(p)] = {
                k: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in state.items()
            }
    for key, held in plain.items():
        if isinstance(held, list) and held and all(isinstance(v, Tensor) for v in held):
            new.__dict__[key] = [other(v) for v in held]
    return new


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
