"""The whole-batch function theta -> outputs (n, c), samples coupled inside it, and its two products."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor, nn

from normscope.call.arguments import first_tensor, tensors
from normscope.call.functional import Functions, refuse_untrained
from normscope.call.graph import nodes, refuse_reentrant, unreached
from normscope.call.losses import CALLABLE, OWN, Loss
from normscope.call.step import Step
from normscope.call.taps import normalizers, untrained_statistics
from normscope.call.targets import by_class, cast_targets, class_axis, what
from normscope.call.traceless import simple
from normscope.core.errors import UsageError, unknown
from normscope.curvature._twice import LinearBackward

T = TypeVar("T")
ROUTES = ("auto", "linearize", "jvp", "double_vjp")
Outputs = Sequence[int] | slice | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class Options:
    """How a model is turned into a function of its parameters; see ``jacobian`` for each field."""

    parameters: str | Sequence[str] | None = None
    outputs: Outputs = None
    dtype: torch.dtype | None = None
    route: str = "auto"
    memory: float | None = None
    checkpoint: bool = False

    def __post_init__(self) -> None:
        picked = self.outputs
        numbers = (
            isinstance(picked, Iterable) and not isinstance(picked, str) and all(isinstance(i, int) for i in picked)
        )
        if not (picked is None or callable(picked) or isinstance(picked, slice) or numbers):
            raise UsageError(
                f"outputs must be column numbers, a slice, or a function of what the model returns; got {picked!r}. "
                "Pass [0]."
            )
        if self.route not in ROUTES:
            raise unknown("route", self.route, ROUTES)
        if self.dtype is not None and not (isinstance(self.dtype, torch.dtype) and self.dtype.is_floating_point):
            raise UsageError(
                f"dtype must be a floating torch dtype; got {self.dtype!r}. Use torch.float64 or torch.float32."
            )
        if self.memory is not None and not (isinstance(self.memory, int | float) and self.memory >= 0):
            raise UsageError(
                f"memory must be a number of bytes >= 0; got {self.memory!r}. Leave it out for half of what is free."
            )


class Batch:
    """One batch's function f: theta -> outputs (n, c), with ``vjp`` and ``jvp`` on flat columns.

    The model runs inside ``Step.run`` with theta in the place of its parameters, in whole precision, with attention by
    its formula; for half precision parameters, buffers and inputs are cast to float32. Nothing of the caller's is
    written.

    loss: the step's, settled by what the model returned. Where it is a callable of several outputs, the columns are
        those
    outputs that it depends on, side by side.
    """

    @torch.inference_mode(False)
    def __init__(
        self, step: Step, options: Options, keep: bool = True, default: str = "squared_error", outputs: bool = True
    ) -> None:
        self.step, self.model, self.options, self.keep, self.default = step, step.root, options, keep, default
        _refuse_untrained(step)
        named = select(self.model, options.parameters)
        self.names = [name for name, _ in named]
        self.originals = [p for _, p in named]
        self.device = step.device
        if any(p.is_complex() for p in self.model.parameters()):
            raise UsageError(
                "Curvature needs real parameters; this model has complex ones. Write them as pairs of real numbers."
            )
        self.dtype = options.dtype or working_dtype(self.originals[0].dtype, self.device)
        self.theta = [p.detach().to(self.dtype, copy=True) for p in self.originals]  # a forward pass may write to it
        self.sizes = [p.numel() for p in self.theta]
        self.p = sum(self.sizes)
        mixed = {t.dtype for t in (*self.model.parameters(), *self.model.buffers()) if t.is_floating_point()} != {
            self.dtype
        }
        self.cast = self.dtype if mixed or options.dtype is not None else None
        self.trace = step.traceless(self.cast)
        self.targets = cast_targets(step.targets, self.device, self.cast)
        self.late = not simple(self.model)
        self.route = options.route
        self.notes: list[str] = list(step.notes)
        self._pair: tuple[Tensor, Tensor] | None = None  # one (v, J^T v), until the way to J w has been checked with it
        self._checked = False
        self._linear: Callable[[Tensor], Tensor] | None = None
        self._graph: tuple[Tensor, list[Tensor]] | None = None
        self._given: dict[int, Tensor] = {}
        self._twice: tuple[Tensor, Tensor] | None = None
        self._heads: list[int] | None = None
        self.raw: Tensor | None = None  # the outputs as the model returned them, or the chosen columns
        self._slope: tuple[list[Tensor], list[Tensor]] | None = None
        self.saved_bytes, self.positions = 0, 1
        self.functional_norms = False
        self.unreached: list[str] = []
        self.loss = step.settled(None) if step.step is not None else step.criterion
        if not outputs:
            return
        out, _ = self.graph(measure=True)
        self.value = out.detach()
        self.n, self.c = self.value.shape
        if not self.n or not self.c:
            raise UsageError(
                f"Curvature needs at least one sample and one output; the model returned {tuple(self.value.shape)}."
            )
        if not out.requires_grad:
            raise UsageError(
                "The outputs do not depend differentiably on the chosen parameters "
                f"({', '.join(self.names[:4])}{', ...' if len(self.names) > 4 else ''}): the model detaches them, runs "
                "under no_grad, or returns integers. Return the floating-point outputs before argmax or detach."
            )
        if not bool(torch.isfinite(self.value).all()):
            bad = int((~torch.isfinite(self.value)).sum())
            raise UsageError(
                f"The outputs hold {bad} non-finite numbers of {self.value.numel()} (dtype {self.dtype}); curvature is "
                "not defined there. Check the inputs, or use dtype=torch.float64."
            )

    def run(self, theta: Sequence[Tensor], work: Callable[[], T]) -> T:
        """``work()`` with theta in the model, in whole precision."""
        self._given = {id(p): t for p, t in zip(self.originals, theta, strict=True)}
        return self._exactly(work)

    def _exactly(self, work: Callable[[], T]) -> T:
        def inside() -> T:
            in_full(self.device)
            return work()

        return self.trace.run(inside, self._given)

    def whole(self) -> Any:
        """What the model returns; inside `run`."""
        args, kwargs, _ = self.step.arguments(dtype=self.cast)
        watch = Functions(untrained=refuse_untrained if self.step.mode is None else None)
        with watch:
            whole = self.step.whole(args, kwargs)
        self.functional_norms = bool(watch.norms)
        return whole

    def call(self, theta: Sequence[Tensor]) -> Tensor:
        """f(theta) as (n, c)."""
        return self.run(theta, lambda: self._outputs(self.whole()))

    def loss_at(self, theta: Sequence[Tensor]) -> Tensor:
        """The scalar loss at theta."""
        return self.run(theta, lambda: self._loss_of(self.whole()))

    def _loss_of(self, whole: Any) -> Tensor:
        if self.step.step is None:
            self.loss = self._settled(whole)
            self.notes += [n for n in self.loss.notes(whole, self.targets) if n not in self.notes]
        if self.loss.kind == self.default == "none":
            raise UsageError(
                "This needs targets or a loss; neither was given, and the model returns no loss of its own, but "
                f"{what(whole)}. Pass one."
            )
        return self.loss.value(self._chosen(whole), self.targets, self.step.seed)

    def _settled(self, whole: Any) -> Loss:
        loss = self.step.settled(whole, self.default)
        if loss.strict and loss.kind == "mse":
            out = first_tensor(whole)
            if (
                out is not None and isinstance(self.targets, Tensor) and out.shape != self.targets.shape
            ):  # it broadcasts
                self.notes += [n for n in loss.notes(whole, self.targets) if n not in self.notes]
                loss = Loss(loss.name, CALLABLE, call=loss.value)
        return loss

    def _chosen(self, whole: Any) -> Any:
        """What the loss gets: everything, or the columns that were asked for."""
        return whole if self.options.outputs is None else self._outputs(whole)

    def _outputs(self, whole: Any) -> Tensor:
        """The outputs as (n, c)."""
        self.loss = self._settled(whole)
        if self.raw is None:
            self.notes += [n for n in self.loss.notes(whole, self.targets) if n not in self.notes]
        picked = self.options.outputs
        if picked is None and self.loss.kind in (CALLABLE, OWN):
            heads = self._used(whole)
            if heads is not None and (len(heads) > 1 or heads[0] is not first_tensor(whole)):
                self.positions = 1
                rows = len(heads[0]) if all(len(h) == len(heads[0]) for h in heads) else 1
                return torch.cat([h.reshape(rows, -1) for h in heads], 1)
        out, self.positions = tidy(whole, picked, self.targets, self.torchs)
        if self.raw is None:
            returned = first_tensor(whole) if picked is None else out
            self.raw = None if returned is None else returned.detach()
        return out

    def _used(self, whole: Any) -> list[Tensor] | None:
        """The outputs that a callable loss depends on, none of them inside another's graph; ``None`` where autograd is
        off.
        """
        found = [x for x in tensors(whole) if x.is_floating_point() and x.dim()]
        if self._heads is None:
            if not any(x.requires_grad for x in found):
                return None
            value = self.loss.value(whole, self.targets, self.step.seed)
            if not value.requires_grad:
                raise UsageError(
                    f"The loss {self.loss.name!r} does not depend on the outputs, so it has no curvature there. Return "
                    "a loss that is computed from the model's outputs."
                )
            refuse_reentrant(value)
            known = [i for i, x in enumerate(found) if x.requires_grad]
            slopes = torch.autograd.grad(value, [found[i] for i in known], retain_graph=True, allow_unused=True)
            used = [i for i, slope in zip(known, slopes, strict=True) if slope is not None]
            behind = [set(nodes(*[found[j] for j in used if j != i])) for i in used]
            self._heads = [i for i, others in zip(used, behind, strict=True) if found[i].grad_fn not in others]
            if not self._heads:
                raise UsageError(
                    f"The loss ({self.loss.name}) must be computed from outputs that the model returns; it is not, so "
                    "there is no Gauss-Newton matrix. Use hessian(), which needs the loss alone."
                )
        return [found[i] for i in self._heads]

    @property
    def torchs(self) -> bool:
        """Whether classes lie where torch's own loss has them."""
        return self.loss.strict and self.loss.kind == "cross_entropy"

    def slopes(self) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs that the loss depends on, and the loss gradient in them with its own graph."""
        if self._slope is not None:
            return self._slope

        def work() -> tuple[list[Tensor], list[Tensor]]:
            with torch.enable_grad():
                whole = self.whole()
                if self.options.outputs is not None:
                    heads: list[Tensor] = [self._outputs(whole)]
                    value = self.loss.value(heads[0], self.targets, self.step.seed)
                else:
                    self.loss = self._settled(whole)
                    heads = self._used(whole) or []
                    value = self.loss.value(whole, self.targets, self.step.seed)
                return heads, list(torch.autograd.grad(value, heads, create_graph=True))

        with torch.inference_mode(False):
            leaves = [p.clone().requires_grad_() for p in self.theta]
        heads, slopes = self.run(leaves, work)
        if self.keep:
            self._slope = heads, slopes
        return heads, slopes

    def curve(self, tangents: Tensor) -> Tensor:
        """Hessian of the loss in the outputs times columns (n c, k), by double backward there."""
        heads, slopes = self.slopes()
        columns = []
        for column in tangents.T:
            pieces = self._pieces(column, heads)
            grown = [(s, v) for s, v in zip(slopes, pieces, strict=True) if s.requires_grad]
            again = torch.autograd.grad(
                [s for s, _ in grown], heads, [v for _, v in grown], retain_graph=True, allow_unused=True,
                materialize_grads=True,
            ) if grown else [torch.zeros_like(h) for h in heads]  # fmt: skip
            columns.append(self._joined(list(again)))
        return torch.stack(columns, 1)

    def _pieces(self, column: Tensor, heads: list[Tensor]) -> list[Tensor]:
        """A flat (n c,) column cut to the shapes of the outputs."""
        if self.options.outputs is not None:
            return [column.reshape(heads[0].shape)]
        if len(heads) == 1:
            return [_unrowed(column.reshape(self.n, self.c), heads[0], self.targets, self.torchs)]
        parts = column.reshape(self.n, self.c).split([h.numel() // self.n for h in heads], 1)
        return [part.reshape(h.shape) for part, h in zip(parts, heads, strict=True)]

    def _joined(self, parts: list[Tensor]) -> Tensor:
        if self.options.outputs is not None or len(parts) > 1:
            return torch.cat([p.reshape(self.n, -1) for p in parts], 1).reshape(-1)
        return by_class(parts[0], self.targets, self.torchs).reshape(-1)

    def graph(self, measure: bool = False) -> tuple[Tensor, list[Tensor]]:
        """The outputs with their backward graph, and the leaves; kept for the next product if ``keep``."""
        if self._graph is not None:
            return self._graph
        with torch.inference_mode(False):
            leaves = [p.clone().requires_grad_() for p in self.theta]
        seen: dict[int, int] = {}
        own = {p.data_ptr() for p in leaves}

        def pack(x: Tensor) -> tuple[Tensor, int]:
            key = x.untyped_storage().data_ptr()
            if key not in own:
                seen[key] = x.untyped_storage().nbytes()
            return x.detach(), x._version  # never x itself: it would keep its own graph alive

        def unpack(kept: tuple[Tensor, int]) -> Tensor:
            if kept[0]._version != kept[1]:
                raise RuntimeError("A tensor needed for the gradient has been modified by an inplace operation.")
            return kept[0]

        def run(*theta: Tensor) -> Tensor:
            with LinearBackward():
                return self.call(theta)

        with torch.inference_mode(False), torch.enable_grad():
            if self.options.checkpoint:
                out = torch.utils.checkpoint.checkpoint(run, *leaves, use_reentrant=False, preserve_rng_state=False)
                assert isinstance(out, Tensor)
            elif measure:
                with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
                    out = run(*leaves)
            else:
                out = run(*leaves)
        if measure:
            self.saved_bytes = sum(seen.values())
            if out.requires_grad:
                refuse_reentrant(out)
                self.unreached = [self.names[i] for i in unreached(leaves, out)]
        if self.keep and not self.options.checkpoint:
            self._graph = (out, leaves)
        return out, leaves

    def release(self) -> None:
        """Drop the graph, and keep none from now on."""
        self.keep, self._graph, self._twice, self._slope = False, None, None, None

    def backward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """``torch.autograd.grad``; where the user's code may run in it (checkpointing), with the model as in the
        forward pass.
        """

        def work() -> tuple[Any, ...]:
            return torch.autograd.grad(*args, **kwargs)

        if not self.late:
            with torch.inference_mode(False), in_full_precision(self.device):
                return work()

        return self._exactly(work)

    def vjp(self, v: Tensor) -> Tensor:
        """J^T v: (n c, k) -> (p, k)."""
        with torch.inference_mode(False):
            return self._pull(v.clone() if v.is_inference() else v)

    def _pull(self, v: Tensor) -> Tensor:
        out, leaves = self.graph()
        columns = v.T.reshape(-1, self.n, self.c).to(self.dtype)
        many = len(columns) > 1 and self.p * len(columns) <= 2_000_000
        if many and (batched := self._batched(out, leaves, columns)) is not None:
            result = batched
        else:
            result = torch.empty(len(columns), self.p, dtype=self.dtype, device=self.device)
            for column, row in zip(columns, result, strict=True):
                grads = self.backward(out, leaves, column, retain_graph=True, allow_unused=True, materialize_grads=True)
                for part, grad in zip(row.split(self.sizes), grads, strict=True):
                    part.copy_(grad.reshape(-1))
        if not self._checked and self._pair is None:
            self._pair = (v[:, 0].clone(), result[0].clone())
        return result.T

    def _batched(self, out: Tensor, leaves: list[Tensor], columns: Tensor) -> Tensor | None:
        """All columns in one vectorised backward pass, for nets so small that overhead is what counts."""
        try:
            grads = self.backward(out, leaves, columns, retain_graph=True, allow_unused=True, is_grads_batched=True)
        except RuntimeError:  # an op without a batching rule
            return None
        rows = [
            p.new_zeros(1).expand(len(columns), p.numel()) if g is None else g
            for g, p in zip(grads, leaves, strict=True)
        ]
        return torch.cat([row.reshape(len(columns), -1) for row in rows], 1)

    def jvp(self, w: Tensor) -> Tensor:
        """J w: (p, k) -> (n c, k)."""
        with torch.inference_mode(False):
            return self._tangents(w.clone() if w.is_inference() else w)

    def _tangents(self, w: Tensor) -> Tensor:
        columns = list(w.T.to(self.dtype))
        done = [self._check(columns[0])] if not self._checked and columns else []
        images = [x for x in done if x is not None]
        images += [self._push(column) for column in columns[len(images) :]]
        return torch.stack(images, 1) if images else w.new_zeros(self.n * self.c, 0)

    def _push(self, w: Tensor) -> Tensor:
        route = self._resolve()
        if route == "linearize":
            assert self._linear is not None
            return self._linear(w)
        if route == "jvp":
            return self._forward_mode(w)
        return self._double_vjp(w)

    def _resolve(self) -> str:
        """The route in force; builds the linearised graph where it is wanted."""
        if self.route == "auto":
            # On a kept graph twice reverse costs one backward pass (measured 0.6-1.2 of a forward and backward pass on
            # nets with convolutions, norms and attention), forward mode a forward and a tangent pass (1.1-1.5).
            self.route = "jvp" if not self.keep or self.options.checkpoint else "double_vjp"
        if self.route == "linearize" and self._linear is None:
            try:
                self._linear = self._linearized()
            except Exception as error:  # tracing can fail in as many ways as there are models
                self.notes.append(f"linearize failed ({type(error).__name__}); using plain forward mode")
                self.route = "jvp"
        return self.route

    def _linearized(self) -> Callable[[Tensor], Tensor]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fx warns of attributes that it makes itself
            _, tangent = torch.func.linearize(lambda *t: self.call(t), *self.theta)
            zero = tangent(*[torch.zeros_like(p) for p in self.theta])
        assert zero.shape == self.value.shape
        return lambda w: tangent(*self._split(w)).reshape(-1)

    def _split(self, w: Tensor) -> list[Tensor]:
        return [x.reshape(p.shape) for x, p in zip(w.split(self.sizes), self.theta, strict=True)]

    def _forward_mode(self, w: Tensor) -> Tensor:
        with fwd.dual_level():
            duals = [fwd.make_dual(p, t.contiguous()) for p, t in zip(self.theta, self._split(w), strict=True)]
            tangent = fwd.unpack_dual(self.run(duals, lambda: self._outputs(torch.no_grad()(self.whole)()))).tangent
            return torch.zeros_like(self.value).reshape(-1) if tangent is None else tangent.reshape(-1).clone()

    def _double_vjp(self, w: Tensor) -> Tensor:
        """J w = d/dz <J^T z, w>, which needs reverse mode only."""
        if self._twice is None or not self.keep:
            out, leaves = self.graph()
            z = torch.zeros_like(self.value, requires_grad=True)
            with torch.enable_grad():
                grads = self.backward(
                    out, leaves, z, create_graph=True, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                pulled = torch.cat([g.reshape(-1) for g in grads])
            self._twice = (z, pulled)
        z, pulled = self._twice
        (result,) = self.backward(pulled, z, w, retain_graph=self.keep, allow_unused=True, materialize_grads=True)
        if not self.keep:
            self._twice = None
        return result.reshape(-1)

    def _check(self, column: Tensor) -> Tensor | None:
        """J column, after <v, J w> = <J^T v, w> has been seen to hold; ``None`` after a change of route.

        Forward mode ignores ``torch.no_grad`` inside a model, and has no formula for some ops; twice reverse fails, or
        drops a term, at ops marked ``once_differentiable``. Where one way fails the other is tried, and checked as
        well.
        """
        if self._pair is None:
            v = torch.randn(self.n * self.c, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            v = v.to(self.device, self.dtype)
            pulled = self.vjp(v[:, None])[:, 0]
        else:
            v, pulled = self._pair
        self._pair, self._checked = None, True
        first = self._resolve()
        said = []
        for route in (first, "jvp" if first == "double_vjp" else "double_vjp"):
            self.route = route
            if route != first:
                self._linear = self._twice = None
            try:
                image = self._push(column)
            except (
                NotImplementedError,
                RuntimeError,
            ) as error:  # an op without a second derivative, or without a forward one
                said.append(f"no {_WAYS[route]} here ({str(error).splitlines()[0][:120]})")
                continue
            if agree(v, image, pulled, column):
                if said:
                    self.notes.append(f"{said[0]}; using {_WAYS[route]}")
                return image
            said.append(f"{_WAYS[route]} disagreed with reverse mode (a no_grad block, or an op at fault)")
        raise UsageError(
            f"The model must be differentiable twice, or forwards, for products with its Jacobian; {'; '.join(said)}. "
            "Write the op so that its backward pass can be differentiated (no once_differentiable), or give it a jvp."
        )

    def facts(self) -> dict[str, Any]:
        """How the numbers came about."""
        return {
            "mode": describe_mode(self.model, self.step.mode),
            "batch_size": self.step.rows.n,
            "positions": self.positions,
            "functional_norms": self.functional_norms,
            "outputs": getattr(self, "c", 0),
            "parameters": self.p,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "torch": torch.__version__,
        }


def agree(v: Tensor, image: Tensor, pulled: Tensor, w: Tensor) -> bool:
    """Whether <v, J w> and <J^T v, w> are equal up to rounding.

    Rounding of J w is spread over its entries, so it meets a random v as 1/sqrt(size); J w may vanish (a bias before a
    batch norm) where J^T v does not. The tolerances are chosen by us, a hundred times what correct nets show.
    """
    if not bool(torch.isfinite(image).all()):
        return False
    loose, tight = (1e-3, 1e-5) if image.dtype is torch.float32 else (1e-8, 1e-11)
    v, image, pulled, w = (x.double() for x in (v, image, pulled, w))
    allowed = v.norm() * image.norm() * (loose / v.numel() ** 0.5 + tight) + pulled.norm() * w.norm() * tight
    return bool((v @ image - pulled @ w).abs() <= allowed)


_WAYS = {"double_vjp": "double reverse mode", "jvp": "forward mode", "linearize": "linearised forward mode"}


def in_full(device: torch.device) -> None:
    """Inside a run, whose end puts all of it back: attention by its formula (the fused kernels have no forward mode and
    no second derivative), no autocast, and convolutions on CUDA in whole float32 (torch's default there is TF32, three
    digits).
    """
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_math_sdp(True)
    for kind in ("cpu", "cuda"):
        torch.set_autocast_enabled(kind, False)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False


@contextmanager
def in_full_precision(device: torch.device) -> Iterator[None]:
    """The same precision in a backward pass outside a run."""
    before = torch.backends.cudnn.allow_tf32 if device.type == "cuda" else False
    with torch.autocast(device.type, enabled=False):
        if not before:
            yield
            return
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = before


def select(model: nn.Module, patterns: str | Sequence[str] | None) -> list[tuple[str, nn.Parameter]]:
    """The trainable parameters whose names match one of the patterns (shell style); shared ones once."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise UsageError(
            f"{type(model).__name__} has no trainable parameter; curvature needs at least one with requires_grad=True."
        )
    if patterns is None:
        return named
    globs = [patterns] if isinstance(patterns, str) else list(patterns)
    if not globs:
        raise UsageError("parameters must name at least one parameter; got none. Leave it out for all trainable ones.")

    def matches(name: str, glob: str) -> bool:
        return fnmatch.fnmatchcase(name, glob) or name.startswith(glob.rstrip(".") + ".")

    known = [n for n, _ in named]
    for glob in globs:
        if not isinstance(glob, str) or not any(matches(n, glob) for n in known):
            raise unknown("trainable parameter", glob, known)
    return [(n, p) for n, p in named if any(matches(n, glob) for glob in globs)]


def working_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """float32 for half precisions (and for float64 on mps, which has none), else the dtype itself."""
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if half or (device.type == "mps" and dtype == torch.float64) else dtype


def tidy(whole: Any, outputs: Outputs = None, targets: Any = None, torchs: bool = False) -> tuple[Tensor, int]:
    """The outputs as (n, c), then the chosen columns; the second value is the number of positions a sample, or 1.

    Of outputs (m, positions, c), as of a language model, or (m, c, height, width), as of a segmentation, each position
    is a sample: n = m positions.
    """
    out = outputs(whole) if callable(outputs) else whole if isinstance(whole, Tensor) else first_tensor(whole)
    if callable(outputs) and not isinstance(out, Tensor):
        raise UsageError(
            f"outputs must return a tensor (n, c); the function returned {what(out)}. Pick one of what it gets."
        )
    if not isinstance(out, Tensor):
        raise UsageError(
            f"The model must return a tensor (n, c), or something with .logits; it returned {type(whole).__name__}. "
            "Pick the tensor: outputs=lambda out: out.last_hidden_state[:, 0]."
        )
    if out.is_complex() or not out.is_floating_point():
        raise UsageError(
            f"Curvature needs real floating-point outputs; the model returned {what(out)}. Return the scores."
        )
    if out.dim() not in (1, 2, 3, 4):
        cure = {0: "outputs=lambda out: the scores behind the loss"}.get(
            out.dim(), "outputs=lambda out: out.flatten(1)"
        )
        raise UsageError(
            "Curvature needs outputs of shape (n, c), (n, positions, c) or (n, c, height, width); the model returned "
            f"{tuple(out.shape)}. Say {cure}."
        )
    first = len(out)
    out = by_class(out, targets, torchs)
    positions = max(1, len(out) // max(first, 1))
    if outputs is not None and not callable(outputs):
        index = outputs if isinstance(outputs, slice) else torch.as_tensor(list(outputs), device=out.device)
        try:
            out = out[:, index]
        except IndexError:
            raise UsageError(
                f"outputs={outputs!r} picks columns that are not there; the model has {out.shape[1]}."
            ) from None
    return out, positions


def _unrowed(rows: Tensor, like: Tensor, targets: Any, torchs: bool) -> Tensor:
    """`by_class` undone: rows (n, c) in the shape of the outputs."""
    if like.dim() == 1:
        return rows[:, 0]
    axis = class_axis(like, targets, torchs)
    moved = like.movedim(axis, -1).shape
    return rows.reshape(moved).movedim(-1, axis)


def describe_mode(model: nn.Module, mode: str | None) -> str:
    """``train``, ``eval`` or ``mixed``, in force."""
    if mode is not None:
        return mode
    seen = {m.training for m in model.modules() if next(m.parameters(recurse=False), None) is not None}
    seen = seen or {model.training}
    return "mixed" if len(seen) == 2 else ("train" if seen == {True} else "eval")


def _refuse_untrained(step: Step) -> None:
    """Refuse a batch norm in eval mode that has never seen a batch, unless eval mode was asked for by name."""
    for name, module in normalizers(step.root) if step.mode is None else []:
        if not module.training and untrained_statistics(module):
            raise UsageError(
                f"Batch norm {name!r} is in eval mode but has seen no batch: its running mean is 0 and its variance 1, "
                "so the answer would be for a network without batch norm. Use mode='train' (or model.train()), or say "
                "mode='eval' if that network is meant."
            )


def memory_budget(given: float | None, device: torch.device) -> float:
    """Bytes that kept graphs may take: ``given``, else half of what is free."""
    if given is not None:
        return float(given)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 1e9
    try:  # a container's own limit
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        free = min(free, max(int(limit) - int(used), 0))
    except (OSError, ValueError):  # none, or "max"
        pass
    return free / 2
