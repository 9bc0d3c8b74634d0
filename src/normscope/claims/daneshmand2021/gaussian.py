"""Lemma 2: how far the product of weights and a settled batch is from a Gaussian matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from normscope.claims._chains import gap_of, grams, linear
from normscope.claims._tables import highest, mean_and_error, power_and_error
from normscope.claims.claim import Run
from normscope.claims.daneshmand2021.paper import PAPER
from normscope.claims.reading import Reading, at_most, near
from normscope.theory.laws import orthogonality


@PAPER.claim(
    "gaussian", "W H is within O(width^(-1/2)) of a Gaussian matrix in W2, and Lemma 2's chain of bounds holds.",
    where="Lemma 2, Corollary 3, Table 1", covers="C17 L2 Cor.3 Tab.1",
    quick={"samples": (4,), "widths": (64, 256, 1024), "layers": 150, "chains": 60},
    full={"samples": (2, 4, 8), "widths": (64, 256, 1024, 4096), "layers": 300, "chains": 200},
    control={"activation": "relu"}, because="behind a ReLU the Gram does not come near I/n at any width",
    seconds=(8, 300),
)  # fmt: skip
def gaussian_limit(
    run: Run, samples: Sequence[int], widths: Sequence[int], layers: int, chains: int, activation: str = "identity"
) -> Iterable[Reading]:
    """T = E sum (sigma_i - n^(-1/2))^2 bounds the squared distance; the paper bounds it by 2n E V, Table 1 by
    width^(-1/4).

    T <= n E V^2 <= 2n E V is the chain of its proof, true of every spectrum. T itself falls like 1/d, so the distance
    like width^(-1/2): the printed rate is true but not sharp, and below widths of 10^4 Corollary 3's constant is larger
    than any distance, so that it says nothing to check. What is Gaussian is W H before batch norm; rows of H lie on a
    sphere.
    """
    for n in samples:
        ts, chain = list[tuple[float, float]](), list[float]()
        for d in widths:
            spec = linear(layers, d, activation=activation)
            c = np.stack(list(grams(run, spec, np.eye(n, d), chains, stream=d + n, first=40)))
            sigma = np.sqrt(np.linalg.eigvalsh(c).clip(0))
            ts.append(mean_and_error(np.square(sigma - n**-0.5).sum(-1).mean(0)))
            v = gap_of(c)
            middle = n * float(np.square(v).mean())
            chain += [ts[-1][0] / middle, middle / orthogonality.wasserstein_bound(float(v.mean()), n) ** 2]
        why = "(s - a)^2 a^2 <= (s^2 - a^2)^2 for a = n^(-1/2), and V <= 1: of every spectrum"
        yield at_most(f"largest ratio in T : n E V^2 : 2n E V, n = {n}", highest(chain), 1, exact=why)
        law = orthogonality.stationary_wasserstein(n, widths[-1]) ** 2
        yield near(f"T, n = {n}, d = {widths[-1]}", ts[-1][0], law, relative=0.08, stderr=ts[-1][1],
                   reason="linear around isometry: within 8 %")  # fmt: skip
        slope, error = power_and_error(widths, ts)
        yield near(f"slope of log T, n = {n}", slope, -1, 0.05, stderr=error, reason="the reference runs' 0.05")


@PAPER.claim(
    "kurtosis", "One entry of W H has excess kurtosis 3(n-1)(n+2)/(2(n+1)d): nearly but not exactly Gaussian.",
    where="Lemma 2, derived", covers="kurtosis stationary-moments", quick={"cases": ((2, 16), (4, 256)), "chains": 200},
    full={"cases": ((2, 16), (4, 64), (4, 256), (8, 256)), "chains": 1000}, control={"weights": "orthogonal"},
    because="orthogonal weights leave a smaller fluctuation of the Gram", seconds=(1.1, 100),
)  # fmt: skip
def kurtosis(run: Run, cases: Sequence[tuple[int, int]], chains: int, weights: str = "gaussian") -> Iterable[Reading]:
    """A row of W H is Gaussian given H, with variance C_jj, which itself fluctuates: a scale mixture.

    Excess kurtosis 3 n^2 Var C_jj from stationary chains; and the size of the off-diagonal entries,
    E C_ij^2 = (n+2)/(4n(n+1)d), from the same linear theory around isometry.
    """
    for n, d in cases:
        c = np.stack(list(grams(run, linear(120, d, weights=weights), np.eye(n, d), chains, stream=d, first=30)))
        diagonal = np.einsum("lrii->lri", c)
        excess, error = mean_and_error(3 * n**2 * np.square(diagonal - 1 / n).mean((0, 2)))
        off = np.square(c).sum((-2, -1)) - np.square(diagonal).sum(-1)
        size, size_error = mean_and_error(off.mean(0) / (n * (n - 1)))
        yield near(f"excess kurtosis, n = {n}, d = {d}", excess, 3 * (n - 1) * (n + 2) / (2 * (n + 1) * d),
                   relative=0.08, stderr=error, reason="linear theory; .128 for .125 at d = 16")  # fmt: skip
        yield near(f"E C_ij^2, n = {n}, d = {d}", size, (n + 2) / (4 * n * (n + 1) * d), relative=0.1,
                   stderr=size_error, reason="linear theory, as for the kurtosis")  # fmt: skip
