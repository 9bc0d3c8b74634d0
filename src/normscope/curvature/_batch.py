"""The two products with the Jacobian of a whole-batch function, each by the way that works and is cheapest."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor

from normscope.call.step import Step
from normscope.call.traceless import alone
from normscope.core.errors import UsageError
from normscope.curvature._function import Function
from normscope.curvature._options import Options

_WAYS = {"double_vjp": "double reverse mode", "jvp": "forward mode", "linearize": "linearised forward mode"}


class Batch(Function):
    """One batch's function with ``vjp`` and ``jvp`` on flat columns."""

    def __init__(
        self, step: Step, options: Options, keep: bool = True, default: str = "squared_error", outputs: bool = True
    ) -> None:
        super().__init__(step, options, keep, default, outputs)
        self.route = options.route
        self._pair: tuple[Tensor, Tensor] | None = None  # one (v, J^T v), until the way to J w has been checked with it
        self._checked = False
        self._linear: Callable[[Tensor], Tensor] | None = None
        self._twice: tuple[Tensor, Tensor] | None = None

    def release(self) -> None:
        """Drop the graphs, and keep none from now on."""
        super().release()
        self._twice = None

    @alone
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

    @alone
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
