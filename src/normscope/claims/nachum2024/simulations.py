"""Finite width: cluster + odd point in simulated chains, and what comes in its place when a switch is thrown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from normscope.claims._chains import gaussian
from normscope.claims._tables import Array, indicator, mean_and_error, series
from normscope.claims.claim import Axes, Curve, Evidence, Run
from normscope.claims.nachum2024._paper import PAPER, cosines, representations
from normscope.claims.reading import Reading, at_least, at_most, between, near
from normscope.core.spec import Spec
from normscope.geometry.shapes import configuration
from normscope.theory import simulate


def chains(
    run: Run, n: int, d: int, layers: int, runs: int, norm: str, metrics: Sequence[str] = ("odd_point_score",),
    every: int = 0, activation: str = "relu", inputs: Array | None = None, **more: object,
) -> dict[str, Array]:  # fmt: skip
    """Metric -> values (recorded layers, runs) of simulated chains on i.i.d. Gaussian samples."""
    spec = Spec(depth=layers, width=d, norm=norm, activation=activation, **more)  # type: ignore[arg-type]
    x = gaussian(run, n, d, stream=n) if inputs is None else inputs
    found = simulate(spec, inputs=x, seeds=runs, seed=run.seed, metrics=list(metrics), every=every or layers)
    return {name: series(found, name) for name in metrics}


@PAPER.claim(
    "odd-point", "With recentring and ReLU the batch becomes one cluster and one odd point, orthogonal and far from "
    "it.",
    where="abstract (observation at initialisation)", covers="D7 S0.3 F1 3.8.state",
    quick={"n": 16, "d": 300, "layers": 300, "runs": 10, "nets": 3},
    full={"n": 64, "d": 10_000, "layers": 300, "runs": 3, "nets": 0}, control={"norm": "batch"},
    because="complete batch norm gives equal angles", seconds=(7, 200), axes=Axes("layer", ""),
)  # fmt: skip
def odd_point_appears(
    run: Run, n: int, d: int, layers: int, runs: int, nets: int, norm: str = "batch_recenter"
) -> Evidence:
    """The paper's observation. Chains from Gaussian inputs: share R2 of the centred energy in one sample against the
    rest, coherence of the rest; and on nets with explicit weights the angle between odd point and cluster and the ratio
    of their norms (near n - 1). The curves show mean cosine and R2 with depth for each pair of switches.
    """
    metrics = ("odd_point_score", "odd_point_coherence")
    found = chains(run, n, d, layers, runs, norm, metrics)
    score, coherence = found["odd_point_score"][-1], found["odd_point_coherence"][-1]
    low, high = (0.975, 0.997) if n == 16 else (0.99, 1.0)
    readings = [
        at_least("share of runs with an odd point", float(indicator(score > 0.8, score).mean()), 0.9,
                reason="4 x 10 seeds: all"),
        between("median R2", float(np.median(score)), low, high, expected=0.9898 if n == 16 else None,
                reason="4 x 10 seeds: .986-.991"),
        between("median coherence", float(np.median(coherence)), *((0.75, 0.93) if n == 16 else (0.95, 1.0)),
                reason="4 x 10 seeds: .863-.888; the fixed points have .866 and, at n = 64, .990"),
    ]  # fmt: skip
    kept = []
    for r in range(nets):
        x = gaussian(run, n, d, stream=50 + r)
        for i, h in enumerate(representations(Spec(depth=layers, width=d, norm=norm), x, run.generator(90 + r))):
            if i >= layers - 40 and i % 4 == 0:
                odd = configuration(torch.from_numpy(h)).odd
                if not odd.score <= 0.8:
                    kept.append((odd.norm_ratio / (n - 1), abs(odd.cosine)))
    if nets:
        ratio, cosine = np.median(kept, axis=0) if kept else (math.inf, math.inf)
        readings += [
            between("norm ratio / (n-1), explicit nets", float(ratio), 0.8, 1.15, reason="4 x 10 seeds: .935-1.016"),
            at_most("|cosine| of odd point and cluster", float(cosine), 0.03, reason="4 x 10 seeds: .006-.008"),
        ]
    curves = []
    if norm == "batch_recenter":
        for name, title in (("none", "neither"), ("batch_recenter", "recentred"), ("batch_rescale", "rescaled"),
                            ("batch", "both")):  # fmt: skip
            x = gaussian(run, n, d, stream=n)
            spec = Spec(depth=layers, width=d, norm=name)
            profile = simulate(spec, inputs=x, seeds=1, seed=run.seed, metrics=["mean_cosine", "odd_point_score"],
                               every=10)  # fmt: skip
            depths = sorted({r.layer for r in profile.records})
            for metric, panel in (("mean_cosine", "mean cosine"), ("odd_point_score", "R2 of the odd point")):
                curves.append(Curve(title, depths, series(profile, metric)[:, 0].tolist(), panel=panel))
    return Evidence(tuple(readings), tuple(curves))


@PAPER.claim(
    "equiangular", "Complete batch norm (with rescaling) gives no odd point but equal angles, mean cosine .2857.",
    where="odd_point.md 3.6 and 3.7", covers="D8 3.6.equal", quick={"n": 16, "d": 300, "layers": 150, "runs": 5},
    full={"n": 16, "d": 3000, "layers": 150, "runs": 5}, control={"norm": "batch_recenter"},
    because="without rescaling an odd point appears", seconds=(0.3, 2.1),
)  # fmt: skip
def equiangular(run: Run, n: int, d: int, layers: int, runs: int, norm: str = "batch") -> Iterator[Reading]:
    """Differs from the naive reading of the abstract: with the complete layer the batch goes to the symmetric state."""
    found = chains(run, n, d, layers, runs, norm, ("odd_point_score", "mean_cosine"), every=10)
    yield at_most("largest R2", float(found["odd_point_score"][-1].max()), 0.25, reason="bound set beforehand")
    mean, error = mean_and_error(found["mean_cosine"][-6:].mean(0))
    band = 0.015 if d < 3000 else 0.005
    yield near("mean cosine", mean, 0.28568, band, stderr=error, reason="seen .285 to .289 at d = 300")


@PAPER.claim(
    "rescaling-alone", "Rescaling without recentring and ReLU: equal angles, mean cosine .5084.",
    where="odd_point.md 3.7", covers="D9", quick={"n": 16, "d": 300, "layers": 100, "runs": 5},
    full={"n": 16, "d": 3000, "layers": 100, "runs": 5}, control={"norm": "batch_recenter", "layers": 300},
    because="recentring in its place brings an odd point", seconds=(0.3, 0.7)
)  # fmt: skip
def rescaling_alone(run: Run, n: int, d: int, layers: int, runs: int, norm: str = "batch_rescale") -> Iterator[Reading]:
    """Mean cosine over pairs at the last layers, averaged over chains."""
    found = chains(run, n, d, layers, runs, norm, ("odd_point_score", "mean_cosine"), every=10)
    yield at_most("largest R2", float(found["odd_point_score"][-1].max()), 0.25, reason="bound set beforehand")
    mean, error = mean_and_error(found["mean_cosine"][-5:].mean(0))
    yield near("mean cosine", mean, 0.5084, 0.03 if d < 3000 else 0.015, stderr=error, reason="seen .504 to .518")


@PAPER.claim(
    "one-ray", "Without batch norm a deep ReLU net maps all samples onto one ray.", where="odd_point.md 3.7",
    covers="D10",
    quick={"n": 16, "d": 300, "layers": 300, "runs": 5}, full={"n": 16, "d": 300, "layers": 1000, "runs": 5},
    control={"norm": "batch_rescale"}, because="rescaling keeps the angles open", seconds=(2, 6.2),
)  # fmt: skip
def one_ray(run: Run, n: int, d: int, layers: int, runs: int, norm: str = "none") -> Iterator[Reading]:
    """Smallest mean cosine over chains at the last layer, and the smallest cosine of any pair in one net with explicit
    weights: above .98.
    """
    found = chains(run, n, d, layers, runs, norm, ("mean_cosine",))["mean_cosine"][-1]
    bound = 0.98 if layers < 1000 else 0.999
    yield at_least("least mean cosine", float(found.min()), bound, reason="seen > .997")
    *_, h = representations(Spec(depth=layers, width=d, norm=norm), gaussian(run, n, d, stream=1), run.generator(2))
    yield at_least("least cosine of a pair, explicit net", float(cosines(h @ h.T).min()), bound, reason="seen > .997")


@PAPER.claim(
    "no-odd-in-small-batches", "Batches of at most six samples get no odd point at any width.",
    where="odd_point.md 3.8", covers="D12 3.8.small", quick={"sizes": (4, 5, 6), "d": 1000, "layers": 300, "runs": 6},
    full={"sizes": (4, 5, 6), "d": 10_000, "layers": 300, "runs": 6}, control={"sizes": (12, 16)},
    because="larger batches get one", seconds=(1.1, 9.1)
)  # fmt: skip
def no_odd_in_small_batches(run: Run, sizes: Sequence[int], d: int, layers: int, runs: int) -> Iterator[Reading]:
    """Largest R2 over chains at the last layer: the fixed point is missing below n = 6.107."""
    for n in sizes:
        score = chains(run, n, d, layers, runs, "batch_recenter")["odd_point_score"][-1]
        yield at_most(f"largest R2, n = {n}", float(score.max()), 0.55, reason="seen at most .44")


@PAPER.claim(
    "twelve-samples", "Twelve samples: the odd point has R2 = .975.", where="odd_point.md 3.8", covers="D13",
    quick={"d": 1000, "layers": 300, "runs": 8}, full={"d": 1000, "layers": 600, "runs": 20}, control={"norm": "batch"},
    because="rescaling dissolves it", seconds=(0.8, 3.7),
)  # fmt: skip
def twelve_samples(run: Run, d: int, layers: int, runs: int, norm: str = "batch_recenter") -> Iterator[Reading]:
    """Median over chains of R2 at the last layer, against the infinite-width .9750."""
    score = chains(run, 12, d, layers, runs, norm)["odd_point_score"][-1]
    yield between("median R2", float(np.median(score)), 0.96, 0.99, expected=0.975, reason="seen .973 to .981")


@PAPER.claim(
    "odd-activations", "Odd activations (identity, tanh) get no odd point: E phi = 0 leaves no drive.", where="our "
    "3.5, 3.7",
    covers="D23 3.5.odd", quick={"d": 600, "layers": 150, "runs": 5}, full={"d": 1000, "layers": 400, "runs": 10},
    control={"activations": ("relu",)}, because="ReLU has a mean", seconds=(0.6, 2.6),
)  # fmt: skip
def odd_activations(
    run: Run, d: int, layers: int, runs: int, activations: Sequence[str] = ("tanh", "identity")
) -> Iterator[Reading]:
    """Largest R2 over chains under recentring (tanh with a gain of 1.5, so that its scale stays)."""
    for name in activations:
        score = chains(run, 16, d, layers, runs, "batch_recenter", activation=name,
                       gain=1.5 if name == "tanh" else None)["odd_point_score"][-1]  # fmt: skip
        yield at_most(f"largest R2, {name}", float(score.max()), 0.6, reason="seen .43 and .07")


@PAPER.claim(
    "heavy-samples", "Complete batch norm on large batches: several heavy samples over an equiangular bulk.",
    where="odd_point.md 3.6", covers="D22 3.6.samples F5",
    quick={"sizes": (32, 128), "d": 400, "layers": 180, "burn": 120},
    full={"sizes": (16, 32, 48, 64, 96, 128, 256), "d": 1000, "layers": 300, "burn": 150},
    control=({"activation": "tanh"}, {"norm": "batch_recenter", "sizes": (32,)}),
    because="an odd activation has no drive; and without rescaling 32 samples get an odd point", seconds=(4.1, 400),
    axes=Axes("samples n", "max / median centred variance", True, True),
)  # fmt: skip
def heavy_samples(
    run: Run, sizes: Sequence[int], d: int, layers: int, burn: int, activation: str = "relu", norm: str = "batch"
) -> Evidence:
    """Largest over median centred squared norm, median over the later layers of a net with explicit weights: below 3 at
    32 samples, above 6 at 128. The reference runs measured 1.22, 1.56, 1.86, 6.9, 11.7, 19 at n = 16 to 128, d = 1000.
    """
    ratios, readings = [], []
    for n in sizes:
        kept = []
        spec = Spec(depth=layers, width=d, norm=norm, activation=activation)
        for i, h in enumerate(representations(spec, gaussian(run, n, d, stream=n), run.generator(1000 + n))):
            if i >= burn and i % 5 == 0:
                v = np.square(h - h.mean(0)).sum(1)
                kept.append(v.max() / np.median(v))
        ratios.append(float(np.median(kept)))
        name = f"max / median, n = {n}"
        if n <= 32:
            readings.append(at_most(name, ratios[-1], 3, reason="seen 1.56 at n = 32"))
        if n >= 128:
            readings.append(at_least(name, ratios[-1], 6, reason="seen 19 at n = 128"))
    known = Curve("reference runs", (16, 32, 48, 64, 96, 128), (1.22, 1.56, 1.86, 6.9, 11.7, 19), "printed")
    return Evidence(tuple(readings), (Curve("explicit nets", list(sizes), ratios), known))
