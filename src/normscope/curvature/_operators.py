"""Jacobian, Fisher / Gauss-Newton, NTK and Hessian of the whole-batch function, as maps on flat vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.graph import refuse_reentrant
from normscope.call.losses import LossLike
from normscope.call.step import Step
from normscope.call.traceless import alone
from normscope.core.errors import MANY, UsageError, gives_items, shown, unknown
from normscope.curvature._batch import Batch
from normscope.curvature._batches import Batches
from normscope.curvature._directions import ggn_factor, mean_directions
from normscope.curvature._form import Form
from normscope.curvature._options import Options
from normscope.linalg.maps import LinearMap, gram

KINDS = ("ggn", "empirical", "monte_carlo")


@alone
def jacobian(
    model: nn.Module | Step,
    inputs: Any = None,
    *,
    data: Any = None,
    parameters: str | Iterable[str] | None = None,
    outputs: Any = None,
    mode: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    route: str = "auto",
    memory: float | None = None,
    checkpoint: bool = False,
) -> LinearMap:
    r"""Jacobian J (n c, p) of the whole-batch outputs, row-major (sample, output), in the trainable parameters.

    Samples are coupled *inside* the function: with batch norm in training mode row (i, k) is the derivative of output k
    of sample i including its path through the batch statistics. Columns follow ``named_parameters()``, shared ones
    once. Of outputs (m, positions, c), as of a language model, or (m, c, height, width), each position is a sample: n =
    m positions.

    model, inputs, data, samples: a `Step`, or what one is made of (``docs/inputs.md``); ``data`` holds several batches,
        each with its own statistics, whose rows are stacked.
    parameters: name patterns (``"layers.3"``, ``"*.bias"``) of the parameters to differentiate in; default all
        trainable.
    outputs: columns to keep (indices or a slice), or a function from what the model returns to (n, c) or (m, positions,
        c).
    mode: ``train``, ``eval``, or ``None``: each module as it is; batch norm in eval mode that has seen no batch is
        refused.
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
    step = Step.of(model, inputs, mode=mode, seed=seed, data=data, samples=samples)
    return _jacobian(Batches(step, make_options(parameters, outputs=outputs, dtype=dtype, route=route, memory=memory,
                                                checkpoint=checkpoint), what="jacobian()"))  # fmt: skip


@alone
def fisher(
    model: nn.Module | Step,
    inputs: Any = None,
    targets: Any = None,
    loss: LossLike = None,
    *,
    data: Any = None,
    kind: str = "ggn",
    draws: int = 1,
    parameters: str | Iterable[str] | None = None,
    outputs: Any = None,
    mode: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    route: str = "auto",
    memory: float | None = None,
    checkpoint: bool = False,
) -> LinearMap:
    r"""Fisher information, equal to the Gauss-Newton matrix, (p, p), per sample, of the whole-batch function.

    ``squared_error`` (without targets the default):
    $F = \frac1n \sum_i \sum_k \nabla f_k(i)\, \nabla f_k(i)^T = J^T J / n$, the Gauss-Newton matrix of
    $E = \frac1{2n}\sum_i\|f(i)-y(i)\|^2$; torch's ``mse``, $(2/c)E$: $(2/c) F$. ``cross_entropy``:
    $F = \frac1n \sum_i J_i^T (\mathrm{diag}\,g_i - g_i g_i^T) J_i$ with $g_i$ = softmax of $f(i)$; class weights,
    ignored targets, smoothing and the reduction of torch's module weight the rows. Any other loss, the model's own too:
    $J^T (\nabla_f^2\, \mathrm{loss}) J$ with its own normalization, f the outputs it uses.

    kind: ``ggn`` (the above, exact), ``empirical``: $\frac1n\sum_i g_i g_i^T$ with the gradients $g_i$ of the samples'
        losses at the targets (not a Fisher information; needs ``targets``), ``monte_carlo``: the same at ``draws`` sets
        of targets drawn from the model's own predictive law with ``seed``, unbiased for ``ggn``.
    targets: needed by ``empirical`` and by losses without a name; otherwise they choose the loss, and are checked.
    data: the exact matrix of the sum over the batches divided by the total n, each coupled inside itself: it depends on
        how the data is cut into batches.

    Other arguments, errors and guarantees: ``jacobian``. The map's ``factor`` A (p, n c) has A A^T = F.
    """
    if kind not in KINDS:
        raise unknown("kind of fisher", kind, KINDS)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise UsageError(
            f"draws must be a whole number >= 1; got {shown(draws)}. It counts sets of targets of kind='monte_carlo'."
        )
    step = Step.of(model, inputs, targets, loss, mode=mode, seed=seed, data=data, samples=samples)
    options = make_options(parameters, outputs=outputs, dtype=dtype, route=route, memory=memory, checkpoint=checkpoint)
    f = Batches(step, options, what="fisher()")
    facts = {**f.facts(), "kind": kind}
    if not f.loss.named:
        if kind != "ggn":
            raise UsageError(f"fisher(kind={kind!r}) needs the loss by name: mse, cross_entropy or squared_error.")
        return _callable_ggn(f, facts)
    form = f.form()
    if kind != "ggn":
        if kind == "empirical" and form.wanted is None:
            raise UsageError("fisher(kind='empirical') needs targets; got None. Pass targets=....")
        return gram(_sampled_factor(f, form, kind, draws, step.seed), note=_note(f.loss.name, kind), facts=facts)
    return gram(ggn_factor(f, form), note=_note(f.loss.name, kind), facts=facts, directions=mean_directions(f, form))


@alone
def ntk(model: nn.Module | Step, inputs: Any = None, **options: Any) -> LinearMap:
    r"""Neural tangent kernel $J J^T$ (n c, n c) of the batch, row-major (sample, output): n times the dual of the
    Fisher.

    Not divided by n: its nonzero eigenvalues are n times those of ``fisher(model, inputs, loss="squared_error")``.
    Arguments: ``jacobian``.
    """
    step_options = {k: options.pop(k) for k in ("mode", "seed", "data", "samples") if k in options}
    step = Step.of(model, inputs, **step_options)
    f = Batches(step, make_options(**options), what="ntk()")
    rows = Form(False, f.value.new_ones(f.n), None)
    return gram(_jacobian(f), note="J J^T, neural tangent kernel", facts=f.facts(), directions=mean_directions(f, rows))


@alone
def hessian(
    model: nn.Module | Step,
    inputs: Any = None,
    targets: Any = None,
    loss: LossLike = None,
    *,
    data: Any = None,
    step: Callable[..., Any] | None = None,
    parameters: str | Iterable[str] | None = None,
    outputs: Any = None,
    mode: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    memory: float | None = None,
) -> LinearMap:
    r"""Hessian (p, p) of the loss of the whole batch, by double backward only.

    loss: as everywhere (``docs/inputs.md``); by default the model's own, else by the targets. For several batches
        (``data``):
    the mean of their losses, weighted by their numbers of samples. step: ``callable(model, batch) -> loss`` in its
    place. Through torch's fused batch norm in training mode ``jvp(jacrev)``, ``torch.func.hessian``, ``grad(jvp)`` and
    ``jvp(jvp)`` are silently wrong (docs/curvature.md); a reverse pass over a reverse pass is exact.
    """
    at = Step.of(model, inputs, targets, loss, mode=mode, seed=seed, data=data, samples=samples, step=step)
    options = make_options(parameters, outputs=outputs, dtype=dtype, memory=memory)
    parts = [Batch(one, options, default="none", outputs=False) for one in at.each()]
    counts = [part.step.rows.n if len(parts) > 1 else 1 for part in parts]
    first, p = parts[0], parts[0].p
    graphs: list[tuple[list[Tensor], Tensor] | None] = [None] * len(parts)

    def graph(i: int) -> tuple[list[Tensor], Tensor]:
        known = graphs[i]
        if known is None:
            part = parts[i]
            leaves = [t.clone().requires_grad_() for t in part.theta]
            value = part.loss_at(leaves)
            refuse_reentrant(value)
            if not bool(torch.isfinite(value)):
                raise UsageError(
                    f"The loss must be finite; it is {float(value)}. Check inputs, targets and parameters for NaN or "
                    "infinity."
                )
            if not value.requires_grad:
                raise UsageError(
                    "The loss does not depend differentiably on the chosen parameters, so it has no Hessian."
                )
            grads = part.backward(value, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
            known = leaves, torch.cat([g.reshape(-1) for g in grads]) * (counts[i] / sum(counts))
            if part.keep:
                graphs[i] = known
        return known

    tested = False

    @alone
    def product(x: Tensor) -> Tensor:
        nonlocal tested
        if not tested and x.shape[1]:
            tested = True
            z = torch.randn(p, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x)
            both = product(torch.cat([x[:, :1], z], 1))
            _check_symmetry(x[:, 0], z[:, 0], both[:, 0], both[:, 1])
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone() if x.is_inference() else x
            out = torch.zeros(x.shape[1], p, dtype=first.dtype, device=first.device)
            for i, part in enumerate(parts):
                leaves, slope = graph(i)
                for column, row in zip(x.T, out, strict=True):
                    if not slope.requires_grad:
                        continue
                    try:
                        again = part.backward(
                            slope, leaves, column, retain_graph=True, allow_unused=True, materialize_grads=True
                        )
                    except (RuntimeError, NotImplementedError) as error:
                        raise _no_second(part.loss.name, error) from error
                    row += torch.cat([g.reshape(-1) for g in again])
            return out.T

    with torch.inference_mode(False), torch.enable_grad():
        graph(0)  # a loss that cannot be is told now
    sizes = dict(zip(first.names, first.sizes, strict=True))
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    facts = {
        **first.facts(),
        "notes": notes,
        "batches": len(parts),
        "parameter_sizes": sizes,
        "kind": "hessian",
        "loss": first.loss.name,
    }
    note = f"Hessian of {first.loss.name}"
    return LinearMap((p, p), product, product, first.dtype, first.device, note=note, facts=facts)


def make_options(parameters: str | Iterable[str] | None = None, **more: Any) -> Options:
    """``Options`` from keyword arguments."""
    if parameters is not None and not isinstance(parameters, str) and not gives_items(parameters):
        raise UsageError(f"parameters must be patterns of parameter names; got {shown(parameters)}. Pass '*.weight'.")
    names = parameters if parameters is None or isinstance(parameters, str) else tuple(islice(parameters, MANY))
    return Options(parameters=names, **more)


def _no_second(loss: str, error: BaseException) -> UsageError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return UsageError(
        f"Loss and model must be differentiable twice; {loss!r} or an op of the model is not (torch: {first}). Take a "
        "smooth loss, or write the op from differentiable ones."
    )


def _check_symmetry(x: Tensor, z: Tensor, hx: Tensor, hz: Tensor) -> None:
    """A Hessian is symmetric; where <z, H x> is not <x, H z> some op's second derivative is at fault."""
    loose = 1e-2 if hx.dtype is torch.float32 else 1e-3
    x, z, hx, hz = (v.double() for v in (x, z, hx, hz))
    allowed = loose * (x.norm() * hz.norm() + z.norm() * hx.norm()) / len(x) ** 0.5
    one, other = float(z @ hx), float(x @ hz)
    if not abs(one - other) <= allowed:
        raise UsageError(
            f"A Hessian must be symmetric; this one is not (<z, H x> = {one:.6g}, <x, H z> = {other:.6g}): an op of "
            "the model has a wrong second derivative. Write it from differentiable ops."
        )


def _note(loss: str, kind: str) -> str:
    name = {"ggn": "Fisher = GGN", "empirical": "empirical Fisher", "monte_carlo": "Monte-Carlo Fisher"}[kind]
    return f"{name} of {loss}, per sample"


def _jacobian(f: Batches) -> LinearMap:
    return LinearMap(
        (f.n * f.c, f.p), f.jvp, f.vjp, f.dtype, f.device, outer=f.gram(), note="Jacobian", facts=f.facts()
    )


def _sampled_factor(f: Batches, form: Form, kind: str, draws: int, seed: int) -> LinearMap:
    """A (p, n s): columns are gradients of single samples' losses over sqrt(n s)."""
    if kind == "empirical":
        slopes = form.gradient(f.value)[None]
    else:
        generator = torch.Generator().manual_seed(seed)
        slopes = torch.stack([form.drawn(f.value, generator) for _ in range(draws)])
    s, n = slopes.shape[:2]
    root = math.sqrt(n * s)

    def apply(v: Tensor) -> Tensor:
        return f.vjp(torch.einsum("snc,snk->nck", slopes, v.reshape(s, n, -1)).reshape(n * f.c, -1) / root)

    def adjoint(w: Tensor) -> Tensor:
        return torch.einsum("snc,nck->snk", slopes, f.jvp(w).reshape(n, f.c, -1)).reshape(s * n, -1) / root

    return LinearMap((f.p, s * n), apply, adjoint, f.dtype, f.device, note="sample gradients", facts=f.facts())


def _callable_ggn(f: Batches, facts: dict[str, Any]) -> LinearMap:
    """J^T H J with H the Hessian of the loss in the outputs, by double backward there."""

    def product(x: Tensor) -> Tensor:
        return f.vjp(f.curve(f.jvp(x)))

    first = f.parts[0]
    with torch.inference_mode(False):  # a loss that cannot be is told now
        first.slopes()
        try:
            first.curve(first.value.new_ones(first.value.numel(), 1))
        except (RuntimeError, NotImplementedError) as error:
            raise _no_second(f.loss.name, error) from error
    note = f"GGN of {f.loss.name}, its own normalization"
    return LinearMap((f.p, f.p), product, product, f.dtype, f.device, note=note, facts=facts)
