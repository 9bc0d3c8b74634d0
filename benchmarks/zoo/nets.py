"""The zoo: about 450 nets of eleven kinds by name, most of them drawn from wide families.

    from nets import NETS
    model, task = NETS["cnn 03"].make(seed=0)   # the same, bit for bit, for the same seed
    inputs, targets = task.batch(64, seed=1)
    task.loss(model(inputs), targets)

Of ten kinds the nets are a Latin sample of a grid (`drawn`): every level of every axis occurs about equally often, in
random company. The eleventh, planted.py, is written by hand: known faults, and oddities that look like faults and are
none. The folder of the image sets is the environment variable ZOO_DATA.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import families
import tasks
import torch
from families import Style
from planted import PLANTED
from tasks import Task
from torch import nn


@dataclass(frozen=True)
class Net:
    """How one net is made: ``build(task, **fields)``. ``fields`` are its columns in the tables."""

    name: str
    kind: str
    task: str
    build: Callable[..., nn.Module]
    fields: dict[str, Any]

    def make(self, seed: int = 0) -> tuple[nn.Module, Task]:
        """The model with new weights, and its task; torch's random state is as before afterwards."""
        task = tasks.task(self.task)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(self.name.encode()) + seed)
            return self.build(task, **self.fields), task

    @property
    def group(self) -> str:
        """Nets among whom the best is looked for: those with one task, and one way of saying an image again."""
        return tasks.group(self.task) + (" conv" if self.build is families.conv_autoencoder else "")

    @property
    def words(self) -> str:
        """The fields that are not the usual ones."""
        usual = vars(Style()) | {"width": None}
        return " ".join(f"{k}={v}" for k, v in self.fields.items() if k not in usual or usual[k] != v)


def drawn(
    kind: str, n: int, build: Callable[..., nn.Module], called: str | None = None, **axes: Sequence[Any]
) -> list[Net]:
    """n nets: the levels of each axis, repeated to n and shuffled by a generator of the kind's name, side by side."""
    called = called or kind
    luck = random.Random(called)
    columns: dict[str, list[Any]] = {}
    for axis, levels in axes.items():
        # Whole rounds, then a random part of one: the more often a level stands in the axis, the more nets have it.
        rounds, rest = divmod(n, len(levels))
        columns[axis] = list(levels) * rounds + luck.sample(list(levels), rest)
        luck.shuffle(columns[axis])
    nets = []
    for i in range(n):
        fields = {axis: column[i] for axis, column in columns.items()}
        nets.append(Net(f"{called} {i:02d}", kind, fields.pop("task"), build, _affordable(fields)))
    return nets


def _affordable(fields: dict[str, Any]) -> dict[str, Any]:
    """Narrower where it is deep: a step should take about 15 ms at most."""
    if fields.get("width", 0) >= 64:
        for depth, width in ((48, 64), (12, 128), (4, 256)):
            if fields["depth"] >= depth:
                return fields | {"width": min(fields["width"], width)}
    return fields


ACTS = ["relu", "relu", "tanh", "gelu", "silu", "elu", "selu", "leaky", "sigmoid", "softplus", "softsign", "hardtanh",
        "mish", "sin", "abs", "relu2", "identity"]  # fmt: skip
LAWS = ["torch", "he", "he", "xavier", "xavier uniform", "lecun", "orthogonal", "he uniform", "identity", "sparse",
    "gpt",
        "keras", "normal 0.1"]  # fmt: skip
GAINS = [1.0, 1.0, 1.0, 1.0, 0.5, 1.4, 2.0]
SKIPS = ["none", "none", "none", "plain", "scaled", "rezero", "zero", "gated", "concat"]
NORMS = ["batch", "batch", "layer", "rms", "group", "instance", "weight", "spectral"]
IMAGES, FEWER = ["digits", "mnist", "fashion", "cifar 4"], ["digits", "mnist 4", "fashion 4", "cifar 4"]
PIXELS = ["digits pixels", "mnist pixels", "fashion pixels"]
SEQUENCES = ["digits", "mnist 4", "fashion 4", "markov", "majority", "recall"]
HARSH: dict[str, Sequence[Any]] = {
    "task": SEQUENCES, "depth": [2, 4, 6], "width": [16], "gain": [10.0, 30.0, 0.01, 1.0],
    "law": ["torch", "positive", "normal 1", "constant"], "skip": ["none", "none", "plain"], "scale": [1.0, 30.0],
}  # fmt: skip

ALL = [
    *drawn("mlp", 44, families.mlp, task=IMAGES, depth=[1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 100],
           width=[16, 32, 64, 64, 128, 128, 512], act=ACTS, law=LAWS, gain=GAINS, skip=SKIPS),
    *drawn("mlp+norm", 44, families.mlp, task=IMAGES, depth=[2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100],
           width=[16, 32, 64, 64, 128, 128, 512], act=ACTS, norm=NORMS, law=[*LAWS, "positive"], gain=GAINS, skip=SKIPS,
           place=["before", "before", "after"]),
    *drawn("cnn", 34, families.cnn, task=FEWER, depth=[2, 3, 4, 5, 6, 8, 10, 12, 16], width=[8, 8, 12, 16],
           pool=["mean", "mean", "flat"], kernel=[3, 3, 3, 5], act=ACTS, norm=["none", "none", "none", *NORMS],
           law=LAWS,
           gain=GAINS, skip=SKIPS, place=["before", "before", "after"]),
    *drawn("resnet", 32, families.resnet, task=FEWER, depth=[1, 2, 2, 3, 4, 5, 6, 8], width=[8], form=["pre", "post"],
           act=ACTS, norm=["none", "none", "none", *NORMS], law=LAWS, gain=GAINS,
           skip=["plain", "plain", "plain", "scaled", "rezero", "zero", "gated", "none"]),
    *drawn("transformer pre", 18, families.transformer, form=["pre"], task=SEQUENCES,
           depth=[1, 2, 2, 3, 4, 6, 8], width=[16, 32, 32], act=["gelu", "relu", "silu", "tanh", "relu2"],
           norm=["layer", "layer", "rms"], law=["torch", "gpt", "xavier uniform", "he", "lecun", "orthogonal", "normal "
           "0.1"],
           gain=[1.0, 1.0, 1.0, 0.1, 3.0], skip=["plain", "plain", "plain", "scaled", "zero", "none"],
           read=["mean", "last"], std=[None, 0.02]),
    *drawn("transformer post", 18, families.transformer, form=["post"], task=SEQUENCES,
           depth=[1, 2, 2, 3, 4, 6, 8], width=[16, 32, 32], act=["gelu", "relu", "silu", "tanh", "relu2"],
           norm=["layer", "layer", "rms"], law=["torch", "gpt", "xavier uniform", "he", "lecun", "orthogonal", "normal "
           "0.1"],
           gain=[1.0, 1.0, 1.0, 0.1, 3.0], skip=["plain", "plain", "plain", "scaled", "zero", "none"],
           read=["mean", "last"], std=[None, 0.02]),
    *drawn("transformer bare", 18, families.transformer, form=["bare"], task=SEQUENCES,
           depth=[1, 2, 2, 3, 4, 6, 8], width=[16, 32, 32], act=["gelu", "relu", "silu", "tanh", "relu2"],
           norm=["none"], law=["torch", "gpt", "xavier uniform", "he", "lecun", "orthogonal", "normal 0.1"],
           gain=[1.0, 1.0, 1.0, 0.1, 3.0], skip=["plain", "plain", "scaled", "rezero", "gated", "none"],
           read=["mean", "last"], std=[None, 0.02]),
    *drawn("recurrent", 36, families.recurrent, task=[*SEQUENCES, "waves", "waves 50"],
           cell=["rnn", "rnn", "lstm", "gru"], depth=[1, 1, 2, 3], width=[16, 32, 32, 64], act=["tanh", "relu"],
           norm=["none", "none", "layer", "batch"],
           law=["torch", "torch", "orthogonal", "xavier", "identity", "gpt", "he"],
           gain=[1.0, 1.0, 1.0, 0.3, 2.0], read=["last", "last", "mean"], forget=[None]),
    *drawn("tabular", 32, families.mlp,
           task=["cancer", "cancer raw", "clusters", "clusters", "clusters raw", "diabetes", "friedman", "friedman"],
           depth=[1, 2, 3, 4, 6, 8, 12, 20], width=[16, 32, 64, 128], act=ACTS,
           norm=["none", "none", "none", *NORMS], law=LAWS, gain=GAINS, skip=SKIPS),
    *drawn("autoencoder", 26, families.autoencoder, task=PIXELS,
           depth=[0, 1, 1, 2, 3, 4, 6], width=[64, 128], code=[16], act=ACTS,
           norm=["none", "none", *NORMS], law=LAWS, gain=GAINS, skip=["none", "none", "plain", "rezero"]),
    *drawn("autoencoder", 8, families.conv_autoencoder, "autoencoder conv", task=PIXELS,
           depth=[1, 2, 3, 5], width=[8], act=ACTS, norm=["none", "batch", "group"], law=LAWS, gain=GAINS,
           skip=["none", "plain"]),
    # In these kinds nearly every net of the grids above trains with Adam: some more, from harsher ones.
    *drawn("transformer pre", 8, families.transformer, "transformer pre harsh", form=["pre"], **HARSH),
    *drawn("transformer post", 6, families.transformer, "transformer post harsh", form=["post"], **HARSH),
    *drawn("transformer bare", 4, families.transformer, "transformer bare harsh", form=["bare"], **HARSH),
    *drawn("recurrent", 14, families.recurrent, "recurrent harsh", task=["recall", "waves 50", "mnist 4", "majority"],
           cell=["rnn", "rnn", "lstm", "gru"], depth=[1, 2, 3, 4], width=[16, 32], act=["tanh", "relu"],
           law=["torch", "orthogonal", "positive", "normal 1", "constant", "zero"], gain=[0.05, 1.0, 3.0, 5.0]),
    *drawn("tabular", 12, families.mlp, "tabular harsh", task=["cancer", "clusters", "clusters raw", "friedman"],
           depth=[6, 12, 20, 30], width=[32, 64], act=["sigmoid", "tanh", "relu", "softplus", "relu2"],
           law=["gpt", "keras", "positive", "normal 1", "he"], gain=[0.3, 1.0, 3.0]),
    *drawn("cnn", 8, families.cnn, "cnn harsh", task=FEWER, depth=[6, 8, 12], width=[8], act=ACTS,
           law=["gpt", "keras", "positive", "normal 1", "torch"], gain=[0.5, 1.0, 3.0]),
    *drawn("autoencoder", 6, families.autoencoder, "autoencoder harsh", task=PIXELS, depth=[4, 6, 8], width=[64],
           code=[16], act=ACTS, law=["gpt", "keras", "positive", "normal 1", "he"], gain=[0.3, 1.0, 3.0]),
    *(Net(f"planted: {name}", "planted", task, build, {}) for name, (task, build) in PLANTED.items()),
]  # fmt: skip
NETS: dict[str, Net] = {net.name: net for net in ALL}
