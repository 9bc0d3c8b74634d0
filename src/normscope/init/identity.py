"""The identity control: layers that pass on what they get."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.init._cures import in_place, register
from normscope.init._layers import Layer, Treatment, generator_of
from normscope.init.orthogonal import sweep


@register(
    "identity", "control of daneshmand2021, section 5", auto="quick",
    doc="Every hidden layer a multiple of the identity, scale kept at 1: the control of `orthogonal`, and often as "
    "good.",
)  # fmt: skip
def identity(
    model: nn.Module,
    inputs: Any,
    *,
    scale: str = "rms",
    ends: bool = False,
    generator: torch.Generator | None = None,
) -> Treatment:
    r"""Set each layer to a multiple of the identity (Dirac kernels for convolutions); in place.

    $W = c\,J$ with $J_{ij} = 1$ where $i = j \bmod \min(out, in)$ (and the same with i and j exchanged): the identity
    for a square layer; a wider layer repeats its inputs, a narrower one adds them up. Kernels act at their centre,
    group by group. The layers treated and the scale c are those of `orthogonal_representations_`: this is its control,
    and any claim that orthogonality made a net train must be held against it. Biases become 0.

    Misleads: the untrained net hardly changes its input, so its geometry looks as healthy as the data's.
    Source: control of Daneshmand, Joudaki, Bach 2021, section 5, added by us; Dirac kernels: Zagoruyko and Komodakis
        2017.
    """
    return sweep(model, inputs, dirac, scale=scale, ends=ends, generator=generator_of(generator))


identity_ = in_place(identity, "identity_")


def dirac(layer: Layer, _x: Tensor) -> Tensor:
    """Weight (out, in / groups, *kernel) that copies inputs to outputs at the kernel's centre."""
    out, features = layer.weight.shape[0] // layer.groups, layer.weight.shape[1]
    k = min(out, features)
    same = (torch.arange(out)[:, None] % k) == (torch.arange(features) % k)
    return at_centre(layer, same.double().repeat(layer.groups, 1))


def at_centre(layer: Layer, matrix: Tensor) -> Tensor:
    """A weight that applies ``matrix`` (out, in / groups) at the centre of the kernel and nothing elsewhere."""
    weight = torch.zeros(
        *layer.weight.shape[:2], layer.weight[0, 0].numel(), dtype=torch.float64, device=layer.weight.device
    )
    centre = 0
    for size in layer.weight.shape[2:]:
        centre = centre * size + size // 2
    weight[..., centre] = matrix.to(weight.device)
    return weight.reshape(layer.weight.shape)
