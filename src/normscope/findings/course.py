"""A training as the rules read it: series over its steps, of the whole and of each layer; and whether it has learnt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from normscope.probing.runs import Run
from normscope.probing.scalars import RUN

#: Measured steps, and steps between the first and the last of them, below which only what is not finite, or moves far
#: too far, is judged (chosen by us: a warm-up, or the first steps of Adam, look like anything).
MEASURED, SPAN = 8, 40
#: Losses below which a curve is not judged, and values of it that are compared with as many others.
LOSSES, FEW = 10, 3
#: Falls of the loss, over its size at the start (chosen by us: what learns the classes' frequencies alone gains less
#: than a quarter; noise moves a median by less than 2 %).
LEARNT, STILL = 0.25, 0.02
#: The same of the gradient at the outputs, where no loss is known: it is the size of the error for cross-entropy and
#: squared error (chosen by us).
GRADIENT_LEARNT, GRADIENT_STILL = 0.7, 0.95


class Missing(Exception):
    """A rule has nothing to look at; the text says what it would take."""


@dataclass(frozen=True)
class Series:
    """Values over steps, of the training as a whole, or of a layer (``layer``, ``name``, ``kind``)."""

    steps: np.ndarray
    values: np.ndarray
    layer: int | None = None
    name: str = ""
    kind: str = ""

    @cached_property
    def finite(self) -> Series:
        """Its finite values."""
        good = np.isfinite(self.values)
        return self if good.all() else Series(self.steps[good], self.values[good], self.layer, self.name, self.kind)

    @property
    def edge(self) -> int:
        """How many values at its start, or at its end, are taken together: a fifth, three at least."""
        return max(FEW, len(self.values) // 5)

    @property
    def head(self) -> float:
        """The median of its start."""
        return _median(self.values[: self.edge])

    @property
    def start(self) -> float:
        """Where a loss starts: the median of its start, or its first value where it blows up at once."""
        first = float(self.values[0])
        return first if self.head > first + abs(first) else self.head

    @property
    def tail(self) -> float:
        """The median of its end."""
        return _median(self.values[-self.edge :])

    @property
    def noise(self) -> float:
        """How far the difference of the medians of two edges strays, two standard errors: by second differences, which
        know no trend (of independent values of variance 1 they have variance 6).
        """
        if len(self.values) < 3:
            return 0.0
        spread = 1.4826 * _median(np.abs(np.diff(self.values, n=2))) / math.sqrt(6)
        return 2 * 1.25 * spread * math.sqrt(2 / self.edge)

    def since(self, bad: np.ndarray) -> int:
        """The step from which on all is ``bad``; the last one if that is the only such."""
        good = np.flatnonzero(~bad)
        return int(self.steps[min(good[-1] + 1 if len(good) else 0, len(self.steps) - 1)])

    def first(self, bad: np.ndarray) -> int:
        """The first step that is ``bad``."""
        return int(self.steps[np.flatnonzero(bad)[0]])


class Course:
    """A run as series. ``unit``: what its steps are."""

    def __init__(self, run: Run) -> None:
        self.run, self.unit = run, run.unit
        self._series: dict[tuple[str, str], dict[int | None, Series]] = {}

    def layers(self, metric: str, signal: str = "activation", *, least: int = MEASURED) -> list[Series]:
        """One metric of every layer, finite or not, in the order of the forward pass. Raises `Missing`."""
        found = [s for layer, s in self.of(signal, metric).items() if layer is not None]
        if not found:
            raise Missing(f"{WORDS.get((signal, metric), metric)} of the layers (a Tracker measures it)")
        steps = max(len(s.values) for s in found)
        span = max(int(s.steps[-1] - s.steps[0]) for s in found)
        if steps < least or (least >= MEASURED and span < SPAN):
            raise Missing(f"{least} measured steps over {SPAN} steps at least (there are {steps} over {span})")
        return found

    def hidden(self, metric: str, signal: str = "activation") -> list[Series]:
        """The same without the layer that ran last: the outputs."""
        found = self.layers(metric, signal)
        last = max(s.layer or 0 for s in found)
        return [s for s in found if s.layer != last] if len(found) > 1 else found

    def scalar(self, metric: str, least: int = LOSSES) -> Series:
        """A number of the whole training, finite values only. Raises `Missing`."""
        known = self.of(RUN, metric)
        if None not in known:
            raise Missing(f"{WORDS[RUN, metric]} over the steps")
        found = known[None].finite
        if len(found.values) < least:
            raise Missing(f"{least} values of {WORDS[RUN, metric]} at least (there are {len(found.values)})")
        return found

    def gradient(self) -> Series:
        """The norm of the gradient of all weights; finite values only. Raises `Missing`."""
        try:
            parts = self.layers("gradient_norm", "weight")
        except Missing:
            return self.scalar("grad_norm")
        sums: dict[int, float] = {}
        for part in parts:
            for step, value in zip(part.steps.tolist(), part.values.tolist(), strict=True):
                sums[step] = math.hypot(sums.get(step, 0.0), value)
        return Series(np.array(list(sums)), np.array(list(sums.values()))).finite

    @cached_property
    def learnt(self) -> bool | None:
        """Whether it has: the loss fell by a quarter (True), or by no more than its noise (False); else by the gradient
        at the outputs; ``None`` where that cannot be told.
        """
        try:
            loss = self.scalar("loss")
        except Missing:
            return self._learnt_by_gradient()
        if self.unit == "step" and loss.steps[-1] - loss.steps[0] < SPAN:
            return None
        gain, size = loss.start - loss.tail, abs(loss.start) or 1.0
        if not np.isfinite(self.of(RUN, "loss")[None].values[-1]):
            return False
        if gain >= LEARNT * size and gain > loss.noise:
            return True
        return False if self.still(loss) else None

    def still(self, loss: Series) -> bool:
        """Whether a loss fell by no more than 2 % or its noise."""
        return loss.start - loss.tail <= max(STILL * (abs(loss.start) or 1.0), loss.noise)

    def _learnt_by_gradient(self) -> bool | None:
        try:
            found = self.layers("gradient_norm", "gradient")
        except Missing:
            return None
        outputs = max(found, key=lambda s: s.layer or 0).finite
        if len(outputs.values) < MEASURED or not outputs.head:
            return None
        ratio = outputs.tail / outputs.head
        return True if ratio < GRADIENT_LEARNT else False if ratio > GRADIENT_STILL else None

    def severity(self, still: str = "warning", unclear: str = "warning", learnt: str = "info") -> str:
        """How grave a symptom is, in the light of whether the net learns."""
        return learnt if self.learnt else unclear if self.learnt is None else still

    @property
    def aside(self) -> str:
        """Words for what the light is."""
        return " (yet the loss falls)" if self.learnt else " and the loss does not fall" if self.learnt is False else ""

    @cached_property
    def depth(self) -> int:
        """How many layers were measured."""
        return self.run.table["layer"].n_unique() - self.run.table["layer"].has_nulls()

    def of(self, signal: str, metric: str) -> dict[int | None, Series]:
        """Layer (``None``: the whole) -> its series, in the order of the forward pass; empty where not measured."""
        if (signal, metric) not in self._series:
            rows = self.run.table.filter(signal=signal, metric=metric, call=0).sort(
                "layer", "step", maintain_order=True
            )
            self._series[signal, metric] = {
                layer: Series(part["step"].to_numpy(), part["value"].to_numpy(), layer, part["name"][-1],
                              part["kind"][-1])
                for layer, part in _parts(rows)
            }  # fmt: skip
        return self._series[signal, metric]


#: How the rules call what they read.
WORDS = {
    (RUN, "loss"): "the loss", (RUN, "val_loss"): "the loss of validation", (RUN, "lr"): "the learning rate",
    (RUN, "grad_norm"): "the gradient norm", ("activation", "participation_rank"): "the participation rank",
    ("activation", "dead_units"): "the share of dead units", ("weight", "gradient_norm"): "the gradients",
    ("weight", "relative_gradient"): "the gradients over the weights", ("weight", "weight_norm"): "the weights' norms",
    ("weight", "relative_update"): "the relative updates",
    ("gradient", "gradient_norm"): "the gradients of the outputs",
}  # fmt: skip


def _parts(rows: Any) -> Iterator[tuple[int | None, Any]]:
    for (layer,), part in rows.group_by("layer", maintain_order=True):
        yield layer, part


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else math.nan


def place(series: Series) -> str:
    """A layer in words."""
    return f"layer {series.layer} ({series.name or series.kind or 'the model'})"
