"""Which nets train, how often a forecast is right, and thresholds that are chosen on other kinds than they judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
#: A net trains where it comes this far from chance to the best net of its task.
SHARE = 0.8
#: Within this part of ``SHARE`` of it, or where seeds disagree, a net is neither: it is reported apart.
CLOSE = 0.1
OPTIMIZERS = ("sgd", "adam")


def labels(training: pl.DataFrame, share: float = SHARE) -> pl.DataFrame:
    """A row a net: for each optimizer its ``score`` at the best rate, ``relative``, ``trains`` and ``close``.

    relative = (score - chance) / (best - chance), the mean over seeds; best: of all nets with the same task and the
    same optimizer. A run whose loss became NaN counts as chance, and so does one that is below it.
    """
    out = training.select("net", "kind", "group", "recipe", "seed", "chance")
    for name in OPTIMIZERS:
        runs = [c for c in training.columns if c.startswith(f"{name} ") and c.endswith(" score")]
        score = training.select(pl.max_horizontal(pl.col(runs).fill_nan(None))).to_series()
        out = out.with_columns(score.alias(f"{name} score"))
        reached = pl.max_horizontal(pl.col(f"{name} score"), "chance").fill_null(pl.col("chance"))
        relative = (reached - pl.col("chance")) / (reached.max() - pl.col("chance").min()).over("group")
        relative = relative.fill_nan(0.0)  # a task where nobody is better than chance
        out = out.with_columns(relative.alias(f"{name} relative"))
    each = []
    for name in OPTIMIZERS:
        r = pl.col(f"{name} relative")
        differs = (r >= share).n_unique() > 1
        each += [
            pl.col(f"{name} score").mean(),
            r.mean(),
            (r.mean() >= share).alias(f"{name} trains"),
            (differs | ((r.mean() - share).abs() <= CLOSE * share)).alias(f"{name} close"),
        ]
    keys = ["net", "kind", "group", "recipe"]
    return out.group_by(keys, maintain_order=True).agg(*each, seeds=pl.col("seed").n_unique())


@dataclass(frozen=True)
class Rate:
    """Balanced accuracy, the mean of the shares answered rightly among nets that train and among those that do not.

    low, high: of 95 % of 2000 bootstrap samples of nets. good, bad: the two shares; n: nets.
    """

    value: float
    low: float
    high: float
    good: float
    bad: float
    n: int

    def __str__(self) -> str:
        return "-" if np.isnan(self.value) else f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


def balanced(forecast: Sequence[bool] | Flags, truth: Sequence[bool] | Flags, seed: int = 0) -> Rate:
    """How well ``forecast`` (will train) meets ``truth`` (does train); NaN where there is only one answer."""
    p, t = np.asarray(forecast, bool), np.asarray(truth, bool)

    def shares(p: Flags, t: Flags) -> tuple[NDArray[Any], NDArray[Any]]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (p & t).sum(-1) / t.sum(-1), (~p & ~t).sum(-1) / (~t).sum(-1)

    if not len(t):
        return Rate(np.nan, np.nan, np.nan, np.nan, np.nan, 0)
    pick = np.random.default_rng(seed).integers(len(t), size=(2000, len(t)))
    good, bad = shares(p, t)
    many = np.add(*shares(p[pick], t[pick])) / 2
    many = many[~np.isnan(many)]
    low, high = np.quantile(many, [0.025, 0.975]) if len(many) else (np.nan, np.nan)
    return Rate(float((good + bad) / 2), float(low), float(high), float(good), float(bad), len(t))


def best_threshold(scores: NDArray[Any], truth: Flags) -> tuple[float, bool]:
    """(threshold, whether scores above it train) of the highest balanced accuracy; midway between two scores."""
    order = np.argsort(scores, kind="stable")
    s, t = scores[order], truth[order]
    good, bad = max(t.sum(), 1), max((~t).sum(), 1)
    # After the first k nets: the share of good ones above, and of bad ones below.
    above = 1 - np.concatenate([[0], np.cumsum(t)]) / good
    below = np.concatenate([[0], np.cumsum(~t)]) / bad
    value = (above + below) / 2
    can = np.concatenate([[True], s[1:] > s[:-1], [True]])
    value = np.where(can, value, 0.5)
    k = int(np.argmax(np.abs(value - 0.5)))
    edges = np.concatenate([[-np.inf], (s[1:] + s[:-1]) / 2, [np.inf]])
    return float(edges[k]), bool(value[k] >= 0.5)


def leave_one_kind_out(
    scores: Sequence[float], truth: Sequence[bool], kinds: Sequence[str]
) -> tuple[Flags, list[float]]:
    """Forecasts of every net by the threshold that is best on all other kinds; the thresholds. NaN counts as the
    least.
    """
    s = np.nan_to_num(np.asarray(scores, float), nan=-1e30, posinf=1e30, neginf=-1e30)
    t, k = np.asarray(truth, bool), np.asarray(kinds)
    forecast, used = np.zeros(len(s), bool), []
    for kind in dict.fromkeys(kinds):
        threshold, upward = best_threshold(s[k != kind], t[k != kind])
        forecast[k == kind] = (s[k == kind] > threshold) == upward
        used.append(threshold)
    return forecast, used
