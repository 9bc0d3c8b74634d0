"""A race's table made ready to draw: curves over steps with their range over seeds, layers over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from normscope.report._race_content import RaceContent

#: Points of a curve, and the share of its steps that a point averages over.
POINTS, SMOOTHED = 240, 1 / 60
Rows = list[dict[str, Any]]


def losses(content: RaceContent) -> tuple[Rows, int]:
    """Batch losses: the trailing mean over a window, its mean and range over the seeds still running; the window."""
    steps = int(content.facts["steps"])
    width = max(1, round(SMOOTHED * steps))
    at = np.unique(np.linspace(width - 1, max(steps - 1, width - 1), POINTS).round().astype(int))
    found: Rows = []
    for variant in content.variants:
        curves = []
        for values in _by_seed(content.table, variant, "batch", "loss").values():
            numbers = np.where(np.isfinite(values), values, np.nan)
            if len(numbers) >= width:
                sums = np.concatenate([[0.0], np.cumsum(numbers)])
                means = (sums[width:] - sums[:-width]) / width
                padded = np.full(max(steps, len(numbers)), np.nan)
                padded[width - 1 : width - 1 + len(means)] = means
                curves.append(padded[at])
        found += _band(variant, at + 1, curves)
    return found, width


def scores(content: RaceContent, metric: str) -> Rows:
    """``loss`` or ``accuracy`` in eval mode after each epoch, of the training and the test samples."""
    found: Rows = []
    chosen = content.table.filter(pl.col("signal").is_in(["train", "test"]) & (pl.col("metric") == metric))
    grouped = chosen.group_by("variant", "signal", "step", "epoch", maintain_order=True)
    stats = grouped.agg(mean=pl.col("value").mean(), low=pl.col("value").min(), high=pl.col("value").max())
    for row in stats.sort("step").iter_rows(named=True):
        numbers = {k: _number(row[k]) for k in ("mean", "low", "high")}
        found.append(
            {"variant": row["variant"], "split": row["signal"], "epoch": row["epoch"], "step": row["step"]} | numbers
        )
    return found


def divergences(content: RaceContent) -> Rows:
    """Where runs diverged: variant, seed, step."""
    chosen = content.table.filter(pl.col("metric") == "diverged")
    return [{k: row[k] for k in ("variant", "seed", "step")} for row in chosen.iter_rows(named=True)]


def layers(content: RaceContent, signal: str, metric: str, *, log: bool) -> dict[str, Rows]:
    """variant -> one number a layer and step, mean over seeds (geometric where ``log``)."""
    chosen = content.table.filter(
        (pl.col("signal") == signal) & (pl.col("metric") == metric) & pl.col("layer").is_not_null()
    )
    value = pl.col("value").log() if log else pl.col("value")
    stats = chosen.group_by("variant", "step", "layer").agg(value=value.mean(), name=pl.col("name").first())
    found: dict[str, Rows] = {}
    for row in stats.sort("step", "layer").iter_rows(named=True):
        number = _number(row["value"])
        if log and number is not None:
            number = _number(math.exp(min(number, 700.0)))
        cell = {"step": row["step"], "layer": row["layer"], "module": row["name"] or "input", "value": number}
        found.setdefault(row["variant"], []).append(cell)
    return {v: found[v] for v in content.variants if v in found}


def _by_seed(table: pl.DataFrame, variant: str, signal: str, metric: str) -> dict[int, np.ndarray]:
    chosen = table.filter(
        (pl.col("variant") == variant) & (pl.col("signal") == signal) & (pl.col("metric") == metric)
    ).sort("seed", "step")
    return {int(seed): part["value"].to_numpy() for (seed,), part in chosen.group_by("seed", maintain_order=True)}


def _band(variant: str, steps: np.ndarray, curves: Sequence[np.ndarray]) -> Rows:
    rows = []
    for i, step in enumerate(steps.tolist()):
        numbers = [float(c[i]) for c in curves if math.isfinite(c[i])]
        if numbers:
            mean = sum(numbers) / len(numbers)
            known = {"mean": _number(mean), "low": _number(min(numbers)), "high": _number(max(numbers))}
            rows.append({"variant": variant, "step": step} | known)
    return rows


def _number(value: float | None, digits: int = 5) -> float | None:
    """A number with few digits, ``None`` where it is not finite."""
    return float(f"{value:.{digits}g}") if value is not None and math.isfinite(value) else None
