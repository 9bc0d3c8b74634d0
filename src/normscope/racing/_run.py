"""One run of a race: training with stops for measurements, its state on disk, its rows in a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from normscope.core.favourites import RACED
from normscope.core.records import Profile
from normscope.probing.passes import probe
from normscope.training import Recipe, Samples, Training, evaluate

if TYPE_CHECKING:
    import polars

COLUMNS = ("variant", "seed", "step", "epoch", "signal", "metric", "layer", "name", "value")


class Row(NamedTuple):
    """One number. ``step``: updates done when it was measured. ``layer`` is ``None`` where it is the whole net's."""

    step: int
    signal: str
    metric: str
    value: float
    layer: int | None = None
    name: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Tests:
    """What is measured beside the training: when, and on which samples (``None``: not)."""

    train: Samples
    test: Samples | None
    probed: Samples
    geometry: frozenset[int]
    every: int  # steps an epoch

    def due(self, steps: int) -> list[int]:
        """The steps at which a run stops to be measured, the last one included."""
        return sorted({0, steps, *range(0, steps + 1, self.every), *self.geometry})

    def look(self, model: nn.Module, recipe: Recipe) -> Profile:
        """The layers of the model on the probed samples, in training mode; the model is untouched."""
        probed = self.probed
        return probe(model, probed.inputs, probed.targets, recipe.loss, metrics=RACED, mode="train", backward=True)


def geometry_steps(steps: int, count: int) -> frozenset[int]:
    """Step 0 and ``count - 1`` steps evenly spaced on a log axis up to the last: most happens early."""
    if count == 0:
        return frozenset()
    return frozenset({0, *np.geomspace(1, steps, max(count - 1, 1)).round().astype(int).tolist()})


@dataclass
class Run:
    """A `Training` and what was measured on the way. ``handled``: the last measured step."""

    training: Training
    tests: Tests
    rows: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"training": 0.0, "evaluation": 0.0, "geometry": 0.0})
    handled: int = -1

    def go(self, pause: Callable[[], bool], save: Callable[[], bool]) -> bool:
        """Train to the end; whether it got there.

        ``pause`` is asked after each step whether to ``save`` there, which answers whether to stop for good.
        """
        training = self.training
        for at in self.tests.due(training.steps):
            if at <= self.handled:
                continue
            while training.step < at and training.diverged is None:
                start = time.perf_counter()
                training.advance(at, pause)
                self.seconds["training"] += time.perf_counter() - start
                if training.step < at and training.diverged is None and save():
                    return False
            if training.diverged is not None:
                break
            self._measure(at)
            self.handled = at
        return True

    def _measure(self, step: int) -> None:
        training, tests = self.training, self.tests
        start = time.perf_counter()
        if step % tests.every == 0 or step == training.steps:
            for split, samples in (("train", tests.train), ("test", tests.test)):
                if samples is not None:
                    found = evaluate(training.model, samples, training.recipe)
                    self.rows += [Row(step, split, metric, value) for metric, value in found.items()]
        middle = time.perf_counter()
        if step in tests.geometry:
            self.rows += [
                Row(step, r.signal, r.metric, r.value, r.layer, r.name)
                for r in tests.look(training.model, training.recipe).records
                if r.call == 0 and r.metric in RACED
            ]
        self.seconds["evaluation"] += middle - start
        self.seconds["geometry"] += time.perf_counter() - middle

    def state(self) -> dict[str, Any]:
        """All there is to resume from."""
        rows = [tuple(row) for row in self.rows]
        return {
            "training": self.training.state_dict(), "rows": rows, "seconds": dict(self.seconds),
            "handled": self.handled,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.training.load_state_dict(state["training"])
        self.rows = [Row(*row) for row in state["rows"]]
        self.seconds, self.handled = dict(state["seconds"]), state["handled"]

    def numbers(self) -> list[Row]:
        """All numbers of the finished run."""
        training = self.training
        steps = max(len(training.losses), 1)
        rows = [
            *(Row(step, "batch", "loss", value) for step, value in enumerate(training.losses)),
            *self.rows,
            Row(0, "run", "lr", training.recipe.lr),
            Row(steps, "run", "seconds_per_step", self.seconds["training"] / steps),
            *(Row(steps, "run", f"seconds_{what}", value) for what, value in self.seconds.items()),
        ]
        if training.diverged is not None:
            rows.append(Row(training.diverged, "run", "diverged", training.losses[-1]))
        return rows


def table(variant: str, seed: int, rows: Sequence[Row] | polars.DataFrame, every: int) -> polars.DataFrame:
    """Rows with their run's coordinates; ``epoch`` is a fraction. every: steps an epoch."""
    import polars as pl

    types = {"step": pl.Int64, "signal": pl.String, "metric": pl.String, "layer": pl.Int64, "name": pl.String,
             "value": pl.Float64}  # fmt: skip
    if not isinstance(rows, pl.DataFrame):
        rows = pl.DataFrame({k: [getattr(row, k) for row in rows] for k in types}, schema=types)
    more = [
        pl.lit(variant).alias("variant"), pl.lit(seed, pl.Int64).alias("seed"),
        (pl.col("step") / every).alias("epoch"),
    ]  # fmt: skip
    return rows.with_columns(more).select(COLUMNS)


def on(samples: Samples, count: int) -> Samples:
    """``count`` of the samples (all, if there are fewer): the same for every variant and seed."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[:count].sort().values
    return samples.take(order.to(samples.device))
