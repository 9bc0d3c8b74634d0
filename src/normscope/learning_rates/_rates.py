"""The largest learning rate that trains over the next steps, and the best one, each with an interval."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from normscope.call.batches import pull, read_batch
from normscope.call.losses import LossLike
from normscope.call.step import Step
from normscope.call.traceless import alone
from normscope.core.errors import whole_number
from normscope.core.faces import Shown
from normscope.learning_rates._trials import Run, Trials
from normscope.training.short import ShortRuns

#: Rates are searched within these. The bracket is bisected to the first ratio, and to the second if the budget allows.
LEAST, MOST = 1e-9, 1e6
COARSE, FINE = 1.2, 1.08
#: What a first rate that trains is multiplied by until one does not: a run that trains is dear, one that rises cheap.
UP = 8
#: Below the bracket, rates are tried at most this far apart, this far down at a time, until so many ran calmly.
APART, DOWN, CALM_RUNS = 1.15, 1.4, 2
#: The largest rate that is told, of the largest that was seen to train: between two that were tried a gap is not seen,
#: and a rate that is too large costs more than one that is too small (chosen on nets that are not reported on).
MARGIN = 0.94
#: What the bracket is widened by below, where a gap may have been missed, and above (chosen by us).
BELOW, ABOVE = 1.25, 1.05
#: Losses that are averaged at the end of a long run, and how often its loss may be that at the start on the way (chosen
#: by us: on one batch a deep net may come back from a thousandfold, on fresh ones it does not).
END, FAR = 10, 100
#: A rate is as good as the best where its loss has fallen by this share of the best one's fall.
AS_GOOD = 0.9


#: The optimizers that are tried where none is given.
KINDS = ("sgd", "momentum", "adam")


@dataclass(frozen=True)
class Rates(Shown):
    r"""What short runs of one optimizer said of its learning rate. Print it, or read the fields.

    largest: the largest rate that trains, see `rates`, less a margin of 6 %; ``largest_interval`` (lower, upper): it
    lies between, the upper end ``inf`` where nothing that was tried makes the loss rise. NaN where no rate trains.
    best: the rate with the least loss at the end of as many steps, ``largest`` where it is above that; with a horizon
    after that many. ``best_interval``: those that were as good.
    start, noise: the mean loss of the batches at the start, and by how much one may rise.
    runs: (rate, losses, stayed) of all that was tried, in order; ends: (rate, loss) after ``horizon`` steps. cost:
    forward and backward passes; a forward pass alone counts a third. reason: why there is no rate, or what is not
    known; "" where all is. own: the rate of the optimizer that was given, the largest of its groups; stability: where
    linearised full-batch descent turns unstable, 2 / lambda_max for SGD. Both NaN where they are not known.
    """

    face = "rates"
    optimizer: str
    largest: float
    largest_interval: tuple[float, float]
    best: float
    best_interval: tuple[float, float]
    steps: int
    start: float
    noise: float
    cost: int
    seconds: float
    reason: str = ""
    runs: tuple[Run, ...] = field(default=(), repr=False)
    own: float = math.nan
    stability: float = math.nan
    horizon: int = 0
    ends: tuple[tuple[float, float], ...] = field(default=(), repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, strings and lists."""
        return asdict(self)

    def __str__(self) -> str:
        if math.isnan(self.largest):
            return f"{self.optimizer}: no rate, {self.reason}"
        low, high = self.largest_interval
        best = f"best {self.best:.3g} ({self.best_interval[0]:.3g} to {self.best_interval[1]:.3g})"
        over, passes = f"over {self.steps} steps", f"{self.cost} passes"
        text = f"{self.optimizer}: largest rate {self.largest:.3g} ({low:.3g} to {high:.3g})"
        text += f" {over}, {best} after {self.horizon}; {passes}" if self.horizon else f", {best} {over}; {passes}"
        return text + (f"; {self.reason}" if self.reason else "")


@alone
def rates(
    model: nn.Module | Step,
    inputs: Any = None,
    targets: Any = None,
    loss: LossLike = None,
    optimizer: Any = None,
    *,
    data: Any = None,
    steps: int = 20,
    budget: int = 200,
    horizon: int | None = None,
    mode: str | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> Rates:
    r"""The largest learning rate that trains from where the model is, and the best one, by short runs on copies.

    A rate *trains* where, over the next ``steps`` updates and after the last, the loss never rises above its start by
    more than its noise. Of one batch that is its loss, with no noise. Of the fresh batches of ``data`` (and of one
    batch where the model draws random numbers) it is the mean of the last five, each held against the same batch at
    the start; the noise is two standard deviations of the losses at the start. The *largest* such rate is the upper
    end of the lowest window: every smaller one trains too, as far as they were tried. Higher ones may train again,
    which is not looked for. The *best* is the one with the least loss at the end among those that train.

    Measured, not predicted: a first guess is halved, or multiplied by eight, and the bracket bisected until it is 20 %
    wide. Below it rates are tried until two run calmly, without a rise on the way, since a smaller rate may rise where
    a larger does not; a gap that lies between two that were tried is not seen. 2 / lambda_max of `sharpness` is another
    thing: where *linearised full-batch* descent turns unstable.

    optimizer: "sgd" (the default), "momentum" and "nesterov" (.9), "adam", "adamw", or a ``torch.optim`` instance,
        whose settings, groups and state count (rates of its groups keep their ratios).
    budget: forward and backward passes at most (a run that rises ends early).
    horizon: after how many steps the best rate is to be the best, by whole runs at rates a factor 1.4 apart (about nine
        of them, beside the budget; with ``data`` each with the batches in two orders): the best of 20 steps is seldom
        that of 200.
    model, inputs, targets, loss, data, mode, samples, seed: as in `diagnose`. Nothing is left behind.
    Raises ``UsageError`` for an unknown optimizer, a loss without targets, steps < 2 or a budget below three runs.
    """
    begun = time.perf_counter()
    whole_number("steps", steps, 2, "The usual number is 20.")
    whole_number("budget", budget, 3 * steps, "It is in forward and backward passes; the usual number is 200.")
    if not isinstance(model, Step):
        mode = "train" if mode is None else mode
    if horizon is not None:
        whole_number("horizon", horizon, steps, f"It is in updates, at least the {steps} over which a rate trains.")
    own = None if isinstance(optimizer, str) else optimizer
    at = Step.of(model, inputs, targets, loss, mode=mode, seed=seed, samples=samples, data=data, optimizer=own)
    name = optimizer if isinstance(optimizer, str) else "sgd" if at.optimizer is None else type(at.optimizer).__name__
    given = [] if at.data is None else pull(at.data, max(steps + 1, horizon or 0))
    batches = [(b, None) if at.step is not None else read_batch(b) for b in given]
    trials = Trials(at, ShortRuns(at, batches), name, steps)
    found = tried(trials, budget, begun)
    if horizon is None or math.isnan(found.best):
        return found
    backwards = [Trials(at, ShortRuns(at, batches[::-1]), name, steps)] if len(batches) > 1 else []
    return _farther(found, [trials, *backwards], horizon, begun)


def tried(trials: Trials, budget: int, begun: float) -> Rates:
    """What the search of `rates` says of trials that have not begun; ``begun``: when, by ``perf_counter``."""
    reason = search(trials, budget, _next)
    return _told(trials, reason, time.perf_counter() - begun)


def _farther(found: Rates, orders: list[Trials], horizon: int, begun: float) -> Rates:
    """The best rate after ``horizon`` steps: rates a factor 4 apart around that of a few steps, on until the best has
    neighbours on both sides, then those halfway, and halfway again. Where there are several orders of the batches, by
    the mean of them: at a rate near the edge one may be well and the other not."""
    ends: dict[int, float] = {}

    def rate(k: int) -> float:
        return float(found.best * 2 ** (k / 2))

    def end(k: int) -> float:
        if k not in ends:
            ends[k] = sum(whole(trials, rate(k)) for trials in orders) / len(orders)
        return ends[k]

    def whole(trials: Trials, rate: float) -> float:
        course = trials.course(rate, horizon, until=lambda losses: not losses[-1] <= FAR * abs(found.start))
        trials.cost += len(course.losses)
        return course.end(END / horizon) if len(course.losses) == horizon else math.inf

    def worth(k: int) -> tuple[float, int]:
        """What the best has least of; of two that blow up the lower is nearer to one that does not."""
        return end(k), k if math.isinf(end(k)) else 0

    best = min((0, -4, 4), key=worth)
    for apart in (4, 2, 1):
        while LEAST < rate(k := min((best - apart, best + apart), key=worth)) < MOST and worth(k) < worth(best):
            best = k
    cost, seconds = math.ceil(sum(trials.cost for trials in orders)), time.perf_counter() - begun
    if math.isinf(end(best)):
        reason = f"within {horizon} steps the loss blows up at every rate down to {rate(best):.1e}"
        return replace(
            found, best=math.nan, best_interval=(math.nan, math.nan), reason=reason, cost=cost, seconds=seconds
        )
    enough = max(found.start - AS_GOOD * (found.start - end(best)), end(best))
    good = [rate(k) for k in ends if end(k) <= enough]
    return replace(
        found, best=rate(best), best_interval=(min(good), max(good)), horizon=horizon,
        ends=tuple(sorted((rate(k), x) for k, x in ends.items())), cost=cost, seconds=seconds,
    )  # fmt: skip


def of_kinds(at: Step) -> list[Rates]:
    """The rates of a step's own optimizer; where it has none those of ``KINDS``."""
    return [rates(at, optimizer=name) for name in (KINDS if at.optimizer is None else (None,))]


def search(trials: Trials, budget: int, following: Callable[[Trials], float | None]) -> str:
    """Run at one rate after another; returns what stands in the way, or "" where the bracket is narrow."""
    if not any(p.requires_grad for p in trials.at.root.parameters()):
        return "no parameter takes a gradient"
    trials.begin()
    if not all(math.isfinite(x) for x in trials.starts):
        return f"the loss is {trials.start} at the start"
    first = trials.guess()
    if not 0 < first < math.inf:
        return "the gradient is zero, or no number"
    rate: float | None = min(max(first, 2 * LEAST), MOST / 2)
    while rate is not None and trials.cost + trials.steps + 1 / 3 <= budget:
        trials.stays(rate)
        rate = following(trials)
    low, high = trials.bracket
    ended = "" if rate is None else ", where the budget ended"
    if low == 0:
        return f"the loss rises at every rate down to {high:.1e}{ended}"
    if math.isinf(high):
        return f"no rate that was tried, up to {low:.1e}, makes the loss rise" + ended
    return "" if high <= low * COARSE * 1.001 else "the budget ended before the bracket was narrow"


def narrowed(trials: Trials) -> float | None:
    """The rate to try next for a bracket of `COARSE`; ``None``: it has it, or there is none."""
    low, high = trials.bracket
    if low == 0 or math.isinf(high):
        rate = high / 2 if low == 0 else low * UP
        return rate if LEAST < rate < MOST else None
    return math.sqrt(low * high) if high > low * COARSE else None


def _next(trials: Trials) -> float | None:
    """The rate to try next; ``None``: no more."""
    low, high = trials.bracket
    if not 0 < high <= low * COARSE:
        return narrowed(trials)
    good, best = sorted(trials.ends(low), reverse=True), trials.best(low)
    if good[-1] > best / 2 and best > 3 * LEAST:
        return best / 3
    calm = 0
    for rate, below in zip(good, [*good[1:], 0.0], strict=True):
        calm += trials.calm(rate)
        if calm == CALM_RUNS:
            break  # what is slower is calmer still
        if rate > below * APART:  # one between them may rise, and would end the window
            return max(math.sqrt(rate * below), rate / DOWN)
    for rate in (best / 1.7, best * 1.7):
        if rate < low and not any(rate / 1.3 < x < rate * 1.3 for x in good):
            return rate
    return math.sqrt(low * high) if high > low * FINE else None


def _told(trials: Trials, reason: str, seconds: float) -> Rates:
    """What the runs say, where there is a rate at all."""
    low, high = trials.bracket if trials.runs else (0.0, 0.0)
    best, largest, interval, near = math.nan, math.nan, (math.nan, math.nan), (math.nan, math.nan)
    if low > 0:
        largest, interval = MARGIN * low, (low / BELOW, high * ABOVE)
        ends = trials.ends(low)
        least = min(ends.values())
        best = min(trials.best(low), largest)
        enough = trials.last_start - AS_GOOD * (trials.last_start - least)
        good = [rate for rate, end in ends.items() if end <= max(enough, least)]
        near = min(best, *good), max(good)
        if not reason and least >= trials.last_start - 1e-6 * abs(trials.last_start):
            reason = "the loss hardly falls at any rate"
    return Rates(
        trials.name, largest, interval, best, near, trials.steps, trials.start, trials.noise, math.ceil(trials.cost),
        seconds, reason, tuple(trials.runs), trials.base,
    )  # fmt: skip
