"""Rows of the weights without a mean: what batch norm's recentring does, done to the weights."""

from __future__ import annotations

import torch
from torch import nn

from normscope.init._cures import in_place, register
from normscope.init._layers import Layer, Treatment
from normscope.init.laws import draw_all


@register("weight-centering", "fei2024", auto="quick")
def center_weights(model: nn.Module, *, generator: torch.Generator | None = None) -> Treatment:
    r"""Take the mean off each row of the weights: a mean that all inputs share no longer goes on; in place.

    $W \leftarrow W - W 11^T / k$ over the fan-in (every kernel position and input channel of an output channel), then
    scaled back to the row's length. Behind ReLU all samples share a large mean, which grows from layer to layer until
    they are one line; a mean-free row does not see it. Biases become 0.

    Misleads: it takes the same off at the start as batch norm would, but nothing keeps rows mean-free in training.
    Source: Fei et al. 2024; centred weights: Huang et al. 2017; Brock, De, Smith 2021, arXiv 2101.08692 (scaled weight
    standardization).
    """

    def draw(layer: Layer, _: torch.Generator) -> None:
        rows = layer.weight.detach().double().flatten(1)
        centred = rows - rows.mean(1, keepdim=True)
        before, after = rows.norm(dim=1, keepdim=True), centred.norm(dim=1, keepdim=True)
        # a row of one number, or of equal ones, would vanish: it stays
        layer.set(torch.where(after > 1e-6 * before, centred * (before / after), rows))

    return draw_all(model, draw, generator)


center_weights_ = in_place(center_weights, "center_weights_")
