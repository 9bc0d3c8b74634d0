"""The reduced maps: fixed points of cluster + odd point, their threshold, and the limit of large batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from normscope.claims._tables import highest, lowest
from normscope.claims.claim import Axes, Curve, Evidence, Run
from normscope.claims.nachum2024._paper import PAPER, activation_of, cosines, follow, odd_state, share, variance_ratio
from normscope.claims.reading import Reading, at_most, near
from normscope.core.spec import Spec
from normscope.theory import predicted_grams
from normscope.theory.laws import odd_point

#: n: t*, R2, norm ratio/(n-1), cosine, mean cosine in the cluster, slope at t*, saddle (odd_point.md 3.2).
STATES = {7: (0.0674905, 0.8304, 0.6415, 0.06563, 0.4791, 0.94483, 0.4642),
          8: (0.0383755, 0.9009, 0.7292, 0.04288, 0.5786, 0.93077, 0.5721),
          10: (0.0182024, 0.9547, 0.8236, 0.02244, 0.7046, 0.92677, 0.6907),
          12: (0.0108097, 0.9750, 0.8744, 0.01345, 0.7811, 0.93125, 0.7570),
          16: (0.0051786, 0.9898, 0.9264, 0.00601, 0.8660, 0.94285, 0.8297),
          24: (0.0020272, 0.9970, 0.9657, 0.00191, 0.9351, 0.95939, 0.8933),
          32: (0.00108314, 0.9987, 0.9802, 0.00084, 0.9619, 0.96897, 0.9223),
          64: (0.000254583, 0.9998, 0.9948, 0.00011, 0.9898, 0.98428, 0.9628),
          128: (6.21647e-5, 1.0, 0.9987, 0.00001, 0.9974, 0.99215, 0.9818)}  # fmt: skip


def _slope(step: Callable[[float], float], t: float, n: float) -> float:
    """Derivative of a map of t by central differences."""
    e = 1e-5 * (t - 1 / (n - 1) ** 2)
    return (step(t + e) - step(t - e)) / (2 * e)


def _layer(t: float, n: int, norm: str) -> float:
    """t after one layer of the full Gram recursion."""
    return variance_ratio(predicted_grams(Spec(depth=1, width=8, norm=norm), odd_state(n, t))[1])


@PAPER.claim(
    "reduced-map", "With one odd sample and the others alike, the Gram recursion is a map of one number.",
    where="odd_point.md 3.4 (candidate for the indicative model)", covers="3.4 S0.4a",
    quick={"sizes": (4, 8, 16), "slopes": (0.0, 0.2, -1.0)}, control={"swap": True},
    because="the map without rescaling is another one than with it", seconds=(0.12, 0.3),
)  # fmt: skip
def reduced_map(run: Run, sizes: Sequence[int], slopes: Sequence[float], swap: bool = False) -> Iterator[Reading]:
    """t = (variance of a cluster sample)/(variance of the odd one), both centred; one layer by the full Gram recursion
    against the reduced map, with and without rescaling. Both are exact at infinite width.
    """
    for n in sizes:
        for norm in ("batch_recenter", "batch"):
            worst = 0.0
            for a in slopes:
                for t in (1.5 / (n - 1) ** 2, 0.3, 0.9):
                    spec = Spec(depth=1, width=8, norm=norm, activation=activation_of(a))
                    full = variance_ratio(predicted_grams(spec, odd_state(n, t))[1])
                    law = odd_point.reduced_map(t, n, a, rescale=(norm == "batch") != swap)
                    worst = highest(worst, abs(lowest(law, 1 / law) / full - 1))
            yield at_most(f"relative difference, {norm}, n = {n}", worst, 1e-8, reason="quadrature and rounding")


@PAPER.claim(
    "spread-grows", "A blur within the perfect cluster grows by n^2/((n-k)^2+k^2) a layer: the exact state is "
    "unstable.",
    where="odd_point.md 3.2", covers="D3 3.2.spread", quick={"sizes": (3, 8, 16, 32, 64), "groups": (1, 2, 3)},
    control={"activation": "identity"}, because="a linear layer keeps all shapes at infinite width", seconds=(0.1, 0.2),
)  # fmt: skip
def spread_grows(run: Run, sizes: Sequence[int], groups: Sequence[int], activation: str = "relu") -> Iterator[Reading]:
    """Squared distances within the large cluster over the squared distance of the clusters, one layer, from a blur of
    1e-6: factor 1 + 2/n and more, least for one odd point (k = 1). Slope a: n^2/(n^2 - 2(n-1)(1 - 2a/(1+a^2))).
    """

    def growth(n: int, k: int, name: str) -> float:
        state = np.zeros((n, n))
        state[:k, :k], state[k:, k:] = ((n - k) / k) ** 2, 1
        distance = ((n - k) / k) ** 2 + 1
        blur = 1e-6 * distance / (n - 1) ** 2
        state[k:, k:] += blur * np.eye(n - k)
        g = predicted_grams(Spec(depth=1, width=8, norm="batch_recenter", activation=name), state)

        def relative(g: np.ndarray) -> float:
            inner, outer = g[k, k] - g[k, k + 1], g[0, 0] - 2 * g[0, -1] + g[k, k + 1]
            return float(inner / outer)

        return relative(g[1]) / relative(g[0])

    for n in sizes:
        for k in groups:
            if k < n / 2:
                expected = n**2 / ((n - k) ** 2 + k**2)
                found = growth(n, k, activation)
                yield near(f"factor, n = {n}, k = {k}", found, expected, relative=1e-3, reason="the cubic term")
    for a in (0.2, 0.5):
        found = growth(16, 1, activation_of(a) if activation == "relu" else activation)
        expected = odd_point.perfect_odd(16, a)["spread_factor"]
        yield near(f"factor, n = 16, slope {a:g}", found, expected, relative=1e-3, reason="the cubic term")


@PAPER.claim(
    "odd-fixed-points", "Recentring + ReLU have a fuzzy cluster + odd point as a fixed point for n >= 7, and a saddle.",
    where="odd_point.md 3.2, table", covers="D4 3.2.table", quick={"sizes": (7, 8, 16, 32), "layers": 500},
    full={"sizes": tuple(STATES), "layers": 3000}, control=({"norm": "none"}, {"norm": "batch", "layers": 100}),
    because="without recentring the batch becomes one ray; and rescaling moves the states and changes the rates",
    seconds=(2.2, 10), axes=Axes("samples n", "1 - R2", True, True)
)  # fmt: skip
def odd_fixed_points(run: Run, sizes: Sequence[int], layers: int, norm: str = "batch_recenter") -> Evidence:
    """The full Gram recursion from 1.5 times the perfect spread, many layers on, against the table of fixed points:
    t, R2, angle, norm ratio, mean cosine, the slope of the map there, and the saddle, which a layer keeps.
    """
    readings, share_lost = [], []
    for n in sizes:
        t, r2, ratio, cosine, inner, slope, saddle = STATES[n]
        g = follow(Spec(depth=layers, width=8, norm=norm), odd_state(n, 1.5 / (n - 1) ** 2))
        found = variance_ratio(g)
        pairs = cosines(g)
        share_lost.append(1 - share(g))
        readings += [
            near(f"t, n = {n}", found, t, relative=1e-4, reason="digits of the table"),
            near(f"R2, n = {n}", share(g), r2, 1e-4, reason="digits of the table"),
            near(f"norm ratio / (n-1), n = {n}", math.sqrt(g[0, 0] / g[1, 1]) / (n - 1), ratio, 2e-4,
                 reason="digits of the table"),
            near(f"cosine odd-cluster, n = {n}", float(pairs[0]), cosine, 2e-5, reason="digits of the table"),
            near(f"cosine in the cluster, n = {n}", float(pairs[-1]), inner, 2e-4, reason="digits of the table"),
            near(f"slope, n = {n}", _slope(partial(_layer, n=n, norm=norm), t, n), slope, relative=1e-3,
                 reason="tolerance set beforehand"),
            near(f"saddle, a layer on, n = {n}", _layer(saddle, n, norm), saddle, 1e-4, reason="digits of the table"),
        ]  # fmt: skip
    return Evidence(
        tuple(readings),
        (Curve("infinite width", list(sizes), share_lost),
         Curve("44.4 / n^3", list(sizes), [44.4 / n**3 for n in sizes], "theory")),
    )  # fmt: skip


@PAPER.claim(
    "threshold", "The odd state exists for n >= 7 samples only; the threshold is n* = 6.107.", where="odd_point.md 3.2",
    covers="D5 3.2.threshold F3", quick={"layers": 1000}, full={"layers": 4000},
    control={"norm": "none", "rescale": True},
    because="without recentring the batch becomes one ray; with rescaling few samples have no odd state",
    seconds=(0.97, 3.9), axes=Axes("t", "t of the next layer", True, True)
)  # fmt: skip
def threshold(run: Run, layers: int, norm: str = "batch_recenter", rescale: bool = False) -> Evidence:
    """A planted odd point through the Gram recursion: six samples relax to equal shares, seven and eight keep it. The
    threshold in real n, from which on the reduced map dips below the diagonal; and its cobweb for n = 6, 7, 16.
    """
    readings = []
    for n, expected in ((6, 0.2), (7, 0.8304), (8, 0.9009)):
        g = follow(Spec(depth=layers, width=8, norm=norm), odd_state(n, 1.01 / (n - 1) ** 2))
        readings.append(near(f"R2 of planted, n = {n}", share(g), expected, 1e-3, reason="digits of the table"))
    low, high = 6.0, 7.0
    while high - low > 2e-3:
        middle = (low + high) / 2
        t = np.geomspace(1.001 / (middle - 1) ** 2, 0.9, 200)
        dips = lowest(odd_point.reduced_map(v, middle, rescale=rescale) / v for v in t) < 1
        low, high = (low, middle) if dips else (middle, high)
    readings.append(near("threshold n*", (low + high) / 2, 6.107, 0.02, reason="tolerance set beforehand"))
    curves = []
    for n in (6, 7, 16):
        t = np.geomspace(1.001 / (n - 1) ** 2, 1, 60)
        for both in (False, True):
            y = [odd_point.reduced_map(v, n, rescale=both) for v in t]
            panel = "recentred and rescaled" if both else "recentred"
            curves.append(Curve(f"n = {n}", t.tolist(), y, "theory", panel=panel))
    return Evidence(tuple(readings), tuple(curves))


@PAPER.claim(
    "winner-takes-all", "For many samples, a variance u times the bulk's goes to u + (sqrt u - 1)^2/(pi - 1).",
    where="odd_point.md 3.5 (candidate for the indicative model)", covers="D17 3.5.map S0.4b", quick={"n": 4096},
    full={"n": 1_000_000}, control={"slope": 1.0}, because="an odd activation has no drive: E phi = 0",
    seconds=(0.1, 0.1),
)  # fmt: skip
def winner_takes_all(run: Run, n: int, slope: float = 0.0) -> Iterator[Reading]:
    """The limit of the reduced map at fixed u: neutral at the equiangular state, never decreasing, growing by pi/(pi-1)
    a layer far out; for slope a the drive is (1-a)^2/(2 pi). With rescaling it is the same for u below n.
    """
    for u in (0.5, 1.5, 4.0, 25.0):
        expected = u + (math.sqrt(u) - 1) ** 2 / (math.pi - 1)
        found = 1 / odd_point.reduced_map(1 / u, n, slope)
        yield near(f"u' from {u:g}", found, expected, relative=1e-3 if n < 10**6 else 1e-4, reason="terms u/n")
        yield near(f"law from {u:g}", odd_point.winner_takes_all(u, slope), expected, relative=1e-12)
    scaled = 1 / odd_point.reduced_map(1 / 4.0, n, slope, rescale=True)
    yield near("u' from 4, rescaled", scaled, 4 + 1 / (math.pi - 1), relative=0.01, reason="terms u/n")
