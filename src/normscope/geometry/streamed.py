"""Metrics of a representation that comes batch by batch: its second moments are kept, never the samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from normscope.core.errors import UsageError
from normscope.core.memory import check_room
from normscope.geometry.statistic import Statistic

#: Metrics of the spectrum alone, which the moments hold; the others compare samples, or depend on their number.
KEPT = ("participation_rank", "soft_rank", "entropy_rank", "alpha_req", "stable_rank")


def check_names(names: Iterable[str]) -> None:
    """``UsageError`` for a metric that cannot be had of moments."""
    for name in names:
        if name not in KEPT:
            raise UsageError(
                f"measure(data=...) keeps second moments, not samples: {', '.join(KEPT)}; got {name!r}. Pass one "
                "tensor for the others."
            )


def accumulated(batches: Iterable[Any], read: Any) -> Statistic:
    r"""The statistic of all batches as one: R with $R^T R = X^T X$, by QR of R and the next batch, and the centred one.

    batches: tensors, or (inputs, ...), of which the first counts. read: what makes a tensor (n, ...) of each. The
    centred factor gains one row $\sqrt{n m / (n + m)}\,(\bar x - \bar y)$ for each batch, which makes it exact. What it
    says of ``samples`` are rows of R.
    """
    whole: Tensor | None = None
    centred: Tensor | None = None
    mean, n = torch.zeros(()), 0
    for batch in batches:
        x = read(batch[0] if isinstance(batch, tuple | list) else batch)
        x = x.detach().to(torch.float64).reshape(len(x), -1)
        if whole is None or centred is None:
            check_room(64 * x.shape[1] ** 2, f"The second moments of {x.shape[1]} features", "Take fewer features.")
            whole, centred = x[:0], x[:0]
            mean = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        if x.shape[1] != whole.shape[1]:
            raise UsageError(
                f"Batches must have the same features; got {x.shape[1]} after {whole.shape[1]}. Pad or cut them."
            )
        m, there = len(x), x.mean(0)
        step = ((n * m / (n + m)) ** 0.5 * (mean - there))[None]
        whole = torch.linalg.qr(torch.cat([whole, x]), mode="r").R
        centred = torch.linalg.qr(torch.cat([centred, x - there, step]), mode="r").R
        mean, n = mean + (there - mean) * (m / (n + m)), n + m
    if whole is None or centred is None:
        raise UsageError("data must give one batch at least; it gave none. Pass a list of tensors, or a loader.")
    found = Statistic.of(whole, exact=True)
    side = len(found.kept)
    gram = centred @ centred.T
    values = torch.linalg.eigvalsh(gram).flip(0)[:side]
    vars(found)["centred"] = torch.nn.functional.pad(values, (0, side - len(values))).diag()
    return found
