"""What the claims share: series out of profiles, slopes, and means with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normscope.core.records import Profile

Array = NDArray[np.float64]


def series(profile: Profile, metric: str, first: int = 0, last: int = 10**9) -> Array:
    """Values (layers, seeds) of one metric of a profile's activations, layers ``first`` to ``last``."""
    found: dict[int, list[float]] = {}
    for r in profile.records:
        if r.metric == metric and r.signal == "activation" and first <= r.layer <= last:
            found.setdefault(r.layer, []).append(r.value)
    return np.array([found[layer] for layer in sorted(found)])


def highest(*values: Any) -> Any:
    """The largest of these numbers, or of one series of them; NaN if one of them is (Python's ``max`` may lose it)."""
    found = list(values[0]) if len(values) == 1 else list(values)
    return math.nan if any(v != v for v in found) else max(found)


def lowest(*values: Any) -> Any:
    """The smallest of these numbers, or of one series of them; NaN if one of them is."""
    found = list(values[0]) if len(values) == 1 else list(values)
    return math.nan if any(v != v for v in found) else min(found)


def indicator(condition: Any, *compared: Any) -> Array:
    """1 where the condition holds, 0 where it does not, NaN where a value that it compares is NaN."""
    unknown = sum(np.isnan(np.asarray(v, dtype=float)) for v in compared)
    return np.where(unknown, math.nan, condition)


def mean_and_error(values: Sequence[float] | Array) -> tuple[float, float]:
    """Mean of independent values and its standard error (NaN for fewer than two)."""
    v = np.asarray(values, dtype=float)
    return float(v.mean()), float(v.std(ddof=1) / math.sqrt(len(v))) if len(v) > 1 else math.nan


def ratio_and_error(above: tuple[float, float], below: tuple[float, float]) -> tuple[float, float]:
    """Ratio of two independent values, each with its standard error, and the ratio's."""
    (a, a_error), (b, b_error) = above, below
    return a / b, abs(a / b) * math.hypot(a_error / a, b_error / b)


def power_and_error(x: Sequence[float], means: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope of log y against log x and its standard error, from pairs of a mean and its error."""
    return slope_and_error(np.log(x), np.log([m for m, _ in means]), [e / m for m, e in means])


def slope_and_error(
    x: Sequence[float] | Array, y: Sequence[float] | Array, y_error: Sequence[float] | Array | None = None
) -> tuple[float, float]:
    """Least-squares slope of y against x, and its standard error: from the errors of y, or else from the residuals."""
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    centred = a - a.mean()
    slope = float(centred @ b / (centred @ centred))
    if y_error is not None:
        spread = np.asarray(y_error, dtype=float)
        return slope, float(math.sqrt(np.sum((centred * spread) ** 2)) / (centred @ centred))
    if len(a) < 3:
        return slope, math.nan
    residual = b - b.mean() - slope * centred
    return slope, float(math.sqrt(residual @ residual / (len(a) - 2) / (centred @ centred)))
