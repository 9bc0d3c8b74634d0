"""Sums over pairs of samples, block by block: no (n, n) matrix is made that is not there already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from normscope.geometry.statistic import Statistic

#: Numbers of one block while passing over pairs of samples (2 MiB: a pass over a block stays in the cache).
BLOCK = 2**18


class Pairs(NamedTuple):
    r"""Of all pairs of samples, (...) each: ``energy``: $\sum_{i \ne j} (G_{ij} / \mathrm{tr}\,G)^2$, never negative.

    mean, mean_abs, max_abs: of the cosines of the pairs i < j of samples that are not zero; NaN where there is no pair.
    """

    energy: Tensor
    mean: Tensor
    mean_abs: Tensor
    max_abs: Tensor


def over_pairs(s: Statistic) -> Pairs:
    """One pass: every block is made once, and scaled where it lies from products to cosines."""
    kept = s.norms != 0  # NaN stays, and shows
    top = s.norms.amax(-1, keepdim=True)  # no square of what is divided by it can overflow, none that counts underflows
    top = torch.where(top == 0, 1.0, top)
    inverse = torch.where(kept, top / s.norms, 0.0)
    energy, plain, sizes, largest = (torch.zeros_like(s.trace) for _ in range(4))
    scaled = s.factor64 / top[..., None] if s.tall else None
    for start, stop in _blocks(s):
        if scaled is not None:
            block = scaled[..., start:stop, :] @ scaled[..., start:, :].mT
        else:
            block = s.gram[..., start:stop, start:] / top[..., None].square()
        square = block[..., : stop - start]
        square.diagonal(dim1=-2, dim2=-1).zero_()
        energy += 2 * _once(_squares, block, square)
        block *= inverse[..., start:stop, None]
        block *= inverse[..., None, start:]
        plain += _once(_sum, block, square)
        block.abs_()
        sizes += _once(_sum, block, square)
        largest = torch.maximum(largest, block.amax((-2, -1)))
    left = kept.sum(-1).to(torch.float64)
    count = left * (left - 1) / 2
    # a cosine, and a mean of what is at most 1, may be 1 + 1e-16
    return Pairs(
        energy * (top[..., 0].square() / s.trace).square(),
        (plain / count).clamp(-1, 1),
        (sizes / count).clamp_max(1),
        torch.where(count > 0, largest.clamp_max(1), torch.nan),
    )


def _blocks(s: Statistic) -> Iterator[tuple[int, int]]:
    """Ranges of rows, to be taken with the columns from their first on."""
    n, size = s.samples, s.trace.numel()
    rows = n if size * n * n <= 2 * BLOCK else max(32, BLOCK // (size * n))
    return ((start, min(start + rows, n)) for start in range(0, n, rows))


def _once(total: Callable[[Tensor], Tensor], block: Tensor, square: Tensor) -> Tensor:
    """The total over a block (..., r, r + more) with every pair once: its first r columns hold each of theirs twice."""
    return total(block) / 2 if block.shape == square.shape else total(block) - total(square) / 2


def _sum(x: Tensor) -> Tensor:
    return x.sum((-2, -1))


def _squares(x: Tensor) -> Tensor:
    """Sum of the squares of each matrix."""
    return torch.linalg.vector_norm(x, dim=(-2, -1)).square()
