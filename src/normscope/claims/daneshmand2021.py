"""Batch Normalization Orthogonalizes Representations in Deep Random Networks (NeurIPS 2021), as claims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normscope.claims._tables import Array, mean_and_error, series, slope_and_error
from normscope.claims.claim import PAPERS, Axes, Curve, Evidence, Paper, Run
from normscope.claims.reading import near
from normscope.spec import Spec
from normscope.theory import simulate

PAPER = PAPERS.add(
    "daneshmand2021",
    Paper(
        "daneshmand2021",
        "Batch Normalization Orthogonalizes Representations in Deep Random Networks",
        "Daneshmand, Joudaki, Bach",
        "NeurIPS 2021, arXiv 2106.03970",
        "Linear layers with Gaussian weights and batch norm (no recentring) drive the hidden batch towards orthogonality "
        "as depth grows, up to a floor that falls with the width.",
    ),
)


def near_rank_one(n: int, d: int) -> Array:
    """The paper's start: diag(1, 1e-6, ..., 1e-6) padded to width d; rows are samples."""
    x = np.zeros((n, d))
    x[np.arange(n), np.arange(n)] = [1.0] + [1e-6] * (n - 1)
    return x


@PAPER.claim(
    "fig2b", "The stationary orthogonality gap falls as width to the power -1/2.", where="Fig. 2b", covers="C7 C8",
    quick={"widths": (16, 32, 64, 128, 256, 512), "layers": 500, "runs": 20},
    full={"widths": (16, 32, 64, 128, 256, 512, 1024, 2048, 4096), "layers": 500, "runs": 20},
    control={"norm": "none"}, because="without batch norm the batch collapses to one direction at every width",
    seconds=(5, 60), axes=Axes("width d", "mean gap V over layers", x_log=True, y_log=True),
)  # fmt: skip
def fig2b(run: Run, widths: Sequence[int], layers: int, runs: int, norm: str = "batch_rescale") -> Evidence:
    """Mean of V over 500 layers from the paper's near rank-one start, against the width.

    The paper's average includes the first layers, in which the gap is still near its largest value; that transient is
    nearly the same at all widths and flattens the slope to the printed -0.46. Without it the slope is -1/2.
    """
    whole, stationary = [], []
    for d in widths:
        spec = Spec(depth=layers, width=d, norm=norm, activation="identity")
        found = simulate(
            spec, inputs=near_rank_one(4, d), seeds=runs, seed=run.seed * 10_007 + d, metrics=["orthogonality_gap"]
        )
        v = series(found, "orthogonality_gap", 1)
        whole.append(mean_and_error(v.mean(0)))
        stationary.append(mean_and_error(v[60:].mean(0)))

    def slope(means: list[tuple[float, float]]) -> tuple[float, float]:
        return slope_and_error(np.log(widths), np.log([m for m, _ in means]), [e / m for m, e in means])

    (with_transient, e1), (without, e2) = slope(whole), slope(stationary)
    curves = [
        Curve(
            name,
            list(widths),
            [m for m, _ in means],
            "ours",
            [m - 2 * e for m, e in means],
            [m + 2 * e for m, e in means],
        )
        for name, means in (("all layers (as printed)", whole), ("stationary", stationary))
    ]
    return Evidence(
        (
            near(
                "slope, all layers",
                with_transient,
                -0.469,
                0.02,
                stderr=e1,
                printed=-0.46,
                reason="3 s.d. of five seeds",
            ),
            near("slope, stationary", without, -0.51, 0.02, stderr=e2, reason="3 s.d. of five seeds; -1/2 as d grows"),
        ),
        tuple(curves),
    )
