"""Optimizers, schedulers and scalers that a function can reach, standing aside while it runs."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


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
    inner = [
        v for o in objects for v in vars(o).values() if isinstance(v, torch.optim.Optimizer)
    ]  # SAM's, a schedule's
    objects = list({id(o): o for o in (*objects, *inner)}.values())
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
        elif isinstance(held, torch.optim.Optimizer):  # that of a SAM or a Lookahead
            new.__dict__[key] = inner = twin(held, copies, **changes)
            if held.param_groups is optimizer.param_groups:
                new.param_groups = inner.param_groups
    return new
