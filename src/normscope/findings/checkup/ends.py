"""How far the outputs reach, and what the loss is there: at the ends of a last activation, and far down its own
gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import mapped, tensors
from normscope.findings.checkup.scene import Rerun, Scene

#: Factor on the last weights that drives every saturating output to its ends (chosen by us: He-sized logits become
#: 300).
FAR = 300.0


def reach_of(scene: Scene) -> dict[str, Any] | None:
    """The ends between which the outputs lie however large the last weights are; means of the columns there."""
    again = Rerun.of(scene.at)
    if again is None or not scene.weighted or scene.output is None:
        return None
    last = scene.weighted[-1].module

    def work() -> list[Tensor]:
        root = scene.at.root
        own = [p for m in root.modules() if any(True for _ in m.children()) for p in m.parameters(recurse=False)]
        mine = [*last.parameters(recurse=False), *(p for p in own if p.dim() < 2 and bool((p != 0).any()))]
        mine = [p for p in mine if p.is_floating_point()]
        start = [p.detach().clone() for p in mine]
        outs = [again.output()]
        generator = torch.Generator().manual_seed(4)
        for sign in (1.0, -1.0):
            for p, s in zip(mine, start, strict=True):
                scale = s.norm() / math.sqrt(s.numel()) if bool((s != 0).any()) else torch.tensor(1.0)
                noise = 0.3 * scale * torch.randn(s.shape, generator=generator).to(s)
                p.data.copy_(sign * FAR * (s + noise))
            outs.append(again.output())
        return outs

    outs = again.run(work, scene.at.mode)
    if outs is None or not outs[0].dim():
        return None
    base, plus, minus = outs
    far = torch.cat([plus.flatten(), minus.flatten()])
    if not bool(torch.isfinite(far).all()):
        return None
    equal = all(float(x.std(0, correction=0).abs().max()) <= 1e-6 * float(x.abs().max()) for x in (base, plus, minus))
    lo, hi = float(far.min()), float(far.max())
    near = 1e-5 * (hi - lo) if hi > lo else -1.0  # float32 saturates: two outputs at an end, and a tenth, are no chance
    top, bottom = (int(at.sum()) > max(1, 0.1 * far.numel()) for at in (far > hi - near, far < lo + near))
    columns = [x.flatten(0, -2) if x.dim() > 1 else x[:, None] for x in (base, plus, minus)]
    means = [float(c.mean(0).abs().max() / c.std(0).min().clamp_min(1e-12)) for c in columns]
    spreads = [float(c.std(0).mean()) for c in columns]
    return {
        "low": lo if bottom else -math.inf, "high": hi if top else math.inf,
        "mean_fixed": max(means) < 1e-3 and min(spreads) > 1e-3 and len(base) > 4,
        "spread_fixed": max(spreads) < 1.05 * min(spreads) and min(spreads) > 1e-3, "spread": spreads[0],
        "equal": equal and len(base) > 4 and _differ(scene), "tiny": _tiny(scene), "module": scene.calls[-1].name,
        "module_kind": type(scene.calls[-1].module).__name__,
    }  # fmt: skip


def floor(
    value: Any, o: Tensor, t: Tensor, g: Tensor, classes: Tensor | None, reach: dict[str, Any], known: dict[str, Any]
) -> dict[str, Any]:
    """The lowest loss with outputs between their ends, and without ends."""
    lo, hi = reach["low"], reach["high"]
    found: dict[str, Any] = {"reach": {k: v for k, v in reach.items() if not (isinstance(v, float) and math.isinf(v))}}
    if known["task"] == "regression" and t.shape == o.shape:
        std, mean = float(t.float().std()), float(t.float().mean())
        found["reach"] |= {"target_mean": mean, "target_std": std}
    if math.isinf(lo) and math.isinf(hi):
        return found
    if known["task"] == "regression" and t.numel() == o.numel():
        target = t.reshape(o.shape).to(o)
        best, free = value(target.clamp(lo, hi), t), value(target, t)
        outside = float(((target < lo - 1e-6) | (target > hi + 1e-6)).float().mean())
        return found | {"floor": best, "free": free, "outside": outside}
    classes = t if known["task"] == "binary" else classes
    if classes is not None:
        best, free = math.inf, math.inf
        for k in (1.0, 2.0, 5.0, 10.0, 50.0):
            up, down = (o.new_tensor(max(-k, lo)), o.new_tensor(min(k, hi)))
            inside = value(torch.where(classes > 0, o.new_tensor(hi if math.isfinite(hi) else k), up), t)
            best = min(best, inside, value(torch.where(classes > 0, down, up), t)) if math.isfinite(inside) else best
            if known.get("softmax_in_loss") or known["task"] == "binary":
                out = value(torch.where(classes > 0, o.new_tensor(k), o.new_tensor(-k)), t)
                free = min(free, out) if math.isfinite(out) else free
        if math.isfinite(best) and math.isfinite(free):
            found |= {"floor": best, "free": free}
    return found


def _differ(scene: Scene) -> bool:
    """Whether samples still differ in the last layers that see them apart: they were not lost little by little."""
    seen = [c.varies_out for c in scene.calls if not math.isnan(c.varies_out)][-2:]
    return not seen or max(seen) > 1e-3


def unbounded(scene: Scene, o: Tensor, t: Tensor, g: Tensor, known: dict[str, Any]) -> dict[str, Any]:
    """The loss far down its own gradient in all outputs together, where they can go there."""
    reach = known.get("reach", {})
    bounded = "low" in reach or "high" in reach or known.get("sums_to_one")
    twofold = (
        not known.get("softmax_in_loss")
        and t.is_floating_point()
        and len(t) == len(o)
        and o.numel() in (2 * t.numel(), 3 * t.numel())
    )
    if bounded or (known["task"] == "other" and t.shape != o.shape and not twofold) or not bool((g != 0).any()):
        return {}
    assert scene.loss is not None
    call = scene.loss
    every = [x for x in tensors(scene.whole) if x.is_floating_point() and x.dim()]
    leaves = {id(x): x.detach().clone().requires_grad_() for x in every}
    base = call.value(mapped(scene.whole, lambda x: leaves.get(id(x), x)), t, scene.at.seed)
    grads = torch.autograd.grad(base, list(leaves.values()), allow_unused=True)
    if len(every) > 1:  # a log-determinant, which all samples gain alike, is tied to the other outputs
        moved = [d is not None and bool((d != d.flatten()[0]).any()) for d in grads]
    else:
        moved = [d is not None for d in grads]
    size = math.sqrt(sum(float(d.square().sum()) for d, go in zip(grads, moved, strict=True) if go) / max(o.numel(), 1))
    if size == 0:
        return {}
    ways = {k: -d / size if go else None for k, d, go in zip(leaves, grads, moved, strict=True)}

    def down(far: float) -> float:
        def there(x: Tensor) -> Tensor:
            way = ways.get(id(x))
            return x if way is None else x + far * way

        try:
            with torch.no_grad():
                return float(call.value(mapped(scene.whole, there), t, scene.at.seed))
        except Exception:  # a loss that refuses such outputs
            return math.nan

    now, near, far = scene.value, down(1e2), down(1e4)
    deep = math.isfinite(far) and far < -50 * (abs(now) + 1) and far < 20 * near
    return {"unbounded": bool(deep), "far": far if math.isfinite(far) else None}


def _tiny(scene: Scene) -> dict[str, Any]:
    """The first layer, where its weights are so small that what it says drowns in later biases, and their rms."""
    for c in scene.weighted:
        if isinstance(c.module, nn.Linear | nn.Embedding | nn.EmbeddingBag):
            rms = float(c.module.weight.detach().float().square().mean().sqrt())
            return {"module": c.name, "rms": rms} if 0 < rms < 1e-3 else {}
    return {}
