"""Metrics of many layers at once, from Grams (m, n, n) and singular values; others through `METRICS` one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from normscope.geometry.metrics import METRICS, metric_names
from normscope.geometry.statistic import FLOAT64_RATIO, Statistic
from normscope.linalg import Array, centred

DEFAULT_METRICS = (
    "orthogonality_gap", "participation_rank", "soft_rank", "numerical_rank", "isometry_gap", "sigma_min",
    "mean_abs_cosine", "odd_point_score",
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """m representations of ``samples`` samples and ``features`` features.

    grams: (m, k, k), X X^T / features, k = samples; or the non-zero part of its spectrum in other coordinates, k < n.
    factors: (m, r, k) with factor^T factor = gram, where the small directions are worth more than the Gram keeps.
    log_scale: X is exp(log_scale) times what the Grams say, (m,); so chains without norm do not overflow.
    """

    samples: int
    features: int
    grams: Array
    factors: Array | None = None
    log_scale: Array | float = 0.0

    @cached_property
    def trace(self) -> Array:
        """(m,)."""
        return np.einsum("mii->m", self.grams)

    @cached_property
    def squares(self) -> Array:
        """Squared Frobenius norm of the Grams, (m,)."""
        return np.einsum("mij,mij->m", self.grams, self.grams)

    @cached_property
    def sigma(self) -> Array:
        """Singular values of X / sqrt(features), padded with zeros to n, descending, (m, n)."""
        values = torch.linalg.eigvalsh(torch.from_numpy(self.grams)).numpy()[:, ::-1]
        sigma = np.sqrt(values.clip(0))
        poor = values[:, -1] <= FLOAT64_RATIO * values[:, 0]
        if self.factors is not None and poor.any():
            exact = np.linalg.svd(self.factors[poor], compute_uv=False)
            sigma[poor] = _padded(exact, sigma.shape[1])
        return _padded(sigma, self.samples)

    @cached_property
    def cosines(self) -> Array:
        """Cosines of the pairs i < j, (m, pairs)."""
        norms = np.sqrt(np.einsum("mii->mi", self.grams))
        i, j = np.triu_indices(self.samples, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.clip(self.grams[:, i, j] / (norms[:, i] * norms[:, j]), -1, 1)

    def statistics(self) -> list[Statistic]:
        """One `Statistic` a representation."""
        f = self.factors
        scale = np.broadcast_to(self.scale, len(self.grams))
        n, d = self.samples, self.features
        if f is None:
            return [Statistic(n, d, None, torch.from_numpy(g * c**2)) for g, c in zip(self.grams, scale, strict=True)]
        return [Statistic(n, d, torch.from_numpy((r * c).T.copy())) for r, c in zip(f, scale, strict=True)]

    @property
    def scale(self) -> Array:
        """X over what Grams and factors say: sqrt(features) exp(log_scale), infinite where it overflows."""
        with np.errstate(over="ignore"):
            return np.asarray(np.sqrt(self.features) * np.exp(self.log_scale))


def _padded(values: Array, size: int) -> Array:
    return np.pad(values, ((0, 0), (0, size - values.shape[1])))


def _odd_point_score(b: Batch) -> Array:
    """max_i S_ii / tr S, n/(n-1) times, S the centred Gram (from the centred factor where there is one)."""
    if b.factors is not None:
        f = b.factors - b.factors.mean(-1, keepdims=True)
        s = np.einsum("mri,mri->mi", f, f)
    else:
        s = np.einsum("mii->mi", centred(b.grams))
    total = s.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = s.max(-1) / total * (b.samples / (b.samples - 1))
    return np.where(total > 1e-24 * b.trace, score, np.nan)


def _isometry_gap(b: Batch) -> Array:
    values = b.sigma**2
    with np.errstate(divide="ignore"):
        return np.log(values.mean(-1)) - np.log(values).mean(-1)


def _entropy_rank(b: Batch) -> Array:
    p = b.sigma / b.sigma.sum(-1, keepdims=True)
    return np.exp(-np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1))


def _soft_rank(b: Batch) -> Array:
    values = b.sigma[:, : min(b.samples, b.features)] ** 2
    return (values >= 0.5 * values.mean(-1, keepdims=True)).sum(-1).astype(float)


def _numerical_rank(b: Batch) -> Array:
    tolerance = max(b.samples, b.features) * np.finfo(float).eps
    return (b.sigma > b.sigma[:, :1] * tolerance).sum(-1).astype(float)


_SPECTRUM: dict[str, Callable[[Batch], Array]] = {
    # |G/tr G - I/n|^2 = |G|^2 / tr^2 - 1/n.
    "orthogonality_gap": lambda b: np.sqrt(np.maximum(b.squares / b.trace**2 - 1 / b.samples, 0)),
    "participation_rank": lambda b: b.trace**2 / b.squares,
    "sigma_min": lambda b: b.sigma[:, -1] * b.scale,
    "rms": lambda b: np.sqrt(b.trace / b.samples / b.features) * b.scale,
    "soft_rank": _soft_rank,
    "entropy_rank": _entropy_rank,
    "numerical_rank": _numerical_rank,
    "isometry_gap": _isometry_gap,
}
_FAST: dict[str, Callable[[Batch], Array]] = {
    **_SPECTRUM,
    "mean_cosine": lambda b: b.cosines.mean(-1),
    "mean_abs_cosine": lambda b: np.abs(b.cosines).mean(-1),
    "max_abs_cosine": lambda b: np.abs(b.cosines).max(-1, initial=np.nan if b.samples < 2 else 0),
    "odd_point_score": _odd_point_score,
}
#: Metrics that see neither a rotation of the samples nor directions of 1e-12 of the largest.
SPECTRAL = ("orthogonality_gap", "participation_rank", "soft_rank", "entropy_rank", "rms")
#: Metrics that need the Gram only, never its small eigenvalues.
_GRAM_ONLY = {"orthogonality_gap", "participation_rank", "rms", "mean_cosine", "mean_abs_cosine", "max_abs_cosine"}


def evaluate(batch: Batch, metrics: Sequence[str]) -> dict[str, Array]:
    """metric -> values (m,); the same numbers as ``METRICS[name]`` of each representation."""
    slow = [name for name in metrics if name not in _FAST]
    statistics = batch.statistics() if slow else []
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # a batch of zeros has NaN angles
        return {
            name: _FAST[name](batch) if name in _FAST else np.array([METRICS[name](s) for s in statistics])
            for name in metrics
        }


def need_factors(metrics: Sequence[str]) -> bool:
    """Does any of these metrics look at small directions?"""
    return any(name not in _GRAM_ONLY for name in metrics)


def chosen_metrics(metrics: str | Iterable[str] | None) -> tuple[str, ...]:
    """The names, checked; ``None`` means ``DEFAULT_METRICS``."""
    return tuple(metric_names(DEFAULT_METRICS if metrics is None else metrics))
