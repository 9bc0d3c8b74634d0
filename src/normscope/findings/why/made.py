"""From what was seen of a script's steps to a `Step`: which model, which batch, which loss."""

from __future__ import annotations

import inspect
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.call.arguments import mapped, tensors
from normscope.call.step import Step
from normscope.findings.checkup.loop import order_of
from normscope.findings.why.held_out import HeldOut, beside
from normscope.findings.why.tape import MERGES, Entry, Tape, replay
from normscope.findings.why.watch import Pair, Taken


@dataclass
class Seen:
    """One pair of model and optimizer, as a step, with what the running loop showed and where it stands in the
    script.
    """

    step: Step
    observed: dict[str, Any]
    places: dict[str, str]
    label: str
    parameters: int
    notes: list[str]


class Unclear(Exception):
    """No step can be made of what was seen; the words say why."""


class Parts(nn.Module):
    """Several models that one loss depends on."""

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__()
        for i, m in enumerate(models):
            self.add_module(f"{type(m).__name__}{i if len(models) > 1 else ''}", m)


def seen(pair: Pair, held_out: HeldOut | None = None) -> Seen:
    """The step of a pair, with the batches that were held out; `Unclear` where there is none."""
    first = next((t for t in pair.taken if t.losses), None)
    if first is None:
        raise Unclear(
            "the optimizer stepped, and backward() never ran before it: "
            + ("the script sets the gradients itself" if pair.fed else "there were no gradients to step with")
        )
    loss, where = first.losses[0]
    entries = first.tape.behind(loss)
    models = _distinct([e.module for e in entries if e.module is not None])
    weights = {id(p) for m in models or first.tape.models() for p in m.parameters()}
    read = {id(t) for t, _ in first.tape.twins.values()} | {id(t) for e in entries for t in tensors((e.args, e.kwargs))}
    if not pair.held & weights and (pair.held & read or not models):
        raise Unclear(
            "the optimizer trains no weight of a module that was called: an image, a temperature, weights of losses, "
            "say; or the script calls forward() in the module's place, or computes inside of torch.func's transforms"
        )
    if not models:
        raise Unclear(
            f"the loss of {where} does not depend on any module that ran with gradients on: it is detached, kept by a "
            "module as an attribute, or computed inside of torch.func's transforms"
        )
    loss = first.tape.unscaled(loss)
    entries = first.tape.behind(loss)
    calls = [e for e in entries if e.module is not None]
    ends = [t.tape.unscaled(x) for t in pair.taken for x, _ in t.losses[:1]]
    losses = [float(x.detach()) for x in ends if x.numel() == 1]
    observed: dict[str, Any] = {
        "loop": order_of([t.events for t in pair.taken[:2]], max(t.moved for t in pair.taken[:3]))
        | {"lost": pair.lost},
        "losses": [*losses, *(loss for loss, _ in pair.later)],
        "rates": [*(t.rate for t in pair.taken), *(rate for _, rate in pair.later)],
        "loaders": pair.loaders,
        "copied": first.tape.copied,
        "signed": next(filter(None, map(_signed, entries)), None),
    }  # fmt: skip
    plain = not any(e.call is torch.autograd.grad for e in entries) and not _arrays(calls)
    single = plain and len(calls) == len(models) == 1 and isinstance(calls[0].call, nn.Module)
    step = (_single if single else _composed)(pair, first, calls, models, loss)
    notes: list[str] = []
    rows = step.rows.n if step.step is None else 0
    if single and rows > len(next((t for t in tensors((calls[0].args, calls[0].kwargs)) if t.dim()), ())) == 1:
        notes.append(f"the script's batches hold one sample each: {rows} of them were put together here")
    if held_out is not None and len(observed["losses"]) == pair.count:
        try:
            observed["spread"] = [_spread(e.made for e in calls), _spread(_now(calls))]
            observed["alike"] = _alike(entries, calls, loss)
            if single:
                step, observed["held_out"] = beside(step, held_out, observed["losses"])
        except Exception as error:  # of the user's own code, in a state that it did not expect
            notes.append(f"could not look at the end of the script: {type(error).__name__}: {error}")
    _restore(pair)
    main = step.root
    mine = [m for m in models if any(id(p) in pair.held for p in m.parameters())] or models
    label = " + ".join(type(m).__name__ for m in mine)
    places = {"the loss": entries[-1].place or where, "the optimizer": pair.place} | _defined(main)
    count = sum({id(p): p.numel() for m in mine for p in m.parameters()}.values())
    return Seen(step, observed, {k: v for k, v in places.items() if v}, label, count, notes)


def _distinct(models: list[nn.Module]) -> list[nn.Module]:
    out: list[nn.Module] = []
    for m in models:
        if not any(m is x for x in out):
            out.append(m)
    return out


def _restore(pair: Pair) -> None:
    """Everything as it was before the first step of this pair."""
    for before in pair.before:
        before.restore()
    optimizer = pair.optimizer
    optimizer.state.clear()
    for p, state in pair.state.get("state", {}).items():
        optimizer.state[p] = dict(state)
    for group, old in zip(optimizer.param_groups, pair.state.get("groups", []), strict=False):
        group.update(old)
    for before in pair.before:
        for t, _, _ in before.values:
            t.grad = None


def _single(pair: Pair, first: Taken, calls: list[Entry], models: list[nn.Module], loss: Tensor) -> Step:
    """One model, called once for a loss: its batch, and the loss as a function of outputs and targets."""
    call = calls[0]
    at = next((i for i, t in enumerate(call.made) if t is loss), None)
    inputs = call.inputs()
    given: dict[str, Any] = {"optimizer": pair.optimizer, "mode": "train"}
    if at is not None:
        data = [b if isinstance(b, dict) else (b, None) for b in (c.inputs() for c in _each(pair, models[0]))]
        own = None if isinstance(call.result, Mapping) or len(call.made) == 1 else _own(at)
        return _with_data(models[0], inputs, None, own, data, given)
    function, targets = _loss(first.tape, call, loss)
    pairs = []
    origins = set()
    for taken in pair.taken:
        for x, _ in taken.losses[:1]:
            inner = taken.tape.unscaled(x)
            run = [e for e in taken.tape.behind(inner) if e.module is not None]
            if len(run) == 1 and run[0].module is models[0]:
                pairs.append((run[0].inputs(), _loss(taken.tape, run[0], inner)[1]))
                origins.add(run[0].origin)
    if len(origins) == 1 and not pair.listed:  # all data at once, every time
        pairs = pairs[:1]
    return _with_data(models[0], inputs, targets, function, pairs, given)


def _now(calls: list[Entry]) -> list[list[Tensor]]:
    """What calls give with the weights as they are."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return [list(tensors(e.call(*e.args, **e.kwargs))) for e in calls]


def _alike(entries: list[Entry], calls: list[Entry], loss: Tensor) -> float:
    """The loss where outputs of one shape are one row, the same for all samples."""
    rows: dict[torch.Size, Tensor] = {}
    outputs = [t for e in calls for t in e.made if t.is_floating_point() and t.dim() > 1 and t is not loss]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        given = {id(t): rows.setdefault(t.shape[1:], t.mean(0)).expand_as(t) for t in outputs}
        return float(replay(entries, given, loss)) if given else math.nan


def _spread(outputs: Iterable[Iterable[Tensor]]) -> float:
    """How far the rows of outputs differ, relative to their size; of the one where they do most."""
    found = [t.detach().float() for ts in outputs for t in ts if t.is_floating_point() and t.dim() > 1]
    sizes = [t.square().mean().sqrt().clamp_min(1e-30) for t in found]
    spreads = [t.std(0).square().mean().sqrt() / s for t, s in zip(found, sizes, strict=True) if min(t.shape[:2]) > 1]
    return max(map(float, spreads), default=math.nan)


def _own(at: int) -> Callable[..., Any]:
    """The loss that a model gives as one of several tensors."""

    def own_loss(whole: Any, _: Any) -> Any:
        return list(tensors(whole))[at]

    return own_loss


def _with_data(
    model: nn.Module, inputs: Any, targets: Any, loss: Any, batches: list[Any], given: dict[str, Any]
) -> Step:
    batches = _one_epoch(batches)
    if (whole := _together(batches)) is not None:
        return Step(model, *whole, loss, **given)
    if len(batches) < 2:
        return Step(model, inputs, targets, loss, **given)
    return Step(model, inputs, targets, loss, data=batches, **given)


def _together(batches: list[Any]) -> tuple[Any, Any] | None:
    """Batches of one sample each as one batch: those of the commonest shapes."""
    pairs = [b for b in batches if isinstance(b, tuple) and isinstance(b[1], Tensor)]
    parts = {i: list(tensors(b)) for i, b in enumerate(pairs)}
    if any(not t.dim() or len(t) != 1 for p in parts.values() for t in p):
        return None
    kinds = Counter(tuple(t.shape for t in p) for p in parts.values())
    most = max(kinds, key=kinds.__getitem__, default=())
    alike = [i for i, p in parts.items() if tuple(t.shape for t in p) == most]
    if len(alike) < 2:
        return None
    joined = {id(ts[0]): torch.cat(ts) for ts in map(list, zip(*(parts[i] for i in alike), strict=True))}
    inputs, targets = mapped(pairs[alike[0]], lambda t: joined[id(t)])
    return inputs, targets


def _one_epoch(batches: list[Any]) -> list[Any]:
    """Up to where the first batch comes again; all of them where it is the only one."""
    first = list(tensors(batches[:1]))
    again = (
        i for i, b in enumerate(batches)
        if i and all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(first, tensors(b), strict=False))
    )  # fmt: skip
    end = next(again, len(batches))
    return batches if end == 1 else batches[:end]


def _each(pair: Pair, model: nn.Module) -> list[Entry]:
    found = []
    for taken in pair.taken:
        for x, _ in taken.losses[:1]:
            found += [e for e in taken.tape.behind(taken.tape.unscaled(x)) if e.module is model][:1]
    return found


def _loss(tape: Tape, call: Entry, loss: Tensor) -> tuple[Callable[..., Any], Any]:
    """The loss as a callable (outputs, targets), the user's own module or function where one call is all there is;
    targets.
    """
    outputs = list(call.made)
    n = next((t.shape[0] for t in tensors((call.args, call.kwargs)) if t.dim()), 0)
    entries = [e for e in tape.behind(loss) if e is not call and not _flat_already(e, n)]
    made = {id(t) for e in (*entries, call) for t in tensors(e.result)}
    leaves = [
        t for e in entries for t in tensors((e.args, e.kwargs)) if id(t) not in made and not isinstance(t, nn.Parameter)
    ]
    leaves = [t for t in leaves if t.dtype is not torch.bool]  # a mask
    leaves = _distinct_tensors([t for t in leaves if t.dim() and (t.shape[0] == n or t.numel() % max(n, 1) == 0)])
    if len(entries) == 1:
        e = entries[0]
        plain = (
            len(e.args) == 2 and not e.kwargs and any(e.args[0] is o for o in outputs) and isinstance(e.args[1], Tensor)
        )
        if plain and id(e.args[1]) not in made:
            return e.call, e.args[1]
    targets: Any = leaves[0] if len(leaves) == 1 else tuple(leaves) if leaves else None
    assert call.module is not None
    bare = _bare(call.module, entries)

    def value(whole: Any, given: Any) -> Any:
        now = {id(o): new for o, new in zip(outputs, tensors(whole), strict=False)}
        if leaves:
            now |= {id(t): new for t, new in zip(leaves, [given] if len(leaves) == 1 else given, strict=True)}
        return replay(entries, now | bare(), loss)

    value.__name__ = _named(entries)
    return value, targets


#: Losses whose targets are 1 and -1.
_SIGNED = {
    "CosineEmbeddingLoss", "cosine_embedding_loss", "HingeEmbeddingLoss", "hinge_embedding_loss", "MarginRankingLoss",
    "margin_ranking_loss", "SoftMarginLoss", "soft_margin_loss",
}  # fmt: skip


def _signed(e: Entry) -> dict[str, Any] | None:
    """Of a loss that wants targets of 1 and -1 what it gets, where zeros are among them."""
    name = getattr(e.call, "__name__", type(e.call).__name__)
    given = [t for t in tensors((e.args, e.kwargs)) if not t.requires_grad and t.dim() < 2]
    if name not in _SIGNED or not given or not bool((given[-1] == 0).any()):
        return None
    target = given[-1].detach()
    values = [f"{v:g}" for v in target.unique().tolist()[:4]]
    return {"loss": name, "values": values, "share": float((target == 0).float().mean())}


def _flat_already(e: Entry, n: int) -> bool:
    """Whether targets were flattened so that they have a row for each of the inputs: as they are, they belong there."""
    flat = e.call in MERGES and not e.sources and isinstance(e.result, Tensor) and isinstance(e.args[0], Tensor)
    return flat and len(e.result) == n != len(e.args[0])


def _named(entries: list[Entry]) -> str:
    last = entries[-1].call if entries else None
    return getattr(last, "__name__", type(last).__name__)


def _distinct_tensors(found: list[Tensor]) -> list[Tensor]:
    out: dict[int, Tensor] = {}
    for t in found:
        out.setdefault(id(t), t)
    return list(out.values())


def _bare(model: nn.Module, entries: list[Entry]) -> Callable[[], dict[int, Tensor]]:
    """What stands, at a call of it, for the parameters that these calls read outside of any module: by ``id``."""
    owned = {id(p): (m, n) for m in model.modules() for n, p in m.named_parameters(recurse=False)}
    read = {id(t) for e in entries for t in tensors((e.args, e.kwargs))}
    return lambda: {k: getattr(m, n) for k, (m, n) in owned.items() if k in read}


def _arrays(calls: list[Entry]) -> list[Tensor]:
    """Arrays of numpy's among the arguments of models, as tensors."""
    given = (a for e in calls for a in (*e.args, *e.kwargs.values()))
    return [torch.tensor(a) for a in given if isinstance(a, np.ndarray) and a.ndim and a.dtype.kind in "biuf"]


def _composed(pair: Pair, first: Taken, calls: list[Entry], models: list[nn.Module], loss: Tensor) -> Step:
    """Several calls behind one loss: all of it is computed again from the tensors that came from outside."""
    entries = first.tape.behind(loss)
    made = {id(t) for e in entries for t in tensors(e.result)}
    leaves = _distinct_tensors([
        t for e in entries for t in tensors((e.args, e.kwargs)) if id(t) not in made and not isinstance(t, nn.Parameter)
    ])  # fmt: skip
    same = _read_again(leaves, calls)
    leaves = sorted((t for t in leaves if id(t) not in same), key=lambda t: not t.dim() or len(t) == 1)  # rows first
    model = models[0] if len(models) == 1 else _enclosing(pair, models) or Parts(models)
    bare = _bare(model, entries)

    def again(_: nn.Module, batch: Any) -> Any:
        with torch.enable_grad() if derived else nullcontext():
            given = {id(t): new for t, new in zip(leaves, list(batch.values())[len(arrays) :], strict=True)}
            given |= bare()
            return replay(entries, given | {k: given[id(t)] for k, t in same.items()}, loss)

    derived = any(e.call is torch.autograd.grad for e in entries)
    again.__name__ = "of the script"
    arrays = _arrays(calls)  # they tell how many samples there are
    named = {f"tensor {i}": t for i, t in enumerate([*arrays, *leaves])}  # by name: they need not be of one length
    return Step(model, named, step=again, optimizer=pair.optimizer)


def _read_again(leaves: list[Tensor], calls: list[Entry]) -> dict[int, Tensor]:
    """Of equal tensors that go to different places (states to an actor and a critic) what stands for the later ones, by
    ``id``; not of two that one model gets, which may be meant as two views.
    """
    users = {id(t): {id(e.module) for e in calls if any(x is t for x in tensors((e.args, e.kwargs)))} for t in leaves}
    first: dict[int, Tensor] = {}
    for i, t in enumerate(leaves):
        for one in leaves[:i]:
            if id(one) not in first and one.dtype == t.dtype and one.shape == t.shape and torch.equal(one, t):
                if not users[id(one)] & users[id(t)]:
                    first[id(t)] = one
                break
    return first


def _enclosing(pair: Pair, models: list[nn.Module]) -> nn.Module | None:
    return next((m for m in models if all(any(x is y for y in m.modules()) for x in models)), None)


def _defined(model: nn.Module) -> dict[str, str]:
    """Where the classes of the model stand, those that are the script's own: by module name."""
    found = {}
    for name, m in model.named_modules():
        kind = type(m)
        if kind.__module__.partition(".")[0] in ("torch", "transformers", "lightning", "normscope"):
            continue
        try:
            path, line = inspect.getsourcefile(kind), inspect.getsourcelines(kind)[1]
        except (OSError, TypeError):
            continue
        if path:
            found[name or "the model"] = f"{os.path.relpath(path)}:{line} ({kind.__name__})"
    return found
