"""Metrics of one representation: pure functions of its Gram matrix, in float64.

Every metric is registered in `METRICS` and can be called on an (n, n) Gram matrix $G = X X^T$ of n samples, as in
``metrics.orthogonality_gap(x @ x.T)``. `measure` takes the representation itself and is more accurate: it never
squares what it can leave unsquared. Each is written once, for a `Statistic` with any leading axes (...): m layers of
one shape are measured at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normscope.geometry.measured import measure as measure
from normscope.geometry.measured import metric_names as metric_names
from normscope.geometry.measured import representation as representation
from normscope.geometry.measured import unit_axis as unit_axis
from normscope.geometry.metric import METRICS as METRICS
from normscope.geometry.metric import Metric as Metric
from normscope.geometry.metric import register
from normscope.geometry.odd import contrast_shares, first_largest, odd_points
from normscope.geometry.odd import odd_samples as which_are_odd
from normscope.geometry.statistic import Statistic

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


@register(title="Odd samples", unit="samples", needs="gram", source="nachum2024 (our detector)")
def odd_samples(s: Statistic) -> Tensor:
    r"""Number of samples that stand far from one tight cluster of all others: 0, 1, or k of up to n/8.

    Of several each lies 10 spreads of the cluster and half the length of its mean m away from m, off its ray; the
    cluster's coherence $|m|^2 / (|m|^2 + W^2)$ is 0.85 or more. `configuration` names them.
    """
    return torch.where(s.finite, which_are_odd(s).sum(-1).double(), torch.nan)


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
