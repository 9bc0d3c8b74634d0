"""Traces and second moments by random probes, with what is already known taken out first."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from normscope.linalg.eigen import orthonormalise
from normscope.linalg.maps import LinearMap

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Estimate:
    """A number, one standard error of it (from the spread of the probes; 0 where exact), and the products spent."""

    value: float
    stderr: float
    products: float
    method: str

    def __repr__(self) -> str:
        return f"{self.value:.6g} +- {self.stderr:.2g} ({self.method}, {self.products:g} products)"


@dataclass(frozen=True)
class Moments:
    """tr G and tr G^2 of one symmetric matrix."""

    trace: Estimate
    square: Estimate
    products: float


def rademacher(size: int, count: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """(size, count) independent signs."""
    signs = torch.randint(0, 2, (size, count), generator=generator)
    return (2 * signs - 1).to(like)


def hutchinson(
    a: LinearMap,
    probes: int = 16,
    *,
    basis: Float[Tensor, "m j"] | None = None,
    projected: Float[Tensor, "j j"] | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""$\mathrm{tr}\,A^TA$ from quadratic forms ||A z||^2, i.e. products with A only (half a product each).

    basis: orthonormal directions taken out exactly: with Q = basis, P = 1 - Q Q^T and Rademacher z,
    tr G = tr Q^T G Q + E ||A P z||^2. With Q the mean directions 1 (x) e_k of the outputs the spread is about half that
    of Hutch++ on wide nets. ``projected`` is Q^T G Q where it is known already, else it costs j forms. The standard
    error is the probes' sample deviation / sqrt(probes); it needs at least two probes.
    """
    work = torch.float64 if a.shape[1] <= 200_000 else a.dtype
    like = torch.empty(0, dtype=work, device=a.device)
    known, products = 0.0, 0.0
    if basis is not None and basis.shape[1]:
        basis = basis.to(like)
        if projected is None:
            known = float(a.matmat(basis).double().square().sum())
            products += basis.shape[1] / 2
        else:
            known = float(projected.diagonal().sum())
    forms = []
    for _ in range(probes):
        z = rademacher(a.shape[1], 1, like, generator)
        if basis is not None:
            z = z - basis @ (basis.T @ z)
        forms.append(float(a.matmat(z).double().square().sum()))
    products += probes / 2
    name = "Hutchinson" if basis is None else "deflated Hutchinson"
    value, stderr = mean_and_error(forms)
    return Estimate(known + value, stderr, products, name)


def hutchpp(g: LinearMap, products: int = 24, *, generator: torch.Generator | None = None) -> Estimate:
    """tr G of a symmetric map by Hutch++ (Meyer, Musco, Musco, Woodruff 2021, algorithm 1) in ``products`` products.

    A third of them sketch the range, a third take its trace exactly, a third probe the rest.
    """
    size, third = g.shape[0], max(1, products // 3)
    if products < 3:
        raise ValueError("Hutch++ needs at least 3 products")
    like = torch.empty(0, dtype=g.dtype, device=g.device)
    sketch = g.matmat(rademacher(size, min(third, size), like, generator))
    q = orthonormalise(sketch)
    known = float((q * g.matmat(q)).double().sum())
    forms = []
    for _ in range(products - 2 * third):
        z = rademacher(size, 1, like, generator)
        z = z - q @ (q.T @ z)
        forms.append(float((z * g.matmat(z)).double().sum()))
    value, stderr = mean_and_error(forms)
    return Estimate(known + value, stderr, float(products), "Hutch++")


def moments(
    g: LinearMap,
    basis: Float[Tensor, "m j"],
    projected: Float[Tensor, "j j"],
    probes: int = 8,
    *,
    generator: torch.Generator | None = None,
) -> Moments:
    r"""tr G and tr G^2 of a symmetric map, what a Krylov ``basis`` Q knows taken out exactly.

    With T = Q^T G Q, P = 1 - Q Q^T and Rademacher z:
    tr G = tr T + E z^T P G P z;  tr G^2 = ||T||^2 + E [2 ||Q^T G P z||^2 + ||P G P z||^2]. One product a probe.
    """
    basis, columns = basis.to(g.device), g.shape[0]
    first, second = [], []
    spare = columns - basis.shape[1]
    for _ in range(probes if spare > 0 else 0):
        z = rademacher(columns, 1, basis, generator)
        z = z - basis @ (basis.T @ z)
        image = g.matmat(z).to(basis)
        inside = basis.T @ image
        first.append(float((z * image).double().sum()))
        second.append(
            float(inside.double().square().sum()) * 2 + float((image - basis @ inside).double().square().sum())
        )
    (t, t_error), (s, s_error) = mean_and_error(first), mean_and_error(second)
    exact = spare <= 0
    name = "exact" if exact else "deflated Hutchinson"
    trace = Estimate(float(projected.diagonal().sum()) + t, 0.0 if exact else t_error, probes, name)
    square = Estimate(float(projected.square().sum()) + s, 0.0 if exact else s_error, probes, name)
    return Moments(trace, square, float(len(first)))


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and standard error of independent values; the error is NaN for one value, 0 for none."""
    n = len(values)
    if n == 0:
        return 0.0, 0.0
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
