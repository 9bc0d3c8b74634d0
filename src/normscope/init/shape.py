"""Activations shaped so that the gradient behind batch norm does not grow with depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.core.errors import UsageError
from normscope.gaussian import activation
from normscope.init._cures import in_place, register
from normscope.init._layers import Treatment, model_of, step_of, takers
from normscope.nn import BatchNorm
from normscope.nn.activations import recognised
from normscope.nn.growth import leaky_slope, shaped_gains


@register(
    "shape", "meterez2024", auto="quick",
    doc="Behind batch norm: gains of the norms that fall with depth, leaky slopes for ReLU, so that gradients do not "
    "explode.",
)  # fmt: skip
def shape(model: nn.Module, inputs: Any, *, budget: float = 1.0) -> Treatment:
    r"""Shape each activation that takes the output of a batch norm; in place.

    The log of the gradient's growth over the net, `normscope.nn.growth`, is brought to ``budget`` (1: a factor
    e) or below. The l-th norm gets the weight $(l+1)^{-p}$, p = .4 for odd smooth activations and more for others, so
    that they act ever more linearly; ReLU and leaky ReLU, which no gain changes, get the slope at which so many layers
    stay within the budget. Weights of layers stay: the law is of weights that keep lengths, so join it as
    ``delta-orthogonal+shape``, or where weights are Gaussian expect some growth of theirs.

    Left alone, with the reason: activations without a law (a module that is not in ``normscope list activations``),
    functions that are no modules, norms without a weight. With skip connections the law does not hold (the gradient
    goes round), see ``branch-scale`` and ``zero-branches``.

    Misleads: a deep net of nearly linear layers is nearly a linear net at the start; training bends it.
    Source: Meterez, Joudaki, Orabona, Immer, Raetsch, Daneshmand 2023, arXiv 2310.02012; the law for many samples and
    the slope by a budget are ours.
    """
    model = model_of(model)
    names = {m: n for n, m in model.named_modules()}
    norms = [m for m in names if isinstance(m, nn.modules.batchnorm._BatchNorm | BatchNorm)]
    pairs = takers(step_of(model, inputs), norms, names)
    with_taker = {norm for norm, _ in pairs}
    left = {names[m]: "no module takes its output" for m in norms if m not in with_taker}
    done: list[str] = []
    layers = len(pairs)
    with torch.no_grad():
        for i, (norm, taker) in enumerate(pairs):
            known = recognised(taker)
            law = None if known is None else activation(known)
            if law is None:
                left[names[taker]] = f"no law of a {type(taker).__name__} is known"
            elif law.linear:
                continue
            elif isinstance(norm.weight, Tensor) and not norm.weight.requires_grad:
                left[names[norm]] = "its weight is frozen (requires_grad is off)"
            elif law.homogeneous:
                slope = max(leaky_slope(layers, budget), law.slope or 0.0)
                instead = nn.LeakyReLU(slope, inplace=getattr(taker, "inplace", False)).train(taker.training)
                for parent in names:
                    parent._modules.update({k: instead for k, m in parent._modules.items() if m is taker})
                done.append(names[taker])
            elif not isinstance(norm.weight, Tensor):
                left[names[norm]] = "it has no weight (affine=False)"
            else:
                try:
                    norm.weight.fill_(shaped_gains(law, layers, budget)[i])
                    done.append(names[norm])
                except UsageError as error:
                    left[names[norm]] = str(error)
    if not done:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:5])
        raise UsageError(
            "There must be a batch norm with an activation module behind it; this model has none"
            f"{why and f' ({why})'}. Choose another cure: normscope list cures."
        )
    return Treatment(model, tuple(dict.fromkeys(done)), {name: why for name, why in left.items() if name not in done})


shape_ = in_place(shape, "shape_")
