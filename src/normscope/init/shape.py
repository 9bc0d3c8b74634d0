"""Activations shaped so that gradients do not grow with depth, and samples stay apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from normscope.core.errors import UsageError
from normscope.gaussian import activation, second_moment
from normscope.init._cures import in_place, register
from normscope.init._layers import TREATABLE, Treatment, model_of, step_of, takers
from normscope.nn import BatchNorm, RMSNorm, Shaped
from normscope.nn.activations import recognised
from normscope.nn.growth import leaky_slope, shaped_gains

#: Norms that set the scale of what an activation takes.
SCALED = (nn.modules.batchnorm._NormBase, BatchNorm, nn.LayerNorm, nn.GroupNorm, RMSNorm, nn.RMSNorm)


@register(
    "shape", "meterez2024", auto="quick",
    doc="Activations nearer to linear with depth: gains that fall before smooth ones, leaky slopes for ReLU, so that "
    "gradients do not explode and samples stay apart.",
)  # fmt: skip
def shape(model: nn.Module, inputs: Any, *, budget: float = 1.0) -> Treatment:
    r"""Shape each activation module that takes the output of a norm or of a layer; in place.

    The log of the gradient's growth over the net behind batch norm, `normscope.nn.growth`, is brought to ``budget``
    (1: a factor e) or below. A smooth activation $\varphi$, the l-th one, becomes $s\,\varphi(g x)$, a
    `normscope.nn.Shaped`, $g = (l+1)^{-p}$, p = .4 for odd ones and more for others, so that they act ever more
    linearly; behind a norm s = 1/g. ReLU and leaky ReLU, which no gain changes, get the slope at which so many layers
    stay within the budget. One activation module for several layers cannot have several gains: there the norms' weights
    get them, or if it takes no norm's output it is left alone.

    Behind norms over features (layer, group, RMS) odd activations follow the same law. ReLU's gradients do not grow
    there, nor in plain nets, but samples merge: the same slope, $(1-a)^2 / \pi(1+a^2) = 2/L$ for many layers, brings
    the cosine of orthogonal samples to about .8 in the end, where ReLU's goes to 1. Without a norm lengths stay as they
    were: the layer's weights are scaled by $\sqrt{(1+a_0^2)/(1+a^2)}$, of odd activations s keeps the root mean square
    of what a standard normal gives; others (GELU) are left alone there. Other weights stay: the law is of weights that
    keep lengths, so join it as ``delta-orthogonal+shape`` or ``lsuv+shape``, or where weights are Gaussian expect some
    growth of theirs.

    Left alone, with the reason: activations without a law (a module that is not in ``normscope list activations``),
    functions that are no modules. With skip connections the law does not hold (the gradient goes round), see
    ``branch-scale`` and ``zero-branches``.

    Misleads: a deep net of nearly linear layers is nearly a linear net at the start; training bends it.
    Source: Meterez, Joudaki, Orabona, Immer, Raetsch, Daneshmand 2023, arXiv 2310.02012; without batch norm Zhang,
    Botev, Martens 2022, arXiv 2203.08120; the law for many samples and the slope by a budget are ours.
    """
    model = model_of(model)
    names = {m: n for n, m in model.named_modules()}
    norms = [m for m in names if isinstance(m, SCALED)]
    layers = [m for m in names if isinstance(m, TREATABLE)]
    known = [(maker, taker, _law(taker)) for maker, taker in takers(step_of(model, inputs), [*norms, *layers], names)]
    pairs = [(m, t, law) for m, t, law in known if m in norms or (law is not None and _keeps(law))]
    times = Counter(t for _, t, _ in pairs)
    with_taker = {maker for maker, _, _ in pairs}
    left = {names[m]: "no module takes its output" for m in norms if m not in with_taker}
    done: list[str] = []
    depth = len(pairs)
    gains = cache(lambda law: shaped_gains(law, depth, budget))
    with torch.no_grad():
        for i, (maker, taker, law) in enumerate(pairs):
            weight = maker.weight if isinstance(maker.weight, Tensor) else None
            if law is None:
                left[names[taker]] = f"no law of a {type(taker).__name__} is known"
            elif law.linear:
                continue
            elif weight is not None and not weight.requires_grad:
                left[names[maker]] = "its weight is frozen (requires_grad is off)"
            elif law.homogeneous:
                slope = max(leaky_slope(depth, budget), law.slope or 0.0)
                _replace(names, taker, nn.LeakyReLU(slope, inplace=getattr(taker, "inplace", False)))
                if maker not in norms:
                    maker.get_parameter("weight").mul_(math.sqrt((1 + (law.slope or 0.0) ** 2) / (1 + slope**2)))
                done.append(names[taker])
            else:
                try:
                    gain = gains(law)[i]
                except UsageError as error:
                    left[names[taker]] = str(error)
                    continue
                if times[taker] == 1:
                    kept = 1 / gain
                    if maker not in norms:
                        kept = math.sqrt(float(second_moment(law, 1.0)) / float(second_moment(law, gain**2)))
                    _replace(names, taker, Shaped(taker, gain, kept))
                    done.append(names[taker])
                elif maker in norms and weight is not None:
                    weight.fill_(gain)
                    done.append(names[maker])
                else:
                    left[names[maker]] = f"{names[taker]} serves several layers, which want gains of their own"
    if not done:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:5])
        raise UsageError(
            "There must be an activation module behind a norm or a layer; this model has none that can be shaped"
            f"{why and f' ({why})'}. Choose another cure: normscope list cures."
        )
    return Treatment(model, tuple(dict.fromkeys(done)), {name: why for name, why in left.items() if name not in done})


def _replace(modules: Iterable[nn.Module], old: nn.Module, new: nn.Module) -> None:
    """Put the new one wherever the old one stands, in its mode."""
    new.training = old.training
    for parent in modules:
        parent._modules.update({k: new for k, m in parent._modules.items() if m is old})


def _keeps(law: Any) -> bool:
    """Whether lengths stay lengths without a norm: of others (gelu, silu) long samples grow longer, short ones
    shorter.
    """
    return bool((law.homogeneous or law.odd) and not law.linear)


def _law(taker: nn.Module) -> Any:
    known = recognised(taker)
    return None if known is None else activation(known)


shape_ = in_place(shape, "shape_")
