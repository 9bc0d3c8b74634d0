"""Whether backward passes that someone wrote by hand are those of their forward passes: against differences, in
float64.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from normscope.call.arguments import first_tensor
from normscope.findings.checkup.scene import Scene

#: Directions and cotangents that are tried; the difference beyond which a derivative is another one (chosen by us).
TRIES, OFF = 4, 0.05


def of_backward(scene: Scene) -> dict[str, Any]:
    """The first module whose own backward pass disagrees with its forward pass: ``module``, ``gradient``,
    ``difference``.

    Not judged: what is not smooth (a rounding with a straight-through gradient), and a constant factor (gradient
        reversal).
    """
    for name, module, x in scene.custom:
        with torch.random.fork_rng(devices=[]):  # a module may draw random numbers
            pairs = _derivatives(module, x)
        if len(pairs) < TRIES:
            continue
        ratios = [a / b for a, b in pairs]
        same = all(abs(r - ratios[0]) < OFF * abs(ratios[0]) for r in ratios)
        worst = max(pairs, key=lambda p: abs(p[0] / p[1] - 1))
        if not same and abs(worst[0] / worst[1] - 1) > 2 * OFF:
            return {"module": name, "gradient": worst[0], "difference": worst[1]}
    return {}


def _derivatives(module: Any, x: Tensor) -> list[tuple[float, float]]:
    """(By the backward pass, by central differences) along random directions; fewer where the function is not
    smooth.
    """
    found: list[tuple[float, float]] = []
    generator = torch.Generator().manual_seed(10)
    try:
        twin = copy.deepcopy(module).double()
        x = x[:16].detach().double()

        def f(z: Tensor) -> Tensor:
            y = first_tensor(twin(z))
            assert y is not None
            return y

        for _ in range(TRIES):
            leaf = x.clone().requires_grad_()
            y = f(leaf)
            r = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)
            u = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
            (g,) = torch.autograd.grad((y * r).sum(), leaf)
            with torch.no_grad():
                fine, coarse = (float(((f(x + h * u) - f(x - h * u)) * r).sum()) / (2 * h) for h in (1e-6, 1e-5))
            size = float(g.norm() * u.norm())
            if abs(fine - coarse) > 1e-3 * size or abs(fine) < 1e-3 * size:
                continue
            found.append((float((g * u).sum()), fine))
    except Exception:  # a module of one type, or of one batch size: nothing is said of it
        return []
    return found
