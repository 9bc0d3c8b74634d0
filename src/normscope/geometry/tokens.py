"""How far the tokens of one sequence (the steps of a series, the nodes of a graph) are one vector."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

#: What is looked at (chosen by us: a median and a mean that are good to a few per cent): the first sequences, and
#: tokens at even distances of each.
SEQUENCES, TOKENS = 32, 64
#: Fewer tokens are no sequence: two are a pair, as in a comparison.
FEWEST = 3


def token_cosine(x: Float[Tensor, "n t d"]) -> float:
    r"""Mean cosine between two tokens of a sequence, the median over sequences; NaN where nothing has three tokens.

    With unit vectors $u_i$ of the t tokens, $\frac{1}{t(t-1)} \sum_{i \ne j} u_i \cdot u_j
    = 1 - \frac{1}{t-1} \sum_i |u_i - \bar u|^2$: the right-hand side costs t d, not t^2 d, and keeps the digits of
    1 - cosine. Tokens that are zero (masked) are left out.
    """
    if x.dim() != 3 or x.shape[1] < FEWEST or x.shape[2] < 2 or x.is_complex():
        return math.nan
    step = -(-x.shape[1] // TOKENS)
    x = x.detach()[:SEQUENCES, ::step].to(torch.float64)
    lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    alive = lengths > 0
    count = alive.sum(1)[:, 0]
    units = torch.where(alive, x / lengths, 0.0)
    mean = units.sum(1, keepdim=True) / count[:, None, None]
    apart = torch.where(alive, units - mean, 0.0).square().sum((1, 2)) / (count - 1)
    values = (1 - apart)[count >= FEWEST]
    return float(values.quantile(0.5)) if len(values) and bool(lengths.isfinite().all()) else math.nan
