"""Metrics of one representation: pure functions of its Gram matrix, in float64.

Every metric is registered in `METRICS` and can be called on an (n, n) Gram matrix $G = X X^T$ of n samples, as in
``metrics.orthogonality_gap(x @ x.T)``. `measure` takes the representation itself and is more accurate: it never
squares what it can leave unsquared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from normscope.core.errors import UsageError, shown
from normscope.core.registry import Registry
from normscope.core.tensors import check_plain
from normscope.geometry.statistic import Statistic

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Metric:
    """A registered metric: the function, and what a reader must know about the number.

    ``unit``; ``low`` and ``high``: the range of the value (inclusive); ``source``: where it is defined;
    ``invariant``: what leaves it unchanged, of ``scale`` (X -> c X), ``rotation`` (X -> X Q), ``permutation`` (of
    the samples); ``signal``: what it is measured on, ``activation`` or ``gradient``.
    """

    function: Callable[..., Tensor | float]
    name: str
    unit: str
    low: float
    high: float
    source: str
    invariant: tuple[str, ...]
    signal: str

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self.function.__doc__

    def __call__(self, gram: Float[Tensor, "n n"] | Statistic, **options: float) -> float:
        """The value for a Gram matrix (n, n) or a `Statistic`; ``options`` go to the metric (``tau`` of `soft_rank`)."""
        return float(self.function(gram if isinstance(gram, Statistic) else Statistic.of_gram(gram), **options))


METRICS: Registry[Metric] = Registry("metric")


def register(
    *,
    unit: str,
    source: str,
    low: float = 0.0,
    high: float = math.inf,
    invariant: str = "scale rotation permutation",
    signal: str = "activation",
) -> Callable[[Callable[..., Tensor | float]], Metric]:
    """Decorator: enrol a function of a `Statistic` as a metric under its own name."""

    def enrol(function: Callable[..., Tensor | float]) -> Metric:
        name = function.__name__
        return METRICS.add(name, Metric(function, name, unit, low, high, source, tuple(invariant.split()), signal))

    return enrol


def measure(x: Float[Tensor, "n ..."], metrics: str | Iterable[str] | None = None) -> dict[str, float]:
    """Metrics of one representation.

    x: (n, ...), batch first, or what ``torch.as_tensor`` makes one of; everything after the first axis is one sample's
        features, the second axis (the last of three) counts as the units. Any floating dtype, any device; integers are
        taken as numbers.
    metrics: names; default all metrics of representations.

    Returns name -> value, in float64, NaN where the value is undefined (a batch of one has no pairs).
    Raises ``UsageError`` for an empty batch, what is no dense tensor of numbers, or an unknown name.
    """
    x = _read(x)
    names = [m.name for m in METRICS.values() if m.signal == "activation"] if metrics is None else metric_names(metrics)
    chosen = [METRICS[name] for name in names]
    statistic = Statistic.of(x, exact=True, units=unit_axis(x))
    return {m.name: m(statistic) for m in chosen}


def _read(x: Any) -> Tensor:
    """A representation, (n, ...): a tensor, an array, or lists of numbers."""
    needs = "measure() needs a tensor of numbers of shape (n, ...), batch first"
    if not isinstance(x, Tensor):
        try:
            x = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError) as error:
            said = str(error).splitlines()[0]
            raise UsageError(
                f"{needs}; got a {type(x).__name__} (torch: {said}). Pass an array, or rows of equal length."
            ) from None
    check_plain("What measure() takes", x)
    if x.dim() == 0:
        raise UsageError(f"{needs}; got a scalar. Give it an axis of samples.")
    return x


def metric_names(metrics: str | Iterable[str], *more: str) -> list[str]:
    """The names asked for, each once, all known; ``more``: names beside those of `METRICS`."""
    try:
        names = [metrics] if isinstance(metrics, str) else list(dict.fromkeys(metrics))
    except TypeError:
        raise UsageError(
            f"metrics must be a name or several; got {shown(metrics)}. Pass metrics=['rms', 'sigma_min']."
        ) from None
    return [name if name in more else METRICS[name].name for name in names]


def unit_axis(x: Tensor) -> int:
    """The axis of the units: the last of (n, d) and (n, tokens, d), the second of images (n, d, height, width)."""
    return -1 if x.dim() <= 3 else 1


# Orthogonality and rank


@register(unit="1", high=1.0, source="daneshmand2021, eq. 2")
def orthogonality_gap(s: Statistic) -> Tensor:
    r"""Distance of the batch from orthogonality; 0 iff all samples are orthogonal and equally long.

    $V = \| G / \mathrm{tr}\,G - I/n \|_F$.
    At most $\sqrt{1 - 1/n}$ (rank one). A batch of rank r < n cannot come below `orthogonality_gap_floor`.
    Healthy V does not exclude a lost dimension: read `sigma_min` too.
    """
    gram = s.gram / s.gram.trace()
    return (gram - torch.eye(s.samples, dtype=gram.dtype, device=gram.device) / s.samples).norm()


@register(unit="1", high=1.0, source="derived from daneshmand2021, eq. 2")
def orthogonality_gap_floor(s: Statistic) -> float:
    r"""The least orthogonality gap that a batch of this numerical rank r can have.

    $\sqrt{1/r - 1/n}$.
    """
    r = _rank_above(s, torch.finfo(torch.float64).eps)
    return math.sqrt(max(0.0, 1 / r - 1 / s.samples)) if r > 0 else math.nan


@register(unit="x", source="daneshmand2021, section 3", invariant="rotation permutation")
def sigma_min(s: Statistic) -> Tensor:
    """Smallest of the n singular values of X, in the unit of x (0 when n > d): a dimension is lost when it vanishes."""
    return s.singular_values[-1]


@register(unit="dimensions", low=1.0, source="daneshmand2020, Lemma 1")
def participation_rank(s: Statistic) -> Tensor:
    r"""Effective number of directions, between 1 (all samples on one line) and the rank.

    $r = \mathrm{tr}(G)^2 / \|G\|_F^2 = (\sum\lambda)^2/\sum\lambda^2$.
    """
    return s.gram.trace().square() / s.gram.square().sum()


@register(unit="dimensions", source="daneshmand2020, section 2 (tau = 0.5)")
def soft_rank(s: Statistic, tau: float = 0.5) -> Tensor:
    r"""Number of eigenvalues of the second moment that reach ``tau`` when their mean is 1.

    The mean runs over the min(n, d) eigenvalues that can be non-zero (the papers have d of them, n >= d).
    """
    size = min(s.samples, s.features)
    values = s.eigenvalues[:size]
    if not s.finite:
        return torch.tensor(math.nan)
    return (values >= tau * values.mean()).sum() if values.sum() > 0 else torch.tensor(0)


@register(unit="dimensions", low=1.0, source="garrido2023 (RankMe)")
def entropy_rank(s: Statistic) -> Tensor:
    r"""Exponential of the entropy of the normalized singular values (RankMe).

    $\exp(-\sum_i p_i \log p_i)$ with $p_i = \sigma_i / \sum_j \sigma_j$ (singular values, not eigenvalues).
    """
    p = s.singular_values / s.singular_values.sum()
    return torch.special.entr(p).sum().exp()


@register(unit="dimensions", source="numpy.linalg.matrix_rank")
def numerical_rank(s: Statistic) -> float:
    r"""Number of singular values that float64 can tell from zero.

    Those above $\sigma_1 \max(n, d)\, \epsilon$, $\epsilon = 2.2 \cdot 10^{-16}$.
    Computed in float32 a collapsed batch often keeps full rank here, its small directions being rounding:
    read `numerical_rank_float32` for a net that runs in float32.
    """
    return _rank_above(s, torch.finfo(torch.float64).eps)


@register(unit="dimensions", source="daneshmand2020, Fig. 1")
def numerical_rank_float32(s: Statistic) -> float:
    r"""Number of singular values that float32 can tell from zero.

    Those above $\sigma_1 \max(n, d)\, \epsilon$, $\epsilon = 1.2 \cdot 10^{-7}$.
    """
    return _rank_above(s, torch.finfo(torch.float32).eps)


def _rank_above(s: Statistic, roundoff: float) -> float:
    sigma = s.singular_values
    if not s.finite:
        return math.nan
    return float((sigma > sigma[0] * max(s.samples, s.features) * roundoff).sum())


@register(unit="nat", source="joudaki2023 (isometry of activations)")
def isometry_gap(s: Statistic) -> Tensor:
    r"""Distance of the Gram's spectrum from flat; 0 iff all eigenvalues are equal.

    $\log \frac1n \sum_i \lambda_i - \frac1n \sum_i \log \lambda_i$.
    Infinite when a dimension is missing: more samples than features, or after recentring.
    """
    values = s.eigenvalues
    return values.mean().log() - values.log().mean()


# Angles, norms, means


@register(unit="1", low=-1.0, high=1.0, source="pairwise cosine")
def mean_cosine(s: Statistic) -> Tensor:
    """Mean cosine over all pairs of samples."""
    return s.cosines.mean()


@register(unit="1", high=1.0, source="daneshmand2021, Fig. 1")
def mean_abs_cosine(s: Statistic) -> Tensor:
    """Mean |cosine| over all pairs of samples: 1 when the whole batch lies on one line."""
    return s.cosines.abs().mean()


@register(unit="1", high=1.0, source="pairwise cosine")
def max_abs_cosine(s: Statistic) -> Tensor:
    """Largest |cosine| over all pairs of samples; near 1: two samples the network no longer tells apart."""
    return s.cosines.abs().max() if len(s.cosines) else torch.tensor(math.nan)


@register(unit="x", source="length of a sample", invariant="rotation permutation")
def mean_norm(s: Statistic) -> Tensor:
    r"""Mean over samples of their norm."""
    return s.squared_norms.clamp_min(0).sqrt().mean()


@register(unit="x", source="scale of an entry", invariant="rotation permutation")
def rms(s: Statistic) -> Tensor:
    r"""Root mean square entry (d is taken as n for a bare Gram matrix).

    $\sqrt{\mathrm{tr}\,G / (n d)}$.
    """
    return (s.gram.trace() / (s.samples * s.features)).sqrt()


@register(unit="1", source="coefficient of variation")
def norm_spread(s: Statistic) -> Tensor:
    r"""Standard deviation (1/n) of the norms of the samples over their mean."""
    norms = s.squared_norms.clamp_min(0).sqrt()
    return norms.std(correction=0) / norms.mean()


@register(unit="1", high=1.0, source="share of energy in the batch mean")
def mean_shift(s: Statistic) -> Tensor:
    r"""Share of the batch's energy in its mean; 1: all samples are equal.

    $\|\bar x\|^2 / \frac1n \sum_i \|x_i\|^2$.
    """
    total = s.gram.trace()
    return ((total - s.centred.trace()) / total).clamp(0, 1)


@register(unit="1", high=1.0, source="share of units that are zero", invariant="scale permutation")
def dead_units(s: Statistic) -> float:
    """Share of units that are exactly 0 for every sample and position (NaN for a bare Gram matrix)."""
    return s.dead


@register(unit="1", high=1.0, source="share of entries near the ends of a bounded activation", invariant="permutation")
def saturated_units(s: Statistic) -> float:
    """Share of entries within 2.5 % of the activation's range from its ends (NaN unless the activation is bounded)."""
    return s.saturated


# Cluster + odd point (nachum2024): the measurements; `configuration` names the shape


@register(unit="1", high=1.0, source="nachum2024 (our detector)")
def odd_point_score(s: Statistic) -> Tensor:
    r"""Share of the centred energy that is one sample against the mean of the others.

    $R_2 = \max_i \frac{n}{n-1} S_{ii} / \mathrm{tr} S$, $S = P G P$: 1 for one odd point and a perfect cluster,
    1/(n-1) for an equiangular batch. NaN when all samples are equal.
    """
    shares = contrast_shares(s)
    return shares.max() if len(shares) else torch.tensor(math.nan)


@register(unit="sample", source="nachum2024 (our detector)", invariant="scale rotation")
def odd_point_index(s: Statistic) -> Tensor | float:
    """Index (from 0) of the sample with the largest share of the centred energy."""
    shares = contrast_shares(s)
    return float(shares.argmax()) if len(shares) else math.nan


@register(unit="1", high=1.0, source="nachum2024 (our detector)")
def odd_point_coherence(s: Statistic) -> float:
    r"""How much the samples other than the odd one are one point: $|m|^2 / (|m|^2 + W^2)$.

    m is their mean, W^2 their mean squared distance from it. 0.32 for the bulk of complete batch norm, above 0.85
    for cluster + odd point with n >= 16.
    """
    return odd_point(s).coherence


@register(unit="1", source="nachum2024 (our detector)")
def odd_point_separation(s: Statistic) -> float:
    r"""Distance of the odd sample from the mean of the others over their own rms distance from it."""
    return odd_point(s).separation


@register(unit="1", high=1.0, source="nachum2024 (our detector)")
def odd_point_margin(s: Statistic) -> float:
    """How alone the odd sample is: 1 - (second largest share of the centred energy / largest)."""
    odd = odd_point(s)
    return 1 - odd.runner_up / odd.score


@dataclass(frozen=True)
class OddPoint:
    r"""One sample against the others: m is the mean of the others, W^2 their mean squared distance from m, o the odd one.

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


def contrast_shares(s: Statistic) -> Float[Tensor, " n"]:
    r"""$q_i = \frac{n}{n-1} S_{ii} / \mathrm{tr} S$; empty when the samples are equal up to rounding, or n < 2."""
    return s.cached(_contrast_shares)


def _contrast_shares(s: Statistic) -> Tensor:
    centred, n = s.centred.diagonal(), s.samples
    if n < 2 or not s.finite or centred.sum() <= 1e-24 * s.gram.trace():
        return centred[:0]
    return centred / centred.sum() * (n / (n - 1))


def odd_point(s: Statistic) -> OddPoint:
    """The sample that differs most from all others, and by how much; NaN (index -1) for equal samples or n < 3."""
    return s.cached(_odd_point)


def _odd_point(s: Statistic) -> OddPoint:
    shares, n = contrast_shares(s), s.samples
    if n < 3 or not len(shares):
        nan = math.nan
        return OddPoint(nan, -1, nan, nan, nan, nan, nan)
    top = shares.topk(2)
    o = int(top.indices[0])
    rest = torch.arange(n, device=shares.device) != o
    gram = s.gram
    m2 = gram[rest][:, rest].mean()
    # W^2 and |o - m|^2 from centred entries: distances do not see the common mean, so nothing cancels.
    c = s.centred
    inner, outer, own = c[rest][:, rest], c[o, rest], c[o, o]
    w2 = (inner.diagonal().mean() - inner.mean()).clamp_min(0)
    d2 = (own - 2 * outer.mean() + inner.mean()).clamp_min(0)
    om = gram[o, rest].mean()
    norm_o, norm_m = gram[o, o].clamp_min(0).sqrt(), m2.clamp_min(0).sqrt()
    return OddPoint(
        score=top.values[0].item(),
        index=o,
        coherence=(m2 / (m2 + w2)).item(),
        cosine=(om / (norm_o * norm_m)).clamp(-1, 1).item(),
        separation=(d2 / w2).sqrt().item(),
        norm_ratio=(norm_o / norm_m).item(),
        runner_up=top.values[1].item(),
    )


# Gradients


@register(unit="loss / x", source="norm of the loss gradient", invariant="rotation permutation", signal="gradient")
def gradient_norm(s: Statistic) -> Tensor:
    r"""Frobenius norm of the loss gradient with respect to the layer's output, over the whole batch."""
    return s.gram.trace().clamp_min(0).sqrt()


@register(unit="1", high=1.0, source="daneshmand2020, section 3 (gradient direction)", signal="gradient")
def gradient_collinearity(s: Statistic) -> Tensor:
    """Mean |cosine| between the gradients that two samples receive: 1 when all samples pull along one line."""
    return s.cosines.abs().mean()
