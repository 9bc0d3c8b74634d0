"""Figure 5: where the gap goes in ReLU nets with torch's batch norm and without any, dense and convolutional."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from normscope.claims._chains import gap_of, gaussian, normal_weights, side_by_side, simulated
from normscope.claims._curves import with_band
from normscope.claims._tables import Array, highest, mean_and_error, series
from normscope.claims.claim import Axes, Curve, Evidence, Run
from normscope.claims.daneshmand2021.figures import GAP
from normscope.claims.daneshmand2021.paper import PAPER
from normscope.claims.reading import Reading, at_most, near
from normscope.core.spec import Spec
from normscope.data import datasets
from normscope.nn import BatchNorm, build
from normscope.probing.passes import probe
from normscope.theory import predict


class _Blocks(nn.Module):
    """ReLU, linear or convolution, norm: the blocks of Fig. 5, with the norms as the layers that a probe measures."""

    def __init__(self, layers: Iterable[nn.Module], channels: int, norm: bool) -> None:
        super().__init__()
        self.weights = nn.ModuleList(layers)
        norms = (BatchNorm(channels) if norm else nn.Identity() for _ in self.weights)
        self.norms = nn.ModuleList(norms)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All blocks."""
        for weight, norm in zip(self.weights, self.norms, strict=True):
            x = norm(weight(x.relu()))
        return x


def _gaps(model: nn.Module, x: torch.Tensor) -> list[float]:
    """V of the input and behind every block."""
    found = probe(model, x, layers="norms.*", metrics=GAP, mode="train")
    return list(found.series("orthogonality_gap").values())


def arc_cosine_gap(x: Array, depth: int) -> float:
    """V behind ``depth`` blocks ReLU, linear of infinite width, He-scaled, from the samples x (n, features)."""
    gram = np.maximum(x, 0) @ np.maximum(x, 0).T
    for _ in range(depth - 1):
        norms = np.sqrt(np.diag(gram))
        rho = np.clip(gram / np.outer(norms, norms), -1, 1)
        gram = np.outer(norms, norms) * (np.sqrt(1 - rho**2) + rho * (math.pi - np.arccos(rho))) / math.pi
    return float(gap_of(gram / np.trace(gram)))


@PAPER.claim(
    "fig5a", "In a ReLU MLP of width 100 the gap falls with batch norm to about 0.19 and rises to 0.93 without.",
    where="Fig. 5a", covers="C20 Fig.5a", quick={"nets": 24}, full={"nets": 180}, control={"normed": "vanilla"},
    because="with the arms exchanged so are the gaps", seconds=(2.4, 21), axes=Axes("layer", "gap V"),
)  # fmt: skip
def fig5a(run: Run, nets: int, normed: str = "batch norm") -> Evidence:
    """Batches of 8 through blocks ReLU, linear (no bias, Xavier), torch's batch norm; V at the input of each block.

    On CIFAR-10 the printed .93 +- .03 is asked of the vanilla nets. On other images the arc-cosine map of infinite
    width, from the batches themselves, says what to expect (.913 on digits; .915 on CIFAR-10), to the .02 that width
    100 is allowed.

    Each net has weights and a batch of its own (the paper: one net, 50 batches). The plateau is a property of the
    weights, not of the data; much of it is the floor sqrt(1/7 - 1/8) = 0.134 that recentring imposes. Without
    recentring a ReLU net would stay at 0.339 (see fig5-plateaus).
    """
    name = run.data("cifar10")
    data = datasets.load(name, run.data_dir, n=8 * nets, seed=run.seed, flatten=True).inputs
    data = (data - 0.1307) / 0.3081  # the constants of the paper's code
    arms: dict[str, list[list[float]]] = {"batch norm": [], "vanilla": []}
    for number, batch in enumerate(data.split(8)):
        for arm, kept in arms.items():
            spec = Spec(depth=30, width=100, weights="xavier_normal", gain=math.sqrt(2), activation="relu")
            built = build(spec, data.shape[1], generator=run.generator(number))
            weights = [layer.linear for layer in built.layers]  # type: ignore[union-attr]
            kept.append(_gaps(_Blocks(weights, 100, arm == normed), batch))
    bn, plain = (np.array(arms[arm]).T for arm in arms)
    mean, error = mean_and_error(bn[15:].mean(0))
    end, end_error = mean_and_error(plain[30])
    wide = float(np.mean([arc_cosine_gap(batch.double().numpy(), 30) for batch in data.split(8)]))
    expected, reach, why = (0.93, 0.03, "printed") if name == "cifar10" else (wide, 0.02, "the map of infinite width")
    x = list(range(1, 32))
    return Evidence(
        (
            near("batch norm, layers 15-30", mean, 0.191, 0.02, stderr=error, printed=0.195,
                 reason="one s.d. of V over nets"),
            near("vanilla, layer 30", end, expected, reach, stderr=end_error, printed=0.93, reason=why),
        ),
        (with_band("batch norm", x, bn), with_band("vanilla", x, plain),
         Curve("batch norm", [1, 2, 3, 10, 30], [0.70, 0.29, 0.235, 0.195, 0.195], "printed"),
         Curve("vanilla", [1, 4, 10, 20, 30], [0.70, 0.82, 0.89, 0.92, 0.93], "printed")),
    )  # fmt: skip


@PAPER.claim(
    "fig5b", "In a ConvNet of 100 channels the gap stays low with batch norm and rises without.", where="Fig. 5b",
    covers="Fig.5b", quick={"depth": 20, "channels": 24, "nets": 3}, full={"depth": 30, "channels": 100, "nets": 20},
    control={"norm": False}, because="without batch norm the two arms are the same", seconds=(0.3, 400),
    axes=Axes("layer", "gap V"),
)  # fmt: skip
def fig5b(run: Run, depth: int, channels: int, nets: int, norm: bool = True) -> Evidence:
    """Batches of 8 through 3x3 convolutions, stride 1, reflected borders (what the paper's code does), no bias.

    There are no reference values of this panel, so only the order is judged: V of the whole image at the last layer.
    Reflection would zero no border pixel; the batch norm is over samples and positions.
    """
    name = run.data("cifar10")
    data = datasets.load(name, run.data_dir, n=8 * nets, seed=run.seed).inputs
    data = (data - 0.1307) / 0.3081
    arms: dict[str, list[list[float]]] = {"batch norm": [], "vanilla": []}
    for number, batch in enumerate(data.split(8)):
        for arm, kept in arms.items():
            generator = run.generator(number)
            layers = [nn.Conv2d(a, b, 3, padding=1, padding_mode="reflect", bias=False)
                      for a, b in pairwise([data.shape[1]] + [channels] * depth)]  # fmt: skip
            for layer in layers:
                nn.init.xavier_normal_(layer.weight, generator=generator)
            kept.append(_gaps(_Blocks(layers, channels, norm and arm == "batch norm"), batch))
    bn, plain = (np.array(arms[arm]).T for arm in arms)
    ratio, error = mean_and_error(bn[-1] / plain[-1])
    x = list(range(1, depth + 2))
    return Evidence(
        (at_most("last layer, batch norm over vanilla", ratio, 0.6, stderr=error, reason="chosen by us: clearly lower"),
         at_most("last layer, batch norm over the raw batch", float((bn[-1] / bn[0]).mean()), 1, reason="it falls")),
        (with_band("batch norm", x, bn), with_band("vanilla", x, plain)),
    )  # fmt: skip


def _plateau(run: Run, activation: str, recenter: bool, width: int, chains: int, n: int, argument: float) -> Array:
    """V of normalised pre-activations, layers 31 to 60, mean over layers of each chain."""
    draw = normal_weights(chains, width, run.generator(7))
    x = torch.from_numpy(gaussian(run, chains, n, width))
    kept = []
    for layer, u in enumerate(side_by_side(x, 60, draw, recenter=recenter, activation=activation, argument=argument)):
        if layer >= 30:
            gram = (u @ u.transpose(1, 2)).numpy() / (n * width)
            kept.append(np.sqrt(np.square(gram - np.eye(n) / n).sum((1, 2))))
    return np.asarray(np.mean(kept, axis=0))


@PAPER.claim(
    "fig5-plateaus", "Where the gap settles depends on activation and recentring: only odd activations go as low as "
    "linear.",
    where="Fig. 5, section 4", covers="Fig.5-plateaus", quick={"chains": 20}, full={"chains": 300},
    control={"swap": True},
    because="with the two kinds of batch norm exchanged the values do not match", seconds=(3.5, 53),
)  # fmt: skip
def fig5_plateaus(run: Run, chains: int, swap: bool = False) -> Iterable[Reading]:
    """n = 8, width 100: V of the normalised pre-activations, explicit weights, the library's norms and activations."""
    cases = (("relu", True, 0.191), ("relu", False, 0.339), ("identity", True, 0.199), ("identity", False, 0.157),
             ("tanh", True, 0.207), ("tanh", False, 0.165))  # fmt: skip
    for activation, recenter, expected in cases:
        mean, error = mean_and_error(_plateau(run, activation, recenter != swap, 100, chains, 8, 1.0))
        kind = "recentred" if recenter else "not recentred"
        yield near(f"{activation}, {kind}", mean, expected, 0.01, stderr=error, reason="the s.d. over nets is .014")


@PAPER.claim(
    "vanilla-relu", "Without norm the gap of a ReLU net follows the arc-cosine map of infinite width.",
    where="Fig. 5a, vanilla", covers="C24", quick={"width": 100, "chains": 100}, full={"width": 1000, "chains": 200},
    control={"activation": "identity"}, because="the arc-cosine map is that of the ReLU", seconds=(0.1, 0.65),
    axes=Axes("layer", "gap V"),
)  # fmt: skip
def vanilla_relu(run: Run, width: int, chains: int, activation: str = "relu") -> Evidence:
    """rho' = (sqrt(1 - rho^2) + rho (pi - arccos rho))/pi iterated here; the library predicts and simulates it."""
    rho = 0.647 / math.sqrt(7 / 8)
    start = np.asarray(np.linalg.cholesky((1 - rho) * np.eye(8) + rho), dtype=np.float64)
    spec = Spec(depth=30, width=width, norm="none", activation=activation, gain=math.sqrt(2))
    found = series(simulated(run, spec, start, GAP, chains=chains), "orthogonality_gap")
    predicted = predict(spec, inputs=start, metrics=GAP, gradients=False).series("orthogonality_gap")
    theory = [0.647]
    for _ in range(30):
        rho = (math.sqrt(1 - rho**2) + rho * (math.pi - math.acos(rho))) / math.pi
        theory.append(rho * math.sqrt(7 / 8))
    mean, error = mean_and_error(found[30])
    tolerance = 0.02 if width < 1000 else 0.005
    apart = highest(abs(predicted[layer] - v) for layer, v in enumerate(theory))
    return Evidence(
        (near("V at layer 30", mean, theory[30], tolerance, stderr=error, printed=0.93, reason="finite width"),
         at_most("largest |predicted - map|", apart, 1e-9, reason="a closed form")),
        (with_band(f"width {width}", range(31), found), Curve("infinite width", list(range(31)), theory, "theory")),
    )  # fmt: skip
