"""Sums over pairs of samples, block by block: no (n, n) matrix is made that is not there already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

    from normscope.geometry.statistic import Statistic

#: Numbers of one block while passing over pairs of samples (2 MiB: a pass over a block stays in the cache).
BLOCK = 2**18


class Cosines(NamedTuple):
    """Of the cosines of all pairs i < j of samples that are not zero, (...) each; NaN where there is no pair."""

    mean: Tensor
    mean_abs: Tensor
    max_abs: Tensor


def off_diagonal(s: Statistic) -> Float[Tensor, " *m"]:
    r"""$\sum_{i \ne j} (G_{ij} / \mathrm{tr}\,G)^2$, never negative."""
    if s.tall:  # |X X^T|_F = |X^T X|_F; less than n directions: the sum is no small difference
        f = s.factor64 / s.trace.sqrt()[..., None, None]
        return (_squares(f.mT @ f) - s.shares.square().sum(-1)).clamp_min(0)
    total = torch.zeros_like(s.trace)
    for start, stop in _blocks(s):
        twice, once = _parts(s.gram[..., start:stop, start:] / s.trace[..., None, None])
        total += _squares(twice) + 2 * _squares(once)
    return total


def cosines(s: Statistic) -> Cosines:
    """What metrics read of the cosines."""
    kept = s.norms != 0  # NaN stays, and shows
    inverse = torch.where(kept, 1 / s.norms, 0.0)
    plain, sizes, largest = (torch.zeros_like(s.trace) for _ in range(3))
    unit = s.factor64 * inverse[..., None] if s.tall else None
    for start, stop in _blocks(s):
        if unit is not None:
            block = unit[..., start:stop, :] @ unit[..., start:, :].mT
        else:
            block = s.gram[..., start:stop, start:] * inverse[..., start:stop, None]
            block *= inverse[..., None, start:]
        twice, once = _parts(block.clamp_(-1, 1))
        plain += twice.sum((-2, -1)) / 2 + once.sum((-2, -1))
        block.abs_()
        sizes += twice.sum((-2, -1)) / 2 + once.sum((-2, -1))
        largest = torch.maximum(largest, block.amax((-2, -1)))
    left = kept.sum(-1).to(torch.float64)
    count = left * (left - 1) / 2
    # a mean of what is at most 1 may be 1 + 1e-16
    return Cosines(
        (plain / count).clamp(-1, 1), (sizes / count).clamp_max(1), torch.where(count > 0, largest, torch.nan)
    )


def _blocks(s: Statistic) -> Iterator[tuple[int, int]]:
    """Ranges of rows, to be taken with the columns from their first on."""
    n, size = s.samples, s.trace.numel()
    rows = n if size * n * n <= 2 * BLOCK else max(32, BLOCK // (size * n))
    return ((start, min(start + rows, n)) for start in range(0, n, rows))


def _parts(block: Tensor) -> tuple[Tensor, Tensor]:
    """Views of (..., r, r + more): the square, every pair twice in it and its diagonal set to 0, and the rest."""
    twice, once = block[..., : block.shape[-2]], block[..., block.shape[-2] :]
    twice.diagonal(dim1=-2, dim2=-1).zero_()
    return twice, once


def _squares(x: Tensor) -> Tensor:
    """Sum of the squares of each matrix."""
    return torch.linalg.vector_norm(x, dim=(-2, -1)).square()
