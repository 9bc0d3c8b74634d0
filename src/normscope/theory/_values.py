"""Metrics of the layers of chains, many at once; the scale of a chain is kept apart, so that it cannot overflow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from normscope.core.favourites import CHAINS
from normscope.geometry import spectra
from normscope.geometry.metric import METRICS, columns
from normscope.geometry.metrics import metric_names
from normscope.geometry.statistic import Statistic
from normscope.linalg import Array


def evaluate(
    names: Sequence[str],
    grams: Array,
    factors: Array | None = None,
    *,
    samples: int,
    features: int,
    log_scale: Array | float = 0.0,
) -> dict[str, Array]:
    """metric -> values (m,) of m representations X = exp(log_scale) X', ``samples`` of ``features`` each.

    grams: (m, k, k), X' X'^T / features, k = samples; or the non-zero part of its spectrum in other coordinates, k <
        samples, for `spectral` metrics.
    factors: (m, r, k) with factor^T factor = gram, where the small directions are worth more than the Gram keeps.
    """
    product = torch.from_numpy(_padded(grams, samples, samples) * features)
    factor = None
    if factors is not None:
        factor = torch.from_numpy(_padded(factors, factors.shape[1], samples) * np.sqrt(features)).mT
    unknown = torch.full((len(grams),), torch.nan, dtype=torch.float64)
    shares = {"silent": unknown, "saturated": unknown, "tokens": unknown}
    chains = Statistic(samples, features, factor, product, **shares)
    with np.errstate(over="ignore"):
        scale = np.broadcast_to(np.exp(log_scale), len(grams))
    chosen = [METRICS[name] for name in names]
    alone = [m for m in chosen if "scale" not in m.invariant and not m.scales]
    if any(METRICS[name].needs in ("eigenvalues", None) for name in names):
        vars(chains)["singular_values"] = torch.from_numpy(_sigma(grams, factors, samples) * np.sqrt(features))
    found = columns(chains, [m for m in chosen if m not in alone])
    if alone:
        c = torch.from_numpy(scale.copy())[:, None, None]
        factor = None if factor is None else factor * c
        found |= columns(Statistic(samples, features, factor, product * c**2, **shares), alone)
    return {m.name: np.array(found[m.name]) * (scale if m.scales else 1) for m in chosen}


def _sigma(grams: Array, factors: Array | None, samples: int) -> Array:
    """Singular values of X' / sqrt(features), padded with zeros to n, descending, (m, n): all at once, and those of a
    factor as they come, however small.
    """
    values = torch.linalg.eigvalsh(torch.from_numpy(grams))
    sigma = spectra.of_grams(values).numpy()
    poor = (values[:, 0] <= spectra.FLOAT64_RATIO * values[:, -1]).numpy()
    if factors is not None and poor.any():
        exact = np.linalg.svd(factors[poor], compute_uv=False)
        sigma[poor] = np.pad(exact, ((0, 0), (0, sigma.shape[1] - exact.shape[1])))
    return np.pad(sigma, ((0, 0), (0, samples - sigma.shape[1])))


def _padded(x: Array, rows: int, columns: int) -> Array:
    """(m, rows, columns), with zeros."""
    return np.pad(x, ((0, 0), (0, rows - x.shape[1]), (0, columns - x.shape[2])))


def spectral(names: Iterable[str]) -> bool:
    """Do these metrics see neither a rotation of the samples nor directions of 1e-12 of the largest?"""
    return all(METRICS[name].spectral for name in names)


def need_factors(names: Iterable[str]) -> bool:
    """Does any of these metrics look at small directions?"""
    return any(METRICS[name].needs in ("eigenvalues", None) or not METRICS[name].spectral for name in names)


def chosen_metrics(metrics: str | Iterable[str] | None) -> tuple[str, ...]:
    """The names, checked; ``None`` means the usual ones."""
    return tuple(metric_names(CHAINS if metrics is None else metrics))
