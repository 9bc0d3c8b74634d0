"""Activations shaped so that gradients do not grow with depth, and samples stay apart."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from normscope.core.errors import UsageError
from normscope.gaussian import activation
from normscope.init._cures import in_place, register
from normscope.init._layers import TREATABLE, Treatment, model_of, step_of, takers
from normscope.nn import BatchNorm, RMSNorm
from normscope.nn.activations import recognised
from normscope.nn.growth import leaky_slope, shaped_gains

#: Norms that set the scale of what an activation takes.
SCALED = (nn.modules.batchnorm._NormBase, BatchNorm, nn.LayerNorm, nn.GroupNorm, RMSNorm, nn.RMSNorm)


@register(
    "shape", "meterez2024", auto="quick",
    doc="Activations nearer to linear with depth: gains of norms that fall, leaky slopes for ReLU, so that gradients "
    "do not explode and samples stay apart.",
)  # fmt: skip
def shape(model: nn.Module, inputs: Any, *, budget: float = 1.0) -> Treatment:
    r"""Shape each activation that takes the output of a norm, and each ReLU behind a layer; in place.

    The log of the gradient's growth over the net behind batch norm, `normscope.nn.growth`, is brought to ``budget``
    (1: a factor e) or below. The l-th norm gets the weight $(l+1)^{-p}$, p = .4 for odd smooth activations and more for
    others, so that they act ever more linearly; ReLU and leaky ReLU, which no gain changes, get the slope at which so
    many layers stay within the budget.

    Behind norms over features (layer, group, RMS) odd activations follow the same law. ReLU's gradients do not grow
    there, nor in plain nets, but samples merge: the same slope, $(1-a)^2 / \pi(1+a^2) = 2/L$ for many layers, brings
    the cosine of orthogonal samples to about .8 in the end, where ReLU's goes to 1. Without a norm the layer's weights
    are scaled by $\sqrt{(1+a_0^2)/(1+a^2)}$, so that lengths stay as they were. Other weights stay: the law is of
    weights that keep lengths, so join it as ``delta-orthogonal+shape``, or where weights are Gaussian expect some
    growth of theirs.

    Left alone, with the reason: activations without a law (a module that is not in ``normscope list activations``),
    functions that are no modules, norms without a weight. With skip connections the law does not hold (the gradient
    goes round), see ``branch-scale`` and ``zero-branches``.

    Misleads: a deep net of nearly linear layers is nearly a linear net at the start; training bends it.
    Source: Meterez, Joudaki, Orabona, Immer, Raetsch, Daneshmand 2023, arXiv 2310.02012; without batch norm Zhang,
    Botev, Martens 2022, arXiv 2203.08120; the law for many samples and the slope by a budget are ours.
    """
    model = model_of(model)
    names = {m: n for n, m in model.named_modules()}
    norms = [m for m in names if isinstance(m, SCALED)]
    layers = [m for m in names if isinstance(m, TREATABLE)]
    known = [(maker, taker, _law(taker)) for maker, taker in takers(step_of(model, inputs), [*norms, *layers], names)]
    pairs = [(m, t, law) for m, t, law in known if m in norms or (law is not None and _bent(law))]
    with_taker = {maker for maker, _, _ in pairs}
    left = {names[m]: "no module takes its output" for m in norms if m not in with_taker}
    done: list[str] = []
    depth = len(pairs)
    with torch.no_grad():
        for i, (maker, taker, law) in enumerate(pairs):
            if law is None:
                left[names[taker]] = f"no law of a {type(taker).__name__} is known"
            elif law.linear:
                continue
            elif isinstance(maker.weight, Tensor) and not maker.weight.requires_grad:
                left[names[maker]] = "its weight is frozen (requires_grad is off)"
            elif law.homogeneous:
                slope = max(leaky_slope(depth, budget), law.slope or 0.0)
                instead = nn.LeakyReLU(slope, inplace=getattr(taker, "inplace", False)).train(taker.training)
                for parent in names:
                    parent._modules.update({k: instead for k, m in parent._modules.items() if m is taker})
                if maker not in norms:
                    maker.get_parameter("weight").mul_(math.sqrt((1 + (law.slope or 0.0) ** 2) / (1 + slope**2)))
                done.append(names[taker])
            elif not isinstance(maker.weight, Tensor):
                left[names[maker]] = "it has no weight (affine=False)"
            else:
                try:
                    maker.weight.fill_(shaped_gains(law, depth, budget)[i])
                    done.append(names[maker])
                except UsageError as error:
                    left[names[maker]] = str(error)
    if not done:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:5])
        raise UsageError(
            "There must be a norm with an activation module behind it, or a ReLU behind a layer; this model has none"
            f"{why and f' ({why})'}. Choose another cure: normscope list cures."
        )
    return Treatment(model, tuple(dict.fromkeys(done)), {name: why for name, why in left.items() if name not in done})


def _law(taker: nn.Module) -> Any:
    known = recognised(taker)
    return None if known is None else activation(known)


def _bent(law: Any) -> bool:
    """Whether it is a ReLU of some slope."""
    return bool(law.homogeneous and not law.linear)


shape_ = in_place(shape, "shape_")
