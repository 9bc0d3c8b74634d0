"""How to train: optimiser, learning rate, epochs, and when a run counts as diverged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from normscope.call.losses import LossLike
from normscope.core.errors import UsageError
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
        for name, least in (("epochs", 1), ("batch", 1), ("warmup", 0), ("patience", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UsageError(f"{name} must be a whole number >= {least}; got {value!r}.")
        if not (_number(self.lr) and self.lr > 0):
            raise UsageError(f"A learning rate must be a positive number; got {self.lr!r}.")
        if not (_number(self.momentum) and 0 <= self.momentum < 1):
            raise UsageError(f"momentum must lie in [0, 1); got {self.momentum!r}.")
        if not (_number(self.weight_decay) and self.weight_decay >= 0):
            raise UsageError(f"weight_decay must be a number >= 0; got {self.weight_decay!r}.")
        if not (_number(self.explosion) and self.explosion > 1):
            raise UsageError(f"explosion must be a number above 1; got {self.explosion!r}.")
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


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
