"""Power laws of width and depth: fitted to seeds' scatter, with intervals of the exponents and of a prediction."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Of the intervals.
LEVEL = 0.9
#: An exponent whose interval lies within this of zero is none (chosen by us: a factor 1.7 over one of 8).
FLAT = 0.25

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Law:
    r"""$\log q = c + a\log\mathrm{depth} + b\log\mathrm{width}$ by least squares; an axis of one value has exponent 0.

    depth, width: exponents a and b; ``depth_interval``, ``width_interval``: their 90 % t-intervals over the scatter.
    scatter: standard deviation of log q around the law; ``points``: how many there were.
    """

    constant: float
    depth: float
    depth_interval: tuple[float, float]
    width: float
    width_interval: tuple[float, float]
    scatter: float
    points: int
    covariance: tuple[tuple[float, ...], ...]

    def at(self, width: float, depth: float) -> tuple[float, float]:
        """log q at a size, and half the 90 % t-interval of one more net there."""
        x = np.array([1.0, math.log(depth), math.log(width)])
        spread = self.scatter**2 + float(x @ np.array(self.covariance) @ x)
        return self.constant + self.depth * float(x[1]) + self.width * float(x[2]), self.quantile * math.sqrt(spread)

    @property
    def quantile(self) -> float:
        """Of Student's t, for the interval."""
        return _quantile(self.points - 1 - sum(i != (0.0, 0.0) for i in (self.depth_interval, self.width_interval)))


def fitted(points: Iterable[Point]) -> Law | None:
    """The law of (width, depth, q) with finite positive q; ``None`` where there are too few for a scatter."""
    good = [p for p in points if 0 < p[2] < math.inf]
    x = np.array([[1.0, math.log(d), math.log(w)] for w, d, _ in good]).reshape(-1, 3)
    y = np.array([math.log(q) for _, _, q in good])
    live = [0, *(i for i in (1, 2) if len(set(x[:, i])) > 1)]
    free = len(good) - len(live)
    if free < 1 or np.linalg.matrix_rank(x[:, live]) < len(live):
        return None
    beta, *_ = np.linalg.lstsq(x[:, live], y, rcond=None)
    rest = y - x[:, live] @ beta
    variance = float(rest @ rest) / free
    small = variance * np.linalg.inv(x[:, live].T @ x[:, live])
    whole, values = np.zeros((3, 3)), np.zeros(3)
    whole[np.ix_(live, live)], values[live] = small, beta
    half = _quantile(free) * np.sqrt(whole.diagonal())
    a, b = ((float(values[i] - half[i]), float(values[i] + half[i])) for i in (1, 2))
    return Law(float(values[0]), float(values[1]), a, float(values[2]), b, math.sqrt(variance), len(good),
               tuple(map(tuple, whole.tolist())))  # fmt: skip


def _quantile(free: int) -> float:
    return float(stats.t.ppf(0.5 + LEVEL / 2, max(free, 1)))


def said(of: str, exponent: float, interval: tuple[float, float]) -> str:
    """What an exponent says of transfer along one axis, in words."""
    low, high = interval
    ends = f"{of}^{exponent:.2f} ({low:.2f} to {high:.2f})"
    if low > -FLAT and high < FLAT:
        return f"transfers over {of}, {ends}"
    if high < 0 or low > 0:
        return f"{'shrinks' if high < 0 else 'grows'} like {ends}"
    return f"may transfer over {of}: {ends}"
