"""The cures by name: what `normscope.findings.cures`, the command line and races can apply."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normscope.core.registry import Registry
from normscope.init import laws, wrappers
from normscope.init._layers import Treatment, model_of
from normscope.init.branches import zero_branches
from normscope.init.identity import identity
from normscope.init.lsuv import lsuv
from normscope.init.orthogonal import orthogonal
from normscope.init.rank import rank

Apply = Callable[[nn.Module, Any, Any, torch.Generator | None], Treatment]


@dataclass(frozen=True)
class Cure:
    """A named treatment. ``apply(model, inputs, targets, generator)`` changes the model and returns a `Treatment`.

    ``needs_inputs``: looks at the batch; ``wraps``: changes the module tree, so the treatment's model may be another
        object
    and the keys of its state dict change; ``control``: there to be compared with, not to be used.
    """

    name: str
    doc: str
    source: str
    needs_inputs: bool
    wraps: bool
    control: bool
    apply: Apply


CURES: Registry[Cure] = Registry("cure")


def register(
    name: str, source: str, *, needs_inputs: bool = False, wraps: bool = False, control: bool = False
) -> Callable[[Apply], Cure]:
    """Decorator: enrol a function (model, inputs, targets, generator) -> Treatment; its docstring is the line shown."""

    def enrol(function: Apply) -> Cure:
        doc = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())
        return CURES.add(name, Cure(name, doc, source, needs_inputs, wraps, control, function))

    return enrol


@register("none", "-")
def _none(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """The model as it is."""
    return Treatment(model_of(model))


@register("orthogonal", "daneshmand2021, eq. 6", needs_inputs=True)
def _orthogonal(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """Weights that make each layer's outputs on this batch more orthogonal; scale kept at 1."""
    return orthogonal(model, inputs, generator=generator)


@register("rank", "daneshmand2020, figure 6", needs_inputs=True)
def _rank(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """Gradient steps that raise the participation rank layer by layer; scale kept at 1."""
    return rank(model, inputs, generator=generator)


@register("identity", "control of daneshmand2021, section 5", needs_inputs=True)
def _identity(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """Every hidden layer a multiple of the identity, scale kept at 1: the control of `orthogonal`, and often as
    good.
    """
    return identity(model, inputs, generator=generator)


@register("zero-branches", "goyal2017, zhang2019, de2020", needs_inputs=True)
def _zero_branches(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """The last layer of every residual branch starts at zero: a residual net begins as its trunk."""
    return zero_branches(model, inputs, generator=generator)


@register("haar", "control of daneshmand2021, section 5", needs_inputs=True, control=True)
def _haar(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """`orthogonal` with a random basis: gradients explode with depth (negative control)."""
    return orthogonal(model, inputs, basis="haar", generator=generator)


@register("lsuv", "mishkin2016", needs_inputs=True)
def _lsuv(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """Orthogonal weights scaled to unit variance on this batch."""
    return lsuv(model, inputs, generator=generator)


@register("delta-orthogonal", "xiao2018")
def _delta_orthogonal(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """Random isometries, at the centre of convolution kernels; gain sqrt(2) where the model has ReLU modules."""
    rectified = any(isinstance(m, nn.ReLU | nn.LeakyReLU | nn.GELU | nn.SiLU) for m in model.modules())
    return laws.delta_orthogonal(model, gain=math.sqrt(2) if rectified else 1.0, generator=generator)


@register("xavier", "glorot2010")
def _xavier(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """U(-a, a), a = sqrt(6 / (fan_in + fan_out)), zero biases."""
    return laws.xavier(model, generator=generator)


@register("he", "he2015")
def _he(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """N(0, 2 / fan_in), zero biases: keeps the scale of ReLU nets."""
    return laws.he(model, generator=generator)


@register("torch", "torch.nn, reset_parameters")
def _torch(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """Torch's own default, drawn anew."""
    return laws.torch_default(model, generator=generator)


@register("break", "daneshmand2020, figure 6", control=True)
def _break(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """U(0, 2a), a = 1 / sqrt(fan_in): breaks nets, also with batch norm (negative control)."""
    return laws.lower_rank(model, generator=generator)


@register("center-outputs", "karakida2019", needs_inputs=True, wraps=True)
def _center_outputs(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """Subtract the batch mean of the outputs: removes the sharpest directions."""
    return wrappers.center_outputs(model_of(model), inputs, targets)


@register("last-batch-norm", "karakida2019", needs_inputs=True, wraps=True)
def _last_batch_norm(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """Batch norm on the outputs."""
    return wrappers.last_batch_norm(model_of(model), inputs)


@register("bn", "ioffe2015", needs_inputs=True, wraps=True)
def _bn(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
    """Batch norm after each layer but the last, before its activation."""
    return wrappers.insert_batch_norm(model_of(model), inputs)
