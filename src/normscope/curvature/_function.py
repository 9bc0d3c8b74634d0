"""The whole-batch function theta -> outputs (n, c), samples coupled inside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from normscope.call.arguments import first_tensor, tensors
from normscope.call.functional import Functions, refuse_untrained
from normscope.call.graph import nodes, refuse_reentrant, unreached
from normscope.call.losses import CALLABLE, OWN, Loss
from normscope.call.step import Step
from normscope.call.taps import normalizers, untrained_statistics
from normscope.call.targets import by_class, cast_targets, what
from normscope.call.traceless import simple
from normscope.core.errors import UsageError
from normscope.core.memory import check_copies
from normscope.curvature._options import Options, select
from normscope.curvature._outputs import tidy, unrowed
from normscope.curvature._precision import in_full, in_full_precision, working_dtype
from normscope.curvature._twice import LinearBackward

T = TypeVar("T")


class Function:
    """One batch's function f: theta -> outputs (n, c), its loss, and its graph.

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
        check_copies(self.originals, 3, "a copy, a direction and its product", self.dtype.itemsize)
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
        self.notes: list[str] = list(step.notes)
        self._graph: tuple[Tensor, list[Tensor]] | None = None
        self._given: dict[int, Tensor] = {}
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
            return [unrowed(column.reshape(self.n, self.c), heads[0], self.targets, self.torchs)]
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
        self.keep, self._graph, self._slope = False, None, None

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
