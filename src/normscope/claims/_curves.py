"""Curves of values over runs: their mean, with the range of the runs or the confidence of the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from normscope.claims.claim import Curve


def with_range(name: str, x: Sequence[float], values: Any, panel: str = "") -> Curve:
    """Mean, least and largest of values (points, runs)."""
    v = np.asarray(values, dtype=float)
    return Curve(name, list(x), v.mean(1).tolist(), "ours", v.min(1).tolist(), v.max(1).tolist(), panel)


def with_errors(name: str, x: Sequence[float], means: Sequence[tuple[float, float]], panel: str = "") -> Curve:
    """Means and twice their standard errors, from pairs of both."""
    m, e = np.asarray(means, dtype=float).T
    return Curve(name, list(x), m.tolist(), "ours", (m - 2 * e).tolist(), (m + 2 * e).tolist(), panel)


def with_band(name: str, x: Sequence[float], values: Any, panel: str = "") -> Curve:
    """Mean of values (points, runs) with 95 % confidence."""
    v = np.asarray(values, dtype=float)
    mean = v.mean(1)
    reach = 1.96 * v.std(1, ddof=1) / math.sqrt(v.shape[1])
    return Curve(name, list(x), mean.tolist(), "ours", (mean - reach).tolist(), (mean + reach).tolist(), panel)
