"""A loss as the curvature sees it: a weight a row, a gradient a row, and a factor of the output Hessian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.call.losses import Loss
from normscope.call.targets import by_class
from normscope.core.errors import UsageError


@dataclass(frozen=True)
class Form:
    r"""Loss $E = \frac1n\sum_i a_i\,\ell(f_i, y_i)$ of outputs (n, c), with row weights a.

    Quadratic: $\ell = \frac12\|f - y\|^2$, Hessian in the outputs $I$ (squared_error a = 1; torch's mse a = 2/c).
    Softmax: $\ell = -\sum_k q_k \log g_k$ with $g = \mathrm{softmax} f$, $\sum_k q_k = 1$, Hessian
        $\mathrm{diag}(g) - g g^T$;
    class weights, smoothing, ignored targets and the reduction are in a and q (``wanted``, (n, c)).
    """

    softmax: bool
    rows: Tensor  # a, (n,)
    wanted: Tensor | None  # y or q, (n, c)

    @classmethod
    def of(cls, loss: Loss, out: Tensor, raw: Tensor, targets: Any) -> Form:
        """From the loss, the outputs (n, c), the same as the model returned them, and the targets (``None``: of the
        Fisher).

        Raises ``UsageError`` where targets do not fit.
        """
        n, c = out.shape
        if loss.kind == "cross_entropy":
            return _softmax(loss, out, raw, targets)
        reduction = getattr(loss.module, "reduction", "mean")
        a = 1.0 if loss.kind == "squared_error" else {"mean": 2 / c, "sum": 2.0 * n}.get(reduction, 2 / c)
        wanted = None
        if targets is not None:
            wanted = by_class(loss.read(raw, targets)).to(out.dtype)
        return cls(False, out.new_full((n,), a), wanted)

    @classmethod
    def stacked(cls, forms: Sequence[Form]) -> Form:
        """Of several batches: the mean of their losses, weighted by their rows."""
        parts = [f.wanted for f in forms if f.wanted is not None]
        wanted = torch.cat(parts) if len(parts) == len(forms) else None
        return cls(forms[0].softmax, torch.cat([f.rows for f in forms]), wanted)

    @property
    def plain(self) -> bool:
        """Whether the output Hessian is the identity."""
        return not self.softmax and bool((self.rows == 1).all())

    @property
    def uniform(self) -> bool:
        """Whether the output Hessian is a multiple of the identity."""
        return not self.softmax and bool((self.rows == self.rows[0]).all())

    def factor(self, out: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """S and S^T on (n, c, k), block-diagonal over samples, with S S^T = a times the Hessian of a row's loss.

        Softmax: S = diag(sqrt g) - g sqrt(g)^T, because sqrt(g) has length 1.
        """
        root = self.rows.to(out).sqrt()[:, None, None]
        if not self.softmax:
            return (lambda x: root * x), (lambda x: root * x)
        g = out.softmax(1)[..., None]
        r = g.sqrt()

        def forward(x: Tensor) -> Tensor:
            return root * (r * x - g * (r * x).sum(1, keepdim=True))

        def transposed(x: Tensor) -> Tensor:
            return root * r * (x - (g * x).sum(1, keepdim=True))

        return forward, transposed

    def mean_hessian(self, out: Tensor) -> Tensor:
        """The mean over rows of a times the Hessian in the outputs, (c, c), float64."""
        a = self.rows.double().to(out.device)[:, None]
        if not self.softmax:
            return a.mean() * torch.eye(out.shape[1], dtype=torch.float64, device=out.device)
        g = out.double().softmax(1)
        return (a * g).mean(0).diag() - (a * g).T @ g / len(g)

    def gradient(self, out: Tensor) -> Tensor:
        """d l / d f of each row times a, (n, c): the mean over rows is the loss gradient in the outputs."""
        if self.wanted is None:
            raise UsageError("The gradient of a loss needs targets; got None. Pass targets=....")
        slope = (out.softmax(1) if self.softmax else out) - self.wanted
        return self.rows.to(out)[:, None] * slope

    def drawn(self, out: Tensor, generator: torch.Generator | None) -> Tensor:
        """`gradient` at targets drawn from the model's own predictive law, N(f, 1) or the softmax, over the root of
        a.
        """
        root = self.rows.to(out).sqrt()[:, None]
        if not self.softmax:
            return -root * torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
        drawn = torch.multinomial(out.double().softmax(1).cpu(), 1, generator=generator)[:, 0].to(out.device)
        return root * (out.softmax(1) - F.one_hot(drawn, out.shape[1]))


def _softmax(loss: Loss, out: Tensor, raw: Tensor, targets: Any) -> Form:
    n, c = out.shape
    module = loss.module
    weighted = isinstance(module, nn.CrossEntropyLoss) and module.weight is not None
    if targets is None:
        if weighted:
            raise UsageError("CrossEntropyLoss with class weights needs targets; got None. Pass targets=....")
        reduction = getattr(module, "reduction", "mean")
        return Form(True, out.new_full((n,), float(n) if reduction == "sum" else 1.0), None)
    if loss.strict:
        assert isinstance(module, nn.CrossEntropyLoss)
        loss.value(raw, targets)  # torch's own checks of targets
        y = targets if not targets.is_floating_point() or targets.dim() < 2 else by_class(targets, torchs=True)
        y = y.to(out.dtype) if y.is_floating_point() else y.reshape(-1)
        weight = out.new_ones(c) if module.weight is None else module.weight.to(out)
        smooth, ignore, reduction = module.label_smoothing, module.ignore_index, module.reduction
    else:
        read = loss.read(raw, targets)
        y = read.flatten(0, -2).to(out.dtype) if read.is_floating_point() else read.flatten()
        weight, smooth, ignore, reduction = out.new_ones(c), 0.0, -100, "mean"
    if y.is_floating_point():
        q = ((1 - smooth) * y + smooth / c) * weight
        total = float(n)
    else:
        known = y != ignore
        index = torch.where(known, y, 0)
        q = (1 - smooth) * F.one_hot(index, c).to(out) * weight + smooth / c * weight
        q = q * known[:, None]
        total = float((weight[index] * known).sum())
    mass = q.sum(1)
    scale = float(n) if reduction == "sum" else n / total
    return Form(True, mass * scale, q / mass.clamp_min(1e-300 if out.dtype == torch.float64 else 1e-38)[:, None])
