"""How widely the heads of an attention look, and how many directions what they return fills."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def attention_entropy(
    weights: Float[Tensor, "n h t s"], allowed: Bool[Tensor, "n h t s"] | None = None
) -> tuple[Float[Tensor, " h"], float]:
    r"""Entropy of each head's weights over the keys, nat, and what uniform attention has: its null value.

    $-\sum_j a_{ij} \log a_{ij}$, the mean over samples and queries; 0: each query looks at one key. The null value is
    the mean of $\log T_i$, $T_i$ the keys that query i may look at: $\log T$ without a mask, $\frac1T \log T!$ with a
    causal one. Queries that may look nowhere are left out.
    allowed: at which keys a query may look; ``None``: at all.
    """
    keys = torch.ones_like(weights, dtype=torch.bool) if allowed is None else allowed.broadcast_to(weights.shape)
    count = keys.sum(-1).double()
    seen = (count > 0) & weights.isfinite().all(-1)
    each = torch.where(seen, torch.special.entr(weights.double().clamp_min(0)).sum(-1), torch.nan)
    uniform = torch.where(seen, count.log(), torch.nan)
    return each.nanmean((0, 2)), float(uniform.nanmean())


def head_rank(heads: Float[Tensor, "n h t d"]) -> tuple[Float[Tensor, " h"], float]:
    r"""Participation rank of what each head returns, over all tokens of all samples; and its null value.

    $\mathrm{tr}(C)^2 / \|C\|_F^2$ with $C = O^T O$, O the (n t, d) outputs: from 1 to d. The null value is that of
    i.i.d. standard normal entries, $(N d + 2) / (N + d + 1)$ with N = n t, a ratio of expectations.
    """
    n, h, t, d = heads.shape
    flat = heads.double().transpose(0, 1).reshape(h, n * t, d)
    gram = flat.mT @ flat if d <= n * t else flat @ flat.mT
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return trace.square() / gram.square().sum((-2, -1)), participation_null(n * t, d)


def participation_null(n: int, d: int) -> float:
    """What n samples of d i.i.d. standard normal features have for a participation rank, a ratio of expectations."""
    return (n * d + 2) / (n + d + 1) if n and d else math.nan
