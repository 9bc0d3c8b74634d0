"""What a race's curves are worth: means over seeds with intervals, and paired tests against the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import polars

#: Coverage of the intervals, and level of the tests after Holm's correction.
CONFIDENCE = 0.95
#: Share of the steps whose batch losses are averaged into the final training loss, and their least number.
END, LEAST = 0.05, 10
#: Batch losses in the trailing mean that must reach the target loss.
TRAILING = 10


@dataclass(frozen=True)
class Line:
    """One variant in the final table: means over the seeds that did not diverge, halves of their 95 % t-intervals.

    train_loss: mean batch loss (training mode) of the last 5 % of the steps, at least 10. test_accuracy, test_loss: at
    the end, eval mode. steps_to_target: median over seeds of the first step whose trailing mean of 10 batch losses is
    at most the target; ``None`` where most seeds never reach it. p_loss, p_accuracy: against the baseline, paired by
    seed, Holm-corrected over the variants. NaN: cannot be told.
    """

    variant: str
    lr: float
    seeds: int
    diverged: int
    train_loss: float
    train_loss_half: float
    test_loss: float
    test_accuracy: float
    test_accuracy_half: float
    steps_to_target: float | None
    steps_to_divergence: float | None
    p_loss: float
    p_accuracy: float
    verdict: str
    seconds_per_step: float

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Seeds:
    """One variant's numbers by seed; NaN in those of runs that diverged."""

    losses: dict[int, float]
    accuracies: dict[int, float]
    test_losses: dict[int, float]
    reached: dict[int, float]
    diverged: dict[int, int]
    seconds: dict[int, float]
    lr: float


def summarise(table: polars.DataFrame, variants: Sequence[str], baseline: str, target: float | None) -> list[Line]:
    """The final table, in the order of the variants."""
    found = {v: _by_seed(table, v, target) for v in variants}
    p_loss = holm({v: _paired(s.losses, found[baseline].losses) for v, s in found.items() if v != baseline})
    p_right = holm(
        {v: _paired(s.accuracies, found[baseline].accuracies, sign=-1) for v, s in found.items() if v != baseline}
    )
    lines = []
    for v, s in found.items():
        loss, loss_half = interval(s.losses.values())
        right, right_half = interval(s.accuracies.values())
        reached = float(np.median(list(s.reached.values()))) if s.reached else math.inf
        lines.append(
            Line(
                v, s.lr, len(s.losses), len(s.diverged), loss, loss_half, interval(s.test_losses.values())[0],
                right, right_half, reached if math.isfinite(reached) else None,
                float(np.median(list(s.diverged.values()))) if s.diverged else None,
                p_loss.get(v, math.nan), p_right.get(v, math.nan),
                _verdict(s, found[baseline], p_loss.get(v, math.nan)) if v != baseline else "baseline",
                interval(s.seconds.values())[0],
            )
        )  # fmt: skip
    return lines


def default_target(table: polars.DataFrame, variants: Sequence[str]) -> float | None:
    """Half way down, on a log axis, from the lowest first loss to the lowest final one; ``None`` if nothing went down.

    First and final losses are means over seeds; a loss that may be negative is halved on a linear axis.
    """
    firsts, ends = [], []
    for v in variants:
        firsts.append(interval([x[0] for x in _batch_losses(table, v).values()])[0])
        ends.append(interval(_by_seed(table, v, None).losses.values())[0])
    firsts, ends = [x for x in firsts if math.isfinite(x)], [x for x in ends if math.isfinite(x)]
    if not firsts or not ends or min(ends) >= min(firsts):
        return None
    first, end = min(firsts), min(ends)
    return math.sqrt(first * end) if end > 0 else (first + end) / 2


def interval(values: Any) -> tuple[float, float]:
    """Mean and half of the 95 % t-interval of the finite values; NaN where there are too few."""
    from scipy import stats

    x = np.array([v for v in values if math.isfinite(v)])
    if not len(x):
        return math.nan, math.nan
    if len(x) == 1:
        return float(x[0]), math.nan
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return float(x.mean()), float(half)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction of the p-values that are numbers; NaN stay NaN and count as no test."""
    ordered = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    corrected = dict.fromkeys(p, math.nan)
    worst = 0.0
    for i, (value, name) in enumerate(ordered):
        worst = max(worst, min(1.0, (len(ordered) - i) * value))
        corrected[name] = worst
    return corrected


def _paired(values: Mapping[int, float], base: Mapping[int, float], sign: int = 1) -> float:
    """Two-sided p of the differences seed by seed; NaN with fewer than three seeds.

    Paired t-test where all runs ended. Where some diverged: the exact sign test, a diverged run (NaN) being worse than
    any that ended and two diverged ones a tie (ties are left out). ``sign`` -1: larger is better.
    """
    from scipy import stats

    seeds = sorted(values.keys() & base.keys())
    if len(seeds) < 3:
        return math.nan
    a, b = (np.array([sign * x[s] for s in seeds]) for x in (values, base))
    if np.isfinite(a).all() and np.isfinite(b).all() and (a - b).std(ddof=1) > 0:
        return float(stats.ttest_rel(a, b).pvalue)
    if not np.isfinite([*a, *b]).any():
        return math.nan
    a, b = (np.nan_to_num(x, nan=math.inf, posinf=math.inf) for x in (a, b))
    better, worse = int((a < b).sum()), int((a > b).sum())
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def _verdict(s: _Seeds, base: _Seeds, p: float) -> str:
    """In words, by the final training loss."""
    if len(s.diverged) == len(s.losses):
        return "diverged"
    if len(s.losses.keys() & base.losses.keys()) < 3:
        return "too few seeds to tell"
    if not p < 1 - CONFIDENCE:
        return "no difference seen"
    ours, theirs = (interval(x.losses.values())[0] for x in (s, base))
    return "better" if not theirs <= ours else "worse"


def _batch_losses(table: polars.DataFrame, variant: str) -> dict[int, np.ndarray]:
    import polars as pl

    chosen = table.filter((pl.col("variant") == variant) & (pl.col("signal") == "batch")).sort("seed", "step")
    return {int(seed): part["value"].to_numpy() for (seed,), part in chosen.group_by("seed", maintain_order=True)}


def _by_seed(table: polars.DataFrame, variant: str, target: float | None) -> _Seeds:
    import polars as pl

    mine = table.filter(pl.col("variant") == variant)

    def numbers(signal: str, metric: str) -> dict[int, float]:
        part = mine.filter((pl.col("signal") == signal) & (pl.col("metric") == metric)).sort("step")
        return dict(part.group_by("seed").agg(pl.col("value").last()).iter_rows())

    steps = mine.filter(pl.col("metric") == "diverged")
    diverged = dict(zip(steps["seed"].to_list(), steps["step"].to_list(), strict=True))
    losses = _batch_losses(table, variant)
    rates = numbers("run", "lr")
    ended = [seed for seed in losses if seed not in diverged]

    def unless_diverged(values: Mapping[int, float]) -> dict[int, float]:
        return {seed: values.get(seed, math.nan) if seed in ended else math.nan for seed in losses} if values else {}

    ends = {seed: float(x[-max(LEAST, round(END * len(x))) :].mean()) for seed, x in losses.items() if len(x)}
    return _Seeds(
        losses=unless_diverged(ends),
        accuracies=unless_diverged(numbers("test", "accuracy")),
        test_losses=unless_diverged(numbers("test", "loss")),
        reached={} if target is None else {seed: _reached(x, target) for seed, x in losses.items()},
        diverged=diverged,
        seconds=numbers("run", "seconds_per_step"),
        lr=next(iter(rates.values()), math.nan),
    )


def _reached(losses: np.ndarray, target: float) -> float:
    """First step (from 1) whose trailing mean is at most ``target``; infinite if there is none."""
    width = min(TRAILING, len(losses))
    if not width:
        return math.inf
    means = np.convolve(losses, np.full(width, 1 / width), mode="valid")
    hits = np.flatnonzero(means <= target)
    return float(hits[0] + width) if len(hits) else math.inf
