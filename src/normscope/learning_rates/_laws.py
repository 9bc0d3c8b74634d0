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
    scatter: standard deviation of log q around the law, with ``free`` degrees of freedom; ``points``: how many there
    were, ``depths`` and ``widths``: from where to where.
    """

    constant: float
    depth: float
    depth_interval: tuple[float, float]
    width: float
    width_interval: tuple[float, float]
    scatter: float
    free: float
    points: int
    depths: tuple[float, float]
    widths: tuple[float, float]
    covariance: tuple[tuple[float, ...], ...]

    def at(self, width: float, depth: float) -> tuple[float, float]:
        """log q at a size, and half the 90 % t-interval of one more net there, if the law holds there."""
        x = np.array([1.0, math.log(depth), math.log(width)])
        spread = self.scatter**2 + float(x @ np.array(self.covariance) @ x)
        return self.constant + self.depth * float(x[1]) + self.width * float(x[2]), self.quantile * math.sqrt(spread)

    def beyond(self, width: float, depth: float) -> tuple[float, float]:
        r"""As `at`, if outside of the sizes of its points each exponent is another by a standard deviation of `FLAT`.

        A law that is asymptotic drifts. By how much, points of a narrow range cannot say; an exponent within `FLAT` of
        another counts as the same one in the verdict, so that no less may be allowed here. Over the logarithmic
        distances x and y to the nearest depth and width that were seen, it adds a variance of `FLAT`^2 (x^2 + y^2).
        """
        middle, half = self.at(width, depth)
        far = math.hypot(_outside(depth, self.depths), _outside(width, self.widths))
        return middle, math.hypot(half, float(stats.norm.ppf(0.5 + LEVEL / 2)) * FLAT * far)

    @property
    def quantile(self) -> float:
        """Of Student's t, for the interval."""
        return quantile(self.free)


def fitted(points: Iterable[Point], larger_count_more: bool = False, flat: bool = False) -> Law | None:
    r"""The law of (width, depth, q) with finite positive q; ``None`` where there are too few for a scatter.

    flat: of exponents that are zero; what q depends on the size is scatter then.
    larger_count_more: each point has the weight k = width x depth, else 1. The scatter is that of equal scatter at all
    sizes, so the weights cost what they should: with K = diag(k), A = (X^T K X)^-1, M = 1 - X A X^T K, B = M^T K M,
    variance = y^T B y / tr B, of (tr B)^2 / tr B^2 degrees of freedom (Satterthwaite), covariance A X^T K^2 X A.
    """
    good = [p for p in points if 0 < p[2] < math.inf]
    x = np.array([[1.0, math.log(d), math.log(w)] for w, d, _ in good]).reshape(-1, 3)
    y = np.array([math.log(q) for _, _, q in good])
    live = [0, *(i for i in (1, 2) if not flat and len(set(x[:, i])) > 1)]
    if len(good) <= len(live) or np.linalg.matrix_rank(x[:, live]) < len(live):
        return None
    k = np.array([w * d if larger_count_more else 1.0 for w, d, _ in good])
    k, z = k / k.mean(), x[:, live]
    a = np.linalg.inv(z.T @ (k[:, None] * z))
    beta = a @ z.T @ (k * y)
    m = np.eye(len(good)) - z @ a @ z.T * k
    b = m.T @ (k[:, None] * m)
    variance, free = max(float(y @ b @ y), 0.0) / np.trace(b), float(np.trace(b) ** 2 / (b * b).sum())
    whole, values = np.zeros((3, 3)), np.zeros(3)
    whole[np.ix_(live, live)] = variance * a @ (z.T @ (k[:, None] ** 2 * z)) @ a
    values[live] = beta
    half = quantile(free) * np.sqrt(whole.diagonal())
    of_depth, of_width = ((float(values[i] - half[i]), float(values[i] + half[i])) for i in (1, 2))
    return Law(float(values[0]), float(values[1]), of_depth, float(values[2]), of_width, math.sqrt(variance), free,
               len(good), _ends(d for _, d, _ in good), _ends(w for w, _, _ in good),
               tuple(map(tuple, whole.tolist())))  # fmt: skip


def a_layer(points: Iterable[Point]) -> float | None:
    """The factor a layer of a growth that is exponential in depth; ``None`` where a power of the depth fits better.

    Both are fitted to log q by least squares, with a power of the width beside them, and have as many parameters. Of
    fewer than three depths none can be told from the other: ``None``.
    """
    good = [p for p in points if 0 < p[2] < math.inf]
    if len({d for _, d, _ in good}) < 3:
        return None
    y = np.array([math.log(q) for _, _, q in good])
    left, slopes = [], []
    for depths in ([d for _, d, _ in good], [math.log(d) for _, d, _ in good]):
        x = np.array([[1.0, d, math.log(w)] for d, (w, _, _) in zip(depths, good, strict=True)]).reshape(-1, 3)
        beta, *_ = np.linalg.lstsq(x, y, rcond=None)
        left.append(float(np.sum((y - x @ beta) ** 2)))
        slopes.append(float(beta[1]))
    return math.exp(slopes[0]) if left[0] < left[1] and slopes[0] > 0 else None


def quantile(free: float) -> float:
    """Of Student's t, for an interval of `LEVEL`."""
    return float(stats.t.ppf(0.5 + LEVEL / 2, max(free, 1)))


def _ends(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    return min(found), max(found)


def _outside(size: float, ends: tuple[float, float]) -> float:
    """How far a size is from those between the ends, in logarithms."""
    return max(math.log(ends[0] / size), math.log(size / ends[1]), 0.0)


def said(of: str, exponent: float, interval: tuple[float, float]) -> str:
    """What an exponent says of transfer along one axis, in words."""
    low, high = interval
    ends = f"{of}^{exponent:.2f} ({low:.2f} to {high:.2f})"
    if low > -FLAT and high < FLAT:
        return f"transfers over {of}, {ends}"
    if high < 0 or low > 0:
        return f"{'shrinks' if high < 0 else 'grows'} like {ends}"
    return f"may transfer over {of}: {ends}"
