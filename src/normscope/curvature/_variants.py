"""What a norm on the outputs would do to the curvature, without touching the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from normscope.call.losses import LossLike
from normscope.call.step import Step
from normscope.call.traceless import alone
from normscope.core.errors import UsageError, unknown
from normscope.curvature._batches import Batches
from normscope.curvature._operators import make_options
from normscope.linalg.maps import LinearMap, gram

#: Norms that could stand after the last layer, all with gamma = 1 and beta = 0 held fixed.
VARIANTS = {
    "none": "the outputs as they are",
    "center": "mean over the batch subtracted from each output",
    "batch": "batch norm of each output: mean and variance over the batch",
    "batch_frozen": "batch norm whose statistics are constants (eval mode, or detached)",
    "layer_center": "mean over the outputs subtracted in each sample",
    "layer": "layer norm over the outputs of each sample",
}


@alone
def last_layer(
    model: nn.Module | Step, inputs: Any, variant: str, loss: LossLike = None, targets: Any = None, *,
    eps: float = 1e-5,
    **options: Any,
) -> LinearMap:  # fmt: skip
    r"""Fisher (p, p) of the network with a norm put after its outputs, in the parameters it has now.

    Exact: the norm's Jacobian B in the outputs is a known small matrix, so $J_{new} = B J$ and $F = (BJ)^T Q (BJ) / n$.
    With $u = (f - \mu)/s$, $s = \sqrt{\sigma^2 + \epsilon}$ (biased): ``center`` $B = I - 11^T/n$ for each output,
    ``batch`` $B = (I - 11^T/n - u u^T/n)/s$, ``batch_frozen`` $B = 1/s$; ``layer_center`` and ``layer`` the same over
    the outputs of a sample. B is symmetric. The batch is one; other arguments: ``fisher``.
    """
    if variant not in VARIANTS:
        raise unknown("last-layer variant", variant, VARIANTS)
    about = {k: options.pop(k) for k in ("mode", "seed", "data", "samples") if k in options}
    f = Batches(Step.of(model, inputs, targets, loss, **about), make_options(**options), what="last_layer()")
    if len(f.parts) > 1:
        raise UsageError(f"last_layer() takes one batch; got {len(f.parts)}. Pass one of them.")
    out, change = _normalise(f.value, variant, eps)
    forward, transposed = f.form().factor(out)
    root, shape = math.sqrt(f.n), (f.n, f.c, -1)

    def apply(v: Tensor) -> Tensor:
        return f.vjp(change(forward(v.reshape(shape))).reshape(len(v), -1) / root)

    def adjoint(w: Tensor) -> Tensor:
        return transposed(change(f.jvp(w).reshape(shape))).reshape(f.n * f.c, -1) / root

    facts = {**f.facts(), "last layer": variant}
    factor = LinearMap((f.p, f.n * f.c), apply, adjoint, f.dtype, f.device)
    return gram(factor, note=f"Fisher with last-layer {variant}", facts=facts)


def _normalise(f: Tensor, variant: str, eps: float) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The new outputs (n, c), and B on tensors (n, c, k)."""
    if variant == "none":
        return f, lambda x: x
    axis = 1 if variant.startswith("layer") else 0
    centred = f - f.mean(axis, keepdim=True)
    if variant.endswith("center"):
        return centred, lambda x: x - x.mean(axis, keepdim=True)
    s = (centred.square().mean(axis, keepdim=True) + eps).sqrt()
    u = centred / s
    if variant == "batch_frozen":
        return u, lambda x: x / s[..., None]
    u3, s3 = u[..., None], s[..., None]
    return u, lambda x: (x - x.mean(axis, keepdim=True) - u3 * (u3 * x).mean(axis, keepdim=True)) / s3


def project(matrix: Tensor, outputs: Tensor, variant: str, eps: float = 1e-5) -> Tensor:
    """B G B of a dense dual Gram (n c, n c) of the mean squared loss, for outputs (n, c): what-if without any pass."""
    _, change = _normalise(outputs, variant, eps)
    n, c = outputs.shape

    def both(x: Tensor) -> Tensor:
        return change(x.reshape(n, c, -1)).reshape(n * c, -1)

    return both(both(matrix).T)
