"""The functions that model and loss call, as far as their arguments alone show a slip: axes, masks, dropout, cut
graphs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import tensors
from normscope.findings.checkup.scene import Rerun, Scene


def of_calls(scene: Scene) -> dict[str, Any]:
    """Where axes are exchanged by a reshape, where a softmax runs along another axis than the one that is summed over,
    where attention looks at padding alone, the first functions that cut the graph, and dropout that stays on or leaves
    nothing.
    """
    at, found = scene.at, scene.functions

    def evaluated() -> None:
        args, kwargs, _ = at.arguments()
        with found.inside(at.root), found:  # hooks within the run: another thread's run puts back those it finds
            at.whole(args, kwargs)

    if at.step is None and found.drops:
        found.eval = True
        replace(at, mode="eval").run(evaluated)
    names = (
        "reshaped", "sliced", "softmax", "dropout", "cuts", "derived", "aimless", "crossed", "over_samples", "numbers",
        "heavy", "attention", "peaked", "blank", "neighbours", "no_logs", "graph", "partners", "doubled", "flat",
    )  # fmt: skip
    more: dict[str, Any] = {"padding_only": _padding_only(scene, found.kept), "one_unit": _one_unit(scene)}
    more["worn"] = found.written if found.written is not None and _worn(scene) else None
    return {name: getattr(found, name) for name in names} | more | {"pooled": found.pooling.found}


def _worn(scene: Scene) -> bool:
    """Whether a second forward pass on the same tensors gets other numbers than the first: what it writes there adds
    up.
    """
    at = scene.at

    def work() -> bool:
        args, kwargs, _ = at.arguments()
        with torch.no_grad():
            at.whole(args, kwargs)
            once = [t.clone() for t in tensors((args, kwargs))]
            at.whole(args, kwargs)
        return any(not torch.equal(a, b) for a, b in zip(once, tensors((args, kwargs)), strict=True))

    return bool(at.run(work))


def _one_unit(scene: Scene) -> dict[str, Any] | None:
    """The first layer that makes several numbers of one, or of two that a ReLU gave, on the only way from wider layers
    to the outputs.
    """
    before, behind = "", None
    for c in scene.calls:
        few = 2 if isinstance(behind, nn.ReLU) else 1
        if c.weighted and c.size_in <= few < c.size_out and c.trained_in and before and len(c.shape) == 2:
            found = {"module": c.name, "before": before, "units": c.size_in}
            return found if _only_way(scene, c.name) else None
        before, behind = c.name if c.weighted else before, c.module
    return None


def _only_way(scene: Scene, name: str) -> bool:
    """Whether two samples that this layer gets alike have one output: nothing leads around it."""
    again = Rerun.of(scene.at)
    if again is None:
        return False

    def work() -> float:
        layer = again.at.root.get_submodule(name)
        handle = layer.register_forward_pre_hook(lambda _, args: (torch.zeros_like(args[0]), *args[1:]))
        try:
            y = again.output()
        finally:
            handle.remove()
        return float((y - y[:1]).abs().max()) / float(y.abs().max().clamp_min(1e-12))

    spread = again.run(work, "eval")
    return spread is not None and spread < 1e-5


def _padding_only(scene: Scene, kept: list[tuple[str, Tensor]]) -> dict[str, Any] | None:
    """The first attention whose keys are padding alone: of all positions that it looks at nearly all hold one token (or
    zeros), of those that it leaves out many hold others.
    """
    for x in tensors((scene.at.args, scene.at.kwargs)):
        if x.dtype == torch.bool or x.dim() not in (2, 3) or (x.dim() == 2 and x.is_floating_point()):
            continue
        for module, every in kept:
            if len(every) != len(x) or every.shape[1] < x.shape[1]:
                continue
            keep = every[:, every.shape[1] - x.shape[1] :]  # a class token may stand in front
            if bool(keep.all()) or not bool(keep.any()):
                continue
            seen, left = x[keep.to(x.device)], x[~keep.to(x.device)]
            if x.dim() == 3:
                alone = (
                    float((seen == 0).all(-1).float().mean()) > 0.95
                    and float((left == 0).all(-1).float().mean()) < 0.05
                )
            else:
                common = seen.mode().values
                if len(left.unique()) < 3:  # a mask, not tokens
                    continue
                alone = float((seen == common).float().mean()) > 0.95 and float((left == common).float().mean()) < 0.05
            if alone:
                return {"module": module, "share": float(keep.float().mean())}
    return None
