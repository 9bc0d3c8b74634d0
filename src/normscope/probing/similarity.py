"""How alike the representations of all pairs of layers are: their geometries compared on one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.step import Step
from normscope.call.taps import Tap, find_taps, observed
from normscope.call.traceless import alone
from normscope.core.errors import UsageError, unknown
from normscope.core.faces import Shown
from normscope.core.memory import check_room
from normscope.geometry.statistic import Statistic

#: Fewer samples have no unbiased CKA.
FEWEST = 4


@dataclass(frozen=True)
class Similarity(Shown):
    """Similarities of layers. names, kinds: the layers, in the order in which they ran. kind: ``cka`` or ``rdm``.

    values: (layers, layers), 1 on the diagonal, 0 for layers that have nothing in common (the null value of both), NaN
    where all samples of a layer are alike. places: the layers in the plane, by classical scaling (MDS) of the distances
    sqrt(2 - 2 value); NaN where there is none.
    """

    face = "similarity"
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    kind: str
    samples: int
    values: tuple[tuple[float, ...], ...] = field(repr=False)
    places: tuple[tuple[float, float], ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, strings and lists."""
        return {name: getattr(self, name) for name in ("names", "kinds", "kind", "samples", "values", "places")}


@alone
def similarity(
    model: nn.Module | Step,
    inputs: Any = None,
    layers: str | Sequence[str] | None = None,
    *,
    kind: str = "cka",
    data: Any = None,
    mode: str | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> Similarity:
    r"""The similarity of the representations of all pairs of layers, over the samples of one batch.

    kind: ``cka``: linear centred kernel alignment with the unbiased estimate of HSIC (Song et al. 2012; Kornblith et
        al. 2019): 0 on average for layers without anything in common, where the usual estimate grows with d / n.
        ``rdm``: Pearson's correlation of the squared distances of all pairs of samples (representational dissimilarity
        matrices; Kriegeskorte et al. 2008).
    layers: glob patterns of module paths, as in `probe`; default: all layers, and functions.
    model, inputs, data, mode, samples, seed: as in `probe`. Nothing is left behind.
    Raises ``UsageError`` for fewer than four samples or an unknown kind.
    """
    if not isinstance(kind, str) or kind not in _PAIRS:
        raise unknown("kind of similarity", kind, _PAIRS)
    at = Step.of(model, inputs, mode=mode, seed=seed, data=data, samples=samples)
    n = at.rows.n
    if n < FEWEST:
        raise UsageError(f"A similarity of layers needs a batch of at least {FEWEST} samples; got {n}. Pass more.")
    taps = find_taps(at.root, layers)
    check_room(16 * n * n * max(len(taps), 1), f"{len(taps)} layers of {n} samples", "Take fewer samples: samples are "
               "rows of the inputs.")  # fmt: skip
    found: list[tuple[str, str, Tensor]] = []

    def watch(tap: Tap, call: int, x: Tensor) -> None:
        with torch._C.DisableTorchFunction():
            rows = at.rows.of(x, tap.module)
            if rows is not None and len(rows) == n and rows.is_floating_point():
                name = f"{tap.name}#{call + 1}" if call else tap.name
                found.append((name, tap.kind, _PREPARED[kind](Statistic.of(rows, spectrum=False).gram.cpu())))

    def work() -> None:
        with torch.no_grad(), observed(taps, watch, at.root if layers is None else None):
            args, kwargs, _ = at.arguments()
            at.whole(args, kwargs)

    at.run(work)
    if not found:
        raise UsageError("No layer ran whose output has the samples as rows. Pass layers='*', or samples=.")
    vectors = torch.stack([x for _, _, x in found])
    values = _PAIRS[kind](vectors)
    return Similarity(
        tuple(name for name, _, _ in found), tuple(of for _, of, _ in found), kind, n,
        tuple(map(tuple, values.tolist())), tuple((x, y) for x, y in _plane(values).tolist()),
    )  # fmt: skip


def _without_diagonal(gram: Tensor) -> Tensor:
    r"""The U-centred Gram: diagonal 0, every row sums to 0; products of two are n (n - 3) times the unbiased HSIC."""
    n = len(gram)
    k = gram - gram.diagonal().diag()
    rows = k.sum(0)
    k = k - (rows[:, None] + rows[None, :]) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return (k - k.diagonal().diag()).flatten()


def _distances(gram: Tensor) -> Tensor:
    """Squared distances of all pairs, less their mean."""
    squared = gram.diagonal()[:, None] + gram.diagonal()[None, :] - 2 * gram
    x = squared[*torch.triu_indices(len(gram), len(gram), 1)]
    return x - x.mean()


def _cosines(x: Tensor) -> Tensor:
    """Cosines of all pairs of rows; NaN for rows that are zero up to rounding."""
    lengths = torch.linalg.vector_norm(x, dim=1)
    lengths = torch.where(lengths > 1e-12 * lengths.max(), lengths, torch.nan)
    return (x / lengths[:, None]) @ (x / lengths[:, None]).T


_PREPARED: dict[str, Callable[[Tensor], Tensor]] = {"cka": _without_diagonal, "rdm": _distances}
_PAIRS: dict[str, Callable[[Tensor], Tensor]] = {"cka": _cosines, "rdm": _cosines}


def _plane(values: Tensor) -> Tensor:
    """Classical scaling of the distances; the first layer to the left, below."""
    place = torch.full((len(values), 2), math.nan, dtype=values.dtype)
    known = values.diagonal().isfinite()
    squared = (2 - 2 * values[known][:, known]).clamp_min(0)
    if not len(squared):
        return place
    squared = squared - squared.mean(0) - squared.mean(1, keepdim=True) + squared.mean()
    eigenvalues, vectors = torch.linalg.eigh(-squared / 2)
    top = vectors.flip(1)[:, :2] * eigenvalues.flip(0)[:2].clamp_min(0).sqrt()
    top = torch.nn.functional.pad(top, (0, 2 - top.shape[1]))
    place[known] = torch.where(top[:1] > 0, -top, top)
    return place
