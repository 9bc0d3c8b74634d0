r"""Curvature of the zoo against dense matrices, from primitives: one reverse pass a row, nothing of the library.

With f the outputs as rows (n, c), $J = \partial f / \partial\theta$ and $L(f)$ the loss: the Fisher (Gauss-Newton)
matrix is $J^T (\nabla^2 L) J$, the Hessian $\nabla_\theta^2 L(f(\theta))$. The losses by name have torch's own value
(the mean); ``squared_error`` is $\frac1{2n}\sum\|f-y\|^2$. Each model is made afresh and run once, its random streams
at the seed 0.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from zoo import ZOO, Case, call, kept_surroundings, logits, streams

import normscope as ns

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
ROWS = 48  # of the Hessian, drawn once; each costs a pass backward through a pass backward

CURVED = [name for name, one in ZOO.items() if "curvature" in one.tags]
TWICE = [name for name in CURVED if "hessian" in ZOO[name].tags]


@dataclass(frozen=True)
class Dense:
    """J (n c, p), the Hessian of the loss in the outputs (n c, n c), and rows of that in the parameters (rows, p)."""

    jacobian: Tensor
    outer: Tensor
    rows: Tensor
    hessian: Tensor

    @property
    def fisher(self) -> Tensor:
        return self.jacobian.T @ self.outer @ self.jacobian


def in_double(x: Any) -> Any:
    """Floating tensors in float64, whatever they lie in."""
    if isinstance(x, PackedSequence):
        return x.to(torch.float64)
    if isinstance(x, Tensor):
        return x.double() if x.is_floating_point() else x
    if isinstance(x, Mapping):
        return {key: in_double(value) for key, value in x.items()}
    return tuple(in_double(value) for value in x) if isinstance(x, tuple) else x


def as_rows(f: Tensor) -> Tensor:
    """(n, c): each position of a sequence or an image is a row, classes on the last axis, or the second of images."""
    f = f.movedim(1, -1) if f.dim() == 4 else f
    return f.reshape(-1, f.shape[-1])


def loss_of(f: Tensor, targets: Tensor, loss: Any) -> Tensor:
    """The scalar, from the outputs as rows."""
    if callable(loss):
        return loss(f, targets)
    if loss == "mse":
        return F.mse_loss(f, targets)
    if loss == "squared_error":
        return sum((a - b) ** 2 for a, b in zip(f.flatten(), targets.flatten(), strict=True)) / (2 * len(f))
    return F.cross_entropy(f, targets.flatten())


def slopes(y: Tensor, xs: list[Tensor]) -> Tensor:
    """The gradient of a scalar in all of ``xs`` as one vector; zero where it does not depend."""
    if not y.requires_grad:
        return torch.cat([torch.zeros_like(x).flatten() for x in xs])
    found = torch.autograd.grad(y, xs, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(x) if g is None else g).flatten() for x, g in zip(xs, found, strict=True)])


def second(f: Tensor, targets: Tensor, loss: Any) -> Tensor:
    """The Hessian of the loss in the outputs, row by row."""
    f = f.detach().requires_grad_()
    (slope,) = torch.autograd.grad(loss_of(f, targets, loss), f, create_graph=True)
    return torch.stack([slopes(s, [f]) for s in slope.flatten()])


@contextmanager
def unfused() -> Iterator[None]:
    """Attention and weight norm by plain products: the fused ones have no second derivative, or a wrong one.

    (torch 2.13: differentiating twice through ``_weight_norm`` takes the norms for constants.)
    """

    def weight_norm(v: Tensor, g: Tensor, dim: int) -> Tensor:
        return v * (g / v.movedim(dim, 0).flatten(1).norm(dim=1).view_as(g))

    with pytest.MonkeyPatch.context() as patch, sdpa_kernel(SDPBackend.MATH):
        for where in (torch, sys.modules["torch.nn.utils.weight_norm"]):
            patch.setattr(where, "_weight_norm", weight_norm)
        yield


@functools.cache
def dense(name: str) -> Dense:
    case: Case = ZOO[name]()
    model, targets = case.model.double(), in_double(case.targets)
    thetas = [p for p in model.parameters() if p.requires_grad]
    with kept_surroundings(), streams(0), unfused():
        f = as_rows(logits(call(case._replace(model=model, inputs=in_double(case.inputs)))))
        jacobian = torch.stack([slopes(y, thetas) for y in f.flatten()])
        rows = torch.randperm(jacobian.shape[1], generator=torch.Generator().manual_seed(0))[:ROWS]
        hessian = torch.zeros(0)
        if "hessian" in ZOO[name].tags:
            found = torch.autograd.grad(loss_of(f, targets, case.loss), thetas, create_graph=True, allow_unused=True)
            pairs = zip(thetas, found, strict=True)
            slope = torch.cat([(torch.zeros_like(x) if g is None else g).flatten() for x, g in pairs])
            hessian = torch.stack([slopes(slope[i], thetas) for i in rows])
    return Dense(jacobian, second(f, targets, case.loss), rows, hessian)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Relative error in the norm; NaN fails, and so does an oracle that says nothing."""
    expected, found = expected.double(), found.detach().double()
    assert found.shape == expected.shape
    scale = float(expected.norm())
    assert scale > 0, "the oracle is zero"
    error = float((found - expected).norm()) / scale
    assert error <= TOLERANCE[dtype], f"relative error {error:.2e}, above {TOLERANCE[dtype]:.0e}"


def direction(p: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(p, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float64", "float32"])


@pytest.fixture(autouse=True)
def _flags_stay():
    with kept_surroundings():
        yield


@DTYPES
@pytest.mark.parametrize("name", CURVED)
def test_the_fisher_matrix_times_a_vector(name, dtype):
    case, exact = ZOO[name](), dense(name)
    v = direction(exact.jacobian.shape[1], dtype)
    found = ns.fisher(*case, mode=None, dtype=dtype).matvec(v)
    assert_near(found, exact.fisher @ v.double(), dtype)


@DTYPES
@pytest.mark.parametrize("name", TWICE)
def test_the_hessian_times_a_vector(name, dtype):
    case, exact = ZOO[name](), dense(name)
    v = direction(exact.jacobian.shape[1], dtype)
    found = ns.hessian(*case, mode=None, dtype=dtype).matvec(v)
    assert_near(found[exact.rows], exact.hessian @ v.double(), dtype)


@DTYPES
@pytest.mark.parametrize("name", CURVED)
def test_lambda_max(name, dtype):
    case, exact = ZOO[name](), dense(name)
    found = ns.sharpness(*case, mode=None, dtype=dtype, tol=TOLERANCE[dtype] / 10, probes=1, budget=1.0).lambda_max
    assert_near(torch.tensor(found), torch.linalg.eigvalsh(exact.fisher)[-1], dtype)


# The oracle itself


@pytest.mark.parametrize("name", ["mlp-mean-squared", "mlp-squared-error", "mlp-relu"])
def test_the_second_derivative_of_a_loss_is_its_formula(name):
    targets, loss = ZOO[name]()[2:]
    f = torch.randn(8, 3, dtype=torch.float64)
    g = f.softmax(-1)
    blocks = torch.block_diag(*(torch.diag(p) - torch.outer(p, p) for p in g)) / 8
    formula = {"mse": 2 / 24 * torch.eye(24), "squared_error": torch.eye(24) / 8, "cross_entropy": blocks}[loss]
    assert torch.allclose(second(f, in_double(targets), loss), formula.double(), atol=1e-14)


#: What these leave out of the graph (detached, under ``no_grad``, by ``.data``) differences see and derivatives do not.
CUT = {"part-without-gradient", "cache-that-grows", "cache-written-in-place", "buffers-replaced", "max-norm-by-data",
       "clamped-in-place", "momentum-encoder", "averaged-copy", "old-spectral-norm",
       "parametrized-spectral-norm"}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in TWICE if name not in CUT])
def test_the_oracle_agrees_with_differences(name):
    exact, h = dense(name), 1e-6
    v = direction(exact.jacobian.shape[1], torch.float64)

    def at(t: float) -> tuple[Tensor, Tensor]:
        case = ZOO[name]()
        thetas = [p for p in case.model.double().parameters() if p.requires_grad]
        with torch.no_grad(), streams(0), kept_surroundings():
            for x, piece in zip(thetas, v.split([x.numel() for x in thetas]), strict=True):
                x.add_(piece.view_as(x), alpha=t)
        with streams(0), unfused():
            f = as_rows(logits(call(case._replace(inputs=in_double(case.inputs)))))
            slope = slopes(loss_of(f, in_double(case.targets), case.loss), thetas)
        return f.detach().flatten(), slope

    (f, slope), (g, other) = at(h), at(-h)
    assert_near((f - g) / (2 * h), exact.jacobian @ v, torch.float32)
    assert_near(((slope - other) / (2 * h))[exact.rows], exact.hessian @ v, torch.float32)


def test_a_relative_error_above_the_tolerance_fails():
    with pytest.raises(AssertionError, match="relative error"):
        assert_near(torch.tensor([1.0, 1.001]), torch.ones(2), torch.float64)


def test_nan_fails():
    with pytest.raises(AssertionError, match="relative error nan"):
        assert_near(torch.tensor([float("nan"), 1.0]), torch.ones(2), torch.float32)


def test_another_shape_fails():
    with pytest.raises(AssertionError):
        assert_near(torch.ones(2, 1), torch.ones(2), torch.float32)


def test_an_oracle_of_zeros_fails():
    with pytest.raises(AssertionError, match="zero"):
        assert_near(torch.zeros(2), torch.zeros(2), torch.float32)
