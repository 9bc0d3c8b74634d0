"""What pulls on the parameters: how much of the loss's gradient the targets decide, and which of several targets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import mapped, tensors
from normscope.call.graph import unreached
from normscope.call.losses import COTANGENT, OWN
from normscope.findings.checkup.beside import copies_of
from normscope.findings.checkup.scene import Scene
from normscope.findings.checkup.wiring import modules_of

Gradients = list[Tensor | None]


def of_pull(scene: Scene) -> dict[str, Any]:
    """``share``: how far the gradient in the parameters that all outputs depend on changes when every target is another
    one, relative to its size. ``tasks``: for several targets, the same for each of them alone, in the parameters that
    all of them move.

    Looked at where a loss reads several outputs, several targets or the weights: elsewhere it has one part.
    """
    at, loss, given = scene.at, scene.loss, list(tensors(scene.targets))
    if loss is None or loss.kind in (COTANGENT, OWN) or at.step is not None or not given:
        return {}
    outputs = [t for t in tensors(scene.whole) if t.is_floating_point()]
    table = given[0] if len(given) == 1 and _unlike(given[0]) else None
    if len(outputs) < 2 and len(given) < 2 and table is None and not _reads_weights(scene):
        return {}
    beyond = _beyond(scene, outputs, given)
    others = [_other(t) for t in given]
    if all(o is None for o in others):
        return beyond
    found: dict[str, Any] = beyond
    ends = [p for p in scene.copies.values() if p.requires_grad]
    base_seen: list[bool] = []
    told: list[bool] = []

    def work() -> None:
        args, kwargs, _ = at.arguments()
        whole = at.whole(args, kwargs)
        outs = [t for t in tensors(whole) if t.grad_fn is not None]

        def gradient(swap: Mapping[int, Tensor]) -> tuple[Gradients, Gradients]:
            value = loss.value(whole, mapped(scene.targets, lambda t: swap.get(id(t), t)), at.seed)
            both = torch.autograd.grad(value, [*ends, *outs], allow_unused=True, retain_graph=True)
            return list(both[: len(ends)]), list(both[len(ends) :])

        base, there = gradient({})
        read = [o for o, g in zip(outs, there, strict=True) if g is not None and bool((g != 0).any())]
        missed = {i for o in read for i in unreached(ends, o)}
        shared = [i for i in range(len(ends)) if i not in missed]
        every, elsewhere = gradient({id(t): o for t, o in zip(given, others, strict=True) if o is not None})
        size = _size([base[i] for i in shared])
        if size > 0 and math.isfinite(size):
            found["share"] = _size(_less([base[i] for i in shared], [every[i] for i in shared])) / size
        base_seen.extend(_size([g]) > 0 for g in base)
        told.extend(_size([d]) > 0 for d in _less(base, every))
        answering = [
            (o, g)
            for o, g, h in zip(outs, there, elsewhere, strict=True)
            if g is not None and _size(_less([g], [h])) > 0
        ]
        if len(given) == 1 and len(answering) > 1:
            ways = [torch.autograd.grad(o, ends, g, allow_unused=True, retain_graph=True) for o, g in answering]
            both = [i for i in range(len(ends)) if all(_size([w[i]]) > 0 for w in ways)]
            found["heads"] = [_size([w[i] for i in both]) for w in ways]
            found["of"] = [_behind(scene, o) for o, _ in answering]
        swaps = [{id(t): t if o is None else o} for t, o in zip(given, others, strict=True)]
        if table is not None and others[0] is not None:
            swaps = [{id(table): _column(table, others[0], j)} for j in range(table.shape[1])]
        if len(swaps) > 1:
            swapped = [gradient(swap) for swap in swaps]
            alone = [_less(base, inner) for inner, _ in swapped]
            both = [i for i in range(len(ends)) if all(_size([a[i]]) > 0 for a in alone)]
            if not _one_answer([_less(there, outer) for _, outer in swapped]):
                found["tasks"] = [_size([a[i] for i in both]) for a in alone]

    try:
        at.run(work, scene.copies)
    except (RuntimeError, ValueError, IndexError):  # a loss that refuses others' targets, as lengths of other samples
        return beyond
    return found | _untold(scene, ends, [a and not b for a, b in zip(base_seen, told, strict=True)])


def _one_answer(moved: list[Gradients]) -> bool:
    """Whether several targets are wanted of the same numbers of the outputs, as the two that mixup weighs: no tasks."""
    if any(all(g is None for g in one) for one in moved):
        return False
    where = [torch.cat([(g != 0).any(0).flatten() for g in one if g is not None]) for one in moved]
    if len({len(w) for w in where}) > 1:
        return False
    each = torch.stack(where)
    return 2 * int(each.all(0).sum()) > int(each.any(0).sum())


def _untold(scene: Scene, ends: list[Tensor], silent: list[bool]) -> dict[str, Any]:
    """Modules whose gradient no target changes though the first output changes with their weights; not where a frozen
    copy of a part of the model is followed, which is a task of its own.
    """
    at, names = scene.at, {id(scene.copies[k]): n for k, n in scene.names.items()}
    mine = {id(p) for p, s in zip(ends, silent, strict=True) if s and p.dim() > 1 and id(p) in names}
    # a codebook is told so
    layers = {f"{c.name}.weight" for c in scene.weighted if not isinstance(c.module, nn.Embedding)}
    if not any(names[i] in layers for i in mine) or len(mine) == sum(p.dim() > 1 for p in ends) or copies_of(at):
        return {}
    noise = torch.Generator().manual_seed(5)

    def other(p: Tensor) -> Tensor:
        return p.detach() + p.detach().std() * torch.randn(p.shape, generator=noise).to(p) if id(p) in mine else p

    def work() -> Tensor:
        args, kwargs, _ = at.arguments()
        with torch.no_grad():
            return next(t for t in tensors(at.whole(args, kwargs)) if t.is_floating_point()).float()

    now = at.run(work, scene.copies)
    moved = at.run(work, {k: other(p) for k, p in scene.copies.items()})
    if now.shape != moved.shape or float((now - moved).norm()) < 0.05 * float(now.norm()):
        return {}
    return {"untold": modules_of([names[i] for i in mine], at.root)}


def _beyond(scene: Scene, outputs: list[Tensor], given: list[Tensor]) -> dict[str, Any]:
    """Of several outputs the first that ends in a bounded function while a tenth of the one target of its shape lies
    beyond.
    """
    for i, (o, ends) in enumerate(zip(outputs, scene.bounds, strict=False)):
        alike = [t for t in given if t.is_floating_point() and t.shape == o.shape]
        if ends is None or len(outputs) < 2 or len(alike) != 1:
            continue
        share = float(((alike[0] < ends[0] - 1e-6) | (alike[0] > ends[1] + 1e-6)).float().mean())
        if share > 0.1:
            module = _behind(scene, o)
            low, high = float(alike[0].min()), float(alike[0].max())
            return {"beyond": {
                "output": i, "ends": list(ends), "share": share, "module": module, "low": low, "high": high,
            }}  # fmt: skip
    return {}


def _behind(scene: Scene, o: Tensor) -> str:
    """The last module with weights that gives as many numbers a sample as an output has."""
    size = o[0].numel() if o.dim() else 0
    return next((c.name for c in reversed(scene.weighted) if c.size_out == size), "")


def _reads_weights(scene: Scene) -> bool:
    """Whether the loss has a gradient that does not come through the outputs: a penalty on the weights."""
    loss = scene.loss
    assert loss is not None
    seen: list[bool] = []
    scene.at.run(
        lambda: seen.append(loss.value(scene.whole, scene.targets, scene.at.seed).requires_grad),
        scene.copies,
    )
    return seen[0]


def _other(t: Tensor) -> Tensor | None:
    """Targets that ask for something else everywhere: the next class, the other side of zero or of 0..1; or
    ``None``.
    """
    if t.is_complex() or t.numel() < 2:
        return None
    # a table of unlike columns
    if t.is_floating_point() and t.dim() == 2 and t.shape[1] > 1 and 0 < float(_indices(t).float().mean()) < 1:
        other = -t  # a table of unlike columns
        for k in _indices(t).nonzero()[:, 0].tolist():
            other[:, k] = torch.where(t[:, k] < t[:, k].max(), t[:, k] + 1, 0)
        return other
    if t.dtype is torch.bool:
        return ~t
    low, high = t.min(), t.max()
    if not bool(high > low):
        return None
    if t.is_floating_point():
        return 1 - t if bool(low >= 0) and bool(high <= 1) else -t
    return torch.where(t >= 0, torch.where(t < high, t + 1, low.clamp_min(0)), t)


def _indices(t: Tensor) -> Tensor:
    """Which columns hold whole numbers from 0 on, and more than two of them: they may be indices."""
    return (t == t.round()).all(0) & (t >= 0).all(0) & (t.amax(0) > 1)


def _unlike(t: Tensor) -> bool:
    """Whether a table of targets has few columns, some of classes and some of numbers: several tasks."""
    few = t.dim() == 2 and t.is_floating_point() and 2 <= t.shape[1] <= 8
    return few and 0 < float(_indices(t).float().mean()) < 1


def _column(t: Tensor, other: Tensor, j: int) -> Tensor:
    """The table with one column of another."""
    return torch.where(torch.arange(t.shape[1], device=t.device) == j, other, t)


def _less(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> Gradients:
    return [a if b is None else -b if a is None else a - b for a, b in zip(one, other, strict=True)]


def _size(gradients: Sequence[Tensor | None]) -> float:
    """The norm of all of them together."""
    squares = [g.detach().float().square().sum() for g in gradients if g is not None]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
