"""Training for the claims: a net, its losses by epoch, its accuracy; data by name or digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.claims._chains import entropy
from normscope.claims.claim import Run
from normscope.data import datasets


@dataclass(frozen=True)
class Data:
    """Samples to train on: inputs (n, ...), classes (n,), and which set they are."""

    inputs: Tensor
    targets: Tensor
    name: str


def load(run: Run, name: str, n: int, *, flatten: bool = True, signed: bool = False, device: bool = True) -> Data:
    """At most n samples of a set (or of digits where there is no data folder); ``signed``: pixels in [-1, 1]."""
    name = run.data(name)
    if n > 1440:  # digits; more than that other sets may lack too, as a part of CIFAR-10 does
        n = min(n, len(datasets.load(name, run.data_dir).inputs))
    batch = datasets.load(name, run.data_dir, n=n, seed=run.seed, flatten=flatten)
    assert batch.targets is not None
    inputs = 2 * batch.inputs - 1 if signed else batch.inputs
    where = run.device if device else "cpu"
    return Data(inputs.to(where), batch.targets.to(where), name)


@dataclass(frozen=True)
class Trained:
    """Mean loss of each epoch (infinite from the epoch on in which the run diverged)."""

    losses: list[float]

    @property
    def last(self) -> float:
        """Of the last epoch."""
        return self.losses[-1]


def train(
    run: Run, model: nn.Module, data: Data, *, epochs: int, lr: float, batch: int, optimiser: str = "sgd",
    each: Any = None, loss: Any = None
) -> Trained:  # fmt: skip
    """Train in place; ``each(epoch)`` is called before the first epoch and after every one."""
    from normscope.training import Recipe, Samples, Training

    recipe = Recipe(epochs=epochs, batch=batch, lr=lr, optimiser=optimiser, loss=loss, seed=entropy(run, 99))
    training = Training(model.to(run.device), Samples(data.inputs, data.targets), recipe)
    per, losses = training.steps_per_epoch, []
    if each is not None:
        each(0)
    for epoch in range(epochs):
        if training.diverged is None:
            training.advance((epoch + 1) * per)
        mine = training.losses[epoch * per : (epoch + 1) * per]
        broken = training.diverged is not None or not mine
        losses.append(math.inf if broken else sum(mine) / len(mine))
        if each is not None:
            each(epoch + 1)
    return Trained(losses)


@torch.no_grad()
def accuracy(model: nn.Module, data: Data, batch: int = 128) -> float:
    """Share of the samples classified right, with the batch's own statistics in batch norm; NaN if an output is."""
    shares = []
    for x, y in zip(data.inputs.split(batch), data.targets.split(batch), strict=True):
        if len(x) == batch:
            out = model(x)
            right = (out.argmax(1) == y).float().where(~out.isnan().any(1), math.nan)
            shares.append(right.mean().item())
    return float(np.mean(shares))
