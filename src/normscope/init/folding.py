"""Batch norm taken out of a model without a change of what the batch gives: folded into the layer before it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from normscope.core.errors import UsageError
from normscope.init._cures import in_place, register
from normscope.init._layers import Treatment, model_of, step_of, survey, takers


@register(
    "fold-batch-norm", "brock2021, de2020", wraps=True,
    doc="Each batch norm behind a layer goes into its weights, by the statistics of this batch; the outputs stay.",
)  # fmt: skip
def fold_batch_norm(model: nn.Module, inputs: Any) -> Treatment:
    r"""Replace each batch norm that takes a layer's very output by the same affine map, kept in the layer; in place.

    $W' = \gamma W / \sigma$, $b' = \beta + \gamma (b - \mu) / \sigma$ with the moments of this batch,
    and an ``nn.Identity`` where the norm was: on this batch the model returns what it did, to rounding, while its
    samples no longer see each other. What trains is another net: the norm's gradients, which do not let the loss move
    along the scale of W and explode with depth, are gone with it.

    Misleads: the signal is kept at the start only; deep nets then want small rates, or `branch-scale`.
    Source: De and Smith 2020, Brock, De, Smith, Simonyan 2021 (nets without batch norm, started as if they had it).
    """
    model = model_of(model)
    names = {m: n for n, m in model.named_modules()}
    norms = [m for m in names if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    moments: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    dims: dict[nn.Module, int] = {}

    def look(norm: nn.Module, x: Tensor) -> None:
        axes = [d for d in range(x.dim()) if d != 1]
        dims[norm], moments[norm] = x.dim(), (x.double().mean(axes), x.double().var(axes, unbiased=False))
        if not all(bool(torch.isfinite(m).all()) for m in moments[norm]):
            raise UsageError(
                f"Activations must be finite; what {names[norm]!r} gets holds NaN or infinity. Clean the data, or "
                "lower the gain of the layers before it."
            )

    layers, left = survey(model)
    pairs = takers(step_of(model, inputs), [layer.module for layer in layers], norms, look)
    calls = Counter(module for pair in pairs for module in pair)
    # a Linear layer's outputs are on the last axis, the norm's channels on the second
    done = [
        (layer, norm) for layer, norm in pairs
        if calls[layer] == calls[norm] == 1 and not (isinstance(layer, nn.Linear) and dims[norm] > 2)
    ]  # fmt: skip
    folded = {norm for _, norm in done}
    left |= {
        names[m]: "it does not take the output of one layer, once, channel by channel" for m in norms if m not in folded
    }
    if not done:
        raise UsageError(
            "There must be a batch norm right behind a Linear or Conv layer to fold; this model has none. Choose "
            "another cure: normscope list cures."
        )
    for layer, norm in done:
        _fold(layer, norm, *moments[norm])
        for parent in names:
            parent._modules.update({k: nn.Identity() for k, m in parent._modules.items() if m is norm})
    return Treatment(model, tuple(names[norm] for _, norm in done), left)


fold_batch_norm_ = in_place(fold_batch_norm, "fold_batch_norm_")


@torch.no_grad()
def _fold(layer: Any, norm: Any, mean: Tensor, variance: Tensor) -> None:
    root = (variance + norm.eps).rsqrt()
    gain = root if norm.weight is None else root * norm.weight.double()
    shift = -mean * gain if norm.bias is None else norm.bias.double() - mean * gain
    if layer.bias is not None:
        shift = shift + layer.bias.double() * gain
    axes = (-1, *[1] * (layer.weight.dim() - 1))
    layer.weight.copy_(layer.weight.double() * gain.view(axes))
    if layer.bias is None:
        layer.bias = nn.Parameter(shift.to(layer.weight))
    else:
        layer.bias.copy_(shift)
