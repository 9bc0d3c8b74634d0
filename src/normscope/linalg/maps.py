"""A matrix known by its products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normscope.core.errors import UsageError
from normscope.core.memory import check_room

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Directions:
    """Where the theory says that the top eigenvectors of a map (m, m) are.

    size: m. make: weights (count, k) -> vectors (m, k) in the span of the ``count`` directions.
    gram: their inner products (count, count); ``None`` for orthonormal ones.
    screen: a cheap, approximate (count,) weight vector of the top eigenvector and its relative gap to the other
        eigenvalues in the span, or ``None`` where the directions turn out not to matter; it costs ``screen_cost``
        products of the map itself. expected: the largest relative first residual at which what it names can be trusted;
        ``None``: the solver's own.
    """

    count: int
    size: int
    make: Product
    screen: Callable[[], tuple[Tensor, float] | None] | None = None
    screen_cost: float = 0.0
    expected: float | None = None
    gram: Callable[[], Tensor] | None = None


@dataclass(frozen=True, repr=False)
class LinearMap:
    """A real matrix of ``shape`` (rows, columns) that is never written down.

    matmat: (columns, k) -> (rows, k); ``rmatmat``: (rows, k) -> (columns, k), the product with the transpose.
    matvec: (columns,) -> (rows,), one column of it. Vectors are flat and come back in the map's own ``dtype``
    on its ``device``, whatever was put in.

    factor: for a positive semi-definite map, a map A (rows, m) with this matrix = A A^T; the nonzero eigenvalues are
        then those of the *dual* A^T A (m, m), and ``spectrum`` works on the smaller side.
    directions: where the theory says the top eigenvectors of the dual are; solvers start there.
    outer, inner: this map times its transpose (rows, rows), and its transpose times this map (columns, columns), as
        arrays, where there is a cheaper way to them than through the map's own entries.
    note: what the matrix is, with its normalization; ``facts``: mode, batch size, dtype and so on.
    """

    shape: tuple[int, int]
    apply: Product
    adjoint: Product
    dtype: torch.dtype = torch.float64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    factor: LinearMap | None = None
    directions: Directions | None = None
    outer: Callable[[], Tensor] | None = None
    inner: Callable[[], Tensor] | None = None
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def matmat(self, x: Tensor) -> Tensor:
        """(columns, k) -> (rows, k)."""
        if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[0] != self.shape[1]:
            came = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(f"A map of shape {self.shape} multiplies tensors ({self.shape[1]}, k); got {came}.")
        return self.apply(x.detach().to(self.device, self.dtype))

    def matvec(self, x: Tensor) -> Tensor:
        """(columns,) -> (rows,)."""
        if not isinstance(x, Tensor) or x.shape != (self.shape[1],):
            came = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(f"A map of shape {self.shape} multiplies vectors ({self.shape[1]},); got {came}.")
        return self.matmat(x[:, None])[:, 0]

    def rmatvec(self, x: Tensor) -> Tensor:
        """(rows,) -> (columns,), the product with the transpose."""
        return self.T.matvec(x)

    def rmatmat(self, x: Tensor) -> Tensor:
        """(rows, k) -> (columns, k), the product with the transpose."""
        return self.T.matmat(x)

    @property
    def T(self) -> LinearMap:
        """The transpose."""
        return replace(
            self, shape=self.shape[::-1], apply=self.adjoint, adjoint=self.apply, outer=self.inner, inner=self.outer
        )

    def __neg__(self) -> LinearMap:
        """The map times -1: without a factor, because -A A^T is no Gram matrix."""
        return LinearMap(
            self.shape, lambda x: -self.apply(x), lambda x: -self.adjoint(x), self.dtype, self.device,
            note=f"minus {self.note}" if self.note else "", facts=self.facts,
        )  # fmt: skip

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.matvec(x) if x.dim() == 1 else self.matmat(x)

    def dense(self, chunk: int = 64) -> Tensor:
        """The matrix itself, (rows, columns), from products with unit vectors on the cheaper side.

        A map with a factor A is written down as A A^T, or as A's ``outer``.
        """
        rows, columns = self.shape
        check_room(
            2 * rows * columns * self.dtype.itemsize,
            f"A matrix of {rows} x {columns}",
            "Take fewer samples or outputs.",
        )
        if self.factor is not None and self.factor.outer is not None:
            return self.factor.outer()
        if self.factor is not None:
            a = self.factor.dense(chunk)
            return a @ a.T
        flip = rows < columns
        source, count = (self.T, rows) if flip else (self, columns)
        parts = []
        for i in range(0, count, chunk):
            unit = torch.zeros(count, min(chunk, count - i), dtype=self.dtype, device=self.device)
            unit[torch.arange(i, i + unit.shape[1]), torch.arange(unit.shape[1])] = 1
            parts.append(source.matmat(unit))
        out = torch.cat(parts, 1)
        return out.T if flip else out

    def scipy(self) -> Any:
        """The same map as a ``scipy.sparse.linalg.LinearOperator`` of float64."""
        from scipy.sparse.linalg import LinearOperator

        def call(product: Product) -> Callable[[np.ndarray], np.ndarray]:
            return lambda x: product(torch.as_tensor(x).reshape(-1)).double().cpu().numpy()

        return LinearOperator(self.shape, matvec=call(self.matvec), rmatvec=call(self.rmatvec), dtype=np.float64)

    def __repr__(self) -> str:
        about = f": {self.note}" if self.note else ""
        return f"LinearMap({self.shape[0]} x {self.shape[1]}, {str(self.dtype).removeprefix('torch.')}{about})"


def gram(factor: LinearMap, **more: Any) -> LinearMap:
    """A A^T of a factor A (rows, m)."""
    square = (factor.shape[0], factor.shape[0])

    def product(x: Tensor) -> Tensor:
        return factor.matmat(factor.rmatmat(x))

    more = {"outer": None, "inner": None, **more}
    return replace(factor, shape=square, apply=product, adjoint=product, factor=factor, **more)


def from_matrix(matrix: Tensor, **more: Any) -> LinearMap:
    """The map of a matrix that is there."""
    shape = (matrix.shape[0], matrix.shape[1])
    dtype, device = matrix.dtype, matrix.device
    return LinearMap(shape, lambda x: matrix @ x, lambda x: matrix.T @ x, dtype, device, **more)
