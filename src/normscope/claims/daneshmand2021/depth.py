"""A thousand layers of batch norm: how gradients grow with depth, and activations shaped so that they do not."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn

from normscope.claims._chains import gaussian
from normscope.claims._tables import mean_and_error
from normscope.claims.claim import Run
from normscope.claims.daneshmand2021.followups import gradient_logs
from normscope.claims.daneshmand2021.paper import PAPER
from normscope.claims.reading import Reading, between, near
from normscope.core.spec import Spec
from normscope.nn import BatchNorm
from normscope.nn.growth import growth, leaky_slope
from normscope.theory import predict

#: Odd and homogeneous activations, of which the law is more than a bound, and their slack: 6 %.
ACTIVATIONS = ("relu", "leaky_relu(0.3)", "tanh", "erf", "sin")
#: Samples of that Gram matrix.
FEW = 50


@PAPER.claim(
    "growth", "Behind batch norm gradients grow by half of log(E phi'^2 / Var phi) a layer, orthogonal weights.",
    where="follow-ups (2310.02012)", covers="F-growth", quick={"width": 200, "depth": 60, "nets": 3},
    full={"width": 400, "depth": 1000, "nets": 4}, control={"norm": "none"},
    because="without batch norm nothing divides by the variance", seconds=(12, 1200)
)  # fmt: skip
def depth(run: Run, width: int, depth: int, nets: int, norm: str = "batch") -> Iterable[Reading]:
    """As many samples as units; log of the gradient's norm, layer 5 from either end, over the law's. With ReLU the
    samples' lengths spread, so it is held against the recursion of the Gram matrix of few samples too, which starts
    from the same law. And the slope of leaky ReLU at which a net of a quarter as many layers as samples grows by e.
    """

    def total(name: str, samples: int = width, layers: int = depth - 10) -> tuple[float, float]:
        spec = Spec(depth=layers + 10, width=width, norm=norm, activation=name, weights="orthogonal")
        logs = gradient_logs(run, spec, samples, nets) / 2
        return mean_and_error(logs[:, 5] - logs[:, 5 + layers])

    for name in ACTIVATIONS:
        found, error = total(name)
        law = growth(name) * (depth - 10)
        yield near(f"growth over the law's, {name}", found / law, 1.0, 0.06, stderr=error / law,
                   reason="6 %: the law is of many samples of equal length")  # fmt: skip
    found, error = total("relu", FEW)
    spec = Spec(depth=depth, width=width, norm="batch", activation="relu", weights="orthogonal")
    factors = predict(spec, gaussian(run, FEW, width, stream=50), metrics=["rms"]).series(
        "gradient_growth", signal="gradient"
    )
    law = sum(math.log(factor) for factor in list(factors.values())[6 : depth - 4])
    yield near("growth over the recursion's, relu", found / law, 1.0, 0.05, stderr=error / law,
               reason="5 %: finite width")  # fmt: skip
    layers = width // 4
    found, error = total(f"leaky_relu({leaky_slope(layers):.4f})", layers=layers)
    yield near("growth with the slope for a growth of e", found, 1.0, 0.4, stderr=error,
               reason="2/n a layer: finite samples")  # fmt: skip


@PAPER.claim(
    "shaped-gains", "Gains (l + 1)^-p with p > 1/4 keep the gradients of odd activations bounded at any depth.",
    where="follow-ups (2310.02012)", covers="F-shaped", quick={"width": 100, "depth": 200, "nets": 3},
    full={"width": 200, "depth": 1000, "nets": 4}, control={"power": 0.1},
    because="below 1/4 the sum of fourth powers has no end", seconds=(6, 120)
)  # fmt: skip
def shaped_gains(run: Run, width: int, depth: int, nets: int, power: float = 0.4) -> Iterable[Reading]:
    """Log of the gradient's growth over the whole net, and over its second half alone; orthogonal weights, as many
    samples as units. Predicted for p = .4 and 1000 layers: .36 with tanh, .20 with sin; e^16 and e^27 over 200 without.
    """

    def gains(model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
        for layer, norm in enumerate(norms, 1):
            assert norm.weight is not None
            nn.init.constant_(norm.weight, (layer + 1) ** -power)

    for name in ("tanh", "sin"):
        spec = Spec(depth=depth, width=width, norm="batch", activation=name, weights="orthogonal")
        logs = gradient_logs(run, spec, width, nets, gains) / 2
        for what, start in (("the net", 1), ("its second half", depth // 2)):
            found, error = mean_and_error(logs[:, start] - logs[:, -2])
            yield between(
                f"growth over {what}, {name}", found, -2.0, 1.0, stderr=error, reason="a factor e, or 1 / e^2"
            )
