"""Running statistics against those of the batch: how far eval mode is from what was measured."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.taps import normalizers, untrained_statistics


def drift_hooks(model: nn.Module, drift: dict[str, float]) -> Iterable[Any]:
    r"""Hooks on normalizers that have seen data: how far the batch's statistics are from the running ones.

    Mean over channels of KL(N(batch) || N(running)) = ((mu_B - mu_R)^2 + v_B)/v_R - 1 - log(v_B / v_R), halved, nat.
    In training mode the batch's statistics are read off the step that the running ones take (no pass over the data).
    """
    for name, module in normalizers(model):
        if not untrained_statistics(module):
            old = (module.running_mean.clone(), module.running_var.clone())  # type: ignore[operator]
            yield module.register_forward_hook(partial(_note, drift, name, old))


def _note(
    drift: dict[str, float], name: str, old: tuple[Tensor, Tensor], module: nn.Module, args: Any, _output: Any
) -> None:
    mean, var = (b.double() for b in old)
    if name in drift:
        return
    tracked, momentum = getattr(module, "num_batches_tracked", None), getattr(module, "momentum", None)
    weight = momentum if momentum is not None or not isinstance(tracked, Tensor) else 1 / max(int(tracked), 1)
    if module.training and weight:  # new = (1 - weight) old + weight batch
        m = mean + (module.running_mean.double() - mean) / weight  # type: ignore[operator]
        v = var + (module.running_var.double() - var) / weight  # type: ignore[operator]
    else:
        x = args[0].detach() if args and isinstance(args[0], Tensor) else None
        if x is None or x.dim() < 2 or x.shape[1] != len(mean):
            return
        v, m = (t.double() for t in torch.var_mean(x, [i for i in range(x.dim()) if i != 1], correction=0))
    eps = getattr(module, "eps", 0.0)
    v, var = v.clamp_min(0) + eps, var + eps
    kl = ((m - mean).square() + v) / var - 1 - (v / var).log()
    drift[name] = kl.mean().item() / 2
