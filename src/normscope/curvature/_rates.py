"""From the largest curvature to the largest stable learning rate, and a short descent that tries it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.losses import LossLike
from normscope.call.step import Step
from normscope.call.traceless import alone
from normscope.core.errors import UsageError, finite_number, whole_number
from normscope.curvature._batch import Batch
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


@alone
def descend(
    model: nn.Module | Step,
    inputs: Any = None,
    targets: Any = None,
    loss: LossLike = None,
    *,
    rates: Sequence[float],
    steps: int = 15,
    **options: Any,
) -> tuple[Descent, ...]:
    """Full-batch gradient descent at each rate, the model untouched.

    2 / lambda_max is where the *linearised* dynamics lose stability: near a minimum that is where descent diverges; far
    from one, a net may catapult past it to a flatter place, or, where the top eigenvector carries no residual, not
    notice.
    """
    whole_number("steps", steps, 1, "The usual number is 15.")
    if isinstance(rates, str) or not isinstance(rates, Iterable):
        raise UsageError(f"rates must be learning rates; got {rates!r}. Pass a list: rates=[0.1].")
    rates = [finite_number("Each of the rates", rate, above=0, do="Pass rates=[0.1, 0.2].") for rate in rates]
    f = trained_batch("descend()", model, inputs, targets, loss, options)
    runs = []
    for rate in rates:
        theta = [p.clone() for p in f.theta]
        losses = []
        for _ in range(steps):
            theta, value = descent_step(f, theta, rate)
            losses.append(value)
            if value - value != 0:
                break
        else:
            losses.append(float(f.loss_at(theta).detach()))
        runs.append(Descent(float(rate), tuple(losses)))
    return tuple(runs)


def trained_batch(
    what: str, model: nn.Module | Step, inputs: Any, targets: Any, loss: LossLike, options: dict[str, Any]
) -> Batch:
    """The one batch of a short descent, with a loss to go down on."""
    about = {k: options.pop(k) for k in ("mode", "seed", "samples") if k in options}
    step = Step.of(model, inputs, targets, loss, **about)
    f = Batch(step, make_options(**options), keep=False, default="none", outputs=False)
    if step.targets is None and f.loss.named:
        raise UsageError(f"{what} needs targets for the loss {f.loss.name!r}; got None. Pass targets=....")
    f.loss_at(f.theta)  # settles the loss
    return f


def descent_step(f: Batch, theta: list[Tensor], rate: float) -> tuple[list[Tensor], float]:
    """One step of gradient descent from theta, and the loss before it."""
    leaves = [p.detach().clone().requires_grad_() for p in theta]
    with torch.inference_mode(False), torch.enable_grad():
        value = f.loss_at(leaves)
        grads = f.backward(value, leaves, allow_unused=True, materialize_grads=True)
    return [(p - rate * g).detach() for p, g in zip(leaves, grads, strict=True)], float(value.detach())
