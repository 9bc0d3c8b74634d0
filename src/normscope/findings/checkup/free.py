"""Outputs that are free to be anything: how low and how high a loss gets with them, and with one answer for all."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from normscope.call.arguments import mapped, tensors
from normscope.call.losses import COTANGENT, OWN
from normscope.findings.checkup.scene import Rerun, Scene

#: Steps of a descent in the outputs, and seconds after which none is taken (chosen by us).
STEPS, SECONDS = 150, 0.3
#: Outputs below this may be bounded by how they are made (chosen by us).
SMALL = 0.5

Value = Callable[[Sequence[Tensor]], Tensor]


def of_free(scene: Scene, task: str) -> dict[str, Any]:
    """Of a loss of no known kind: ``best`` and ``worst`` after a descent and an ascent in the outputs themselves, kept
    to unit norm where the model keeps to it; ``blind``: the best with one answer for all samples; ``blind_apart``: the
    same over the loss at the start, where the targets are drawn apart. ``links``: an output
    that is positive by the model's last function, and that the loss takes the exponential of. ``agrees``: the loss
    where all outputs of all samples are one and the same vector, whichever, if that is as low as it gets and nothing
    holds them back from it.
    """
    loss, outs = scene.loss, [x for x in tensors(scene.whole) if x.is_floating_point()]
    known = task in ("classes", "regression", "binary")
    if loss is None or known or loss.kind in (COTANGENT, OWN) or scene.at.step is not None or not outs:
        return {}

    targets = scene.targets

    def value(given: Sequence[Tensor]) -> Tensor:
        now = {id(a): b for a, b in zip(outs, given, strict=True)}
        return loss.value(mapped(scene.whole, lambda x: now.get(id(x), x)), targets, scene.at.seed)

    begun = time.thread_time()
    sunk = _sunk(scene)
    if sunk:
        return {"sunk": sunk}
    start = float(value(outs).detach())
    found: dict[str, Any] = {"start": start, "links": _links(scene, value, outs)}
    if not math.isfinite(start) or any(x.dim() < 1 or len(x) < 8 for x in outs):
        return found
    most = _most(scene, outs)
    found["best"] = _descent(value, outs, list, begun, 1, most)
    found["worst"] = _descent(value, outs, list, begun, -1, most)
    several = [t for t in tensors(scene.targets) if t.numel() > 1 and len(t) == len(outs[0])]
    # a residual that is to vanish has no answer, and views of one sample have none that the loss reads
    others = mapped(scene.targets, lambda t: t.roll(1, 0) if t.dim() and len(t) == len(outs[0]) else t)
    read = several and float(loss.value(scene.whole, others, scene.at.seed).detach()) != start
    if not read:
        found |= _agreement(scene, value, outs, start, found["best"])
    if start > 0 and read and any(bool((t != t[:1]).any()) for t in several):
        means = [x.mean(0, keepdim=True) for x in outs]
        spread = [len(x) for x in outs]

        def alike(given: Sequence[Tensor]) -> list[Tensor]:
            return [x.expand(n, *x.shape[1:]) for x, n in zip(given, spread, strict=True)]

        found["blind"] = _descent(value, means, alike, begun, 1)
        if 0 <= found["blind"] < start:  # of targets that are nearly one number one answer is right
            targets, found["blind_apart"] = mapped(scene.targets, _apart), 0.0
            with suppress(IndexError, RuntimeError, ValueError):  # classes among the numbers
                lowest = _descent(value, means, alike, time.thread_time(), 1)
                found["blind_apart"] = lowest / max(float(value(outs).detach()), 1e-30)
    return found


def _apart(t: Tensor) -> Tensor:
    """Targets as far from each other as they are large; whole numbers, which may be marks or classes, stay."""
    if not t.is_floating_point() or bool((t == t.round()).all()):
        return t
    random = torch.Generator().manual_seed(0)
    return t + t.square().mean().sqrt() * torch.randn(t.shape, generator=random).to(t)


def _most(scene: Scene, outs: list[Tensor]) -> float:
    """The largest magnitude of small outputs that larger weights do not make larger (similarities, say); else
    infinite.
    """
    again, now = Rerun.of(scene.at), max(float(x.abs().max()) for x in outs)
    if again is None or now > SMALL or len(outs) > 1:
        return math.inf

    def sizes() -> list[float]:
        weights = [(p, p.detach().clone()) for p in scene.at.root.parameters() if p.dim() > 1]
        random, found = torch.Generator().manual_seed(0), []
        for factor in (3.0, 30.0):
            for p, w in weights:
                noise = w.norm() / math.sqrt(w.numel()) * torch.randn(w.shape, generator=random).to(w)
                p.data.copy_(factor * (w + noise))
            found.append(float(again.output().abs().max()))
        return found

    found = again.run(sizes, scene.at.mode)
    return 1.2 * max(found) if found is not None and all(x < SMALL for x in found) else math.inf


def _agreement(scene: Scene, value: Value, outs: list[Tensor], start: float, best: float) -> dict[str, Any]:
    """The loss of outputs that are all one vector: as low as a descent found, for two vectors that are drawn, and each
    output gets a gradient and learns.
    """
    if len(outs) < 2 or not all(scene.live) or len({x.shape for x in outs}) > 1 or outs[0].dim() != 2:
        return {}
    leaves = [x.clone().requires_grad_() for x in outs]
    slopes = torch.autograd.grad(value(leaves), leaves, allow_unused=True)
    if not all(g is not None and bool((g != 0).any()) for g in slopes) or not best < start:
        return {}
    random, size = torch.Generator().manual_seed(0), float(outs[0].square().mean().sqrt())
    ends = []
    for _ in range(2):
        one = size * torch.randn(outs[0].shape[1], generator=random).to(outs[0])
        ends.append(float(value([one.expand_as(x) for x in outs]).detach()))
    return {"agrees": max(ends)} if all(x < best + 0.02 * (start - best) for x in ends) else {}


def _descent(
    value: Value,
    start: Sequence[Tensor],
    spread: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    begun: float,
    sign: int,
    most: float = math.inf,
) -> float:
    """The lowest loss (``sign`` -1: the highest) on Adam's way, with outputs up to ``most``; NaN where it never was a
    number.
    """
    unit = [x.dim() > 1 and bool(((x.norm(dim=-1) - 1).abs() < 1e-4).all()) for x in start]
    leaves = [x.detach().clone().requires_grad_() for x in start]
    size = max(float(x.square().mean().sqrt()) for x in start)
    optimizer = torch.optim.Adam(leaves, lr=0.2 * max(1.0, size))
    lowest = math.inf
    for _ in range(STEPS):
        loss = sign * value(spread(leaves))
        if not loss.requires_grad or time.thread_time() - begun > SECONDS:
            break
        lowest = min(lowest, float(loss.detach()))
        for x, g in zip(leaves, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
            x.grad = g
        optimizer.step()
        with torch.no_grad():
            for x, one in zip(leaves, unit, strict=True):
                if one:
                    x /= x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
                elif most < math.inf:
                    x.clamp_(-most, most)
    return sign * lowest if math.isfinite(lowest) else math.nan


def _links(scene: Scene, value: Value, outs: list[Tensor]) -> dict[str, Any]:
    """The first output that ends at zero by an activation while the loss's gradient in it grows like an exponential."""
    for i, (o, ends) in enumerate(zip(outs, scene.bounds, strict=True)):
        if ends != (0.0, math.inf):
            continue
        pulls = []
        for size in (8.0, 10.0, 12.0):
            x = torch.full_like(o, size).requires_grad_()
            (g,) = torch.autograd.grad(value([*outs[:i], x, *outs[i + 1 :]]), x, allow_unused=True)
            pulls.append(0.0 if g is None else float(g.abs().sum()))
        if pulls[0] > 0 and all(4.5 < b / a < 12 for a, b in itertools.pairwise(pulls)):  # e^2 = 7.4
            last = next((c.name for c in reversed(scene.calls) if c.size_out == o[0].numel()), "")
            return {"output": i, "module": last}
    return {}


def _sunk(scene: Scene) -> dict[str, Any]:
    """Parameters of 16 numbers at most far down whose gradient the loss goes to minus infinity: a weight of the
    loss.
    """
    at, now = scene.at, scene.value
    layers = tuple(f"{c.name}." if c.name else "" for c in scene.weighted)
    small = {}
    for key, name in scene.names.items():
        g = scene.grads.get(name)
        own = name.rpartition(".")[0] + "." not in layers  # a bias of a critic's score has no floor either
        if own and g is not None and g.numel() <= 16 and bool((g != 0).any()):
            small[key] = (name, g / g.norm())
    if not small or not math.isfinite(now):
        return {}

    def down(far: float) -> float:
        moved = {k: (c.detach() - far * small[k][1]) if k in small else c for k, c in scene.copies.items()}

        def work() -> float:
            args, kwargs, _ = at.arguments()
            with torch.no_grad():
                return float(at.value(at.whole(args, kwargs), at.own_targets()))

        return float(at.run(work, moved))

    near, far = down(1e2), down(1e4)
    if math.isfinite(far) and far < -50 * (abs(now) + 1) and far < 20 * near:
        return {"names": [n for n, _ in small.values()], "far": far, "now": now}
    return {}
