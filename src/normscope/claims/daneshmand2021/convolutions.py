"""Figure 7: the same initialization in plain convolutional nets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from normscope.claims._curves import with_range
from normscope.claims._tables import mean_and_error
from normscope.claims._training import load, train
from normscope.claims.claim import Axes, Curve, Evidence, Run
from normscope.claims.daneshmand2021.paper import PAPER
from normscope.claims.daneshmand2021.training import prepared
from normscope.claims.reading import at_least, at_most


@PAPER.claim(
    "conv-init", "For convolutions the same initialization is slower when shallow and faster when deep.",
    where="Fig. 7, Table 3", covers="C27 Fig.7 Tab.3",
    quick={"depths": (3, 12), "channels": 12, "images": 1000, "epochs": 8, "batch": 25, "nets": 4, "lr": 0.05},
    full={"depths": (20, 80), "channels": 256, "images": 50000, "epochs": 20, "batch": 30, "nets": 4, "lr": 0.001},
    control={"kind": "xavier", "epochs": 1},
    because="Xavier against itself, seed by seed, is neither slower nor faster", seconds=(10, 60000),
    axes=Axes("number of convolutions", "training loss"), needs="a GPU, about 6 h"
)  # fmt: skip
def conv_init(
    run: Run, depths: Sequence[int], channels: int, images: int, epochs: int, batch: int, nets: int, lr: float,
    kind: str = "orthogonal",
) -> Evidence:  # fmt: skip
    """Plain 3x3 ConvNets without norm, Xavier gain sqrt(2), loss of the last epoch, orthogonalized against Xavier.

    The paper's nets (Table 3) have AlexNet's head and 20 or 80 convolutions; ours are its convolutional stack with a
    pooled linear readout. Only the sign is judged, as for the paper at epoch 20: 0.92 against 1.17 at 20 convolutions
    (Xavier better), about 1.91 against 1.30 at 80. Shallow nets are slowed by the paper's Frobenius norm 1, which
    starts them at logits of 0.01; what helps deep ones is that the signal does not fade (a random basis trains too,
    unlike in the deep MLP). For the quick size there is no reference number: 3 and 12 narrow convolutions on a
    thousand images. On digits both halves show; CIFAR-10 is not learned by deep nets in that time, and the claim may
    say undecided there.
    """
    data = load(run, "cifar10", images, flatten=False, signed=True)
    losses: dict[str, list[list[float]]] = {"Xavier": [], "orthogonalized": []}
    for depth in depths:
        for name, how in (("Xavier", "xavier"), ("orthogonalized", kind)):
            mine = []
            for net in range(nets):
                model = _convnet(run, data.inputs.shape[1], depth, channels, net)
                model = prepared(model, how, data.inputs[:256])
                mine.append(train(run, model, data, epochs=epochs, lr=lr, batch=batch).last)
            losses[name].append(mine)
    plain, ours = (np.array(v) for v in losses.values())
    (slower, slower_error), (faster, faster_error) = (mean_and_error(ours[i] - plain[i]) for i in (0, -1))
    readings = (
        at_least(f"orthogonalized minus Xavier, {depths[0]} convolutions", slower, 0.02, stderr=slower_error,
                 printed=0.25, reason="slower when shallow: the sign, clear of rounding"),
        at_most(f"orthogonalized minus Xavier, {depths[-1]} convolutions", faster, -0.02, stderr=faster_error,
                printed=-0.6, reason="faster when deep: the sign, clear of rounding"),
    )  # fmt: skip
    x = list(depths)
    printed = [("Xavier", [0.92, 1.91]), ("orthogonalized", [1.17, 1.30])]
    return Evidence(
        readings,
        (with_range("Xavier", x, plain), with_range("orthogonalized", x, ours),
         *(Curve(name, [20, 80], y, "printed") for name, y in printed)),
    )  # fmt: skip


class _ConvNet(nn.Module):
    """Convolutions and ReLUs, a pool after the first two and before the last stage, average, readout."""

    def __init__(self, inputs: int, depth: int, channels: int) -> None:
        super().__init__()
        sizes = [inputs] + [channels] * depth
        convs = [nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(sizes)]
        parts: list[nn.Module] = []
        for i, conv in enumerate(convs):
            parts += [conv, nn.ReLU()]
            if i in (0, 1):
                parts.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*parts)
        self.readout = nn.Linear(channels, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs, height, width) -> (n, 10)."""
        return self.readout(self.layers(x).mean((2, 3)))


def _convnet(run: Run, inputs: int, depth: int, channels: int, net: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        model = _ConvNet(inputs, depth, channels)
    generator = run.generator(200 + net)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight, math.sqrt(2), generator=generator)
    return model
