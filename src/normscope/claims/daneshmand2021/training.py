"""Figures 3 and 4: depth, gap and training, with the controls that say what iterative orthogonalization really does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from normscope.claims._chains import entropy
from normscope.claims._curves import with_range
from normscope.claims._tables import highest, indicator, mean_and_error
from normscope.claims._training import load, train
from normscope.claims.claim import Axes, Evidence, Run
from normscope.claims.daneshmand2021.paper import PAPER
from normscope.claims.reading import Reading, at_least, at_most
from normscope.core.spec import Spec
from normscope.geometry.metrics import measure
from normscope.nn import build

FULL = {"depths": (15, 30, 45, 60, 75), "width": 800, "images": 50000, "epochs": 30, "batch": 500, "nets": 4}
REDUCED = {"depths": (15, 45, 75), "width": 200, "images": 10000, "epochs": 10, "batch": 100, "nets": 2}


def mlp(run: Run, inputs: int, depth: int, width: int, net: int) -> nn.Module:
    """The paper's MLP: ``depth`` linear layers in all, ReLU, Xavier-uniform with gain sqrt(2), no biases, ten
    outputs.
    """
    spec = Spec(depth=depth - 1, width=width, norm="none", weights="xavier", gain=math.sqrt(2), outputs=10)
    return build(spec, inputs, seed=entropy(run, net))


@torch.no_grad()
def hidden_gap(model: nn.Module, x: Tensor) -> float:
    """V of the last hidden representation."""
    for layer in model.layers:  # type: ignore[union-attr]
        x = layer(x)
    return measure(x, ["orthogonality_gap"])["orthogonality_gap"]


def prepared(model: nn.Module, how: str, x: Tensor, scale: str = "paper") -> nn.Module:
    """Xavier as it is, or one of the initializations of section 5 and its controls, made from the samples x."""
    from normscope import init

    if how == "orthogonal":
        return init.orthogonal_representations_(model, x, scale=scale)
    if how == "haar":
        return init.haar_(model, x, scale=scale)
    return init.identity_(model, x) if how == "identity" else model


@PAPER.claim(
    "fig3a", "Without batch norm both the initial gap and the training loss rise with depth.", where="Fig. 3a",
    covers="Fig.3a C25", quick={"depths": (5, 60), "width": 100, "images": 1440, "epochs": 6, "batch": 50, "nets": 2},
    full=FULL, reduced=REDUCED,
    control={"how": "orthogonal"}, because="orthogonalized layers leave a small gap at every depth",
    seconds=(9, 20000), reduced_seconds=900, axes=Axes("depth", ""), needs="a GPU, about 1 h",
)  # fmt: skip
def fig3a(
    run: Run, depths: Sequence[int], width: int, images: int, epochs: int, batch: int, nets: int, how: str = "xavier"
) -> Evidence:
    """ReLU MLPs, Xavier, SGD 0.01, CIFAR-10 in [-1, 1] (or digits); V of the last hidden layer on 50 fresh samples, of
    four times as many nets as are trained.

    The paper's own values are not published. Its text calls the depths widths; the gap its code computes is another one
    than V (singular values instead of their squares, of the ten outputs), with the same rise.
    """
    data = load(run, "cifar10", images, signed=True)
    gaps, losses = np.zeros((len(depths), 4 * nets)), np.zeros((len(depths), nets))
    for i, depth in enumerate(depths):
        for net in range(4 * nets):
            model = prepared(mlp(run, data.inputs.shape[1], depth, width, net), how, data.inputs[: 3 * width])
            gaps[i, net] = hidden_gap(model.cpu(), data.inputs[-50:].cpu())
            if net < nets:
                losses[i, net] = train(run, model, data, epochs=epochs, lr=0.01, batch=batch).last
    rise, rise_error = mean_and_error(gaps[-1] - gaps[0])
    worse, worse_error = mean_and_error(losses[-1] - losses[0])
    deepest, error = mean_and_error(gaps[-1])
    x = list(depths)
    return Evidence(
        (
            at_least("gap, deepest minus shallowest", rise, 0.05, stderr=rise_error,
                     reason="chosen by us: clearly above noise"),
            at_least("gap, deepest", deepest, 0.95, stderr=error, reason=".986 to .992 measured on other data"),
            at_least("loss, deepest minus shallowest", worse, 0.3, stderr=worse_error,
                     reason="chosen by us; .7 in a re-run"),
        ),
        (with_range("initial gap", x, gaps, "initial gap V"), with_range("training loss", x, losses, "training loss")),
    )  # fmt: skip


@PAPER.claim(
    "fig3b", "Over training the gap of the outputs and the loss fall together.", where="Fig. 3b", covers="Fig.3b",
    quick={"depth": 20, "width": 100, "images": 8000, "epochs": 12, "batch": 50, "nets": 3, "lr": 0.01},
    full={"depth": 20, "width": 1000, "images": 50000, "epochs": 50, "batch": 500, "nets": 5, "lr": 0.01},
    reduced={"width": 200, "images": 10000, "epochs": 25, "batch": 100, "nets": 3}, reduced_seconds=600,
    control={"lr": 1e-7}, because="a net that does not learn keeps its gap", seconds=(2.3, 10000),
    axes=Axes("epoch", ""), needs="a GPU, about 1 h",
)  # fmt: skip
def fig3b(run: Run, depth: int, width: int, images: int, epochs: int, batch: int, nets: int, lr: float) -> Evidence:
    """20 layers; V of the ten outputs on 500 training samples after every epoch (floor .313 or so: rank ten of many).

    The paper's text says width 800, its code 1000. Another group's single run has V from .82 to .61.
    """
    data = load(run, "cifar10", images, signed=True)
    gaps: list[list[float]] = []
    losses = []
    for net in range(nets):
        model, mine = mlp(run, data.inputs.shape[1], depth, width, net), list[float]()

        def look(epoch: int, model: nn.Module = model, mine: list[float] = mine) -> None:
            with torch.no_grad():
                out = model(data.inputs[:500])
            mine.append(measure(out, ["orthogonality_gap"])["orthogonality_gap"])

        losses.append(train(run, model, data, epochs=epochs, lr=lr, batch=batch, each=look).losses)
        gaps.append(mine)
    v, loss = np.array(gaps), np.array(losses)
    fall, error = mean_and_error(v[:, 0] - v[:, -1])
    less, less_error = mean_and_error(loss[:, 0] - loss[:, -1])
    return Evidence(
        (at_least("fall of the gap", fall, 0.1, stderr=error, reason="chosen by us; .21 in another group's run"),
         at_least("fall of the loss", less, 0.5, stderr=less_error, reason="chosen by us")),
        (with_range("gap", range(epochs + 1), v.T, "gap V of the outputs"),
         with_range("loss", range(1, epochs + 1), loss.T, "training loss")),
    )  # fmt: skip


@PAPER.claim(
    "fig4", "Iterative orthogonalization avoids the slowdown that depth brings to Xavier initialization.", where="Fig. "
    "4",
    covers="Fig.4 C25", quick={"depths": (15, 75), "width": 100, "images": 1440, "epochs": 7, "batch": 50, "nets": 2},
    full=FULL, reduced=REDUCED,
    reduced_seconds=900, control=({"how": "haar"}, {"plain": "identity", "nets": 1}),
    because="with a random V' in place of the slice deep nets diverge at once; and identity layers show no slowdown",
    seconds=(16, 40000), axes=Axes("depth", "training loss"), needs="a GPU, about 2 h",
)  # fmt: skip
def fig4(
    run: Run, depths: Sequence[int], width: int, images: int, epochs: int, batch: int, nets: int,
    how: str = "orthogonal", plain: str = "xavier"
) -> Evidence:  # fmt: skip
    """Equation 6 (power 1/2, sliced V', Frobenius norm 1) from 3 width samples, against Xavier; loss of the last epoch.

    Another group could not reproduce this beyond depth 45, with a slice that does not decorrelate. It reproduces here,
    but so it does with plain identity layers (see fig4-controls): orthogonality is not what makes the difference. On
    CIFAR-10, the reference asks only that its loss be below Xavier's; on digits we ask for three quarters.
    """
    data = load(run, "cifar10", images, signed=True)
    arms = {"Xavier": plain, "orthogonalized": how}
    losses = {name: np.zeros((len(depths), nets)) for name in arms}
    for name, kind in arms.items():
        for i, depth in enumerate(depths):
            for net in range(nets):
                model = prepared(mlp(run, data.inputs.shape[1], depth, width, net), kind, data.inputs[: 3 * width])
                losses[name][i, net] = train(run, model, data, epochs=epochs, lr=0.01, batch=batch).last
    xavier, ours = losses["Xavier"], losses["orthogonalized"]
    small = data.name == "digits"
    bound, why = (0.75, "chosen by us") if small else (1.0, "the criterion: below")
    ratio = float(ours[-1].max() / xavier[-1].min())
    readings = [at_most(f"orthogonalized over Xavier, depth {depths[-1]}", ratio, bound, reason=why)]
    with np.errstate(invalid="ignore"):  # the control's runs diverge
        rises = float(ours[-1].mean() - ours[0].mean()), float(xavier[-1].mean() - xavier[0].mean())
    readings.append(
        at_most("its rise with depth over Xavier's", rises[0] / rises[1], 0.5, reason="half of Xavier's rise")
    )
    if small:
        readings.append(
            at_least(f"Xavier, depth {depths[-1]}", float(xavier[-1].min()), 1.5, reason="1.9 to 2.1 at this size")
        )
    x = list(depths)
    return Evidence(tuple(readings), tuple(with_range(name, x, v) for name, v in losses.items()))


@PAPER.claim(
    "fig4-controls", "Identity hidden layers train as well; a random V' diverges: it is not orthogonality that helps.",
    where="section 5, controls found here", covers="C26",
    quick={"depth": 75, "width": 100, "images": 1440, "epochs": 5, "nets": 2},
    full={"depth": 75, "width": 800, "images": 50000, "epochs": 30, "nets": 4},
    reduced={"width": 200, "images": 10000, "epochs": 5, "nets": 2}, reduced_seconds=900,
    control={"identity": "xavier", "haar": "xavier"},
    because="Xavier nets of this depth neither train nor diverge", seconds=(10, 20000), needs="a GPU, about 1 h",
)  # fmt: skip
def fig4_controls(
    run: Run, depth: int, width: int, images: int, epochs: int, nets: int, identity: str = "identity",
    haar: str = "haar"
) -> Iterable[Reading]:  # fmt: skip
    """Two initializations of depth 75 that the paper does not have, trained as in Fig. 4.

    "Train" is our word: a loss below 0.6 on digits, below 2 on CIFAR-10 (the reference runs have .19 after an epoch on
    data of its own). Whitening into a random basis multiplies gradients at every layer; the slice of the data's own V
    makes neuron j answer to sample j, so that deep layers become multiples of the identity (see slice-is-identity).
    """
    data = load(run, "cifar10", images, signed=True)
    x, outcomes = data.inputs[: 3 * width], {"identity": list[float](), "haar": list[float]()}
    for net in range(nets):
        for name, how in (("identity", identity), ("haar", haar)):
            model = prepared(mlp(run, data.inputs.shape[1], depth, width, net), how, x)
            outcomes[name].append(train(run, model, data, epochs=epochs, lr=0.01, batch=50).last)
    bound = 0.6 if data.name == "digits" else 2.0
    yield at_most("identity layers, largest loss", highest(outcomes["identity"]), bound,
                  reason=f"{data.name}: clearly trained")  # fmt: skip
    ends = np.array(outcomes["haar"])
    diverged = float(indicator(ends == math.inf, ends).mean())
    yield at_least("random V', share of runs that diverge", diverged, 1, reason="NaN within an epoch at depth >= 45")


@PAPER.claim(
    "slice-is-identity", "Deep in a ReLU net iterative orthogonalization sets layers to multiples of the identity.",
    where="section 5, found here", covers="E-identity E-table", quick={"depth": 30, "width": 100, "nets": 2},
    full={"depth": 75, "width": 400, "nets": 5}, control={"basis": "haar"},
    because="a random V' has no reason to", seconds=(0.9, 200),
)  # fmt: skip
def slice_is_identity(run: Run, depth: int, width: int, nets: int, basis: str = "sliced") -> Iterable[Reading]:
    """Distance of W_l from its best multiple of the identity, relative to |W_l|: .10 at layer 5, .05 at 12 elsewhere.

    3 width samples; V of the last hidden layer on fresh samples is far below Xavier's .98. With Xavier's scale the
    first treated layer sees gradients hundreds of times those of the others, because the batch starts at Frobenius norm
    1.
    """
    from normscope import init

    data = load(run, "cifar10", 5000, signed=True, device=False)
    distance, v = [], []
    for net in range(nets):
        model = mlp(run, data.inputs.shape[1], depth, width, net)
        init.orthogonal_representations_(model, data.inputs[: 3 * width], power=1.0, scale="paper", basis=basis)
        w = model.layers[12].linear.weight.detach().double()  # type: ignore[index, union-attr]
        multiple = w.diagonal().mean() * torch.eye(len(w), dtype=w.dtype)
        distance.append(float((w - multiple).norm() / w.norm()))
        half = init.orthogonal_representations_(mlp(run, data.inputs.shape[1], depth, width, net),
                                                data.inputs[: 3 * width], scale="paper", basis=basis)  # fmt: skip
        v.append(hidden_gap(half, data.inputs[-50:]))
    yield at_most("distance from c I at layer 12", highest(distance), 0.25, reason=".05 on the reference runs' data")
    yield at_most("V of the last hidden layer, power 1/2", highest(v), 0.25,
                  reason=".16 to .19 on the reference runs' data")  # fmt: skip
