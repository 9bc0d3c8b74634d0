"""Losses as the curvature sees them: a value, a gradient a sample, and a factor of the output Hessian."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.call.arguments import by_position
from normscope.core.errors import UsageError, unknown

LossLike = str | Callable[[Tensor, Tensor], Tensor]
LOSSES = ("mse", "cross_entropy")


@dataclass(frozen=True)
class Loss:
    r"""Loss $E = \frac1n\sum_i \ell(f(x_i), y_i)$ of the outputs (n, c), by name or as a callable.

    mse: $\ell = \frac12\|f - y\|^2$, Hessian in the outputs $I$; so torch's ``MSELoss()`` is $(2/c) E$ (``scale``).
    cross_entropy: $\ell = -\log g_y$ with $g = \mathrm{softmax} f$, Hessian $\mathrm{diag}(g) - g g^T$.
    A callable (outputs, targets) -> scalar keeps its own normalization; its Hessian in the outputs is taken by autograd.
    """

    name: str
    call: Callable[[Tensor, Tensor], Tensor] | None = None
    scale: float | None = 1.0  # of E over the mean loss above; None: 2/c, torch's MSELoss

    def factor_scale(self, c: int) -> float:
        """What multiplies the Hessian of E."""
        return 2 / c if self.scale is None else self.scale

    def value(self, out: Tensor, targets: Tensor | None) -> Tensor:
        """The scalar loss of (n, c) outputs."""
        if self.call is not None:
            return self.call(out, targets)  # type: ignore[arg-type]
        assert targets is not None
        if self.name == "mse":
            return self.factor_scale(out.shape[1]) * (out - targets).square().sum() / (2 * len(out))
        return self.factor_scale(out.shape[1]) * F.cross_entropy(out, targets)

    def factor(self, out: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """S and S^T on (n, c, k), block-diagonal over samples, with S S^T = Hessian of the loss of a sample.

        Softmax: S = diag(sqrt g) - g sqrt(g)^T, because sqrt(g) has length 1.
        """
        root = self.factor_scale(out.shape[1]) ** 0.5
        if self.name == "mse":
            return (lambda x: root * x), (lambda x: root * x)
        g = out.softmax(1)[..., None]
        r = g.sqrt()

        def forward(x: Tensor) -> Tensor:
            return root * (r * x - g * (r * x).sum(1, keepdim=True))

        def transposed(x: Tensor) -> Tensor:
            return root * r * (x - (g * x).sum(1, keepdim=True))

        return forward, transposed

    def gradient(self, out: Tensor, targets: Tensor) -> Tensor:
        """d l / d f of each sample, (n, c)."""
        if self.name == "mse":
            slope = out - targets
        else:
            y = targets if targets.is_floating_point() else F.one_hot(targets, out.shape[1])
            slope = out.softmax(1) * y.sum(1, keepdim=True) - y
        return self.factor_scale(out.shape[1]) * slope

    def draw(self, out: Tensor, generator: torch.Generator | None) -> Tensor:
        """Targets drawn from the model's own predictive law: N(f, 1), or the softmax."""
        if self.name == "mse":
            noise = torch.randn(out.shape, generator=generator, dtype=torch.float64)
            return out + noise.to(out)
        return torch.multinomial(out.double().softmax(1).cpu(), 1, generator=generator)[:, 0].to(out.device)


def make_loss(loss: LossLike) -> Loss:
    """A loss from its name, a torch loss module of default settings, or a callable."""
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise unknown("loss", loss, LOSSES)
        return Loss(loss)
    plain = getattr(loss, "reduction", None) == "mean"
    if type(loss) is nn.MSELoss and plain:
        return Loss("mse", scale=None)
    if isinstance(loss, nn.CrossEntropyLoss) and plain and _is_plain_softmax(loss):
        return Loss("cross_entropy")
    if not callable(loss):
        raise UsageError(
            f"loss must be one of {', '.join(LOSSES)} or a callable (outputs, targets) -> scalar; got {loss!r}."
        )
    return Loss(getattr(loss, "__name__", type(loss).__name__), loss)


def _is_plain_softmax(loss: nn.CrossEntropyLoss) -> bool:
    return (
        type(loss) is nn.CrossEntropyLoss and loss.weight is None and not loss.label_smoothing and loss.ignore_index < 0
    )


def check_targets(loss: Loss, targets: Any, out: Tensor, needed: bool, what: str) -> Tensor | None:
    """The targets on the outputs' device, checked against the loss; ``None`` where none came and none is needed."""
    if targets is None:
        if needed and loss.call is None:
            raise UsageError(f"{what} needs targets for the loss {loss.name!r}; got None. Pass targets=....")
        return None
    if not isinstance(targets, Tensor):
        targets = torch.as_tensor(targets)
    targets = targets.detach().to(out.device)
    n, c = out.shape
    lead = targets.dim() - int(targets.is_floating_point())
    if lead > 1 and targets.shape[0] != n and (spread := by_position(targets)).shape[:lead].numel() == n:
        targets = spread.flatten(0, lead - 1)  # each position is a sample
    if loss.call is not None:
        return targets.to(out.dtype) if targets.is_floating_point() else targets
    if loss.name == "mse":
        if targets.shape != (n, c):
            raise UsageError(
                f"Targets of the loss 'mse' must have the outputs' shape {(n, c)}; got {tuple(targets.shape)}."
            )
        if not targets.is_floating_point():
            raise UsageError(
                f"Targets of the loss 'mse' must be floating-point; got {targets.dtype}. Use one_hot(y).float()."
            )
    elif targets.is_floating_point():
        if targets.shape != (n, c):
            raise UsageError(
                "Targets of the loss 'cross_entropy' must be class indices (n,) of dtype int64 or probabilities "
                f"{(n, c)}; got {tuple(targets.shape)} of {targets.dtype}."
            )
    else:
        if targets.shape != (n,):
            raise UsageError(
                f"Class indices of the loss 'cross_entropy' must have shape ({n},); got {tuple(targets.shape)} of {targets.dtype}."
            )
        if targets.dtype is torch.bool:
            raise UsageError("Class indices of the loss 'cross_entropy' must be integers; got torch.bool.")
        targets = targets.long()
        if targets.numel() and not (int(targets.min()) >= 0 and int(targets.max()) < c):
            raise UsageError(
                f"Class indices must lie in 0..{c - 1} (the model has {c} outputs); got {int(targets.min())}..{int(targets.max())}."
            )
        return targets
    if not bool(torch.isfinite(targets).all()):
        raise UsageError("The targets hold non-finite numbers; curvature is not defined there.")
    return targets.to(out.dtype)
