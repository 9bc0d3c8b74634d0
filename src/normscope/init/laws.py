"""Laws of random weights, applied to every treatable layer: the arms that a cure is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from normscope.init._cures import in_place, register
from normscope.init._layers import (
    Layer,
    Treatment,
    all_or_nothing,
    generator_of,
    haar,
    model_of,
    require,
    survey,
    untied,
)
from normscope.init.identity import at_centre

Draw = Callable[[Layer, torch.Generator], None]


def draw_all(model: nn.Module, draw: Draw, generator: torch.Generator | None) -> Treatment:
    """New weights for every treatable layer, in the order of ``named_modules``; no batch is needed."""
    model = model_of(model)
    layers, left = survey(model)
    layers, generator = untied(layers, left), generator_of(generator)
    require(layers, left)
    with all_or_nothing(layers):
        for layer in layers:
            draw(layer, generator)
    return Treatment(model, tuple(layer.name for layer in layers), left)


def _uniform(layer: Layer, low: float, high: float, generator: torch.Generator) -> Tensor:
    unit = torch.rand(layer.weight.shape, generator=generator, device=generator.device, dtype=torch.float64)
    return low + (high - low) * unit


@register("xavier", "glorot2010", auto="quick", doc="U(-a, a), a = sqrt(6 / (fan_in + fan_out)), zero biases.")
def xavier(model: nn.Module, *, gain: float = 1.0, generator: torch.Generator | None = None) -> Treatment:
    r"""$W \sim U(-a, a)$, $a = g\sqrt{6/(fan_{in}+fan_{out})}$, biases 0 (Glorot and Bengio 2010); in place.

    Fans as torch counts them. With g = 1 a ReLU layer halves the mean square; deep ones fade out.
    """

    def draw(layer: Layer, g: torch.Generator) -> None:
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
        a = gain * math.sqrt(6 / (fan_in + fan_out))
        layer.set(_uniform(layer, -a, a, g))

    return draw_all(model, draw, generator)


xavier_ = in_place(xavier, "xavier_")


@register("he", "he2015", auto="quick", doc="N(0, 2 / fan_in), zero biases: keeps the scale of ReLU nets.")
def he(model: nn.Module, *, generator: torch.Generator | None = None) -> Treatment:
    r"""$W \sim N(0, 2/fan_{in})$, biases 0 (He et al. 2015): ReLU layers keep their mean square on average; in place.

    It keeps the scale, not the geometry: plain nets still collapse to one line with depth.
    """

    def draw(layer: Layer, g: torch.Generator) -> None:
        unit = torch.randn(layer.weight.shape, generator=g, device=g.device, dtype=torch.float64)
        layer.set(unit * math.sqrt(2 / layer.weight[0].numel()))

    return draw_all(model, draw, generator)


he_ = in_place(he, "he_")


@register("torch", "torch.nn, reset_parameters", doc="Torch's own default, drawn anew.")
def torch_default(model: nn.Module, *, generator: torch.Generator | None = None) -> Treatment:
    r"""What each layer's own ``reset_parameters`` does, drawn from the generator; in place.

    Torch 2.x: weights and biases $U(-a, a)$ with $a = 1/\sqrt{fan_{in}}$, a third of the variance that keeps the scale.
    """

    def draw(layer: Layer, g: torch.Generator) -> None:
        seed, device = int(torch.randint(2**31, (), generator=g)), layer.weight.device
        with torch.random.fork_rng(devices=[device.index or 0] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            layer.module.reset_parameters()

    return draw_all(model, draw, generator)


torch_default_ = in_place(torch_default, "torch_default_")


@register(
    "break", "daneshmand2020, figure 6", control=True,
    doc="U(0, 2a), a = 1 / sqrt(fan_in): breaks nets, also with batch norm (negative control).",
)  # fmt: skip
def lower_rank(model: nn.Module, *, generator: torch.Generator | None = None) -> Treatment:
    r"""Break a net on purpose: $W \sim U(0, 2a)$, $a = 1/\sqrt{fan_{in}}$, biases kept; in place.

    The variance is that of torch's default, but the mean is a: it adds the same rank-one map to every layer, of norm
    sqrt(fan_in) against about 1.15 for the fluctuation, and batch norm, which divides neuron by neuron, cannot undo it.
    A negative control: the batch falls onto one line within a few layers, and nets with batch norm stop training.
    Source: Daneshmand et al. 2020, figure 6.
    """

    def draw(layer: Layer, g: torch.Generator) -> None:
        layer.set(_uniform(layer, 0, 2 / math.sqrt(layer.weight[0].numel()), g), bias=False)

    return draw_all(model, draw, generator)


lower_rank_ = in_place(lower_rank, "lower_rank_")
#: The same under the name of what it is used for.
break_batch_norm_ = lower_rank_


def delta_orthogonal(model: nn.Module, *, gain: float = 1.0, generator: torch.Generator | None = None) -> Treatment:
    r"""Haar-orthogonal weights times ``gain``; convolutions act at the kernel's centre only; biases 0; in place.

    With gain 1 and at least as many outputs as inputs the layer keeps the norm of every input (stride 1; each group by
    itself); with fewer outputs it projects. sqrt(2) makes up for a ReLU. Source: Xiao et al. 2018; Saxe et al. 2014.
    The layer is an isometry, the activation behind it is not: ReLU nets still collapse to one line.
    """

    def draw(layer: Layer, g: torch.Generator) -> None:
        out, features = layer.weight.shape[0] // layer.groups, layer.weight.shape[1]
        matrix = torch.cat([haar(out, features, g) for _ in range(layer.groups)])
        layer.set(at_centre(layer, gain * matrix))

    return draw_all(model, draw, generator)


delta_orthogonal_ = in_place(delta_orthogonal, "delta_orthogonal_")


@register("delta-orthogonal", "xiao2018", auto="quick")
def scaled_delta_orthogonal(model: nn.Module, generator: torch.Generator | None = None) -> Treatment:
    """Random isometries, at the centre of convolution kernels; gain sqrt(2) where the model has ReLU modules."""
    rectified = any(isinstance(m, nn.ReLU | nn.LeakyReLU | nn.GELU | nn.SiLU) for m in model.modules())
    return delta_orthogonal(model, gain=math.sqrt(2) if rectified else 1.0, generator=generator)
