"""Fields whose entries are put elsewhere: views, transposes, splits, pads, and several fields beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from normscope.theory.program.laws import Field, canonical, uncanonical


def axes_of(sites: Tensor, features: Tensor) -> tuple[int, ...]:
    """The axes along which the feature changes, by the site and the feature of every entry."""
    found = []
    for axis in range(sites.dim()):
        if sites.shape[axis] > 1 and bool((features != features.narrow(axis, 0, 1)).any()):
            found.append(axis)
    return tuple(found)


def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct columns of whole numbers (N, k), and how often each comes: told apart by a random projection."""
    weights = torch.rand(len(rows), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keys = (weights[:, None] * rows).sum(0) if rows.numel() < 2**22 else rows.double().T @ weights
    _, inverse, counts = torch.unique(keys, return_inverse=True, return_counts=True)
    first = torch.zeros(len(counts), dtype=torch.long)
    first[inverse.flip(0)] = torch.arange(len(keys) - 1, -1, -1)
    return rows[:, first], counts


class Pattern:
    """Where the sites of a moved field come from.

    features: its axes. columns: (N', k) indices into the old sites, 0: zero; shares: (k,) of the features that each
    column stands for: more than one where an axis of positions has become one of features.
    """

    def __init__(self, ids: Tensor, field: Field) -> None:
        place = torch.arange(field.count)[:, None] * field.size + torch.arange(field.size)
        back = torch.empty(field.shape.numel() + 1, dtype=torch.long)
        order = uncanonical(place, field.shape, field.features).reshape(-1)
        back[0], back[1:] = -1, order
        entry = back[ids]
        sites = torch.where(entry < 0, 0, entry // field.size + 1)
        which = torch.where(entry < 0, -1, entry % field.size)
        self.features = axes_of(sites, which)
        self.gain, self.gains = 1.0, None
        if field.gains is not None:
            kept = canonical(which, self.features)[0]
            self.gain = float(field.gains[kept].mean())
            self.gains = field.gains[kept] / self.gain
        rows = canonical(sites, self.features)
        if bool((rows == rows[:, :1]).all()):
            self.columns, self.shares = rows[:, :1].clone(), torch.ones(1)
        else:
            self.columns, counts = distinct(rows)
            self.shares = counts / counts.sum()
        self.old = field.count

    def forward(self, m: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The moments behind it."""
        pad = bool((self.columns == 0).any())
        if pad:
            k = torch.nn.functional.pad(k, (1, 0, 1, 0))
            m = torch.nn.functional.pad(m, (1, 0))
        columns = self.columns if pad else self.columns - 1
        if len(self.shares) == 1:
            at = columns[:, 0]
            return m[at], self.gain * k[at][:, at]
        n = len(columns)
        mean, out = torch.zeros(n, dtype=m.dtype), torch.zeros(n, n, dtype=k.dtype)
        for at, share in zip(columns.T, self.shares.tolist(), strict=True):
            mean += share * m[at]
            out += share * k[at][:, at]
        return mean, out

    def backward(self, outer: Tensor) -> Tensor:
        """The gradient moment before it."""
        out = torch.zeros(self.old + 1, self.old + 1, dtype=outer.dtype)
        for at, share in zip(self.columns.T, self.shares.tolist(), strict=True):
            rows = torch.zeros(self.old + 1, len(at), dtype=outer.dtype).index_add_(0, at, outer * share)
            out.index_add_(1, at, rows)
        return self.gain * out[1:, 1:]


def cross(a: Field, b: Field) -> Tensor:
    """E a b^T over the features (N_a, N_b): products of means where no source is shared, else of the draws."""
    if not a.sources & b.sources:
        return torch.outer(a.moments[0], b.moments[0])
    pairs = [(a.canonical(a.draw(i)), b.canonical(b.draw(i))) for i in range(a.draws.count)]
    total = sum(x.to(a.moments[1].dtype) @ y.to(a.moments[1].dtype).T / x.shape[1] for x, y in pairs)
    return total / len(pairs)  # type: ignore[return-value]


def beside(fields: Sequence[Field]) -> Callable[[], tuple[Tensor, Tensor]]:
    """Moments of the sites of several fields, one after the other, features alike."""

    def moments() -> tuple[Tensor, Tensor]:
        m = torch.cat([f.moments[0] for f in fields])
        blocks = [[f.moments[1] if f is g else cross(f, g) for g in fields] for f in fields]
        return m, torch.cat([torch.cat(row, 1) for row in blocks])

    return moments
