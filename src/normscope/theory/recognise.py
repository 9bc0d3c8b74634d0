"""Which `Spec` is this model? Plain MLPs are recognised from their modules; everything else is left alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normscope.core.spec import NORMS, Spec
from normscope.core.tensors import rms
from normscope.gaussian import activation
from normscope.nn.activations import recognised
from normscope.nn.maps import LayerMap
from normscope.nn.nets import MLP, Layer


@dataclass
class _Block:
    """One Linear and what follows it."""

    linear: nn.Linear
    name: str = ""
    norm: str = "none"
    activation: str = "identity"
    norm_first: bool = True
    skip: float | None = None
    seen: list[str] = field(default_factory=list)

    @property
    def between(self) -> LayerMap:
        """Norm and activation."""
        return LayerMap(NORMS[self.norm], activation(self.activation), self.norm_first)


def spec_of(model: nn.Module) -> Spec | None:
    """The spec whose theory applies to a freshly initialised model, or ``None`` where none does.

    Recognised: our ``MLP`` and (nested) ``nn.Sequential`` of Linear, one norm and one activation a layer, in either
        order, and a linear readout; hidden layers alike and of one width; norms at their initial affine parameters
        and in training mode. Weights enter through their measured scale: ``weights="gaussian"`` with ``gain`` =
        rms(W) sqrt(fan_in) (any i.i.d. law of mean zero has the same wide limit), or ``"orthogonal"``. Weights with a
        mean, or of unequal scale: ``None``.
    """
    blocks = _blocks(model)
    if not blocks:
        return None
    output_norm, outputs = "none", None
    last = blocks[-1]
    bends = "activation" in blocks[0].seen
    if len(blocks) > 1 and "activation" not in last.seen and (last.norm != blocks[0].norm or bends):
        output_norm, outputs = last.norm, last.linear.out_features
        blocks = blocks[:-1]
    first = blocks[0]
    shape = (first.norm, first.activation, first.norm_first, first.linear.out_features, first.linear.bias is None)
    alike = all(
        (b.norm, b.activation, b.norm_first, b.linear.out_features, b.linear.bias is None) == shape for b in blocks
    )
    if not alike or len({b.skip for b in blocks[1:]}) > 1 or (first.skip is not None and blocks[-1].skip != first.skip):
        return None
    law = _law([b.linear for b in blocks], scale_matters=_scale_matters(first))
    if law is None:
        return None
    weights, gain = law
    bias = None
    if first.linear.bias is not None:
        bias = rms(torch.cat([b.linear.bias.detach().flatten() for b in blocks]))
    return Spec(
        depth=len(blocks),
        width=first.linear.out_features,
        norm=first.norm,
        activation=first.activation,
        norm_first=first.norm_first,
        skip=blocks[-1].skip,
        weights=weights,
        gain=gain,
        bias=bias,
        outputs=outputs,
        output_norm=output_norm,
    )


def layer_names(model: nn.Module) -> list[str]:
    """Path of the module whose output is layer 1, 2, ... of ``spec_of(model)``: where to lay a prediction beside a
    probe.

    The last module of each layer (of our ``MLP``: the layer itself); the readout is not among them. Empty if unknown.
    """
    spec, blocks = spec_of(model), _blocks(model)
    return [b.name for b in blocks[: spec.depth]] if spec is not None and blocks else []


def _blocks(model: nn.Module) -> list[_Block] | None:
    blocks: list[_Block] = []
    for module, skip, name in _leaves(model):
        if isinstance(module, nn.Linear):
            blocks.append(_Block(module, name, skip=skip))
            continue
        if isinstance(module, nn.Identity | nn.Flatten) or (isinstance(module, nn.Dropout) and not module.p):
            continue
        kind = recognised(module)
        norm = None if kind else _norm(module)
        if not blocks or (kind is None and norm is None):
            return None
        block = blocks[-1]
        role = "activation" if kind else "norm"
        if role in block.seen:
            return None
        block.name = name
        if kind:
            block.activation = kind
        else:
            block.norm, block.norm_first = norm or "none", "activation" not in block.seen
        block.seen.append(role)
    return blocks


def _leaves(module: nn.Module, name: str = "") -> Iterator[tuple[Any, float | None, str]]:
    """Modules in the order in which they run, with the skip strength and the path of their layer."""
    dot = f"{name}." if name else ""
    if isinstance(module, MLP):
        for i, layer in enumerate(module.layers):
            yield from _leaves(layer, f"{dot}layers.{i}")
        yield from _leaves(module.readout, f"{dot}readout")
    elif isinstance(module, Layer):
        order = (module.norm, module.activation) if module.norm_first else (module.activation, module.norm)
        for part in (module.linear, *order):
            yield part, module.skip, name
    elif type(module) is nn.Sequential:
        for child_name, child in module.named_children():
            yield from _leaves(child, f"{dot}{child_name}")
    else:
        yield module, None, name


def _norm(module: nn.Module) -> str | None:
    """Name of a norm that stands at its initial affine parameters; ``None`` for anything else."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(weight, Tensor) and not bool((weight == 1).all()):
        return None
    if isinstance(bias, Tensor) and bool(bias.any()):
        return None
    return next((name for name, norm in NORMS.items() if norm.recognises(module)), None)


def _scale_matters(block: _Block) -> bool:
    """Does the scale of the weights change more than the scale of the output?"""
    between = block.between
    normalised = between.norm.rescale and between.first
    scaled = between.phi.homogeneous and not between.norm.bends
    return not (normalised or scaled) or block.skip is not None or block.linear.bias is not None


def _law(linears: list[nn.Linear], scale_matters: bool) -> tuple[str, float] | None:
    """Law and gain of the weights; ``None`` if they have a mean or differ in scale from layer to layer."""
    gains = []
    for linear in linears:
        w = linear.weight.detach().double()
        size = rms(w)
        if not math.isfinite(size) or size == 0 or abs(float(w.mean())) > 5 * size / math.sqrt(w.numel()):
            return None
        gains.append(size * math.sqrt(linear.in_features))
    hidden = gains[1:] or gains
    gain = sum(hidden) / len(hidden)
    noise = 5 / math.sqrt(2 * min(linear.weight.numel() for linear in linears))
    checked = gains if scale_matters else hidden
    if any(abs(g / gain - 1) > 0.02 + noise for g in checked):
        return None
    w = linears[-1].weight.detach().double()
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    scale = float(gram.diagonal().mean())
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    if scale > 0 and len(gram) > 1 and float((gram / scale - identity).abs().max()) < 1e-3:
        if float((w - w[0, 0] * torch.eye(*w.shape, dtype=w.dtype, device=w.device)).abs().max()) < 1e-12:
            return None  # the identity: not random
        return "orthogonal", gain
    return "gaussian", gain
