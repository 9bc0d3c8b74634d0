"""Norms of a sample: how many numbers a group norm has in each group, and the scale that a curve (DyT) gets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from normscope.findings.checkup.scene import Scene
from normscope.nn.norms import curve_of


def of_norms(scene: Scene) -> dict[str, Any]:
    """``groups``: (module, channels, groups, positions) of each group norm that ran; ``curves``: (module, curve, alpha,
    rms of its input), in their order.
    """
    curves = []
    for name, (module, rms) in scene.scales.items():
        if (known := curve_of(module)) is not None and 0 < rms < math.inf:
            curves.append((name, known[0], known[1], rms))
    groups = {
        c.name: (c.name, c.shape[1], c.module.num_groups, math.prod(c.shape[2:]))
        for c in scene.calls if isinstance(c.module, nn.GroupNorm)
    }  # fmt: skip
    return {"groups": list(groups.values()), "curves": curves}


def random_gains(scene: Scene) -> list[str]:
    """Norms whose gains are small numbers of both signs, as an initialization of all parameters alike leaves them."""
    found = []
    for c in scene.weighted:
        w = getattr(c.module, "weight", None)
        if "norm" in type(c.module).__name__.lower() and isinstance(w, Tensor) and w.dim() == 1 and len(w) >= 8:
            signs = float((w < 0).float().mean())
            if 0.2 < signs < 0.8 and 0 < float(w.abs().max()) < 0.3:
                found.append(c.name)
    return list(dict.fromkeys(found))


def mixed_norms(scene: Scene) -> list[tuple[str, float]]:
    """Batch norms that are called two to four times in a pass on inputs of different statistics; how far these are
    apart, the median over channels: means in standard deviations, or standard deviations by their ratio.
    """
    found = []
    for name, seen in scene.normed.items():
        if 2 <= len(seen) <= 4:
            means, variances = (torch.stack(x) for x in zip(*seen, strict=True))
            spread = (means.amax(0) - means.amin(0)) / variances.mean(0).sqrt().clamp_min(1e-12)
            ratio = (variances.amax(0) / variances.amin(0).clamp_min(1e-12)).sqrt()
            found.append((name, float(torch.maximum(spread, ratio).median())))
    return found


def slow_norms(root: nn.Module) -> list[tuple[str, float]]:
    """Batch norms in training mode whose running statistics hardly move, and their momentum."""
    return [
        (n, m.momentum) for n, m in root.named_modules()
        if isinstance(m,
            nn.modules.batchnorm._BatchNorm) and m.track_running_stats and m.momentum and m.momentum < 0.005
    ]  # fmt: skip
