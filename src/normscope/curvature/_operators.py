"""Jacobian, Fisher / Gauss-Newton, NTK and Hessian of the whole-batch function, as maps on flat vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.isolate import full_precision
from normscope.core.errors import UsageError, unknown
from normscope.curvature._batch import Options
from normscope.curvature._batches import Batches, is_several
from normscope.curvature._directions import ggn_factor, mean_directions
from normscope.curvature._loss import Loss, LossLike, check_targets, make_loss
from normscope.linalg.maps import LinearMap, gram

KINDS = ("ggn", "empirical", "monte_carlo")


def jacobian(
    model: nn.Module,
    inputs: Any,
    *,
    parameters: str | Iterable[str] | None = None,
    outputs: Any = None,
    mode: str | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    route: str = "auto",
    memory: float | None = None,
    checkpoint: bool = False,
) -> LinearMap:
    r"""Jacobian J (n c, p) of the whole-batch outputs, row-major (sample, output), in the trainable parameters.

    Samples are coupled *inside* the function: with batch norm in training mode row (i, k) is the derivative of output k of
    sample i including its path through the batch statistics. Columns follow ``named_parameters()``, shared ones once.
    Of outputs (m, positions, c), as of a language model, or (m, c, height, width), each position is a sample: n = m positions.

    inputs: the argument (tensor), the positional arguments (tuple) or the keyword arguments (dictionary) of the model; a
        *list* holds several batches, each with its own statistics, whose rows are stacked.
    parameters: name patterns (``"layers.3"``, ``"*.bias"``) of the parameters to differentiate in; default all trainable.
    outputs: columns to keep (indices or a slice), or a function from what the model returns to (n, c) or (m, positions, c).
    mode: ``train``, ``eval``, or ``None``: each module as it is; batch norm in eval mode that has seen no batch is refused.
    seed: of dropout and other noise, drawn alike in every product.
    dtype: of the computation; default the parameters', float32 for half precision.
    route: how J w is computed: ``jvp`` (forward mode again), ``double_vjp`` (twice reverse, on a kept graph),
        ``linearize`` (a traced graph: fastest product, slow start, several times the memory), or ``auto``.
    memory: bytes that kept graphs may take, default half of what is free; above it graphs are rebuilt each time.
    checkpoint: recompute activations in each backward pass instead of keeping them.

    Errors: ``UsageError`` for outputs of other shapes, no trainable parameter, outputs that do not depend on the
    parameters, non-finite outputs. The first product is tested by <v, J w> = <J^T v, w>; where forward mode fails it
    (it ignores ``torch.no_grad``; some ops have none) reverse mode is used twice.

    Leaves no trace: parameters, buffers, gradients, flags and random streams are as before.
    """
    f = Batches(
        model,
        inputs,
        make_options(
            parameters,
            outputs=outputs,
            mode=mode,
            seed=seed,
            dtype=dtype,
            route=route,
            memory=memory,
            checkpoint=checkpoint,
        ),
    )
    return _jacobian(f)


def fisher(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    loss: LossLike = "mse",
    *,
    kind: str = "ggn",
    samples: int = 1,
    parameters: str | Iterable[str] | None = None,
    outputs: Any = None,
    mode: str | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    route: str = "auto",
    memory: float | None = None,
    checkpoint: bool = False,
) -> LinearMap:
    r"""Fisher information, equal to the Gauss-Newton matrix, (p, p), per sample, of the whole-batch function.

    ``mse``: $F = \frac1n \sum_i \sum_k \nabla f_k(i)\, \nabla f_k(i)^T = J^T J / n$, the Gauss-Newton matrix of
    $E = \frac1{2n}\sum_i\|f(i)-y(i)\|^2$ (for torch's ``MSELoss()``, $(2/c)E$, pass that module as ``loss``: $(2/c) F$).
    ``cross_entropy``: $F = \frac1n \sum_i J_i^T (\mathrm{diag}\,g_i - g_i g_i^T) J_i$ with $g_i$ = softmax of $f(i)$.
    A callable ``loss`` (outputs, targets) -> scalar: $J^T (\nabla_f^2\, \mathrm{loss}) J$ with its own normalization.

    kind: ``ggn`` (the above, exact), ``empirical``: $\frac1n\sum_i g_i g_i^T$ with the gradients $g_i$ of the samples'
        losses at the targets (not a Fisher information; needs ``targets``), ``monte_carlo``: the same at ``samples`` sets of
        targets drawn from the model's own predictive law with ``seed``, unbiased for ``ggn``.
    targets: needed by ``empirical`` and by most callables; otherwise only checked.
    inputs: as in ``jacobian``; for a *list* of batches (targets: a list too) this is the exact matrix of the sum over batches
        divided by the total n, each batch coupled inside itself. It depends on how the data is cut into batches.

    Other arguments, errors and guarantees: ``jacobian``. The map's ``factor`` A (p, n c) has A A^T = F.
    """
    made = make_loss(loss)
    if kind not in KINDS:
        raise unknown("kind of fisher", kind, KINDS)
    options = make_options(
        parameters,
        outputs=outputs,
        mode=mode,
        seed=seed,
        dtype=dtype,
        route=route,
        memory=memory,
        checkpoint=checkpoint,
    )
    f = Batches(model, inputs, options)
    y = _targets(f, made, inputs, targets, needed=kind == "empirical", what=f"fisher(kind={kind!r})")
    facts = {**f.facts(), "loss": made.name, "kind": kind}
    if kind != "ggn":
        if made.call is not None:
            raise UsageError(f"fisher(kind={kind!r}) needs the loss by name: 'mse' or 'cross_entropy'.")
        return gram(_sampled_factor(f, made, y, kind, samples, seed), note=_note(made, kind), facts=facts)
    if made.call is not None:
        return _callable_ggn(f, made, y, facts)
    factor = ggn_factor(f, made)
    return gram(factor, note=_note(made, kind), facts=facts, directions=mean_directions(f, made))


def ntk(
    model: nn.Module,
    inputs: Any,
    **options: Any,
) -> LinearMap:
    r"""Neural tangent kernel $J J^T$ (n c, n c) of the batch, row-major (sample, output): n times the dual of the Fisher.

    Not divided by n: its nonzero eigenvalues are n times those of ``fisher(model, inputs, loss="mse")``. Arguments: ``jacobian``.
    """
    f = Batches(model, inputs, make_options(**options))
    j = _jacobian(f)
    return gram(
        j, note="J J^T, neural tangent kernel", facts=f.facts(), directions=mean_directions(f, make_loss("mse"))
    )


def hessian(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    loss: LossLike = "mse",
    *,
    parameters: str | Iterable[str] | None = None,
    outputs: Any = None,
    mode: str | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    memory: float | None = None,
) -> LinearMap:
    r"""Hessian (p, p) of the loss of the whole batch, by double backward only.

    The loss is that of ``fisher`` (``mse``: $\frac1{2n}\sum\|f-y\|^2$, so Hessian = Fisher where all residuals vanish); a callable
    keeps its own. For a list of batches: the mean of their losses, weighted by their numbers of samples.
    Through torch's fused batch norm in training mode ``jvp(jacrev)``, ``torch.func.hessian``, ``grad(jvp)`` and
    ``jvp(jvp)`` are silently wrong (docs/curvature.md); a reverse pass over a reverse pass is exact.
    """
    made = make_loss(loss)
    f = Batches(
        model, inputs, make_options(parameters, outputs=outputs, mode=mode, seed=seed, dtype=dtype, memory=memory)
    )
    y = _targets(f, made, inputs, targets, needed=True, what="hessian()")
    ys = [None] * len(f.parts) if y is None else list(y.split(f.sizes)) if len(f.parts) > 1 else [y]
    graphs: list[tuple[list[Tensor], Tensor] | None] = [None] * len(f.parts)

    def graph(i: int) -> tuple[list[Tensor], Tensor]:
        known = graphs[i]
        if known is None:
            part = f.parts[i]
            leaves = [p.detach().requires_grad_() for p in part.theta]
            with torch.enable_grad():
                value = made.value(part.call(leaves), ys[i])
                if value.dim():
                    raise UsageError(f"loss must return a scalar; {made.name} returned {tuple(value.shape)}.")
                with full_precision(f.device):
                    grads = torch.autograd.grad(
                        value, leaves, create_graph=True, allow_unused=True, materialize_grads=True
                    )
                known = (leaves, torch.cat([g.reshape(-1) for g in grads]) * (part.n / f.n))
            if part.keep:
                graphs[i] = known
        return known

    def product(x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[1], f.p, dtype=f.dtype, device=f.device)
        for i in range(len(f.parts)):
            leaves, slope = graph(i)
            for column, row in zip(x.T, out, strict=True):
                if not slope.requires_grad:
                    continue
                with full_precision(f.device):
                    again = torch.autograd.grad(
                        slope, leaves, column, retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                row += torch.cat([g.reshape(-1) for g in again])
        return out.T

    facts = {**f.facts(), "loss": made.name, "kind": "hessian"}
    return LinearMap((f.p, f.p), product, product, f.dtype, f.device, note=f"Hessian of {made.name}", facts=facts)


def make_options(parameters: str | Iterable[str] | None = None, **more: Any) -> Options:
    """``Options`` from keyword arguments."""
    names = parameters if parameters is None or isinstance(parameters, str) else tuple(parameters)
    return Options(parameters=names, **more)


def _targets(f: Batches, loss: Loss, inputs: Any, targets: Any, needed: bool, what: str) -> Tensor | None:
    """The targets of all batches, stacked and checked batch by batch."""
    if not is_several(inputs) or targets is None:
        return check_targets(loss, targets, f.value, needed, what)
    if not isinstance(targets, list) or len(targets) != len(f.parts):
        raise UsageError(f"For a list of {len(f.parts)} batches, targets must be a list of as many tensors.")
    checked = [check_targets(loss, t, part.value, needed, what) for t, part in zip(targets, f.parts, strict=True)]
    return torch.cat([t for t in checked if t is not None])


def _note(loss: Loss, kind: str) -> str:
    name = {"ggn": "Fisher = GGN", "empirical": "empirical Fisher", "monte_carlo": "Monte-Carlo Fisher"}[kind]
    return f"{name} of {loss.name}, per sample"


def _jacobian(f: Batches) -> LinearMap:
    return LinearMap(
        (f.n * f.c, f.p), f.jvp, f.vjp, f.dtype, f.device, outer=f.gram(), note="Jacobian", facts=f.facts()
    )


def _sampled_factor(f: Batches, loss: Loss, y: Tensor | None, kind: str, samples: int, seed: int) -> LinearMap:
    """A (p, n s): columns are gradients of single samples' losses over sqrt(n s)."""
    out = f.value
    if kind == "empirical":
        assert y is not None
        slopes = loss.gradient(out, y)[None]
    else:
        generator = torch.Generator().manual_seed(seed)
        slopes = torch.stack([loss.gradient(out, loss.draw(out, generator)) for _ in range(samples)])
        slopes = slopes / math.sqrt(loss.factor_scale(f.c)) if loss.name == "mse" else slopes
    s, n = slopes.shape[:2]
    root = math.sqrt(n * s)

    def apply(v: Tensor) -> Tensor:
        return f.vjp(torch.einsum("snc,snk->nck", slopes, v.reshape(s, n, -1)).reshape(n * f.c, -1) / root)

    def adjoint(w: Tensor) -> Tensor:
        return torch.einsum("snc,nck->snk", slopes, f.jvp(w).reshape(n, f.c, -1)).reshape(s * n, -1) / root

    return LinearMap((f.p, s * n), apply, adjoint, f.dtype, f.device, note="sample gradients", facts=f.facts())


def _callable_ggn(f: Batches, loss: Loss, y: Tensor | None, facts: dict[str, Any]) -> LinearMap:
    """J^T H J with H the Hessian of the user's loss in the outputs, by double backward there."""
    ys = [None] * len(f.parts) if y is None else list(y.split(f.sizes)) if len(f.parts) > 1 else [y]
    slopes: list[tuple[Tensor, Tensor]] = []
    for part, target in zip(f.parts, ys, strict=True):
        out = part.value.clone().requires_grad_()
        with torch.enable_grad():
            value = loss.value(out, target)
            if not isinstance(value, Tensor) or value.dim():
                raise UsageError(
                    f"loss must return a scalar tensor; {loss.name} returned {getattr(value, 'shape', value)}."
                )
            (slope,) = torch.autograd.grad(value, out, create_graph=True)
        slopes.append((out, slope * (part.n / f.n)))

    def product(x: Tensor) -> Tensor:
        tangents = f.jvp(x)
        pushed = []
        pieces = tangents.split([n * f.c for n in f.sizes])
        for (out, slope), piece in zip(slopes, pieces, strict=True):
            columns = []
            for column in piece.T:
                if slope.requires_grad:
                    (again,) = torch.autograd.grad(
                        slope,
                        out,
                        column.reshape(out.shape),
                        retain_graph=True,
                        allow_unused=True,
                        materialize_grads=True,
                    )
                else:
                    again = torch.zeros_like(out)
                columns.append(again.reshape(-1))
            pushed.append(torch.stack(columns, 1))
        return f.vjp(torch.cat(pushed))

    note = f"GGN of {loss.name}, its own normalization"
    return LinearMap((f.p, f.p), product, product, f.dtype, f.device, note=note, facts=facts)
