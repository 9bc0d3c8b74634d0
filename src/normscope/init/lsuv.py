"""Layer-sequential unit variance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.init._cures import in_place, register
from normscope.init._layers import (
    Layer,
    Treatment,
    all_or_nothing,
    generator_of,
    haar,
    in_order,
    require,
    walk,
)


@register("lsuv", "mishkin2016", auto="quick", doc="Orthogonal weights scaled to unit variance on this batch.")
def lsuv(model: nn.Module, inputs: Any, *, generator: torch.Generator | None = None) -> Treatment:
    r"""Orthogonal weights, scaled layer by layer until the output on this batch has variance 1; in place.

    $W = Q / \sqrt{\mathrm{Var}(X Q^T)}$ with Q Haar-orthogonal (out, fan_in) and the variance (1/N) over samples,
    positions and units together; biases 0. A layer without bias is linear, so one step is exact where the paper
    iterates.

    It sets the scale of every layer for any activation; it does nothing for the angles between samples.
    Source: Mishkin and Matas 2016 (all you need is a good init).
    """
    generator = generator_of(generator)
    model, order, left, seed = in_order(model, inputs, generator)
    require(order, left)
    done: list[str] = []

    def visit(layer: Layer, x: Tensor) -> None:
        was = layer.weight.detach().clone()
        new = haar(layer.weight.shape[0], layer.weight[0].numel(), generator)
        layer.set(new)
        spread = float(layer.linear(x).double().std(correction=0))
        if not (0 < spread < float("inf")):
            layer.set(was, bias=False)
            left[layer.name] = "its output does not vary on this batch"
            return
        layer.set(new / spread)
        done.append(layer.name)

    with all_or_nothing(order):
        walk(model, inputs, order, visit, seed=seed)
    return Treatment(model, tuple(done), left)


lsuv_ = in_place(lsuv, "lsuv_")
