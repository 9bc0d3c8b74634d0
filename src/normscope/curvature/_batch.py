"""The whole-batch function theta -> outputs (n, c), samples coupled inside it, and its two products."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor, nn

from normscope.call.arguments import Outputs, arguments, cast, floats, select, tidy, working_dtype
from normscope.call.isolate import check_mode, describe_mode, flags, full_precision, random_streams
from normscope.call.taps import batch_size
from normscope.core.errors import UsageError, unknown
from normscope.curvature._twice import LinearBackward

ROUTES = ("auto", "linearize", "jvp", "double_vjp")


@dataclass(frozen=True)
class Options:
    """How a model is turned into a function of its parameters; see ``jacobian`` for each field."""

    parameters: str | Sequence[str] | None = None
    outputs: Outputs = None
    mode: str | None = None
    seed: int = 0
    dtype: torch.dtype | None = None
    route: str = "auto"
    memory: float | None = None
    checkpoint: bool = False


class Batch:
    """One batch's function f: theta -> outputs (n, c), with ``vjp`` and ``jvp`` on flat columns.

    The model is called through ``functional_call`` with cloned buffers, fixed random streams and (for half precision)
    parameters, buffers and inputs cast to float32; nothing of the caller's is written.
    """

    def __init__(self, model: nn.Module, inputs: Any, options: Options, keep: bool = True) -> None:
        self.model, self.options, self.keep = model, options, keep
        if not isinstance(inputs, Tensor | Mapping | tuple):
            batch_size(inputs)  # says what must come
        if options.route not in ROUTES:
            raise unknown("route", options.route, ROUTES)
        check_mode(model, options.mode)
        named = select(model, options.parameters)
        self.names = [name for name, _ in named]
        self.device = named[0][1].device
        self.dtype = options.dtype or working_dtype(named[0][1].dtype)
        self.theta = [p.detach().to(self.dtype) for _, p in named]
        self.sizes = [p.numel() for p in self.theta]
        self.p = sum(self.sizes)
        self.inputs = cast(inputs, self.dtype, self.device)
        taken = set(self.names)
        self.fixed = {n: floats(p.detach(), self.dtype) for n, p in model.named_parameters() if n not in taken}
        self.route = options.route
        self.notes: list[str] = []
        self._pair: tuple[Tensor, Tensor] | None = None  # one (v, J^T v), until forward mode has been checked with it
        self._checked = False
        self._linear: Callable[[Tensor], Tensor] | None = None
        self._graph: tuple[Tensor, list[Tensor]] | None = None
        self._twice: tuple[Tensor, Tensor] | None = None
        self.saved_bytes, self.positions = 0, 1
        out, _ = self.graph(measure=True)
        self.value = out.detach()
        self.n, self.c = self.value.shape
        if not out.requires_grad:
            raise UsageError(
                "The outputs do not depend differentiably on the chosen parameters "
                f"({', '.join(self.names[:4])}{', ...' if len(self.names) > 4 else ''}): the model detaches them, runs under "
                "no_grad, or returns integers. Return the floating-point outputs before argmax or detach."
            )
        if not bool(torch.isfinite(self.value).all()):
            bad = int((~torch.isfinite(self.value)).sum())
            raise UsageError(
                f"The outputs hold {bad} non-finite numbers of {self.value.numel()} (dtype {self.dtype}); curvature is not "
                "defined there. Check the inputs, or use dtype=torch.float64."
            )

    def call(self, theta: Sequence[Tensor]) -> Tensor:
        """f(theta) as (n, c)."""
        state: dict[str, Tensor] = {**self.fixed, **dict(zip(self.names, theta, strict=True))}
        for name, buffer in self.model.named_buffers():
            state[name] = floats(buffer.detach(), self.dtype).clone()
        args, kwargs = arguments(self.inputs)
        with ExitStack() as stack:
            stack.enter_context(flags(self.model, self.options.mode))
            stack.enter_context(random_streams(self.options.seed, self.device))
            stack.enter_context(_plain_attention())
            stack.enter_context(full_precision(self.device))
            out = torch.func.functional_call(self.model, state, args, kwargs)
        tidied, self.positions = tidy(out, self.options.outputs)
        return tidied

    def graph(self, measure: bool = False) -> tuple[Tensor, list[Tensor]]:
        """The outputs with their backward graph, and the leaves; kept for the next product if ``keep``."""
        if self._graph is not None:
            return self._graph
        leaves = [p.detach().requires_grad_() for p in self.theta]
        seen: dict[int, int] = {}
        own = {p.data_ptr() for p in self.theta}

        def pack(x: Tensor) -> Tensor:
            key = x.untyped_storage().data_ptr()
            if key not in own:
                seen[key] = x.untyped_storage().nbytes()
            return x

        def run(*theta: Tensor) -> Tensor:
            with LinearBackward():
                return self.call(theta)

        with torch.enable_grad(), ExitStack() as stack:
            if measure:
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x))
            if self.options.checkpoint:
                out = torch.utils.checkpoint.checkpoint(run, *leaves, use_reentrant=False, preserve_rng_state=False)
                assert isinstance(out, Tensor)
            else:
                out = run(*leaves)
        if measure:
            self.saved_bytes = sum(seen.values())
        if self.keep and not self.options.checkpoint:
            self._graph = (out, leaves)
        return out, leaves

    def release(self) -> None:
        """Drop the graph, and keep none from now on."""
        self.keep, self._graph, self._twice = False, None, None

    def vjp(self, v: Tensor) -> Tensor:
        """J^T v: (n c, k) -> (p, k)."""
        with full_precision(self.device):
            return self._pull(v)

    def _pull(self, v: Tensor) -> Tensor:
        out, leaves = self.graph()
        columns = v.T.reshape(-1, self.n, self.c).to(self.dtype)
        many = len(columns) > 1 and self.p * len(columns) <= 2_000_000
        if many and (batched := self._batched(out, leaves, columns)) is not None:
            result = batched
        else:
            result = torch.empty(len(columns), self.p, dtype=self.dtype, device=self.device)
            for column, row in zip(columns, result, strict=True):
                grads = torch.autograd.grad(
                    out, leaves, column, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for part, grad in zip(row.split(self.sizes), grads, strict=True):
                    part.copy_(grad.reshape(-1))
        if not self._checked and self._pair is None:
            self._pair = (v[:, 0].clone(), result[0].clone())
        return result.T

    def _batched(self, out: Tensor, leaves: list[Tensor], columns: Tensor) -> Tensor | None:
        """All columns in one vectorised backward pass, for nets so small that overhead is what counts."""
        try:
            grads = torch.autograd.grad(
                out, leaves, columns, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
        except RuntimeError:  # an op without a batching rule
            return None
        rows = [
            p.new_zeros(1).expand(len(columns), p.numel()) if g is None else g
            for g, p in zip(grads, leaves, strict=True)
        ]
        return torch.cat([row.reshape(len(columns), -1) for row in rows], 1)

    def jvp(self, w: Tensor) -> Tensor:
        """J w: (p, k) -> (n c, k)."""
        with full_precision(self.device):
            return self._tangents(w)

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
            # On a kept graph twice reverse costs one backward pass (measured 0.6-1.2 of a forward and backward pass on nets
            # with convolutions, norms and attention), forward mode a forward and a tangent pass (1.1-1.5).
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
        with fwd.dual_level(), torch.no_grad():
            duals = [fwd.make_dual(p, t.contiguous()) for p, t in zip(self.theta, self._split(w), strict=True)]
            tangent = fwd.unpack_dual(self.call(duals)).tangent
            return torch.zeros_like(self.value).reshape(-1) if tangent is None else tangent.reshape(-1).clone()

    def _double_vjp(self, w: Tensor) -> Tensor:
        """J w = d/dz <J^T z, w>, which needs reverse mode only."""
        if self._twice is None or not self.keep:
            out, leaves = self.graph()
            z = torch.zeros_like(self.value, requires_grad=True)
            with torch.enable_grad():
                grads = torch.autograd.grad(
                    out, leaves, z, create_graph=True, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                pulled = torch.cat([g.reshape(-1) for g in grads])
            self._twice = (z, pulled)
        z, pulled = self._twice
        (result,) = torch.autograd.grad(pulled, z, w, retain_graph=self.keep, allow_unused=True, materialize_grads=True)
        if not self.keep:
            self._twice = None
        return result.reshape(-1)

    def _check(self, column: Tensor) -> Tensor | None:
        """J column, after <v, J w> = <J^T v, w> has been seen to hold; ``None`` after a change of route.

        Forward mode ignores ``torch.no_grad`` inside a model, and has no formula for some ops; then reverse mode is
        used twice, and the other way round.
        """
        self._checked = True
        if self._resolve() == "double_vjp":
            self._pair = None
            try:
                return self._push(column)
            except RuntimeError as error:
                if self.options.route == "double_vjp":
                    raise
                self.notes.append(
                    f"no second reverse pass here ({str(error).splitlines()[0][:120]}); using forward mode"
                )
                self.route, self._twice = "jvp", None
        if self._pair is None:
            v = torch.randn(self.n * self.c, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            v = v.to(self.device, self.dtype)
            pulled = self.vjp(v[:, None])[:, 0]
        else:
            v, pulled = self._pair
        self._pair = None
        try:
            image = self._push(column)
        except (NotImplementedError, RuntimeError) as error:
            self._fall_back(f"no forward mode here ({str(error).splitlines()[0][:120]})")
            return None
        if agree(v, image, pulled, column):
            return image
        self._fall_back("forward mode disagreed with reverse mode (a no_grad block, or an op at fault)")
        return None

    def _fall_back(self, why: str) -> None:
        self.notes.append(f"{why}; using double reverse mode")
        self.route, self._linear = "double_vjp", None

    def facts(self) -> dict[str, Any]:
        """How the numbers came about."""
        return {
            "mode": describe_mode(self.model, self.options.mode),
            "batch_size": self.n // self.positions,
            "positions": self.positions,
            "outputs": self.c,
            "parameters": self.p,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "torch": torch.__version__,
        }


def agree(v: Tensor, image: Tensor, pulled: Tensor, w: Tensor) -> bool:
    """Whether <v, J w> and <J^T v, w> are equal up to rounding.

    Rounding of J w is spread over its entries, so it meets a random v as 1/sqrt(size). The tolerances are chosen by us, a
    hundred times what correct nets show.
    """
    if not bool(torch.isfinite(image).all()):
        return False
    loose, tight = (1e-3, 1e-5) if image.dtype is torch.float32 else (1e-8, 1e-11)
    scale = v.double().norm() * image.double().norm()
    gap = (v.double() @ image.double() - pulled.double() @ w.double()).abs()
    return bool(gap <= scale * (loose / v.numel() ** 0.5 + tight))


@contextmanager
def _plain_attention() -> Any:
    """Attention by its formula: the fused kernels have no forward mode and no second derivative."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.MATH]):
        yield


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
