"""Stability of the states against every deviation, and how several odd points become one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from normscope.claims._chains import gaussian
from normscope.claims._tables import Array, highest
from normscope.claims.claim import Run
from normscope.claims.nachum2024._paper import PAPER, centred, odd_state, share
from normscope.claims.reading import Reading, at_least, at_most, near
from normscope.core.spec import Spec
from normscope.theory import predicted_grams
from normscope.theory.laws import odd_point

#: n: lam_L and lam_M with recentring alone, then with rescaling too (odd_point.md 3.3).
RATES = {4: (0.87635, 0.62906, 0.52581, 0.37744), 8: (0.95607, 0.69250, 0.74361, 0.53861),
         16: (0.98099, 0.71492, 0.86558, 0.63081), 32: (0.99112, 0.72461, 0.93105, 0.68070),
         64: (0.99570, 0.72914, 0.96506, 0.70670)}  # fmt: skip
#: n: the growth factors at the fuzzy odd state with multiplicities, and the largest at the saddle (odd_point.md 3.3).
SPECTRA = {7: (((0.9448, 1), (0.8785, 5), (0.8065, 9), (0.3411, 5)), 1.0304),
           8: (((0.9308, 1), (0.8914, 6), (0.8424, 14), (0.2587, 6)), 1.0312),
           16: (((0.94285, 1), (0.93996, 14), (0.93213, 90), (0.0840, 14)), 1.01726)}  # fmt: skip


def step(state: Array, norm: str, activation: str = "relu") -> Array:
    """One layer of the centred Gram, to trace 1."""
    out = centred(predicted_grams(Spec(depth=1, width=8, norm=norm, activation=activation), state)[1])
    return out / np.trace(out)


@PAPER.claim(
    "equiangular-rates", "Rescaling multiplies every stability eigenvalue of the equiangular state by (n-1)/(n+1).",
    where="odd_point.md 3.3 and 3.6; yang2019 Thm 6", covers="D14 3.3.equiangular 3.6.factor",
    quick={"sizes": (4, 8, 16)}, full={"sizes": (4, 8, 16, 32, 64)}, control={"activation": "leaky_relu(0.3)"},
    because="the rates are ReLU's", seconds=(0.1, 0.2)
)  # fmt: skip
def equiangular_rates(run: Run, sizes: Sequence[int], activation: str = "relu") -> Iterator[Reading]:
    """Rates of the two kinds of deviations from equal angles (norms, angles) by finite differences of the Gram
    recursion, with and without rescaling, against the closed forms. Without rescaling norms fade at only .27/n a layer:
    rescaling is what stabilises the symmetric state (2.27/n).
    """
    for n in sizes:
        p = np.eye(n) - 1 / n
        t = p / np.trace(p)
        norms = p @ np.diag(np.eye(n)[0] - np.eye(n)[1]) @ p
        angles = np.zeros((n, n))
        angles[0, 2] = angles[1, 3] = 1  # rows sum to zero
        angles[0, 3] = angles[1, 2] = -1
        angles = angles + angles.T
        for norm, known, law in (
            ("batch_recenter", RATES[n][:2], odd_point.equiangular_rates(n, rescale=False)),
            ("batch", RATES[n][2:], odd_point.equiangular_rates(n)),
        ):
            for name, mode, expected, formula in zip(("norms", "angles"), (norms, angles), known, law, strict=True):
                e = 1e-4 * mode / np.linalg.norm(mode) * np.linalg.norm(t)
                change = (step(t + e, norm, activation) - step(t - e, norm, activation)) / 2
                rate = float(np.sum(change * e) / np.sum(e * e))
                yield near(f"{name}, {norm}, n = {n}", rate, expected, 1.5e-5, reason="digits of the table")
                yield near(f"law, {name}, {norm}, n = {n}", formula, rate, 1e-5, reason="finite differences")


@PAPER.claim(
    "odd-state-stable", "The fuzzy cluster + odd point is stable against every deviation.",
    where="odd_point.md 3.3 (candidate for reported theorem c)", covers="D15 3.3.odd S0.5c S0.4c",
    quick={"sizes": (7, 8, 16)},
    control={"at": "saddle"}, because="the saddle has a growing deviation", seconds=(0.5, 0.5),
)  # fmt: skip
def odd_state_stable(run: Run, sizes: Sequence[int], at: str = "odd") -> Iterator[Reading]:
    """All n(n-1)/2 growth factors of the centred, trace-normalised Gram map at the odd state, with multiplicities; and
    the decay of random deviations through the recursion itself, whose slowest mode must come out.
    """
    for n in sizes:
        t = (odd_point.odd_fixed_point(n) if at == "odd" else odd_point.odd_saddle(n)) or math.nan
        found = odd_point.stability(n, t)
        expected = np.array([v for v, count in SPECTRA[n][0] for _ in range(count)] + [0.0])
        yield at_most(f"largest factor, n = {n}", float(found[0]), 0.99)
        yield at_most(f"distance from the table, n = {n}", float(np.abs(found - expected).max()), 1e-4)
        state = odd_state(n, t) / np.trace(odd_state(n, t))
        change = gaussian(run, n, n, stream=n)
        change = centred(change + change.T)
        change *= 1e-5 / np.linalg.norm(change)
        sizes_seen = []
        for _ in range(60):
            change = (step(state + change, "batch_recenter") - step(state - change, "batch_recenter")) / 2
            sizes_seen.append(np.linalg.norm(change))
            change *= 1e-5 / sizes_seen[-1]
        rate = float(np.exp(np.mean(np.log(np.array(sizes_seen[30:]) / 1e-5))))
        low = SPECTRA[n][0][2][0]
        yield near(f"decay of a random deviation, n = {n}", rate, (low + SPECTRA[n][0][0][0]) / 2,
                   (SPECTRA[n][0][0][0] - low) / 2 + 2e-3, reason="between the third and the first factor")  # fmt: skip


@PAPER.claim(
    "several-become-one", "Two, three or eight odd points become one, at infinite width, within 300 layers.",
    where="odd_point.md 3.3", covers="D16 3.3.several",
    quick={"n": 32, "groups": (2, 3, 8), "layers": 300, "noise": 1e-3},
    full={"n": 64, "groups": (2, 3, 8), "layers": 2000, "noise": 1e-3}, control={"activation": "identity"},
    because="a linear net keeps the split", seconds=(0.3, 3.8),
)  # fmt: skip
def several_become_one(
    run: Run, n: int, groups: Sequence[int], layers: int, noise: float, activation: str = "relu"
) -> Iterator[Reading]:
    """The Gram recursion from a planted split k against n - k with a relative noise of 1e-3 in the samples; the largest
    share R2 in the end. The exact split is invariant, but over two thousand layers even the noise of rounding breaks
    it. Of 16 samples eight are no odd points but half of the batch, which ends at equal angles now and then (2 of 13
    seeds).
    """
    for k in groups:
        x = np.zeros((n, n))
        x[:k, 0], x[k:, 1] = (n - k) / k, 1
        x = x + noise * gaussian(run, n, n, stream=k) + 1e-3 * np.eye(n)
        g = predicted_grams(Spec(depth=layers, width=8, norm="batch_recenter", activation=activation), x @ x.T / n)
        why = "the fixed point has .9898 at n = 16, more of larger batches"
        yield at_least(f"R2 in the end, k = {k}", share(g[-1]), 0.95, reason=why)


@PAPER.claim(
    "two-odd-points-live-long", "Two odd points grow apart by only 1 + 2/n a layer, three by about 1 + 3/n.",
    where="odd_point.md 3.3", covers="3.3.growth", quick={"sizes": (16, 32)}, full={"sizes": (16, 32, 64, 128)},
    control={"activation": "identity"}, because="a linear net keeps the split", seconds=(2, 60),
)  # fmt: skip
def two_odd_points(run: Run, sizes: Sequence[int], activation: str = "relu") -> Iterator[Reading]:
    """Growth of a small asymmetry between the first two of k odd samples, from the relaxed block state: so in batches
    of 128 and more two odd points live for hundreds of layers.
    """
    table = {2: {16: 1.0855, 32: 1.0549, 64: 1.0301, 128: 1.0155}, 3: {16: 1.0952, 32: 1.0715, 64: 1.0430, 128: 1.0241}}
    for k, known in table.items():
        for n in sizes:
            p = np.eye(n) - 1 / n
            split = np.where(np.arange(n) < k, (n - k) / k, -1.0)
            state = p @ (np.outer(split, split) + 1e-2 * np.eye(n)) @ p
            state /= np.trace(state)
            member = np.arange(n) < k
            for _ in range(10 * n):
                state = step(state, "batch_recenter", activation)
                state = _symmetrised(state, member)
            tilt = np.zeros((n, n))
            tilt[0, 0], tilt[1, 1] = 1, -1
            change, growth = centred(tilt), []
            small = 0.1 * float(np.linalg.eigvalsh(state)[1])  # both sides stay positive semi-definite
            for _ in range(60):
                change *= small / np.linalg.norm(change)
                up, down = (step(state + s * change, "batch_recenter", activation) for s in (1, -1))
                change = (up - down) / 2
                growth.append(np.linalg.norm(change) / small)
            yield near(f"growth per layer, k = {k}, n = {n}", float(growth[-1]), known[n], 3e-4,
                       reason="digits of the table")  # fmt: skip


def _symmetrised(state: Array, member: NDArray[np.bool_]) -> Array:
    """The state averaged over permutations within both groups: rounding must not break the symmetry."""
    out = np.empty_like(state)
    for a in (member, ~member):
        for b in (member, ~member):
            out[np.ix_(a, b)] = state[np.ix_(a, b)].mean()
    for a in (member, ~member):
        own, block = np.diag(state)[a].mean(), state[np.ix_(a, a)]
        size = len(block)
        inner = (block.sum() - np.trace(block)) / highest(size * (size - 1), 1)
        out[np.ix_(a, a)] = inner
        index = np.flatnonzero(a)
        out[index, index] = own
    return out
