"""How to train: optimiser, learning rate, epochs, and when a run counts as diverged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normscope.call.losses import LossLike
from normscope.core.errors import UsageError, finite_number, flag, seed_of, whole_number
from normscope.core.registry import Registry

Parameters = Iterable[nn.Parameter]
#: name -> (parameters, recipe) -> torch optimiser.
OPTIMISERS: Registry[Callable[[Parameters, Recipe], torch.optim.Optimizer]] = Registry("optimiser")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one run trains.

    epochs: passes over the samples; the last batch of an epoch is dropped if it is not full (batch norm would see
        fewer samples). batch: samples a step.
    optimiser: ``sgd`` (with ``momentum``, ``nesterov``), ``adam`` or ``adamw``, torch's own.
    lr: learning rate after the warm-up, which raises it linearly: step s (from 0) uses lr min(1, (s + 1) / warmup).
    loss: as for `normscope.probe`. seed: of the order of the samples and of dropout.
    explosion, patience: a run has diverged when a batch's loss is not finite, or is above ``explosion`` times the
        first one for ``patience`` steps in a row, or at the last step (10 and 20: chosen by us; large enough that a
        catapult, which rises and comes back within a few steps, is not one).
    """

    epochs: int = 3
    batch: int = 128
    optimiser: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    warmup: int = 0
    loss: LossLike = None
    seed: int = 0
    explosion: float = 10.0
    patience: int = 20

    def __post_init__(self) -> None:
        _ = OPTIMISERS[self.optimiser]
        flag("nesterov", self.nesterov)
        least = {"epochs": 1, "batch": 1, "warmup": 0, "patience": 1}
        within: dict[str, dict[str, Any]] = {
            "lr": {"above": 0}, "momentum": {"least": 0, "below": 1}, "weight_decay": {"least": 0},
            "explosion": {"above": 1},
        }  # fmt: skip
        checked: dict[str, float] = {name: whole_number(name, getattr(self, name), n) for name, n in least.items()}
        checked |= {name: finite_number(name, getattr(self, name), **bounds) for name, bounds in within.items()}
        for name, value in (checked | {"seed": seed_of(self.seed)}).items():  # numpy's numbers become Python's
            object.__setattr__(self, name, value)
        if self.momentum and self.optimiser != "sgd":
            raise UsageError(f"momentum belongs to sgd; {self.optimiser} has its own. Leave it away.")
        if self.nesterov and not self.momentum:
            raise UsageError("nesterov needs momentum > 0. Pass momentum=0.9, or leave nesterov away.")

    def rate(self, step: int) -> float:
        """Learning rate of step ``step``, counted from 0."""
        return self.lr * min(1.0, (step + 1) / self.warmup) if self.warmup else self.lr


@OPTIMISERS.register()
def sgd(parameters: Parameters, recipe: Recipe) -> torch.optim.Optimizer:
    """Stochastic gradient descent, torch's: heavy ball or Nesterov momentum, L2 weight decay."""
    options: dict[str, Any] = {"momentum": recipe.momentum, "nesterov": recipe.nesterov}
    return torch.optim.SGD(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, **options)


@OPTIMISERS.register()
def adam(parameters: Parameters, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam with torch's defaults; weight decay is L2."""
    return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)


@OPTIMISERS.register()
def adamw(parameters: Parameters, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with torch's defaults, but the recipe's (decoupled) weight decay."""
    return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
