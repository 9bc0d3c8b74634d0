"""Cures that put a norm into the model: after its outputs, or after each of its layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.taps import normalizers
from normscope.core.errors import UsageError
from normscope.init._cures import register
from normscope.init._layers import Treatment, model_of, require, step_of, survey, takers, walk
from normscope.nn import CenterOutputs, NormalizeOutputs

_NORMS: dict[type, type[nn.Module]] = {
    nn.Linear: nn.BatchNorm1d, nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d,
}  # fmt: skip


#: Mean of a target over its standard deviation from which on centred outputs cannot serve it (chosen by us).
OFF_CENTRE = 0.1


def off_centre(targets: Any) -> bool:
    """Whether targets of a squared loss have a mean that centred outputs could not have."""
    if not isinstance(targets, Tensor) or not targets.is_floating_point() or len(targets) < 2:
        return False
    y = targets.double().reshape(len(targets), -1)
    return bool((y.mean(0).abs() > OFF_CENTRE * y.std(0)).any())


@register(
    "center-outputs",
    "karakida2019",
    wraps=True,
    doc="Subtract the batch mean of the outputs: removes the sharpest directions.",
)
def center_outputs(model: nn.Module, inputs: Any, targets: Any = None) -> Treatment:
    """Subtract the batch mean of the outputs: removes the sharpest directions.

    By `normscope.nn.CenterOutputs`.
    """
    model = model_of(model)
    outputs = _outputs(model, inputs)
    wrapped = _like(CenterOutputs(model, outputs.shape[1]), outputs, model.training)
    notes = ["saved under the keys model.*; fold_() gives a plain model for inference"]
    if off_centre(targets):
        notes.append("the targets have a mean, which centred outputs cannot have: subtract it from them")
    return Treatment(wrapped, ("outputs",), notes=tuple(notes))


@register("last-batch-norm", "karakida2019", wraps=True)
def last_batch_norm(model: nn.Module, inputs: Any) -> Treatment:
    """Batch norm on the outputs.

    By `normscope.nn.NormalizeOutputs`.
    """
    model = model_of(model)
    outputs = _outputs(model, inputs)
    wrapped = _like(NormalizeOutputs(model, outputs.shape[1]), outputs, model.training)
    return Treatment(
        wrapped, ("outputs",), notes=("saved under the keys model.*; fold_() gives a plain model for inference",)
    )


def _like(module: nn.Module, outputs: Tensor, training: bool) -> nn.Module:
    """What was added on the outputs' device, in float32 at least (statistics of half precision are not)."""
    for name, child in module.named_children():
        if name != "model":
            child.to(outputs.device, torch.promote_types(outputs.dtype, torch.float32))
    for child in [module, *(c for n, c in module.named_children() if n != "model")]:
        child.training = training
    return module


def _outputs(model: nn.Module, inputs: Any) -> Tensor:
    """What the model returns for the batch: a tensor (n, c, ...), or ``UsageError``."""
    samples = step_of(model, inputs).rows.n
    if samples < 2:
        raise UsageError(f"A norm over the batch needs at least 2 samples; got {samples}.")
    out = _run(model, inputs)
    if not isinstance(out, Tensor) or out.dim() < 2:
        got = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise UsageError(
            f"A norm on the outputs needs a model that returns a tensor (n, c, ...); this one returns {got}. "
            "Wrap it in a module that returns the tensor."
        )
    return out.detach()


def _run(model: nn.Module, inputs: Any) -> Any:
    step = step_of(model, inputs)

    @torch.no_grad()
    def work() -> Any:
        args, kwargs, _ = step.arguments()
        return step.whole(args, kwargs)

    return step.run(work)


@register("bn", "ioffe2015", wraps=True, doc="Batch norm after each layer but the last, before its activation.")
def insert_batch_norm(model: nn.Module, inputs: Any) -> Treatment:
    """Each Linear or Conv layer but the last becomes ``Sequential(layer, BatchNorm)``, so the norm precedes the
    activation.

    Left alone: layers that a norm over the batch follows already, and linear layers on sequences. The keys of the state
    dict change (``conv.weight`` -> ``conv.0.weight``). A model that then no longer runs (its forward reads
    ``self.conv.weight``) is put back, and ``UsageError`` says so.
    """
    model = model_of(model)
    layers, left = survey(model)
    require(layers, left)
    dims: dict[str, int] = {}
    ran = walk(model, inputs, layers, lambda layer, x: dims.__setitem__(layer.name, x.dim()), seed=0)
    norms = {m for _, m in normalizers(model)}
    leaves = [m for m in model.modules() if m not in norms and not any(True for _ in m.children())]
    followed = {maker for maker, _ in takers(step_of(model, inputs), leaves, norms)}
    for layer in layers:
        if layer not in ran:
            left[layer.name] = "never called in the forward pass"
    if ran:
        left[ran[-1].name] = "the last layer gives the outputs"
    chosen = []
    for layer in ran[:-1]:
        if layer.module in followed:
            left[layer.name] = "batch norm follows it already"
        elif isinstance(layer.module, nn.Linear) and dims[layer.name] != 2:
            left[layer.name] = "it works on sequences: batch norm would take tokens for channels"
        else:
            chosen.append(layer)
    require(chosen, left)
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    for layer in chosen:
        kind = next(norm for base, norm in _NORMS.items() if isinstance(layer.module, base))
        norm = kind(layer.weight.shape[0], device=layer.weight.device, dtype=layer.weight.dtype)
        pair = nn.Sequential(layer.module, norm).train(layer.module.training)
        for parent in list(model.modules()):
            for key, child in list(parent.named_children()):
                if child is layer.module and parent is not pair:
                    swapped.append((parent, key, child))
                    setattr(parent, key, pair)
    try:
        _run(model, inputs)
    except Exception as error:
        for parent, key, child in reversed(swapped):
            setattr(parent, key, child)
        raise UsageError(
            "The model must still run with batch norm after its layers; it does not "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). It was put back as it was: "
            "put the norms in by hand, where the module calls its layers."
        ) from error
    return Treatment(model, tuple(layer.name for layer in chosen), left)
