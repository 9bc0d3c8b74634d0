"""The learning-rate range test: one run whose rate grows at every step, and where its loss falls and blows up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from normscope.call.batches import pull, read_batch
from normscope.call.losses import LossLike
from normscope.call.step import Step
from normscope.call.traceless import alone
from normscope.core.errors import UsageError, finite_number, function_of, whole_number
from normscope.core.faces import Shown
from normscope.learning_rates._trials import Trials
from normscope.training.short import ShortRuns

#: A run ends where its running mean is this many times the least (as fastai ends it); weight of the past in it.
ENDS, SMOOTH = 4.0, 0.9
#: Steps on each side over which the loss that is told is averaged: a running mean would lag, and suggest higher rates.
BESIDE = 3
#: Losses at the ends that are not looked at for the steepest fall (chosen by us: the mean has not settled).
FEWEST = 5


@dataclass(frozen=True)
class RateRange(Shown):
    """What a range test saw. rates, losses: of each step, the loss before the update; smoothed: means of seven.

    suggested: the rate at which the smoothed loss falls fastest, per factor of the rate; least: where it is least.
    diverged: the rate at which the run ended, its loss far above the least; NaN where it did not. ``suggested`` is NaN
    where the loss never fell, and ``reason`` says so.
    """

    face = "range"
    optimizer: str
    suggested: float
    least: float
    diverged: float
    start: float
    seconds: float
    rates: tuple[float, ...] = field(default=(), repr=False)
    losses: tuple[float, ...] = field(default=(), repr=False)
    smoothed: tuple[float, ...] = field(default=(), repr=False)
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, strings and lists."""
        return asdict(self)

    def __str__(self) -> str:
        def number(x: float) -> str:
            return "none" if math.isnan(x) else f"{x:.3g}"

        text = (
            f"{self.optimizer}: falls fastest at {number(self.suggested)}, least at {number(self.least)}, diverged at "
        )
        text += f"{number(self.diverged)}; {len(self.rates)} steps from {self.rates[0]:.3g} to {self.rates[-1]:.3g}"
        return text + (f"; {self.reason}" if self.reason else "")


@alone
def rate_range(
    model: nn.Module | Step,
    inputs: Any = None,
    targets: Any = None,
    loss: LossLike = None,
    optimizer: Any = None,
    *,
    data: Any = None,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    mode: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> RateRange:
    """The learning-rate range test (Smith 2017): one run on copies, the rate growing by one factor from step to step.

    It is quick and known to many, and a rough guide: `rates` tries each rate from the start, and is right far more
    often (``docs/rates.md`` has both measured). A run ends early where its smoothed loss is four times its least.
    optimizer: as in `rates`. low, high, steps: the rates of the first and the last step, and how many. data: its
        batches in turn. progress: called with (steps done, of how many) after each.
    model, inputs, targets, loss, mode, samples, seed: as in `diagnose`. Nothing is left behind.
    Raises ``UsageError`` for an unknown optimizer, a loss without targets, low >= high, or fewer than ten steps.
    """
    begun = time.perf_counter()
    whole_number("steps", steps, 10, "The usual number is 100.", most=100_000)
    finite_number("low", low, least=1e-30, do="It is the rate of the first step; the default is 1e-7.")
    finite_number("high", high, above=low, below=1e10, do="It is the rate of the last step; the default is 10.")
    function_of("progress", progress)
    of = model.data if isinstance(model, Step) and data is None else data
    trials = trials_of(model, inputs, targets, loss, optimizer, of, steps, mode, samples, seed)
    trials.first()
    grid = [low * (high / low) ** (i / (steps - 1)) for i in range(steps)]
    running: list[float] = []

    def until(losses: list[float]) -> bool:
        running.append(SMOOTH * running[-1] + (1 - SMOOTH) * losses[-1] if running else losses[-1])
        if progress is not None:
            progress(len(losses), steps)
        return running[-1] - min(running) > (ENDS - 1) * max(abs(min(running)), 1e-12)

    course = trials.course(low, steps, until=until, rates=grid)
    rates, losses = tuple(grid[: len(course.losses)]), course.losses
    smoothed = [_middle(losses, i) for i in range(len(losses))]
    return _told(trials, rates, losses, tuple(smoothed), course.blown or len(losses) < steps, begun)


def _middle(losses: tuple[float, ...], i: int) -> float:
    """The mean of a loss and as many on both sides, fewer at the ends."""
    beside = min(BESIDE, i, len(losses) - 1 - i)
    near = losses[i - beside : i + beside + 1]
    return sum(near) / len(near)


def trials_of(
    model: Any, inputs: Any, targets: Any, loss: LossLike, optimizer: Any, data: Any, steps: int, mode: str | None,
    samples: int | None, seed: int, first: Any = None,
) -> Trials:  # fmt: skip
    """Trials of a step's optimizer, or of the one that is named, from the arguments of a verb.

    first: data of which only the first batch is taken, again and again."""
    if not isinstance(model, Step):
        mode = "train" if mode is None else mode
    own = None if isinstance(optimizer, str) else optimizer
    at = Step.of(
        model,
        inputs,
        targets,
        loss,
        mode=mode,
        seed=seed,
        samples=samples,
        optimizer=own,
        data=data if first is None else first,
    )
    name = optimizer if isinstance(optimizer, str) else "sgd" if at.optimizer is None else type(at.optimizer).__name__
    given = [] if at.alone or data is None else pull(data, steps + 1)
    batches = [(b, None) if at.step is not None else read_batch(b) for b in given]
    trials = Trials(at, ShortRuns(at, batches), name, steps)
    if not any(p.requires_grad for p in at.root.parameters()):
        raise UsageError("A rate is for parameters that take a gradient; all of this model are frozen. Unfreeze one.")
    return trials


def _told(
    trials: Trials, rates: tuple[float, ...], losses: tuple[float, ...], smoothed: tuple[float, ...], ended: bool,
    begun: float,
) -> RateRange:  # fmt: skip
    """Where the smoothed loss falls fastest, is least, and where the run ended."""
    finite = [x if math.isfinite(x) else math.inf for x in smoothed]
    at = min(range(len(finite)), key=finite.__getitem__)
    places = range(min(FEWEST, at), at)
    suggested, reason = math.nan, "the loss did not fall at any rate"
    falls = {i: finite[i + 1] - finite[i - 1] for i in places if 0 < i < len(finite) - 1}
    if falls and min(falls.values()) < 0 and finite[at] < losses[0] - 1e-6 * abs(losses[0]):
        suggested, reason = rates[min(falls, key=lambda i: falls[i])], ""
    return RateRange(
        trials.name, suggested, rates[at] if not reason else math.nan, rates[-1] if ended else math.nan, losses[0],
        time.perf_counter() - begun, rates, losses, smoothed, reason,
    )  # fmt: skip
