"""A few real steps of the user's own loop body, on copies: what it calls in which order, and what moves."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from normscope.call.step import Step
from normscope.core.tensors import moves
from normscope.findings.checkup.functions import Functions
from normscope.training.own import Own
from normscope.training.short import ShortRuns, Update

#: Bodies that run until the optimizer has stepped twice, at most: a loop may accumulate.
MOST = 8
#: Of a weight's entries the share that lies at its largest magnitude where it is clipped (chosen by us).
CLIPPED = 0.1


def of_loop(at: Step) -> dict[str, Any]:
    """The order of backward, clipping, clearing and stepping, and whether anything moved; see NS610 to NS612."""
    if at.train_step is None or at.optimizer is None:
        return {}
    log: list[list[str]] = []
    unmoved: list[bool] = []
    seeds: list[tuple[Tensor, Tensor]] = []
    back: dict[str, Any] = {"handed": False, "fed": {}, "of": {}}
    functions, thrown = Functions(), Thrown()
    lost: list[tuple[str, int]] = []
    own = Own(at)
    names = {id(p): n.rpartition(".")[0] for n, p in at.root.named_parameters()}

    def begin(copies: Mapping[int, Tensor]) -> Update:
        update = own.begin(copies)
        start = {k: c.detach().clone() for k, c in copies.items()}

        def listened(args: tuple[Any, ...], kwargs: dict[str, Any], targets: Any) -> Tensor:
            events: list[str] = []
            log.append(events)
            if not any(moves(c.grad) for c in copies.values()):
                events.append("clear")
            before, after = {k: c.detach().clone() for k, c in copies.items()}, {}

            def look(*_: Any) -> None:
                after.update({k: c.detach().clone() for k, c in copies.items()})

            here = {id(c): names.get(k, "") for k, c in copies.items()}

            def handed(optimizer: torch.optim.Optimizer, *_: Any) -> None:
                held = [p for g in optimizer.param_groups for p in g["params"] if id(p) in here]
                fed = any(moves(p.grad) for p in held)
                lost.append(thrown.stepped(optimizer))
                back["handed"] |= fed
                back["fed"][id(optimizer)] = fed or back["fed"].get(id(optimizer), False)
                back["of"][id(optimizer)] = list(dict.fromkeys(here[id(p)] for p in held))

            torch.rand(len(log))  # so that no two steps begin alike
            seeds.append((torch.get_rng_state(), torch.get_rng_state()))
            hooks = register_optimizer_step_pre_hook(handed), register_optimizer_step_post_hook(look)
            try:
                with listening(events, thrown), functions.inside(at.root), functions:
                    value = update(args, kwargs, targets)
            finally:
                for hook in hooks:
                    hook.remove()
            seeds[-1] = seeds[-1][0], torch.get_rng_state()
            if after:
                found = _undone(names, before, after, copies)
                if found.get("straight", 0.0) > back.get("straight", 0.0):
                    back.update(found)
            unmoved[:] = [torch.equal(copies[k], start[k]) for k in start]
            ends = [(names[k], _end(c)) for k, c in copies.items() if k in names and _end(start[k]) is None]
            back["clipped"] = {n: c for n, c in ends if c is not None}
            return value

        return listened

    until = _until_two_steps(log)
    ShortRuns(at).run(begin, MOST, until=until, around=own.around)
    back["starved"] = [n for k, fed in back.pop("fed").items() if not fed for n in back["of"][k]]
    del back["of"]
    ends = [b for _, b in seeds]
    back["reseeded"] = len(ends) > 1 and torch.equal(*ends[:2]) and not any(torch.equal(a, b) for a, b in seeds)
    still = all(g.get("lr", 1.0) == 0 for g in at.optimizer.param_groups)  # as a warm-up leaves it: nothing is to move
    return order_of(_by_steps(log), -1 if still else unmoved.count(False)) | back | {
        "derived": functions.derived, "aimless": functions.aimless,
        "lost": max(lost, key=itemgetter(1), default=("", 0)),
    }  # fmt: skip


def _until_two_steps(log: list[list[str]]) -> Callable[[list[float]], bool]:
    """Two bodies at least; where the first did not step, as many as it takes to see two steps."""
    return lambda losses: (
        len(losses) > 1
        and (sum("step" in events for events in log) > 1 or not any(e in log[0] for e in ("backward", "step")))
    )


def _by_steps(log: list[list[str]]) -> list[list[str]]:
    """The events from one step to the next: of several bodies where these accumulate."""
    parts: list[list[str]] = [[]]
    for events in log:
        parts[-1] = parts[-1] + events
        if "step" in events:
            parts.append([])
    return parts[:-1] if len(parts) > 1 else log


def _end(p: Tensor) -> float | None:
    """The magnitude at which many entries of a weight lie, of either sign."""
    if p.dim() < 2 or p.numel() < 32:
        return None
    most = p.detach().abs().max()
    at = [(p == sign * most).float().mean() for sign in (1, -1)]
    return float(most) if float(most) > 0 and min(at) > 0 and float(sum(at)) > CLIPPED else None


def _undone(
    names: Mapping[int, str], before: Mapping[int, Tensor], after: Mapping[int, Tensor], now: Mapping[int, Tensor]
) -> dict[str, Any]:
    """Which share of the optimizer's step the loop takes back, and in which modules most."""
    step = {k: (after[k] - before[k]).flatten() for k in after if k in names and before[k].is_floating_point()}
    more = {k: (now[k].detach() - after[k]).flatten() for k in step}
    along = {k: -float(step[k] @ more[k]) for k in step}
    total, size = sum(float(d @ d) for d in step.values()), sum(float(d @ d) for d in more.values())
    if not total or not size or sum(along.values()) < 0.5 * (total * size) ** 0.5:
        return {}
    worst = sorted(step, key=lambda k: -along[k])
    straight = sum(along.values()) / (total * size) ** 0.5
    found = {"undone": sum(along.values()) / total, "undone_in": list(dict.fromkeys(names[k] for k in worst))[:8]}
    return found | {"straight": straight}


def order_of(log: list[list[str]], moved: int) -> dict[str, Any]:
    """What the order of two steps' events says. moved: how many parameters the first steps changed."""
    first = log[0]
    clips = [i for i, e in enumerate(first) if e.startswith("clip")]
    backs = [i for i, e in enumerate(first) if e == "backward"]
    second = log[1] if len(log) > 1 else []
    until = max((i for i, e in enumerate(second) if e == "backward"), default=len(second))
    cleared = "clear" in second[:until] or "clear" in first[(first.index("step") if "step" in first else 0) :]
    return {
        "events": first, "moved": moved, "stepped": "step" in first, "backward": bool(backs),
        "clip_early": bool(clips) and bool(backs) and clips[0] < backs[0] and not any(c > backs[0] for c in clips),
        "clip_scaled": "scaled" in first and any("scaled" in first[:c] and "unscale" not in first[:c] for c in clips),
        "never_cleared": "step" in first and "step" in second and not cleared,
        "summed": first.count("summed") > 2,
        "cleared_late": bool(backs) and "clear" in first[backs[-1] :] and "step" in first
        and first.index("step") > backs[-1] + first[backs[-1] :].index("clear"),
    }  # fmt: skip


def sums(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a backward pass now adds to gradients that the optimizer holds."""
    return any(moves(p.grad) for g in optimizer.param_groups for p in g["params"])


class Thrown:
    """Which backward passes an optimizer loses: their gradients are cleared before it steps, on those of a later pass
    of the same line, with the weights as they were. Gradients that the user makes of several (by hand) lose none.
    """

    def __init__(self) -> None:
        self._known: dict[int, torch.optim.Optimizer] = {}
        self._passes: list[tuple[str, list[int]]] = []
        self._lost: dict[int, list[tuple[str, list[int]]]] = {}
        self._since: dict[int, int] = {}
        self._grads: dict[int, Tensor | None] = {}

    def backward(self, place: str) -> None:
        """A pass has ended."""
        held = [p for o in self._known.values() for g in o.param_groups for p in g["params"]]
        self._passes.append((place, [p._version for p in held]))
        self._grads = {id(p): p.grad for p in held}

    def clear(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to be cleared."""
        key = id(optimizer)
        self._known[key], self._grads = optimizer, {}
        self._lost.setdefault(key, []).extend(self._passes[self._since.get(key, 0) :])
        self._since[key] = len(self._passes)

    def stepped(self, optimizer: torch.optim.Optimizer) -> tuple[str, int]:
        """The line, and how many passes there were lost since the step before."""
        key = id(optimizer)
        used, lost = self._passes[self._since.get(key, 0) :], self._lost.get(key, [])
        held = [p for g in optimizer.param_groups for p in g["params"] if id(p) in self._grads]
        own = bool(held) and all(p.grad is self._grads[id(p)] for p in held)
        self._passes, self._lost, self._since, self._grads = [], {}, {}, {}
        return (used[-1][0], sum(x == used[-1] for x in lost)) if used and own else ("", 0)


@contextmanager
def listening(events: list[str], thrown: Thrown) -> Iterator[None]:
    """Write down calls of torch's own training functions; a profiler that was there is put back."""
    zero = inspect.unwrap(torch.optim.Optimizer.zero_grad).__code__  # torch's decorator has one code for all it wraps
    known: dict[Any, str] = {
        zero: "clear",
        nn.Module.zero_grad.__code__: "clear",
        Tensor.backward.__code__: "backward",
        torch.amp.GradScaler.unscale_.__code__: "unscale",
    }
    clip = torch.nn.utils.clip_grad
    for function in (clip.clip_grad_norm_, clip.clip_grad_value_):
        known[inspect.unwrap(function).__code__] = "clip"

    inside: list[torch.optim.Optimizer] = []  # that steps, and whose closure has cleared nothing so far

    def listen(frame: FrameType, event: str, _: Any) -> None:
        own = frame.f_code.co_name == "step" and frame.f_locals.get("self")
        if isinstance(own, torch.optim.Optimizer) and event in ("call", "return"):
            inside[:] = [own] if event == "call" else []
        if event == "return" and frame.f_code is Tensor.backward.__code__ and frame.f_back is not None:
            thrown.backward(f"{Path(frame.f_back.f_code.co_filename).name}:{frame.f_back.f_lineno}")
        if event == "call":
            if frame.f_code is zero:
                thrown.clear(frame.f_locals["self"])
            name = known.get(frame.f_code)
            if frame.f_code is torch.amp.GradScaler.scale.__code__ and frame.f_locals["self"].is_enabled():
                name = "scaled"
            if name == "clear":
                inside.clear()
            if name == "backward" and inside and sums(inside[0]):
                events.append("summed")
            if name is None and isinstance(own, torch.optim.Optimizer):
                name = "step"
            if name is not None and not (name == "step" and events and events[-1] == "step"):
                events.append(name)

    before = sys.getprofile()
    sys.setprofile(listen)
    try:
        yield
    finally:
        sys.setprofile(before)
