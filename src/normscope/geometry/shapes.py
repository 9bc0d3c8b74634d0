"""What shape a batch has: one ray, cluster + odd point, several clusters, heavy samples, equiangular."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from normscope.geometry.metrics import representation
from normscope.geometry.odd import SMALLEST_ODD_BATCH as SMALLEST_ODD_BATCH
from normscope.geometry.odd import OddPoint, contrast_shares, is_odd, odd_point, odd_points, odd_samples
from normscope.geometry.statistic import Statistic

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Configuration:
    """``label``: ``point, odd, ray, line, clusters, heavy, equiangular, mixed``; ``clusters`` counts the far samples.

    ``index`` is the odd sample for ``odd`` (else -1), ``confidence`` 1 - (second share / first share),
    ``orthogonal``: |cos(odd, cluster)| <= 0.1, ``cosine``: the mean cosine over pairs, ``odds``: all samples that stand
    far from one tight cluster of the others, up to n/8 of them: of ``odd`` (without an index if they are several, in
    several places), or those of ``clusters`` that are together.
    """

    label: str
    odd: OddPoint
    index: int
    confidence: float
    orthogonal: bool
    cosine: float
    clusters: int = 1
    odds: tuple[int, ...] = ()


def configuration(x: Float[Tensor, "n ..."] | Statistic) -> Configuration:
    """Name the shape of a batch (n, ...), rows are samples, best taken after the activation.

    Rules and calibration are our own, for the phenomenon of nachum2024: rates of false ``odd`` on Gaussian,
    equiangular and two-cluster batches of 7 to 64 samples are 0 (n <= 6 is never called ``odd``).
    """
    s = x if isinstance(x, Statistic) else Statistic.of(representation(x, "configuration"), exact=True)
    odd, shares, cosines = odd_point(s), contrast_shares(s), _cosines(s)
    cosine = cosines.mean().item()
    differ = not shares.isnan().any()
    one = bool(is_odd(odd_points(s), s.samples))
    odds = tuple(odd_samples(s).nonzero().flatten().tolist()) if differ and s.samples > 2 else ()

    def named(label: str, clusters: int = 1) -> Configuration:
        found = label == "odd" and one
        confidence = 1 - odd.runner_up / odd.score if differ and s.samples > 2 else math.nan
        return Configuration(
            label, odd, odd.index if found else -1, confidence, found and abs(odd.cosine) <= 0.1, cosine, clusters, odds
        )

    if not s.finite or s.samples < 3:
        return named("mixed")
    if not differ:
        return named("point")
    if one:
        return named("odd")
    if (cosines >= 0.98).all():
        return named("ray")
    if (cosines.abs() >= 0.98).all():
        return named("line")
    if k := _clusters(s, shares):
        return named("clusters", k)
    if len(odds) > 1:
        return named("odd")
    if s.spreads.max() > 3 * s.spreads.median() and odd.coherence < 0.6:
        return named("heavy")
    spread = cosines.std(correction=0).item()
    narrow = max(0.03, 2.5 / math.sqrt(s.features), 0.75 * math.sqrt(s.samples / s.features))
    narrow = min(narrow, 0.4)  # two orthogonal halves have a spread of 0.5
    if odd.score <= 3 / (s.samples - 1) and spread <= narrow:
        return named("equiangular")
    return named("mixed")


def _cosines(s: Statistic) -> Float[Tensor, " pairs"]:
    """Cosine of every pair of samples, i < j; pairs with a zero sample are left out."""
    keep = s.norms != 0  # NaN stays, and shows
    gram, norms = s.gram[keep][:, keep], s.norms[keep]
    above = torch.ones_like(gram, dtype=torch.bool).triu(1)
    return (gram / norms / norms[:, None]).masked_select(above).clamp(-1, 1)


def _clusters(s: Statistic, shares: Tensor) -> int:
    """Number k of samples that form the smaller of two clusters, 0 if it is not that shape."""
    n = s.samples
    far = shares >= shares.max() / 2
    k = int(far.sum())
    if not 2 <= k <= n / 4:
        return 0
    centred = s.centred[far][:, far]
    scale = centred.diagonal().sqrt()
    cosines = centred / torch.outer(scale, scale)
    expected = (n - k) / (k * (n - 1))
    alike = bool((cosines > 0.5).all())
    return k if alike and abs(shares.max().item() / expected - 1) <= 0.2 else 0
