r"""Cluster + odd point (nachum2024): the sample that differs most from all others, and by how much.

The measurements; `normscope.geometry.shapes` names the shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from normscope.geometry.statistic import Statistic, squared_lengths

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class OddPoint:
    r"""One sample against the others: m is the mean of the others, W^2 their mean squared distance from m, o the odd
    one.

    ``score`` $R_2$, ``index``, ``coherence`` $|m|^2/(|m|^2+W^2)$, ``cosine`` of o and m, ``separation``
    $\sqrt{|o-m|^2 / W^2}$, ``norm_ratio`` $|o|/|m|$, ``runner_up``: the second largest share.
    """

    score: float
    index: int
    coherence: float
    cosine: float
    separation: float
    norm_ratio: float
    runner_up: float


def contrast_shares(s: Statistic) -> Float[Tensor, "*m n"]:
    r"""$q_i = \frac{n}{n-1} S_{ii} / \mathrm{tr} S$, $S = P G P$; NaN for samples equal up to rounding, or n < 2."""
    return s.cached(_contrast_shares)


def _contrast_shares(s: Statistic) -> Tensor:
    n, total = s.samples, s.spreads.sum(-1, keepdim=True)
    known = s.finite[..., None] & (total > 1e-24 * s.trace[..., None]) & (n > 1)
    return torch.where(known, s.spreads / total * (n / max(n - 1, 1)), torch.nan)


def first_largest(q: Float[Tensor, "*m n"]) -> Tensor:
    """(...) the index of the largest of each row, of several that rounding alone tells apart the first."""
    return (q >= q.amax(-1, keepdim=True) * (1 - 1e-12)).to(torch.uint8).argmax(-1)


def odd_points(s: Statistic) -> dict[str, Tensor]:
    """The fields of `OddPoint`, (...) each, in float64; NaN for equal samples or n < 3."""
    return s.cached(_odd_points)


def _odd_points(s: Statistic) -> dict[str, Tensor]:
    q, n = contrast_shares(s), s.samples
    if n < 3:
        return dict.fromkeys(OddPoint.__dataclass_fields__, torch.full_like(s.trace, torch.nan))
    top = q.topk(2).values
    o = first_largest(q)[..., None]
    others = torch.ones_like(q).scatter_(-1, o, 0.0)
    if s.factor is not None:
        f = s.factor64
        mean = (others[..., None, :] @ f) / (n - 1)
        distances = squared_lengths(f - mean)
        w2, d2 = torch.linalg.vecdot(others, distances) / (n - 1), _at(distances, o)
        m2 = torch.linalg.vecdot(mean, mean).squeeze(-1)
        om = torch.linalg.vecdot(f.take_along_dim(o[..., None], -2), mean).squeeze(-1)
    else:
        # m from the others alone: taking o off a sum of all would lose digits to it.
        sums = (s.gram @ others[..., None]).squeeze(-1)
        m2, om = torch.linalg.vecdot(others, sums) / (n - 1) ** 2, _at(sums, o) / (n - 1)
        # Of samples less the mean of all, c_i: the others have the mean -c_o / (n - 1), so W^2 = sum |c_i|^2 / (n - 1)
        # less the square of that, and o - m = c_o n / (n - 1). The common mean is in none of these, so does not cancel.
        own = _at(s.spreads, o)
        w2 = (torch.linalg.vecdot(others, s.spreads) / (n - 1) - own / (n - 1) ** 2).clamp_min(0)
        d2 = own * (n / (n - 1)) ** 2
    norm_o, norm_m = _at(s.norms, o), m2.clamp_min(0).sqrt()
    found = {
        "score": top[..., 0],
        "index": o[..., 0].to(torch.float64),
        "coherence": m2 / (m2 + w2),
        "cosine": (om / (norm_o * norm_m)).clamp(-1, 1),
        "separation": (d2 / w2).sqrt(),
        "norm_ratio": norm_o / norm_m,
        "runner_up": top[..., 1],
    }
    known = ~found["score"].isnan()
    return {name: torch.where(known, value, torch.nan) for name, value in found.items()}


def _at(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(-1, index).squeeze(-1)


def odd_point(s: Statistic) -> OddPoint:
    """The sample that differs most, of one representation; NaN (index -1) for equal samples or n < 3."""
    found = {name: float(value) for name, value in odd_points(s).items()}
    index = found.pop("index")
    return OddPoint(index=-1 if math.isnan(index) else int(index), **found)
