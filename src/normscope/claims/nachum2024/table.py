"""The table: recentring x rescaling x activation, what the batch becomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from normscope.claims._chains import gaussian
from normscope.claims._tables import indicator, mean_and_error, series
from normscope.claims.claim import Axes, Curve, Evidence, Run
from normscope.claims.nachum2024._paper import PAPER
from normscope.claims.reading import Reading, at_least, near
from normscope.core.spec import Spec
from normscope.theory import simulate

#: (activation, gain, norm_first) -> norm -> mean cosine (odd_point.md 3.7, n = 16); "odd" for cluster + odd point.
TABLE: Mapping[tuple[str, float | None, bool], Mapping[str, float | str]] = {
    ("identity", None, True): {"batch_rescale": 0.0, "batch": -0.067},
    ("relu", None, True): {"none": 1.0, "batch_recenter": "odd", "batch_rescale": 0.509, "batch": 0.286},
    ("relu", None, False): {"none": 1.0, "batch_recenter": "odd", "batch_rescale": 0.323, "batch": -0.067},
    ("leaky_relu(0.01)", None, True): {"none": 1.0, "batch_recenter": "odd", "batch_rescale": 0.505, "batch": 0.278},
    ("leaky_relu(0.1)", None, True): {"none": 1.0, "batch_recenter": "odd", "batch_rescale": 0.457, "batch": 0.215},
    ("leaky_relu(0.2)", None, True): {"none": 0.999, "batch_recenter": "odd", "batch_rescale": 0.392, "batch": 0.151},
    ("leaky_relu(0.5)", None, True): {"none": 0.985, "batch_rescale": 0.203, "batch": 0.004},
    ("abs", None, True): {"none": 1.0, "batch_rescale": 0.723, "batch": 0.633},
    ("tanh", 1.0, True): {"batch_rescale": 0.0, "batch": -0.062},
    ("tanh", 1.5, True): {"none": -0.001, "batch_recenter": -0.063},
    ("tanh", 3.0, True): {"none": -0.008, "batch_recenter": -0.054},
    ("sin", 1.5, True): {"none": 0.003, "batch_recenter": -0.058},
    ("sin", 3.0, True): {"none": 0.001},
    ("gelu", 1.0, True): {"batch": 0.142},
    ("gelu", 3.0, True): {"none": 1.0, "batch_recenter": "odd"},
}


@PAPER.claim(
    "table", "What the batch becomes for each choice of recentring, rescaling and activation.",
    where="odd_point.md 3.7, table",
    covers="3.7.table 3.7.pre F6", quick={"n": 16, "d": 300, "layers": 240, "runs": 16},
    full={"n": 16, "d": 1000, "layers": 400, "runs": 6}, control=({"swap": True}, {"odd": "abs", "runs": 2}),
    because="with rescaling where there was none, and the reverse, each cell with a drive is another; |x| has one "
    "where odd activations have none", seconds=(25, 60),
    axes=Axes("mean cosine, reference runs", "mean cosine"),
)  # fmt: skip
def table(run: Run, n: int, d: int, layers: int, runs: int, swap: bool = False, odd: str = "") -> Evidence:
    """Mean cosine over pairs at the last layers, for 34 cells of the table, and cluster + odd point where the table has
    it (at least half of the chains with R2 > .8). ``norm_first=False`` is the order with the norm after the activation.
    The reference runs' numbers are of d = 1000 and three seeds; at d = 300 cosines scatter by .02.
    """
    other = {"none": "batch_rescale", "batch_rescale": "none", "batch": "batch_recenter", "batch_recenter": "batch"}
    readings, xs, ys = [], [], []
    for (activation, gain, first), cells in TABLE.items():
        if odd and activation not in ("identity", "tanh", "sin"):
            continue
        for norm, expected in cells.items():
            spec = Spec(depth=layers, width=d, norm=other[norm] if swap else norm, activation=odd or activation,
                        gain=None if odd else gain, norm_first=first)  # fmt: skip
            found = simulate(spec, inputs=gaussian(run, n, d), seeds=runs, seed=run.seed,
                             metrics=["mean_cosine", "odd_point_score"], every=layers // 8)  # fmt: skip
            name = f"{activation}{'' if gain is None else f' gain {gain:g}'}{'' if first else ', norm last'}, {norm}"
            if expected == "odd":
                score = series(found, "odd_point_score")[-1]
                share = float(indicator(score > 0.8, score).mean())
                readings.append(at_least(f"odd: {name}", share, 0.5, reason="all of three seeds at d = 1000"))
                continue
            cosine = float(series(found, "mean_cosine")[-3:].mean())
            band = 0.03 if float(expected) < 0.9 else 0.02
            readings.append(near(f"cosine: {name}", cosine, float(expected), band, reason="finite width: .02"))
            xs.append(float(expected))
            ys.append(cosine)
    return Evidence(tuple(readings), (Curve("cells", xs, ys), Curve("equal", [-0.1, 1], [-0.1, 1], "theory")))


@PAPER.claim(
    "scale-falls", "tanh, sin and GELU at gain 1 without rescaling lose their scale: linear nets in the end.",
    where="odd_point.md 3.7", covers="3.7.scale", quick={"n": 16, "d": 300, "layers": 240}, control={"gain": 3.0},
    because="a larger gain keeps the scale", seconds=(1, 1),
)  # fmt: skip
def scale_falls(run: Run, n: int, d: int, layers: int, gain: float = 1.0) -> Iterator[Reading]:
    """Root mean square entry at the last layer, no norm and recentring: no odd point for GELU at gain 1 either."""
    for activation in ("tanh", "sin", "gelu"):
        for norm in ("none", "batch_recenter"):
            spec = Spec(depth=layers, width=d, norm=norm, activation=activation, gain=gain)
            found = simulate(spec, inputs=gaussian(run, n, d), seeds=2, seed=run.seed, metrics=["rms"], every=layers)
            value = float(np.mean(series(found, "rms")[-1]))
            yield near(f"rms, {activation}, {norm}", value, 0.0, 0.1, reason="seen .035 for tanh at L = 400")


@PAPER.claim(
    "weight-law", "The odd point does not depend on the law of the weights.", where="odd_point.md 3.7",
    covers="3.7.law",
    quick={"n": 16, "d": 150, "layers": 200, "runs": 3}, full={"n": 16, "d": 200, "layers": 200, "runs": 8},
    control={"norm": "batch"}, because="rescaling dissolves it", seconds=(1.3, 2.6),
)  # fmt: skip
def weight_law(
    run: Run, n: int, d: int, layers: int, runs: int, norm: str = "batch_recenter",
    laws: Sequence[str] = ("gaussian", "uniform", "orthogonal"),
) -> Iterator[Reading]:  # fmt: skip
    """Median R2 of chains with Gaussian, uniform and Haar-orthogonal weights (sign weights, .97 to .996 before,
    have no name in the library).
    """
    for law in laws:
        spec = Spec(depth=layers, width=d, norm=norm, weights=law)
        found = simulate(spec, inputs=gaussian(run, n, d), seeds=runs, seed=run.seed, metrics=["odd_point_score"],
                         every=layers)  # fmt: skip
        score = float(np.median(series(found, "odd_point_score")[-1]))
        yield at_least(f"median R2, {law}", score, 0.93, reason="seen .952 to .997")


@PAPER.claim(
    "vanilla-linear", "A plain linear net collapses in rank, to one direction after a few times the width in layers.",
    where="odd_point.md 3.7, identity row", covers="3.7.identity", quick={"n": 16, "d": 64, "runs": 24},
    full={"n": 16, "d": 1000, "runs": 24}, control={"norm": "batch_rescale"}, because="rescaling keeps the rank",
    seconds=(2, 60),
)  # fmt: skip
def vanilla_linear(run: Run, n: int, d: int, runs: int, norm: str = "none") -> Iterator[Reading]:
    """Participation rank after 20 d layers: one."""
    spec = Spec(depth=20 * d, width=d, norm=norm, activation="identity")
    found = simulate(spec, inputs=gaussian(run, n, d), seeds=runs, seed=run.seed, metrics=["participation_rank"],
                     every=20 * d)  # fmt: skip
    mean, error = mean_and_error(series(found, "participation_rank")[-1])
    yield near("rank after 20 d layers", mean, 1.0, 0.05, stderr=error, reason="one direction")
