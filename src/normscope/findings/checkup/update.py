"""What one step of the user's own optimizer does to the weights: on copies, with the gradient of this batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from normscope.findings.checkup.scene import Scene
from normscope.findings.checkup.wiring import modules_of
from normscope.training.held import twin
from normscope.training.own import rate_of, to_its_rate, wants_a_closure


def of_update(scene: Scene) -> dict[str, Any]:
    """Sizes of one step, relative to the weights; see NS403 to NS408."""
    optimizer = scene.at.optimizer
    if optimizer is None or not scene.grads or wants_a_closure(optimizer):
        return {}
    named = dict(scene.at.root.named_parameters())
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    mine = {n: named[n] for n, g in scene.grads.items() if g is not None and id(named[n]) in held}
    mine = {n: p for n, p in mine.items() if bool(torch.isfinite(scene.grads[n]).all())}  # type: ignore[arg-type]
    live = [n for n in mine if bool((scene.grads[n] != 0).any())]  # type: ignore[union-attr]
    if not live:
        return {}
    rate = max(map(rate_of, optimizer.param_groups))
    found: dict[str, Any] = {"class": type(optimizer).__name__, "lr": rate}
    own = vars(optimizer).get("lr")
    if type(optimizer).__module__.startswith("torch.optim") and isinstance(own, int | float) and own != rate:
        found["deaf"] = {"set": float(own), "lr": rate}
    moved, copies = _step(scene, mine)
    still, _ = _step(scene, mine, weight_decay=0.0)
    momentum = max(float(g.get("momentum", 0.0) or 0.0) for g in optimizer.param_groups)
    found["momentum"] = momentum
    found["damped"] = max((float(g.get("dampening", 0.0) or 0.0) for g in optimizer.param_groups), default=0.0)
    found["own_decay"] = max(float(g.get("lr_decay", 0.0) or 0.0) for g in optimizer.param_groups)
    sizes = {}
    for n in live:
        w = named[n].detach().float()
        if w.dim() > 1 and float(w.norm()) > 0:
            sizes[n] = float(moved[n].float().norm() / w.norm())
    if sizes:
        top = max(sizes, key=sizes.__getitem__)
        ordered = sorted(sizes.values())
        found |= {
            "largest": sizes[top] / (1 - momentum if momentum < 1 else 1e-3), "largest_at": top,
            "median": ordered[len(ordered) // 2],
        }  # fmt: skip
    found["slow_group"] = _slow_group(scene, live)
    found["by_depth"] = _by_depth(scene, live)
    found["memory"] = _memory(scene, live)
    found["rounded"] = _rounded({n: (named[n], scene.grads[n], moved[n]) for n in live}, found.get("median", 0.0))
    g = torch.cat([scene.grads[n].flatten().float() for n in live])  # type: ignore[union-attr]
    d = torch.cat([moved[n].flatten().float() for n in live])
    d0 = torch.cat([still[n].flatten().float() for n in live])
    some = g != 0
    found["along_gradient"] = _cosine(d0, g)
    found["decay_cosine"] = _cosine(d[some], d0[some])
    found["decay"] = max(float(x.get("weight_decay", 0.0) or 0.0) for x in optimizer.param_groups)
    w = torch.cat([named[n].detach().flatten().float() for n in live])
    shrinks = float(((d0 - d) * w)[some].sum() / w[some].square().sum().clamp_min(1e-30))
    found["decay_pace"] = max(shrinks, 0.0) / (1 - momentum if momentum < 1 else 1e-3)
    found["betas"] = next((list(x["betas"]) for x in optimizer.param_groups if "betas" in x), None)
    found["gradient_rms"] = float(g.square().mean().sqrt())
    found["eps"] = max(
        (float(x["eps"]) for x in optimizer.param_groups if isinstance(x.get("eps"), int | float)), default=0.0
    )
    found |= _after(scene, copies)
    return found


def _slow_group(scene: Scene, live: list[str]) -> dict[str, Any] | None:
    """The group with the smallest rate, beside the largest, and its modules that have a gradient; zero counts where no
    schedule may raise it.
    """
    names = {id(p): n for n, p in scene.at.root.named_parameters() if n in live}
    rated: list[tuple[float, list[str]]] = []
    for g in scene.at.optimizer.param_groups:  # type: ignore[union-attr]
        rate = rate_of(g)
        mine = [names[id(p)] for p in g["params"] if id(p) in names]
        rated += [(rate, mine)] if mine and (rate > 0 or "initial_lr" not in g) else []
    if len(rated) < 2:
        return None
    low = min(rated, key=lambda x: x[0])
    return {"rate": low[0], "largest": max(r for r, _ in rated), "modules": modules_of(low[1], scene.at.root)}


def _by_depth(scene: Scene, live: list[str]) -> list[tuple[str, float]]:
    """(first layer, rate) of the groups of parameters, from those of the first layers to those of the last; of groups
    that share no layers of one depth.
    """
    order = {c.name: i for i, c in reversed(list(enumerate(scene.weighted)))}
    depth = {id(p): order.get(scene.layer_of(n)) for n, p in scene.at.root.named_parameters() if n in live}
    found = []
    for g in scene.at.optimizer.param_groups:  # type: ignore[union-attr]
        at = [d for p in g["params"] if (d := depth.get(id(p))) is not None]
        found += [(min(at), max(at), rate_of(g))] if at else []
    found.sort()
    apart = all(a[1] < b[0] for a, b in itertools.pairwise(found))
    return [(scene.weighted[a].name, rate) for a, _, rate in found] if apart else []


def _memory(scene: Scene, live: list[str]) -> float:
    """How many times as large as the gradients of now those are that the optimizer remembers; the median over tensors,
    NaN where it has no state.
    """
    ratios = []
    named = dict(scene.at.root.named_parameters())
    groups = scene.at.optimizer.param_groups  # type: ignore[union-attr]
    betas = {id(p): g["betas"] for g in groups if "betas" in g for p in g["params"]}
    for n in live:
        state = scene.at.optimizer.state.get(named[n], {})  # type: ignore[union-attr]
        second, count = state.get("exp_avg_sq"), float(state.get("step", 0))
        if isinstance(second, Tensor) and count > 0 and id(named[n]) in betas:
            known = (second.float().mean() / (1 - float(betas[id(named[n])][1]) ** count)).sqrt()
            ratios.append(float(known / scene.grads[n].float().square().mean().sqrt()))  # type: ignore[union-attr]
    return sorted(ratios)[len(ratios) // 2] if ratios else math.nan


def _rounded(live: Mapping[str, tuple[Tensor, Any, Tensor]], step: float) -> dict[str, Any] | None:
    """The share of the entries in half precision with a gradient that one step leaves as they are."""
    half = {n: x for n, x in live.items() if x[0].dtype in (torch.bfloat16, torch.float16) and x[0].dim() > 1}
    if not half:
        return None
    still = sum(int(((d == 0) & (g != 0)).sum()) for _, g, d in half.values())
    every = sum(int((g != 0).sum()) for _, g, _ in half.values())
    first = next(iter(half))
    return {
        "share": still / max(every, 1), "dtype": str(half[first][0].dtype).removeprefix("torch."), "step": step,
        "module": first.rpartition(".")[0],
    }  # fmt: skip


def _cosine(a: Tensor, b: Tensor) -> float:
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0 and math.isfinite(size) else 0.0


def _step(scene: Scene, mine: Mapping[str, Tensor], **changes: Any) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """The change of each parameter in one step, and the moved copies."""
    assert scene.at.optimizer is not None
    copies = {id(p): p.detach().clone().requires_grad_(p.requires_grad) for p in scene.at.root.parameters()}
    start = {n: copies[id(p)].detach().clone() for n, p in mine.items()}
    own = twin(scene.at.optimizer, copies, **changes)
    to_its_rate(own)
    for n, p in mine.items():
        g = scene.grads[n]
        sparse = isinstance(own, torch.optim.SparseAdam)
        copies[id(p)].grad = None if g is None else g.to_sparse(1) if sparse else g.clone()
    own.step()
    return {n: copies[id(p)].detach() - start[n] for n, p in mine.items()}, copies


def _after(scene: Scene, copies: dict[int, Tensor]) -> dict[str, Any]:
    """The loss of the same batch after the step, and how far the outputs moved."""
    at = scene.at
    own = {id(p): copies[id(p)] for p in at.root.parameters()}

    def work() -> dict[str, Any]:
        args, kwargs, _ = at.arguments()
        with torch.no_grad():
            whole = at.whole(args, kwargs)
            after = float(at.value(whole, at.own_targets()))
            found: dict[str, Any] = {"loss_before": scene.value, "loss_after": after}
            if scene.output is not None and isinstance(scene.targets, Tensor):
                from normscope.call.arguments import first_tensor

                y = first_tensor(whole)
                t = scene.targets
                if y is not None and t.is_floating_point() and t.numel() == y.numel():
                    found["outputs_moved"] = float((y - scene.output).square().mean().sqrt())
                    gap = (t.reshape(y.shape) - scene.output).square().mean().sqrt()
                    found["outputs_to_go"] = float(gap)
            return found

    return at.run(work, own)
