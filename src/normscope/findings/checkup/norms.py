"""Norms of a sample: how many numbers a group norm has in each group, and the scale that a curve (DyT) gets."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

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
