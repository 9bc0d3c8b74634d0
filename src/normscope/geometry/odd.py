r"""Cluster + odd points (nachum2024): the sample that differs most from all others, and by how much; several of them.

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
    from jaxtyping import Bool, Float

#: A batch this small has no odd state at any width: the fixed point exists for n >= 7 (nachum2024, our section 3.2).
SMALLEST_ODD_BATCH = 7
#: Several odd samples, all chosen by us: at most this share of the batch; each this many spreads of the cluster from
#: its mean, and this many times as far as the farthest of the cluster; how much of one point the cluster is (a ReLU net
#: of 9 layers reaches that from independent samples; fuzzy odd states of 16 samples or more have more); and the least
#: distance over the length of the mean: of a collapsed batch the differences are small, whichever stands out; and the
#: largest cosine with the mean: on one ray with it they are of the collapse, too.
MOST_ODD, SPREADS, GAP, TIGHT, APART, SAME_RAY = 1 / 8, 10.0, 3.0, 0.85, 0.5, 0.98


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


def is_odd(odd: dict[str, Tensor], samples: int) -> Bool[Tensor, "*m"]:
    """One odd point, of the fields of `odd_points`: R2 >= 0.8 and coherence >= 0.6; above 50 samples also by
    separation. Half of |m| away from m at least: a batch that collapsed is no odd state, whichever sample differs most.
    """
    ratio = odd["norm_ratio"]
    apart = 1 + ratio**2 - 2 * ratio * odd["cosine"] >= APART**2  # |o - m|^2 / |m|^2
    score, tight = odd["score"], (odd["coherence"] >= 0.6) & apart
    far = (odd["runner_up"] <= 0.1 * score) & (odd["separation"] >= SPREADS) & (samples > 50)
    return tight & ((score >= 0.8) | far) & (samples >= SMALLEST_ODD_BATCH)


def odd_samples(s: Statistic) -> Bool[Tensor, "*m n"]:
    r"""Which samples stand far from one tight cluster of all others, alone or together; none where there is no such
    state.

    One, by `is_odd`; or k of 2 to n/8, the most for which, m the mean of the others and W^2 their mean squared
    distance from it, each odd one lies $10 W$ and $|m|/2$ from m, and not on its ray, the others' coherence
    $|m|^2/(|m|^2 + W^2)$ is 0.85, and no other is a third as far from the middle (the sample with the least median
    distance to all).
    """
    return s.cached(_odd_samples)


def _odd_samples(s: Statistic) -> Tensor:
    found, most = torch.zeros_like(s.squared_norms, dtype=torch.bool), int(MOST_ODD * s.samples)
    one = odd_points(s)
    single = is_odd(one, s.samples)
    index = one["index"].nan_to_num(0.0).long()[..., None]
    found = found.scatter(-1, index, single[..., None])
    if most < 2 or not _likely(s, most):
        return found
    gram = torch.where(s.finite[..., None, None], s.centred, 0.0)
    own = gram.diagonal(dim1=-2, dim2=-1)
    between = (own[..., None] + own[..., None, :] - 2 * gram).clamp_min(0)
    middle = between.median(-1).values.argmin(-1)
    away = between.take_along_dim(middle[..., None, None], -2).squeeze(-2).sqrt()
    far, order = away.sort(dim=-1, descending=True, stable=True)
    far = far.clamp_min(1e-7 * far[..., :1])  # distances below are rounding of the squares
    for k in range(2, most + 1):
        gap = (far[..., k - 1] >= GAP * far[..., k]) & (far[..., 0] > 0)
        if gap.any():
            odd = torch.zeros_like(found).scatter(-1, order[..., :k], torch.ones_like(order[..., :k], dtype=torch.bool))
            found = torch.where((gap & _stand_apart(s, gram, odd))[..., None], odd, found)
    return found


def _likely(s: Statistic, most: int) -> bool:
    """Whether in any representation k samples hold as much of the centred energy as k that lie so far away must: nearly
    always not, and this costs a thousandth.
    """
    held = s.spreads.topk(most).values.cumsum(-1) / s.spreads.sum(-1, keepdim=True)
    k = torch.arange(1, most + 1, device=held.device)
    least = 0.7 * SPREADS**2 * k / (SPREADS**2 * k + s.samples - k)  # (1 - k/n)^2 is .77 or more
    return bool((held >= least)[..., 1:].any())


def _stand_apart(s: Statistic, gram: Tensor, odd: Bool[Tensor, "*m n"]) -> Bool[Tensor, "*m"]:
    others = (~odd).double() / (~odd).sum(-1, keepdim=True)  # the weights of the mean m
    sums = (gram @ others[..., None]).squeeze(-1)
    own = gram.diagonal(dim1=-2, dim2=-1)
    distances = (own - 2 * sums + torch.linalg.vecdot(others, sums)[..., None]).clamp_min(0)
    spread = torch.linalg.vecdot(others, distances)
    along = (s.gram @ others[..., None]).squeeze(-1)
    mean = torch.linalg.vecdot(others, along)
    nearest = torch.where(odd, distances, torch.inf).amin(-1)
    aside = (along <= SAME_RAY * s.norms * mean.clamp_min(0).sqrt()[..., None]) | ~odd
    tight = (mean > 0) & (mean >= TIGHT * (mean + spread))
    return aside.all(-1) & tight & (nearest >= SPREADS**2 * spread) & (nearest >= APART**2 * mean)
