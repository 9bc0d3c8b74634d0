"""The settled chain: how large its gap is, its mean Gram, when it keeps its dimensions, how it gets there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from normscope.claims._chains import entropy, gaussian, grams, least_share, linear, near_rank_one, simulated
from normscope.claims._tables import mean_and_error, series
from normscope.claims.claim import Run
from normscope.claims.daneshmand2021.paper import PAPER
from normscope.claims.reading import Reading, at_least, at_most, near
from normscope.theory import predict, simulate
from normscope.theory.laws import orthogonality

GAP = ["orthogonality_gap"]


@PAPER.claim(
    "stationary-gap", "A long chain settles at E V = v sqrt(2/D) Gamma((D+1)/2)/Gamma(D/2), v^2 = "
    "(n-1)(n+2)^2/(4n(n+1)d).",
    where="derived; what Fig. 2 shows", covers="C9",
    quick={"cases": ((2, 64, 300), (4, 64, 100), (4, 1024, 60), (8, 256, 40), (16, 256, 30))},
    full={"cases": ((2, 64, 1000), (4, 64, 500), (4, 1024, 300), (8, 256, 200), (16, 256, 100), (32, 1024, 30), (32,
        4096, 30))},
    control={"weights": "orthogonal"}, because="orthogonal weights lower the floor of the gap", seconds=(12, 200),
)  # fmt: skip
def stationary_gap(run: Run, cases: Sequence[tuple[int, int, int]], weights: str = "gaussian") -> Iterable[Reading]:
    """The figures' plateaus in closed form, by linearising around the orthogonal batch; the paper has only a bound.

    Cases are (n, d, chains), from the orthogonal batch, layers 60 to 160. Tolerance 3 % for n <= sqrt(d)/2 and 5 %
    for n <= sqrt(d); beyond about 1.8 sqrt(d) the chain loses dimensions and the law fails (see rank-kept).
    """
    for n, d, chains in cases:
        found = simulated(run, linear(160, d, weights=weights), np.eye(n, d), GAP, chains=chains, stream=n + d)
        mean, error = mean_and_error(series(found, "orthogonality_gap", 60).mean(0))
        law = orthogonality.stationary_gap(n, d)
        tolerance = 0.03 if n <= math.sqrt(d) / 2 else 0.05
        yield near(f"E V, n = {n}, d = {d}", mean, law, relative=tolerance, stderr=error,
                   reason="tolerance set beforehand")  # fmt: skip


@PAPER.claim(
    "mean-gram", "The mean Gram of the settled chain is I/n exactly.", where="derived; section 3", covers="C10",
    quick={"chains": 500, "layers": 200}, full={"chains": 1000, "layers": 400}, control={"activation": "relu"},
    because="behind a ReLU the settled mean Gram is not isotropic", seconds=(1.5, 3.7),
)  # fmt: skip
def mean_gram(run: Run, chains: int, layers: int, activation: str = "identity") -> Iterable[Reading]:
    """Batch norm with linear layers orthogonalizes in the mean at any width: n = 4, d = 64, entry by entry."""
    spec = linear(layers, 64, activation=activation)
    c = np.stack(list(grams(run, spec, np.eye(4, 64), chains, first=40))).mean(0)
    error = c.std(0, ddof=1) / math.sqrt(chains)
    apart = np.abs(c.mean(0) - np.eye(4) / 4)
    yield at_most("largest |mean C - I/n|", float(apart.max()), 0.0015, reason="of 35000 samples")
    yield at_most("the same in standard errors", float((apart / error).max()), 4, reason="4 s.e.")


@PAPER.claim(
    "rank-kept", "All n dimensions are kept for n <= 1.5 sqrt(d) and lost for n >= 2 sqrt(d).",
    where="A1 and d = Omega(n^2), found by measuring", covers="C18",
    quick={"width": 64, "kept": (12,), "lost": (16,), "layers": 600},
    full={"width": 256, "kept": (24,), "lost": (32,), "layers": 1500},
    control=({"norm": "none"}, {"width": 1024, "layers": 200}),
    because="without batch norm dimensions are lost at any n, in wide nets at none of these", seconds=(1.6, 120),
)  # fmt: skip
def rank_kept(
    run: Run, width: int, kept: Sequence[int], lost: Sequence[int], layers: int, norm: str = "batch_rescale"
) -> Iterable[Reading]:
    """What "d = Omega(n^2)" means in numbers: log10 of n sigma_n^2 after many layers, mean of eight chains.

    The gap V looks healthy through the transition; only the smallest singular value shows it. d >= n, which the
    theorems ask for, is far from enough.
    """
    for n in (*kept, *lost):
        found = simulate(linear(layers, width, norm), inputs=np.eye(n, width), seeds=8, seed=entropy(run, n),
                         every=layers, metrics=["sigma_min", "rms", "mean_cosine"])  # fmt: skip
        share = n * least_share(found, n, width)[-1]
        mean, error = mean_and_error(np.log10(np.maximum(share, 1e-300)))
        if n in kept:
            yield at_least(f"log10 n sigma_n^2, n = {n}", mean, -2.5, stderr=error,
                           reason="kept: -1.2 to -1.4 on three seeds")  # fmt: skip
        else:
            yield at_most(f"log10 n sigma_n^2, n = {n}", mean, -8, stderr=error,
                          reason="lost: -13.6 to -15 on three seeds")  # fmt: skip


@PAPER.claim(
    "centred", "Linear batch norm with recentring on n samples is that without on n - 1, plus a floor.",
    where="derived; section 1", covers="C23", quick={"chains": 40}, full={"chains": 400},
    control={"norm": "batch_rescale"}, because="without recentring there is no floor", seconds=(0.53, 5),
)  # fmt: skip
def centred(run: Run, chains: int, norm: str = "batch") -> Iterable[Reading]:
    """Recentring projects onto the complement of the all-ones vector: E V_n^2 = E V_{n-1}^2 + 1/(n-1) - 1/n, exactly.

    n = 8, d = 100: the root mean square gap of torch's batch norm (0.1999) without ever simulating it.
    """
    n, d = 8, 100
    with_, without = (
        simulated(run, linear(200, d, kind), gaussian(run, m, d, stream=m), GAP, chains=chains, stream=m)
        for kind, m in ((norm, n), ("batch_rescale", n - 1))
    )
    a, ea = mean_and_error(np.square(series(with_, "orthogonality_gap", 60)).mean(0))
    b, eb = mean_and_error(np.square(series(without, "orthogonality_gap", 60)).mean(0))
    b += 1 / (n - 1) - 1 / n
    ratio, error = math.sqrt(a / b), 0.5 * math.hypot(ea / a, eb / b)
    yield near("root mean square gap, recentred over derived", ratio, 1, 0.02, stderr=error,
               reason="2 % set beforehand")  # fmt: skip
    yield near("root mean square gap, recentred", math.sqrt(a),
               orthogonality.stationary_gap(n, d, recenter=True, root_mean_square=True), relative=0.02,
               stderr=error * math.sqrt(a), reason="2 %")  # fmt: skip


@PAPER.claim(
    "transient", "Near rank one the small directions first grow by orders of magnitude a layer, then the gap falls by "
    "n/(n+2).", where="derived; Fig. 2a's first layers", covers="transient", quick={"layers": 40},
    control={"norm": "none"}, because="without batch norm an infinitely wide layer keeps the small directions small",
    seconds=(0.1, 0.2),
)  # fmt: skip
def transient(run: Run, layers: int, norm: str = "batch_rescale") -> Iterable[Reading]:
    """Infinite width, n = 4, small directions of squared size 1e-12: sigma_n^2 layer by layer, and the final rate."""
    found = predict(linear(layers, 1000, norm), inputs=near_rank_one(4, 1000),
                    metrics=["orthogonality_gap", "sigma_min", "rms"], gradients=False)  # fmt: skip
    share = (
        np.array(list(found.series("sigma_min").values())) / np.array(list(found.series("rms").values()))
    ) ** 2 / 4000
    for layer, expected in enumerate((7e-7, 5e-4, 0.015, 0.070, 0.136), 1):
        yield near(f"sigma_n^2 after layer {layer}", float(share[layer]), expected, relative=0.1,
                   reason="printed to one digit")  # fmt: skip
    v = np.log(list(found.series("orthogonality_gap").values()))
    steepest = float(np.diff(v).min())
    yield near("steepest fall of log V a layer", steepest, -0.5, 0.05, reason="read off at about -0.5")
    yield near("fall of log V a layer in the end", float(v[30] - v[29]), math.log(4 / 6), 1e-3, reason="n/(n+2)")
