"""Iterative orthogonalization (section 5, appendix E) as algebra: what one layer of it does to a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from normscope.claims._tables import Array, highest, mean_and_error
from normscope.claims.claim import Run
from normscope.claims.daneshmand2021.paper import PAPER
from normscope.claims.reading import Reading, at_most, near
from normscope.geometry.metrics import measure


def gap(h: Array) -> float:
    """V of the paper's H (d, n), columns are samples, by the library's metric."""
    return measure(torch.from_numpy(np.ascontiguousarray(h.T)), ["orthogonality_gap"])["orthogonality_gap"]


def batches(run: Run, cases: int) -> Iterable[Array]:
    """H (d, n), wider than long and longer than wide, from well conditioned to spectra over six decades."""
    rng = np.random.default_rng([run.seed, 19])
    for _ in range(cases):
        d, n = (int(v) for v in rng.integers(2, 25, size=2))
        h = rng.standard_normal((d, n)) * 10.0 ** rng.uniform(-3 * rng.uniform(), 0, size=(1, n))
        yield h + rng.uniform(0, 2) * rng.standard_normal((d, 1))


@PAPER.claim(
    "appendix-e", "W = V' Sigma^(-1/2) U^T lowers the gap of the batch it is made from, to (sum sigma)^(-2) - 1/n "
    "squared.",
    where="eq. 6, appendix E", covers="C19 eq.6", quick={"cases": 300}, full={"cases": 20000}, control={"power": -0.5},
    because="with the inverse power the singular values are spread further apart instead", seconds=(1.1, 16),
)  # fmt: skip
def appendix_e(run: Run, cases: int, power: float = 0.5) -> Iterable[Reading]:
    """H = U Sigma V^T, V' orthogonal: the singular values of W H are sqrt(sigma_i) over their root sum of squares.

    The printed derivation drops squares; with sum sigma^2 = 1 the right one is V(WH)^2 = (sum sigma)^(-2) - 1/r, and
    Hoelder's inequality gives V(WH) <= V(H), strictly unless V = 0 on the batch's directions. r is the rank: for n > d
    both gaps carry the floor 1/r - 1/n.
    """
    rng = np.random.default_rng([run.seed, 20])
    apart, rise = [0.0], [-math.inf]
    for h in batches(run, cases):
        u, sigma, vt = np.linalg.svd(h, full_matrices=False)
        k, n = len(sigma), h.shape[1]
        turned = np.linalg.qr(rng.standard_normal((k, k)))[0]
        w = turned @ np.diag(sigma**-power) @ u.T
        before, after = gap(h), gap(w @ h)
        share = sigma / np.sqrt(np.square(sigma).sum())
        apart.append(abs(after**2 - (share.sum() ** -2 - 1 / n)))
        rise.append(after - before)
        del vt
    yield at_most("largest |V(WH)^2 - ((sum sigma)^-2 - 1/n)|", highest(apart), 1e-12, reason="an identity: rounding")
    yield at_most("largest V(WH) - V(H)", highest(rise), 1e-12, reason="an inequality")
    q1, q2 = (np.linalg.qr(rng.standard_normal((16, 16)))[0] for _ in range(2))
    values = np.geomspace(1, 1e-4, 16)
    h, apart = q1 @ np.diag(values) @ q2, []
    for layer in range(1, 7):
        u, sigma, _ = np.linalg.svd(h)
        h = np.diag(sigma**-power) @ u.T @ h
        squares = values ** (2 / 2**layer)
        apart.append(abs(gap(h) - math.sqrt(np.square(squares).sum() / squares.sum() ** 2 - 1 / 16)))
    yield at_most("six linear layers, condition 1e4: distance from the gaps of sigma^(1/2^l)", highest(apart), 1e-9,
                  reason="each layer halves the log spectrum")  # fmt: skip


@PAPER.claim(
    "appendix-e-sliced", "The same lowering with V' cut out of V, as the algorithm has it.", where="eq. 6, section 5",
    covers="E-slice", should="fail", quick={"draws": 40}, control={"basis": "orthogonal"},
    because="with an orthogonal V' the gap of the same batches does fall", seconds=(0.21, 1),
)  # fmt: skip
def appendix_e_sliced(run: Run, draws: int, basis: str = "sliced") -> Iterable[Reading]:
    """d of the n rows of V are no orthogonal matrix: for Gaussian batches (d = 100, n = 300) the gap rises.

    For strongly correlated batches it falls even so (.377 to .139 against .109 with an orthogonal V'), which is what
    the algorithm meets in a ReLU net. Gaps are those of the d x d side, the directions that exist.
    """
    rng = np.random.default_rng([run.seed, 21])
    changes = []
    d, n = 40, 120
    for _ in range(draws):
        h = rng.standard_normal((d, n))
        u, sigma, vt = np.linalg.svd(h, full_matrices=False)
        cut = vt.T[:d] if basis == "sliced" else np.linalg.qr(rng.standard_normal((d, d)))[0]
        w = cut @ np.diag(sigma**-0.5) @ u.T
        changes.append(gap(w @ h) - gap(h))
    mean, error = mean_and_error(changes)
    yield at_most("mean V(WH) - V(H), Gaussian batches", mean, 0, stderr=error, reason="appendix E", k=3)


@PAPER.claim(
    "slice-spectrum", "The slice of V has singular values between about 0 and 1, far from an orthogonal matrix.",
    where="section 5", covers="E-slice-spectrum", quick={"draws": 10}, control={"basis": "orthogonal"},
    because="an orthogonal matrix has all singular values 1", seconds=(0.1, 1),
)  # fmt: skip
def slice_spectrum(run: Run, draws: int, basis: str = "sliced") -> Iterable[Reading]:
    """d = 100 rows of V (300, 100) of a Gaussian batch: smallest, median and largest singular value, mean over
    draws.
    """
    rng = np.random.default_rng([run.seed, 22])
    found = []
    for _ in range(draws):
        _, _, vt = np.linalg.svd(rng.standard_normal((100, 300)), full_matrices=False)
        cut = vt.T[:100] if basis == "sliced" else np.linalg.qr(rng.standard_normal((100, 100)))[0]
        sigma = np.linalg.svd(cut, compute_uv=False)
        found.append((sigma[-1], np.median(sigma), sigma[0]))
    for name, expected, reach, values in zip(
        ("smallest", "median", "largest"), (0.003, 0.51, 0.94), (0.02, 0.06, 0.02), np.transpose(found), strict=True
    ):
        mean, error = mean_and_error(values)
        yield near(f"{name} singular value", mean, expected, reach, stderr=error,
                   reason="one draw in the reference runs")  # fmt: skip
