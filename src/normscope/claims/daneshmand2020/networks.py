"""Real nets at initialization: gradient directions behind a collapsed batch, and weights that break batch norm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from normscope.claims._chains import entropy
from normscope.claims._curves import with_range
from normscope.claims._tables import highest, lowest, mean_and_error
from normscope.claims.claim import Axes, Evidence, Run
from normscope.claims.daneshmand2020.paper import PAPER
from normscope.claims.reading import Reading, at_least, at_most, near
from normscope.core.spec import Spec
from normscope.data import datasets
from normscope.geometry.metrics import measure
from normscope.nn import build


def row_gradients(readout: nn.Linear, hidden: Tensor, targets: Tensor) -> tuple[float, float]:
    """Mean |cos| between the samples' gradients: of one output neuron's weights, and of the whole last layer."""
    rows = []
    losses = nn.functional.cross_entropy(readout(hidden), targets, reduction="none")
    for loss in losses:
        rows.append(torch.autograd.grad(loss, readout.weight, retain_graph=True)[0])
    gradients = torch.stack(rows)  # (n, c, d)
    i, j = np.triu_indices(len(rows), 1)

    def mean_cosine(g: Tensor) -> float:
        unit = g / g.norm(dim=1, keepdim=True)
        return float((unit @ unit.T)[i, j].abs().mean())

    return mean_cosine(gradients[:, 0]), mean_cosine(gradients.flatten(1))


@PAPER.claim(
    "gradient-exact", "If the last hidden batch has rank one, all samples pull each output neuron along one line.",
    where="directional gradient vanishing", covers="R13 gradient-direction", quick={"samples": 24},
    control=({"rank": 2}, {"outputs": 2}),
    because="behind a batch of rank two the directions differ; and with two outputs the softmax error cannot turn",
    seconds=(0.1, 0.1),
)  # fmt: skip
def gradient_exact(run: Run, samples: int, rank: int = 1, outputs: int = 10) -> Iterable[Reading]:
    """|cos| of the gradients of two samples with respect to one output row is 1, for every loss that acts on the
    logits.

    Exact per output neuron only: the gradient of the whole last layer also turns with the softmax error.
    """
    generator = run.generator(1)
    hidden = torch.randn(samples, rank, dtype=torch.float64, generator=generator) @ torch.randn(rank, 40,
                         dtype=torch.float64, generator=generator)  # fmt: skip
    readout = build(Spec(depth=1, width=40, outputs=outputs), 40, generator=generator, dtype=torch.float64).readout
    targets = torch.randint(outputs, (samples,), generator=generator)
    assert isinstance(readout, nn.Linear)
    row, whole = row_gradients(readout, hidden, targets)
    yield near("mean |cos|, one output neuron", row, 1, 1e-12, reason="exact: rounding only")
    yield at_most("mean |cos|, whole last layer", whole, 0.9, reason="it also turns with the softmax error")


@PAPER.claim(
    "gradient-collinearity", "In a deep vanilla ReLU net the samples' gradients of an output neuron are collinear; "
    "with batch norm they are "
    "not.", where="directional gradient vanishing", covers="R13", quick={"depths": (2, 8, 32, 128), "nets": 16},
    full={"depths": (2, 8, 32, 128, 512, 1000), "nets": 10}, control={"norm": "batch", "normed": "none"},
    because="with batch norm they are not collinear at any depth, without they are", seconds=(15, 62),
    axes=Axes("depth", "mean |cos|", x_log=True),
)  # fmt: skip
def gradient_collinearity(
    run: Run, depths: Sequence[int], nets: int, norm: str = "none", normed: str = "batch"
) -> Evidence:
    """He-initialised ReLU nets of width 128 on 64 images (MNIST, or digits), ten classes, cross-entropy."""
    name = run.data("mnist")
    batch = datasets.load(name, run.data_dir, n=64, seed=run.seed, flatten=True)
    x, targets = batch.inputs.double(), batch.targets
    assert targets is not None
    found: dict[str, list[list[float]]] = {"vanilla": [], "batch norm": []}
    for arm, kind in (("vanilla", norm), ("batch norm", normed)):
        for depth in depths:
            rows = []
            for net in range(nets):
                spec = Spec(depth=depth, width=128, norm=kind, outputs=10)
                model = build(spec, x.shape[1], seed=entropy(run, net), dtype=torch.float64)
                hidden = x
                with torch.no_grad():
                    for layer in model.layers:  # type: ignore[union-attr]
                        hidden = layer(hidden)
                rows.append(row_gradients(model.readout, hidden, targets)[0])  # type: ignore[arg-type]
            found[arm].append(rows)
    end, error = mean_and_error(found["vanilla"][list(depths).index(128)])
    worst = highest(float(np.mean(rows)) for rows in found["batch norm"])
    return Evidence(
        (at_least("vanilla, 128 layers, mean over nets", end, 0.99, stderr=error, reason="0.9992 on MNIST"),
         at_most("batch norm, largest mean over nets", worst, 0.40, reason="0.32 to 0.33 on MNIST")),
        tuple(with_range(arm, depths, rows) for arm, rows in found.items()),
    )  # fmt: skip


@PAPER.claim(
    "breaking-linear", "Weights of positive mean make batch norm useless: every batch collapses to rank one.",
    where="breaking batch norm", covers="break-linear", quick={"widths": (32, 128), "depth": 60},
    control={"weights": "torch"}, because="weights of the same law around zero keep the rank", seconds=(0.2, 0.46),
)  # fmt: skip
def breaking_linear(run: Run, widths: Sequence[int], depth: int, weights: str = "positive") -> Iterable[Reading]:
    """U(0, 2a) has the variance of PyTorch's U(-a, a) and a mean: a rank-one map of operator norm sqrt(d) beside 1.15.

    Participation rank of N = d Gaussian samples after the last layer, with batch norm in full and without recentring;
    linear and ReLU chains.
    """
    for d in widths:
        x = torch.randn(d, d, dtype=torch.float64, generator=run.generator(d))
        for norm in ("batch", "batch_rescale"):
            for activation in ("identity", "relu"):
                spec = Spec(depth=depth, width=d, norm=norm, activation=activation, weights=weights)
                model = build(spec, seed=entropy(run, d), dtype=torch.float64)
                with torch.no_grad():
                    r = measure(model(x), ["participation_rank"])["participation_rank"]
                yield at_most(f"r, {norm}, {activation}, d = {d}", r, 1.02, reason="1.000 measured")


@PAPER.claim(
    "breaking-conv", "Convolutional nets lose their rank without batch norm, keep some with it, and lose it with "
    "broken weights.",
    where="breaking batch norm, VGG and ResNet", covers="R15", quick={"width": 16, "images": 64, "nets": 2},
    full={"width": 64, "images": 64, "nets": 5}, control={"weights": "torch", "standard": "positive", "norm": "batch"},
    because="with weights around zero batch norm keeps the rank, with weights of positive mean not", seconds=(0.5, 150),
)  # fmt: skip
def breaking_conv(
    run: Run, width: int, images: int, nets: int, weights: str = "positive", standard: str = "torch", norm: str = "none"
) -> Iterable[Reading]:  # fmt: skip
    """Participation rank of the last features at initialization on CIFAR-10 images (or digits), our VGG of 16
    convolutions.

    The paper trains VGG19 and ResNet-50; here only what the initialization leaves. A VGG with U(0, 2a) weights sends
    all images to one line though every layer is batch-normalised. The residual net is judged in the same way.
    """
    name = run.data("cifar10")
    x = datasets.load(name, run.data_dir, n=images, seed=run.seed).inputs
    arms = {"plain": (norm, "torch"), "standard": ("batch", standard), "broken": ("batch", weights)}
    for family, depth in (("vgg", 16), ("resnet", 21)):
        kept = {}
        for arm, (kind, law) in arms.items():
            values = []
            for net in range(nets):
                bias = 0.0 if kind == "none" else None
                spec = Spec(family=family, depth=depth, width=width, norm=kind, weights=law, bias=bias)
                model = build(spec, tuple(x.shape[1:]), seed=entropy(run, net))
                with torch.no_grad():
                    values.append(measure(model(x), ["participation_rank"])["participation_rank"])
            kept[arm] = values
        if family == "vgg":
            yield at_most("vgg, no norm", highest(kept["plain"]), 1.01, reason="1.000 on VGG19")
        why = "1.71 on VGG19, 1.24 on ResNet-50"
        yield at_least(f"{family}, batch norm", lowest(kept["standard"]), 1.1, reason=why)
        name = f"{family}, batch norm, weights of positive mean"
        yield at_most(name, highest(kept["broken"]), 1.01, reason="1.0000 on both")
