"""Statistics that wait for others of their kind, to be measured together, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from normscope.geometry.metric import Metric, evaluate
from normscope.geometry.statistic import Statistic

#: Bytes of one group while it is reduced (16 at n = 128; chosen by us: what a call costs is small beside it).
GROUP = 2**23
#: Bytes of all that waits.
WAITING = 2**25
#: Bytes of the largest block that malloc is to keep (below its own limit of 2^25).
KEPT = 2**24
#: Called with metric -> value of the statistic that was handed in.
Done = Callable[[dict[str, float]], object]


class Pool:
    """Takes statistics as they come and gives their metrics back, at the latest in `flush`; then it holds none."""

    def __init__(self) -> None:
        # Never touched, and freed at once: from then on glibc's malloc keeps what is freed up to this size for the next
        # block, instead of giving each back and having its pages zeroed anew, a third of a probe of small layers.
        torch.empty(KEPT, dtype=torch.uint8)
        self._waiting: dict[tuple[Hashable, tuple[Metric, ...]], list[tuple[Statistic, Done]]] = {}

    def add(self, statistic: Statistic, metrics: tuple[Metric, ...], done: Done) -> None:
        """Measure a statistic, now or later. NaN for what is not finite."""
        if not metrics:
            return
        key = statistic.kind, metrics
        if (here := self._waiting.get(key)) is None:
            here = self._waiting[key] = [(statistic, done)]  # at once: an interrupt must not leave an empty list
        else:
            here.append((statistic, done))
        if (len(here) + 1) * _footprint(statistic) > GROUP:
            self._measure(key)
        elif sum(len(w) * _footprint(w[0][0]) for w in self._waiting.values()) > WAITING:
            self.flush()

    def flush(self) -> None:
        """Measure all that waits."""
        for key in list(self._waiting):
            self._measure(key)

    def _measure(self, key: tuple[Hashable, tuple[Metric, ...]]) -> None:
        members, done = zip(
            *self._waiting.pop(key), strict=True
        )  # before anything can fail: what fails is not tried again
        for tell, values in zip(done, evaluate(members, key[1], finite=True), strict=True):
            tell(values)


def _footprint(s: Statistic) -> int:
    """Bytes that one statistic of a group takes while it is reduced: its factor and its Gram in float64."""
    n, k = s.samples, 0 if s.factor is None else s.factor.shape[-1]
    return 8 * n * (k if s.tall else n + k)
