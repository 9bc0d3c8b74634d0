"""A thousand layers of batch norm: how gradients grow with depth, and activations shaped so that they do not."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from normscope.claims._tables import mean_and_error
from normscope.claims.claim import Run
from normscope.claims.daneshmand2021.followups import gradient_logs
from normscope.claims.daneshmand2021.paper import PAPER
from normscope.claims.reading import Reading, between, near
from normscope.core.spec import Spec
from normscope.nn.growth import growth, leaky_slope, total_growth

#: Odd and homogeneous activations, of which the law is more than a bound, and their slack: 5 %.
ACTIVATIONS = ("relu", "leaky_relu(0.3)", "tanh", "erf", "sin")


@PAPER.claim(
    "growth", "Behind batch norm gradients grow by half of log(E phi'^2 / Var phi) a layer, orthogonal weights.",
    where="follow-ups (2310.02012)", covers="F-growth", quick={"width": 200, "depth": 60, "nets": 3},
    full={"width": 400, "depth": 1000, "nets": 4}, control={"norm": "none"},
    because="without batch norm nothing divides by the variance", seconds=(12, 900)
)  # fmt: skip
def depth(run: Run, width: int, depth: int, nets: int, norm: str = "batch") -> Iterable[Reading]:
    """As many samples as units; log of the gradient's norm, layer 5 from either end, over the law's; and the slope of
    leaky ReLU at which the whole net is to grow by e.
    """
    layers = depth - 10

    def total(name: str) -> tuple[float, float]:
        spec = Spec(depth=depth, width=width, norm=norm, activation=name, weights="orthogonal")
        logs = gradient_logs(run, spec, width, nets) / 2
        return mean_and_error(logs[:, 5] - logs[:, 5 + layers])

    for name in ACTIVATIONS:
        found, error = total(name)
        law = growth(name) * layers
        yield near(f"growth over the law's, {name}", found / law, 1.0, 0.06, stderr=error / law,
                   reason="6 %: the law is of many samples of equal length")  # fmt: skip
    found, error = total(f"leaky_relu({leaky_slope(layers):.4f})")
    yield near("growth with the slope for a growth of e", found, 1.0, 0.4, stderr=error,
               reason="2/n a layer: finite samples")  # fmt: skip


@PAPER.claim(
    "shaped-gains", "Gains (l + 1)^-p with p > 1/4 keep the gradients of odd activations bounded at any depth.",
    where="follow-ups (2310.02012)", covers="F-shaped", quick={"most": 4000}, full={"most": 100_000},
    control={"power": 0.2}, because="below 1/4 the sum of fourth powers has no end", seconds=(0.5, 2)
)  # fmt: skip
def shaped_gains(run: Run, most: int, power: float = 0.4) -> Iterable[Reading]:
    """The law's total for tanh over layers 1..L, at L and at L / 4: what the later layers add."""
    del run
    for name in ("tanh", "sin"):
        gains = [(layer + 1) ** -power for layer in range(1, most + 1)]
        parts = np.array([total_growth(name, gains[: most // 4]), total_growth(name, gains)])
        yield between(f"share that the last three quarters add, {name}", float(1 - parts[0] / parts[1]), 0.0, 0.08,
                      reason="a sum that converges as L^(1 - 4p)")  # fmt: skip
