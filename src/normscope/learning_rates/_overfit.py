"""Overfitting one batch: whether the network, its loss and an optimizer can learn one batch by heart."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from normscope.call.losses import LossLike
from normscope.call.step import Step
from normscope.call.traceless import alone
from normscope.core.errors import finite_number, function_of, whole_number
from normscope.core.faces import Shown
from normscope.learning_rates._range import trials_of
from normscope.learning_rates._rates import tried
from normscope.training.short import Course

#: A batch is learnt by heart where the loss is this share of that at the start, for so many steps in a row.
FLOOR, HELD = 0.05, 3
#: The short runs that look for a rate, and their passes; how often a rate that blows up is halved.
LOOK, BUDGET, HALVED = 10, 80, 3


@dataclass(frozen=True)
class Overfit(Shown):
    """Whether one batch was learnt by heart. losses: before each update, the last after all.

    reached: the loss fell to ``floor`` and stayed for three steps; step: the first of these, -1 where it did not.
    floor: ``share`` of the loss at the start, NaN where that is not positive. rate: the rate of the run, of the one
    that was given, or of the best of short runs. reason: why it was not reached, as far as the numbers tell.
    """

    face = "overfit"
    reached: bool
    optimizer: str
    rate: float
    start: float
    end: float
    floor: float
    step: int
    seconds: float
    losses: tuple[float, ...] = field(default=(), repr=False)
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, strings and lists."""
        return asdict(self)

    def __str__(self) -> str:
        over = f"{self.optimizer} at rate {self.rate:.3g}: loss {self.start:.3g} to {self.end:.3g}"
        said = f"learnt by heart after {self.step} steps" if self.reached else f"not learnt by heart: {self.reason}"
        return f"{said}; {over}, floor {self.floor:.3g}"


@alone
def overfit(
    model: nn.Module | Step,
    inputs: Any = None,
    targets: Any = None,
    loss: LossLike = None,
    optimizer: Any = "adam",
    *,
    data: Any = None,
    steps: int = 200,
    rate: float | None = None,
    share: float = FLOOR,
    mode: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Overfit:
    """Train on one batch again and again, on copies: a network that cannot learn one batch by heart learns nothing.

    optimizer: as in `rates`; Adam by default. rate: its learning rate; default: that of the optimizer that was given,
        or the best of short runs. A rate that blows up is halved three times at most.
    steps: updates at most. share: the share of the loss at the start that is the memorisation floor. Label smoothing,
        noise in the targets, a penalty or dropout put a floor of their own under the loss, which may lie higher.
    data: its first batch. progress: called with (steps done, of how many) after each.
    model, inputs, targets, loss, mode, samples, seed: as in `diagnose`. Nothing is left behind.
    Raises ``UsageError`` for an unknown optimizer, a loss without targets, or frozen models.
    """
    begun = time.perf_counter()
    whole_number("steps", steps, 10, "The usual number is 200.", most=1_000_000)
    finite_number("share", share, above=0, below=1, do="It is a share of the loss at the start; the default is 0.05.")
    if rate is not None:
        finite_number("rate", rate, above=0)
    function_of("progress", progress)
    trials = trials_of(model, inputs, targets, loss, optimizer, None, LOOK, mode, samples, seed, first=data)
    if rate is None and trials.own is None:
        found = tried(trials, BUDGET, begun)
        rate = found.best if math.isfinite(found.best) else 1e-3
    elif rate is None:
        rate = trials.base
    start = trials.first()
    floor = share * start if start > 0 else math.nan

    def until(losses: list[float]) -> bool:
        if progress is not None:
            progress(len(losses), steps)
        return len(losses) >= HELD and all(x <= floor for x in losses[-HELD:])

    course = Course((), math.inf, True)
    for _ in range(HALVED + 1):
        course = trials.course(rate, steps, until=until)
        if not course.blown:
            break
        rate /= 2
    losses = course.losses
    reached = len(losses) >= HELD and all(x <= floor for x in losses[-HELD:])
    reason = "" if reached else _why(course, start, floor)
    return Overfit(
        reached, trials.name, rate, start, losses[-1] if losses else math.nan, floor,
        len(losses) - HELD if reached else -1, time.perf_counter() - begun, losses, reason,
    )  # fmt: skip


def _why(course: Course, start: float, floor: float) -> str:
    """What stood in the way."""
    if not math.isfinite(start):
        return "the loss is no number at the start"
    if math.isnan(floor):
        return "the loss is not positive at the start, so that a share of it is no floor"
    if course.blown:
        return "the loss blew up at every rate that was tried"
    fifth = max(1, len(course.losses) // 5)
    last, before = course.losses[-fifth:], course.losses[-2 * fifth : -fifth] or course.losses[:1]
    end = sum(last) / len(last)
    if sum(before) / len(before) - end > 0.05 * (start - end) > 0:
        return "the loss is still falling: more steps, or a larger rate"
    return "the loss stands still above the floor: the network, the loss or the targets do not allow it"
