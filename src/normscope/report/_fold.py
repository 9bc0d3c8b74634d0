"""Which layers to show when there are more than fit: the ends, the findings, and where the numbers turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from normscope.report._layers import Layer

#: Layers are "alike" if no number is farther than this share of its range from the line between its shown neighbours.
ALIKE = 0.08


@dataclass(frozen=True)
class Folded:
    """A run of layers that are not shown; ``alike``: their numbers lie between those of the layers around them."""

    count: int
    alike: bool

    def __str__(self) -> str:
        return f"… {self.count} layers alike …" if self.alike else f"… {self.count} layers …"


def fold(
    layers: Sequence[Layer], keep: set[int], metrics: Sequence[tuple[str, bool]], most: int
) -> list[Layer | Folded]:
    """At most about ``most`` rows: shown layers, and a `Folded` for each run left out.

    keep: layer numbers that are always shown, as the first and the last are. metrics: (column, log) to look at.
    """
    if len(layers) <= most:
        return list(layers)
    curves = [curve for column, log in metrics if (curve := _curve(layers, column, log)) is not None]
    last = len(layers) - 1
    shown = {0, last} | {i for i, at in enumerate(layers) if at.layer in keep}
    while (turn := _farthest(curves, sorted(shown)))[1] > ALIKE and len(_rows(shown | {turn[0]})) <= most:
        shown.add(turn[0])
    return [
        layers[run]
        if isinstance(run, int)
        else Folded(len(run), _farthest(curves, [run[0] - 1, run[-1] + 1])[1] <= ALIKE)
        for run in _rows(shown)
    ]


def _rows(shown: set[int]) -> list[int | range]:
    """Shown places and the runs between them; a run of one is shown, since its fold would take the same line."""
    rows: list[int | range] = []
    places = sorted(shown)
    for i, place in enumerate(places):
        gap = range(places[i - 1] + 1, place) if i else range(0)
        rows += [gap] if len(gap) > 1 else gap
        rows.append(place)
    return rows


def _farthest(curves: Sequence[Sequence[float]], places: Sequence[int]) -> tuple[int, float]:
    """The place between the given ones whose numbers are farthest from the straight lines, and how far."""
    worst, distance = -1, 0.0
    for left, right in pairwise(places):
        for i in range(left + 1, right):
            t = (i - left) / (right - left)
            off = max((abs(c[i] - (1 - t) * c[left] - t * c[right]) for c in curves), default=0.0)
            if off > distance:
                worst, distance = i, off
    return worst, distance


def _curve(layers: Sequence[Layer], column: str, log: bool) -> list[float] | None:
    """The column scaled to [0, 1]; gaps take the number before; what is not finite is far away. None if empty."""
    raw = [at.values.get(column) for at in layers]
    seen = [v for v in raw if v is not None and math.isfinite(v) and (v > 0 or not log)]
    if not seen:
        return None
    scaled = math.log if log else float
    low, high = scaled(min(seen)), scaled(max(seen))
    width = max(high - low, math.log(10) if log else 1e-12)  # within a decade, a wobble is not a turn
    curve, before = [], (scaled(seen[0]) - low) / width
    for v in raw:
        if v is not None:
            fits = math.isfinite(v) and (v > 0 or not log)
            before = (scaled(v) - low) / width if fits else 2.0
        curve.append(before)
    return curve
