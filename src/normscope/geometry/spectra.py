"""Singular values of representations of one shape: from a Gram matrix where that can resolve them, else an SVD."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

#: A float64 Gram has eigenvalues good to about 1e-15 of the largest: below this ratio singular values come from X.
FLOAT64_RATIO = 1e-10
#: How much a metric may owe to the rounding of a tall matrix's Gram (chosen by us: a tenth of what is promised).
EFFECT = 1e-10


def of_grams(ascending: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Singular values, descending, from the ascending eigenvalues of $X X^T$; what is rounding of the largest is 0."""
    values = ascending.flip(-1)
    return _zeroed(values, values.shape[-1]).sqrt()


def of_factors(
    f: Float[Tensor, "m n k"], alive: Bool[Tensor, "m k"], grams: Tensor | None, features: int
) -> Float[Tensor, "m n"]:
    """Singular values of finite float64 matrices, descending, padded with zeros to n.

    alive: the columns that are not all 0; the others change no singular value.
    grams: $F F^T$ (m, n, n), needed where n <= k. features: d of the representations that the factors stand for.
    """
    n = f.shape[1]
    found = f.new_zeros(f.shape[:2])
    low = alive.sum(-1) < n
    for i in torch.nonzero(low).flatten().tolist():
        sigma = _zeroed(_tall(f[i][:, alive[i]]), max(n, features))
        found[i, : len(sigma)] = sigma
    if low.all():
        return found
    assert grams is not None
    poor = ~low
    poor[~low] = _surely_poor(grams[~low])
    left = ~low & ~poor
    if left.any():
        values = torch.linalg.eigvalsh(grams[left])
        found[left] = of_grams(values)
        poor[left] = values[:, 0] <= FLOAT64_RATIO * values[:, -1]
    if poor.any():
        found[poor] = _zeroed(torch.linalg.svdvals(f[poor]), max(n, features))
    return found


def _surely_poor(grams: Float[Tensor, "m n n"]) -> Bool[Tensor, " m"]:
    r"""Whether $\lambda_n \le$ `FLOAT64_RATIO` $\lambda_1$ shows without eigenvalues, at a tenth of their cost.

    $\lambda_n$ is at most the square of any pivot of the Cholesky factor, $\lambda_1$ at least the length of any row.
    """
    lower, failed = torch.linalg.cholesky_ex(grams)
    pivots = lower.diagonal(dim1=-2, dim2=-1).square().amin(-1)
    longest = torch.linalg.vector_norm(grams, dim=-1).amax(-1)
    return (failed != 0) | (pivots <= FLOAT64_RATIO * longest)


def _tall(x: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    r"""Singular values of one matrix with k < n, from $X^T X$ where that moves no metric by `EFFECT`.

    An eigenvalue is off by $\epsilon\lambda_1$, its root by $\epsilon\lambda_1 / 2\sigma$. As n > k the smallest of
    the n singular values is 0 whatever these are; what remains to be moved is the entropy of $p = \sigma / \sum\sigma$,
    by at most $\sum_i |d\sigma_i| \log(1/p_{min}) / \sum\sigma$.
    """
    if not x.shape[1]:
        return x.new_zeros(0)
    values = torch.linalg.eigvalsh(x.T @ x).flip(0)
    if values[-1] > FLOAT64_RATIO * values[0]:
        sigma = values.sqrt()
        total = sigma.sum()
        error = torch.finfo(x.dtype).eps * values[0] * (0.5 / sigma).sum()
        if error * (total / sigma[-1]).log() <= EFFECT * total:
            return sigma
    return torch.linalg.svdvals(x)


def _zeroed(values: Tensor, size: int) -> Tensor:
    """Descending values, those that are rounding of the largest (numpy's rule for the rank) set to zero."""
    return torch.where(values > values[..., :1] * size * torch.finfo(values.dtype).eps, values, 0.0)
