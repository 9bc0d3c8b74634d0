"""From the largest curvature to the largest stable learning rate, and a short descent that tries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope.core.errors import UsageError
from normscope.curvature._batch import Batch
from normscope.curvature._loss import LossLike, check_targets, make_loss
from normscope.curvature._operators import make_options


def stable_rates(lambda_max: float, momentum: float = 0.9, weight_decay: float = 0.0) -> dict[str, float]:
    r"""Largest stable learning rate on a quadratic of largest curvature $\lambda$, optimiser by optimiser.

    With momentum $\mu$ and weight decay wd, which adds to the curvature, $l = \lambda + wd$:
    gradient descent $2/l$; heavy ball (``torch.optim.SGD(momentum=mu)``) $2(1+\mu)/l$; Nesterov $2(1+\mu)/((1+2\mu)l)$;
    EMA momentum (``dampening=mu``; Adam's $\beta_1$ on the preconditioned curvature) $2(1+\mu)/((1-\mu)l)$.
    """
    if not 0 <= momentum < 1:
        raise UsageError(f"momentum must lie in [0, 1); got {momentum!r}. 0 is none.")
    if not 0 <= weight_decay < float("inf"):
        raise UsageError(f"weight_decay must be a number >= 0; got {weight_decay!r}. 0 is none.")
    sharp = lambda_max + weight_decay
    plain = 2 / sharp if sharp > 0 else float("inf")
    return {
        "gradient descent": plain,
        "heavy ball": plain * (1 + momentum),
        "nesterov": plain * (1 + momentum) / (1 + 2 * momentum),
        "ema momentum": plain * (1 + momentum) / (1 - momentum),
    }


@dataclass(frozen=True)
class Descent:
    """A few steps of full-batch gradient descent from where the model is, on a copy of its parameters.

    losses: before each step and after the last. ``exceeded``: whether the loss ever rose above its first value, the
    criterion of a catapult; ``finite``: whether all losses are finite.
    """

    rate: float
    losses: tuple[float, ...]

    @property
    def finite(self) -> bool:
        """Whether all losses are finite."""
        return all(x - x == 0 for x in self.losses)

    @property
    def exceeded(self) -> bool:
        """Whether the loss ever rose above its first value."""
        return not self.finite or max(self.losses) > self.losses[0] * (1 + 1e-6)


def descend(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    loss: LossLike = "mse",
    *,
    rates: Sequence[float],
    steps: int = 15,
    **options: Any,
) -> tuple[Descent, ...]:
    """Full-batch gradient descent at each rate, the model untouched.

    2 / lambda_max is where the *linearised* dynamics lose stability: near a minimum that is where descent diverges; far
    from one, a net may catapult past it to a flatter place, or, where the top eigenvector carries no residual, not notice.
    """
    made = make_loss(loss)
    f = Batch(model, inputs, make_options(**options), keep=False)
    y = check_targets(made, targets, f.value, True, "descend()")
    runs = []
    for rate in rates:
        theta = [p.clone() for p in f.theta]
        losses = []
        for _ in range(steps):
            theta, value = _step(f, theta, y, made, rate)
            losses.append(value)
            if value - value != 0:
                break
        else:
            with torch.no_grad():
                losses.append(float(made.value(f.call(theta), y)))
        runs.append(Descent(float(rate), tuple(losses)))
    return tuple(runs)


def _step(f: Batch, theta: list[Tensor], y: Tensor | None, loss: Any, rate: float) -> tuple[list[Tensor], float]:
    leaves = [p.detach().requires_grad_() for p in theta]
    with torch.enable_grad():
        value = loss.value(f.call(leaves), y)
        grads = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
    return [(p - rate * g).detach() for p, g in zip(leaves, grads, strict=True)], float(value.detach())
