"""Metrics of one representation: pure functions of its Gram matrix, in float64.

Every metric is registered in `METRICS` and can be called on an (n, n) Gram matrix $G = X X^T$ of n samples, as in
``metrics.orthogonality_gap(x @ x.T)``. `measure` takes the representation itself and is more accurate: it never
squares what it can leave unsquared. Each is written once, for a `Statistic` with any leading axes (...): m layers of
one shape are measured at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from normscope.core.errors import MANY, UsageError, flag, shown
from normscope.core.tensors import check_plain
from normscope.geometry.metric import METRICS, evaluate, register
from normscope.geometry.metric import Metric as Metric
from normscope.geometry.odd import contrast_shares, first_largest, odd_points
from normscope.geometry.statistic import Statistic
from normscope.geometry.streamed import KEPT, accumulated, check_names

if TYPE_CHECKING:
    from jaxtyping import Float


#: Below this the square of a number has fewer digits than float64's: it is subnormal below 1.5e-154.
SMALLEST = 1e-146


def measure(
    x: Float[Tensor, "n ..."] | None = None,
    metrics: str | Iterable[str] | None = None,
    *,
    null: bool = False,
    data: Iterable[Any] | None = None,
) -> dict[str, float]:
    """Metrics of one representation.

    x: (n, ...), batch first, or what ``torch.as_tensor`` makes one of; everything after the first axis is one sample's
        features, the second axis (the last of three, which are read as (n, tokens, d)) counts as the units. Any
        floating dtype, any device; integers are taken as numbers.
    metrics: names; default all metrics of representations.
    null: put ``<name>_null`` behind each, what i.i.d. standard normal entries of the same n and d give: the mean over
        16 draws, without those of lengths and entries, which depend on more than n and d.
    data: batches of one representation, in the place of ``x``: they are measured as one, and only their second moments
        are kept, (d, d). For metrics of the spectrum alone (`normscope.geometry.streamed.KEPT`), without null values.

    Returns name -> value, in float64, NaN where the value is undefined (a batch of one has no pairs).
    Raises ``UsageError`` for an empty batch, what is no dense tensor of numbers, or an unknown name.
    """
    null = flag("null", null)
    if (x is None) == (data is None):
        raise UsageError("measure() takes x, or data= with batches of it; pass one of them.")
    if data is not None:
        if null:
            raise UsageError("measure(data=...) has no null values; call METRICS[name].null(n, d) for them.")
        names = list(KEPT) if metrics is None else metric_names(metrics)
        check_names(names)
        moments = accumulated(data, representation)
        return {name: METRICS[name](moments) for name in names}
    x = representation(x)
    names = [m.name for m in METRICS.values() if m.signal == "activation"] if metrics is None else metric_names(metrics)
    chosen = [METRICS[name] for name in names]
    statistic = Statistic.of(x, exact=True, units=unit_axis(x), sequences=x)
    found = evaluate([statistic], chosen)[0]
    for metric in chosen if null else ():
        if "scale" in metric.invariant and metric.needs != "entries":
            found[f"{metric.name}_null"] = metric.null(statistic.samples, statistic.features, draws=16)
    return found


def representation(x: Any, what: str = "measure") -> Tensor:
    """A representation, (n, ...): a tensor, an array, or lists of numbers."""
    needs = f"{what}() needs a tensor of numbers of shape (n, ...), batch first"
    if not isinstance(x, Tensor):
        try:
            x = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError) as error:
            said = str(error).splitlines()[0]
            raise UsageError(
                f"{needs}; got a {type(x).__name__} (torch: {said}). Pass an array, or rows of equal length."
            ) from None
    check_plain(f"What {what}() takes", x)
    if x.dim() == 0:
        raise UsageError(f"{needs}; got a scalar. Give it an axis of samples.")
    if x.is_complex():
        raise UsageError(f"{needs}, real ones; got {x.dtype}. Pass torch.view_as_real(x): the parts as features.")
    if x.dtype == torch.float64 and x.numel() and len(x):
        longest = x.detach().abs().flatten(1).amax(1) if x.dim() > 1 else x.detach().abs()
        small = (longest > 0) & (longest < SMALLEST)
        if small.any():
            raise UsageError(
                f"{needs} whose squares float64 can hold; the largest entry of a sample is "
                f"{float(longest[small].min()):.1e}. Scale them: x / x.abs().max()."
            )
    return x


def metric_names(metrics: str | Iterable[str], *more: str) -> list[str]:
    """The names asked for, each once, all known; ``more``: names beside those of `METRICS`."""
    try:
        names = [metrics] if isinstance(metrics, str) else list(dict.fromkeys(itertools.islice(metrics, MANY)))
    except TypeError:
        raise UsageError(
            f"metrics must be a name or several; got {shown(metrics)}. Pass metrics=['rms', 'sigma_min']."
        ) from None
    return [name if name in more else METRICS[name].name for name in names]


def unit_axis(x: Tensor) -> int:
    """The axis of the units: the last of (n, d) and (n, tokens, d), the second of images (n, d, height, width)."""
    return -1 if x.dim() <= 3 else 1


# Orthogonality and rank


@register(
    short="gap", unit="1", needs="gram", high=1.0, spectral=True, source="daneshmand2021, eq. 2",
    reading="0 when the samples are orthogonal, near 1 when they are aligned. Dotted: the least that its rank allows.",
)  # fmt: skip
def orthogonality_gap(s: Statistic) -> Tensor:
    r"""Distance of the batch from orthogonality; 0 iff all samples are orthogonal and equally long.

    $V = \| G / \mathrm{tr}\,G - I/n \|_F$.
    At most $\sqrt{1 - 1/n}$ (rank one). A batch of rank r < n cannot come below `orthogonality_gap_floor`.
    Healthy V does not exclude a lost dimension: read `sigma_min` too.
    """
    # (G/tr G - I/n)^2 off the diagonal and on it: a difference of two sums would lose the digits of a small gap
    return (s.pairs.energy + (s.shares - 1 / s.samples).square().sum(-1)).sqrt()


@register(
    title="Floor of the orthogonality gap", short="gap floor", unit="1", needs="eigenvalues", high=1.0,
    source="derived from daneshmand2021, eq. 2",
)  # fmt: skip
def orthogonality_gap_floor(s: Statistic) -> Tensor:
    r"""The least orthogonality gap that a batch of this numerical rank r can have.

    $\sqrt{1/r - 1/n}$.
    """
    r = _rank_above(s, torch.finfo(torch.float64).eps)
    return torch.where(r > 0, (1 / r - 1 / s.samples).clamp_min(0).sqrt(), torch.nan)


@register(
    title="Smallest singular value", unit="x", log=True, needs="eigenvalues", invariant="rotation permutation",
    source="daneshmand2021, section 3",
)  # fmt: skip
def sigma_min(s: Statistic) -> Tensor:
    """Smallest of the n singular values of X, in the unit of x (0 when n > d): a dimension is lost when it vanishes."""
    return s.singular_values[..., -1]


@register(
    short="rank", unit="dimensions", log=True, needs="gram", low=1.0, spectral=True, source="daneshmand2020, Lemma 1",
    reading="How many directions the batch fills. Near 1, all samples look alike; the batch size is the most there can "
    "be.",
)  # fmt: skip
def participation_rank(s: Statistic) -> Tensor:
    r"""Effective number of directions, between 1 (all samples on one line) and the rank.

    $r = \mathrm{tr}(G)^2 / \|G\|_F^2 = (\sum\lambda)^2/\sum\lambda^2$.
    """
    return 1 / (s.pairs.energy + s.shares.square().sum(-1))


@register(
    unit="dimensions", log=True, needs="eigenvalues", spectral=True, source="daneshmand2020, section 2 (tau = 0.5)"
)
def soft_rank(s: Statistic, tau: float = 0.5) -> Tensor:
    r"""Number of eigenvalues of the second moment that reach ``tau`` when their mean is 1.

    The mean runs over the min(n, d) eigenvalues that can be non-zero (the papers have d of them, n >= d).
    """
    size = min(s.samples, s.features)
    values = s.eigenvalues[..., :size]
    mean = values.mean(-1, keepdim=True)
    return torch.where(s.finite, ((values >= tau * mean) & (mean > 0)).sum(-1).double(), torch.nan)


@register(unit="dimensions", log=True, needs="eigenvalues", low=1.0, spectral=True, source="garrido2023 (RankMe)")
def entropy_rank(s: Statistic) -> Tensor:
    r"""Exponential of the entropy of the normalized singular values (RankMe).

    $\exp(-\sum_i p_i \log p_i)$ with $p_i = \sigma_i / \sum_j \sigma_j$ (singular values, not eigenvalues).
    """
    p = s.singular_values / s.singular_values.sum(-1, keepdim=True)
    return torch.special.entr(p).sum(-1).exp()


@register(
    short="num. rank", unit="dimensions", needs="eigenvalues", source="numpy.linalg.matrix_rank",
    reading="Directions that survive rounding in float64. Dotted: as seen in float32.",
)  # fmt: skip
def numerical_rank(s: Statistic) -> Tensor:
    r"""Number of singular values that float64 can tell from zero.

    Those above $\sigma_1 \max(n, d)\, \epsilon$, $\epsilon = 2.2 \cdot 10^{-16}$.
    Computed in float32 a collapsed batch often keeps full rank here, its small directions being rounding:
    read `numerical_rank_float32` for a net that runs in float32.
    """
    return _rank_above(s, torch.finfo(torch.float64).eps)


@register(
    title="Numerical rank in float32", short="num. rank f32", unit="dimensions", needs="eigenvalues",
    source="daneshmand2020, Fig. 1",
)  # fmt: skip
def numerical_rank_float32(s: Statistic) -> Tensor:
    r"""Number of singular values that float32 can tell from zero.

    Those above $\sigma_1 \max(n, d)\, \epsilon$, $\epsilon = 1.2 \cdot 10^{-7}$.
    """
    return _rank_above(s, torch.finfo(torch.float32).eps)


def _rank_above(s: Statistic, roundoff: float) -> Tensor:
    sigma = s.singular_values
    count = (sigma > sigma[..., :1] * max(s.samples, s.features) * roundoff).sum(-1)
    return torch.where(s.finite, count.double(), torch.nan)


@register(unit="nat", needs="eigenvalues", source="joudaki2023 (isometry of activations)")
def isometry_gap(s: Statistic) -> Tensor:
    r"""Distance of the Gram's spectrum from flat; 0 iff all eigenvalues are equal.

    $\log \frac1n \sum_i \lambda_i - \frac1n \sum_i \log \lambda_i$.
    Infinite when a dimension is missing: more samples than features, or after recentring.
    """
    values = s.eigenvalues
    return values.mean(-1).log() - values.log().mean(-1)


# Angles, norms, means


@register(short="cos", unit="1", needs="gram", low=-1.0, high=1.0, source="pairwise cosine")
def mean_cosine(s: Statistic) -> Tensor:
    """Mean cosine over all pairs of samples."""
    return s.pairs.mean


@register(
    title="Mean |cosine|", short="|cos|", unit="1", needs="gram", high=1.0, source="daneshmand2021, Fig. 1",
    reading="Alignment of two samples, averaged over pairs. 1 when all point the same way or the opposite way.",
)  # fmt: skip
def mean_abs_cosine(s: Statistic) -> Tensor:
    """Mean |cosine| over all pairs of samples: 1 when the whole batch lies on one line."""
    return s.pairs.mean_abs


@register(title="Largest |cosine|", short="max |cos|", unit="1", needs="gram", high=1.0, source="pairwise cosine")
def max_abs_cosine(s: Statistic) -> Tensor:
    """Largest |cosine| over all pairs of samples; near 1: two samples the network no longer tells apart."""
    return s.pairs.max_abs


@register(
    title="Activation scale", short="scale", unit="x", log=True, needs="norms", invariant="rotation permutation",
    source="length of a sample",
    reading="Mean norm of a sample. Growth or decay by a factor each layer is a straight line here.",
)  # fmt: skip
def mean_norm(s: Statistic) -> Tensor:
    r"""Mean over samples of their norm."""
    return s.norms.mean(-1)


@register(
    title="Root mean square", unit="x", log=True, needs="norms", invariant="rotation permutation",
    spectral=True, source="scale of an entry",
)  # fmt: skip
def rms(s: Statistic) -> Tensor:
    r"""Root mean square entry (d is taken as n for a bare Gram matrix).

    $\sqrt{\mathrm{tr}\,G / (n d)}$.
    """
    return (s.trace / (s.samples * s.features)).sqrt()


@register(title="Spread of the norms", short="spread", unit="1", needs="norms", source="coefficient of variation")
def norm_spread(s: Statistic) -> Tensor:
    r"""Standard deviation (1/n) of the norms of the samples over their mean."""
    return s.norms.std(-1, correction=0) / s.norms.mean(-1)


@register(short="shift", unit="1", needs="norms", high=1.0, source="share of energy in the batch mean")
def mean_shift(s: Statistic) -> Tensor:
    r"""Share of the batch's energy in its mean; 1: all samples are equal.

    $\|\bar x\|^2 / \frac1n \sum_i \|x_i\|^2$.
    """
    return ((s.trace - s.spreads.sum(-1)) / s.trace).clamp(0, 1)


@register(
    short="dead", unit="1", needs="entries", high=1.0, invariant="scale permutation",
    source="share of units that are zero",
    reading="Units that are silent on the whole batch. Dotted: share of entries at the flat ends of a bounded "
    "activation.",
)  # fmt: skip
def dead_units(s: Statistic) -> Tensor:
    """Share of units that are exactly 0 for every sample and position (NaN for a bare Gram matrix)."""
    return s.dead


@register(
    short="saturated", unit="1", needs="entries", high=1.0, invariant="permutation",
    source="share of entries near the ends of a bounded activation",
)  # fmt: skip
def saturated_units(s: Statistic) -> Tensor:
    """Share of entries within 2.5 % of the activation's range from its ends (NaN unless the activation is bounded)."""
    return torch.as_tensor(s.saturated, dtype=torch.float64)


@register(
    short="token cos", unit="1", needs="entries", low=-1.0, high=1.0, invariant="scale permutation",
    source="dong2021; noci2022, eq. 5 (cosine between tokens)",
    reading="Alignment of two tokens of one sequence. Near 1: the layers make one vector of all tokens.",
)  # fmt: skip
def token_cosine(s: Statistic) -> Tensor:
    r"""Mean cosine between two tokens of one sequence (n, tokens, d), the median over sequences.

    $1 - \frac{1}{t-1} \sum_i |u_i - \bar u|^2$, u the t >= 3 tokens scaled to length 1; of at most 32 sequences and 64
    tokens of each, evenly spaced, zeros left out. NaN without an axis of tokens, as channels of images and signals are
    none.
    """
    return torch.as_tensor(s.tokens, dtype=torch.float64)


# Cluster + odd point (nachum2024): the measurements; `configuration` names the shape


@register(
    title="Odd point", short="odd point", unit="1", needs="norms", high=1.0, source="nachum2024 (our detector)",
    reading="Near 1 when one sample stands apart while all others have merged into a cluster.",
)  # fmt: skip
def odd_point_score(s: Statistic) -> Tensor:
    r"""Share of the centred energy that is one sample against the mean of the others.

    $R_2 = \max_i \frac{n}{n-1} S_{ii} / \mathrm{tr} S$, $S = P G P$: 1 for one odd point and a perfect cluster,
    1/(n-1) for an equiangular batch. NaN when all samples are equal.
    """
    return contrast_shares(s).amax(-1)


@register(
    title="Odd point's index", short="odd index", unit="sample", needs="norms", invariant="scale rotation",
    source="nachum2024 (our detector)",
)  # fmt: skip
def odd_point_index(s: Statistic) -> Tensor:
    """Index (from 0) of the sample with the largest share of the centred energy."""
    found = contrast_shares(s)
    return torch.where(found[..., 0].isnan(), torch.nan, first_largest(found).double())


@register(
    title="Coherence of the cluster", short="coherence", unit="1", needs="gram", high=1.0,
    source="nachum2024 (our detector)",
)  # fmt: skip
def odd_point_coherence(s: Statistic) -> Tensor:
    r"""How much the samples other than the odd one are one point: $|m|^2 / (|m|^2 + W^2)$.

    m is their mean, W^2 their mean squared distance from it. 0.32 for the bulk of complete batch norm, above 0.85
    for cluster + odd point with n >= 16.
    """
    return odd_points(s)["coherence"]


@register(title="Separation of the odd point", unit="1", needs="gram", source="nachum2024 (our detector)")
def odd_point_separation(s: Statistic) -> Tensor:
    r"""Distance of the odd sample from the mean of the others over their own rms distance from it."""
    return odd_points(s)["separation"]


@register(title="Margin of the odd point", unit="1", needs="norms", high=1.0, source="nachum2024 (our detector)")
def odd_point_margin(s: Statistic) -> Tensor:
    """How alone the odd sample is: 1 - (second largest share of the centred energy / largest)."""
    odd = odd_points(s)
    return 1 - odd["runner_up"] / odd["score"]


# Gradients


@register(
    title="Gradient by layer", short="grad", unit="loss / x", log=True, needs="norms",
    invariant="rotation permutation", signal="gradient", source="norm of the loss gradient",
    reading="Norm of the loss gradient with respect to the output of each layer. Flat is healthy.",
)  # fmt: skip
def gradient_norm(s: Statistic) -> Tensor:
    r"""Frobenius norm of the loss gradient with respect to the layer's output, over the whole batch."""
    return s.trace.clamp_min(0).sqrt()


@register(
    short="grad |cos|", unit="1", needs="gram", high=1.0, signal="gradient",
    source="daneshmand2020, section 3 (gradient direction)",
)  # fmt: skip
def gradient_collinearity(s: Statistic) -> Tensor:
    """Mean |cosine| between the gradients that two samples receive: 1 when all samples pull along one line."""
    return s.pairs.mean_abs


# Further ones, each in a file of its own: enrolled behind those above, and found here by their names
from normscope.geometry.attention import attention_entropy as attention_entropy  # noqa: E402
from normscope.geometry.attention import head_rank as head_rank  # noqa: E402
from normscope.geometry.decay import alpha_req as alpha_req  # noqa: E402
from normscope.geometry.decay import stable_rank as stable_rank  # noqa: E402
from normscope.geometry.decay import weight_edge_ratio as weight_edge_ratio  # noqa: E402
from normscope.geometry.decay import weight_spectral_norm as weight_spectral_norm  # noqa: E402
from normscope.geometry.decay import weight_stable_rank as weight_stable_rank  # noqa: E402
from normscope.geometry.lidar import lidar as lidar  # noqa: E402
from normscope.geometry.lidar import lidar_null as lidar_null  # noqa: E402
