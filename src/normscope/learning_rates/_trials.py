"""Runs at one rate or another, counted, each held against the start."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from normscope.call.losses import COTANGENT
from normscope.call.step import Step
from normscope.core.errors import UsageError, unknown
from normscope.training.own import Own, rate_of, to_its_rate, wants_a_closure
from normscope.training.short import Course, ShortRuns, Update

Make = Callable[[list[Tensor], float], torch.optim.Optimizer]
#: (rate, losses before each update and after the last, whether it trains).
Run = tuple[float, tuple[float, ...], bool]
#: Optimizers by name: what makes one, and the first rate to try, in units of the one at which the linear model of the
#: loss reaches zero: L / |g|_2^2, of Adam, whose first step is the sign of the gradient, L / |g|_1. Chosen by us, on
#: nets that are not reported on: mostly above the largest, because a rate that is too high rises at once and costs a
#: step or two.
OPTIMIZERS: dict[str, tuple[Make, float, int]] = {
    "sgd": (lambda p, lr: torch.optim.SGD(p, lr), 16.0, 2),
    "momentum": (lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), 8.0, 2),
    "nesterov": (lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True), 8.0, 2),
    "adam": (lambda p, lr: torch.optim.Adam(p, lr), 8.0, 1),
    "adamw": (lambda p, lr: torch.optim.AdamW(p, lr), 8.0, 1),
}
#: The same for an optimizer of the user's own, by its class; of another class, from its own rate.
OWN = ((torch.optim.SGD, 8.0, 2), ((torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam), 8.0, 1))
#: Standard deviations of the losses at the start by which a loss may rise, and the share of the loss that is rounding.
NOISE, ROUNDING = 2.0, 1e-6
#: Losses that are averaged where they have noise. Chosen by us: by single batches one unlucky one decides, and half of
#: the rates' windows had gaps; by means of five one in ten.
MEAN = 5
#: A run is calm whose loss rises by no more than this share of the start, or of its noise (chosen by us: of runs on one
#: batch at rates 1.3 times below the edge three quarters are, of those in windows above a gap one quarter).
CALM, CALM_NOISE = 0.02, 0.25


class Trials:
    """Short runs of one optimizer; ``runs`` are all so far, ``cost`` their forward and backward passes."""

    def __init__(self, at: Step, shorts: ShortRuns, name: str, steps: int) -> None:
        self.at, self.shorts, self.name, self.steps = at, shorts, name, steps
        self.cost = 0.0
        self.runs: list[Run] = []
        #: The loss that each update, and the look after the last, would see if nothing had been updated.
        self.starts: list[float] = []
        self.noise = 0.0
        self.own: Own | None = None
        #: The rate of the user's own optimizer, of a warm-up the one that it goes to.
        self.base = math.nan
        if at.optimizer is None or name in OPTIMIZERS:
            if name not in OPTIMIZERS:
                raise unknown("optimizer", name, tuple(OPTIMIZERS))
            self.make, self.times, self.power = OPTIMIZERS[name]
            return
        own = [(times, power) for kind, times, power in OWN if isinstance(at.optimizer, kind)]
        self.times, self.power = own[0] if own else (8.0, 0)
        if wants_a_closure(at.optimizer):
            raise UsageError(f"A rate is tried step by step; {name} evaluates the loss itself. Pass 'sgd' or 'adam'.")
        self.own = Own(at)
        self.base = max(map(rate_of, at.optimizer.param_groups))

    @property
    def start(self) -> float:
        """The mean loss at the start."""
        return statistics.fmean(self.starts) if self.starts else math.nan

    @property
    def last_start(self) -> float:
        """What `end` would be if nothing had been updated."""
        return self.end(tuple(self.starts))

    @property
    def bracket(self) -> tuple[float, float]:
        """(largest rate that trained, below all that did not; least that did not); 0 and ``inf`` where none is."""
        high = min((rate for rate, _, stayed in self.runs if not stayed), default=math.inf)
        return max((rate for rate, _, stayed in self.runs if stayed and rate < high), default=0.0), high

    def end(self, losses: tuple[float, ...]) -> float:
        """The loss at the end: the last, or the mean of the last five where they have noise."""
        return losses[-1] if self.noise == 0 else statistics.fmean(losses[-MEAN:])

    def moved(self, losses: Sequence[float]) -> float:
        """By how much the loss of each batch changed since the start; where it has noise, the mean of the last five."""
        last = range(max(0, len(losses) - (MEAN if self.noise else 1)), len(losses))
        return statistics.fmean(losses[i] - self.starts[i] for i in last)

    def ends(self, most: float) -> dict[float, float]:
        """The loss at the end of each run that trained, at rates up to ``most``."""
        return {rate: self.end(losses) for rate, losses, stayed in self.runs if stayed and rate <= most}

    def best(self, most: float) -> float:
        """The rate with the least of them."""
        ends = self.ends(most)
        return min(ends, key=lambda rate: ends[rate])

    def calm(self, rate: float) -> bool:
        """Whether the loss of a run at this rate hardly rose on its way down."""
        losses = next(losses for r, losses, _ in self.runs if r == rate)
        moved = [self.moved(losses[: i + 1]) for i in range(len(losses))]
        rise = max(x - least for x, least in zip(moved, itertools.accumulate(moved, min), strict=True))
        return rise <= max(CALM * abs(self.start), CALM_NOISE * self.noise)

    def begin(self) -> None:
        """The losses at the start, of the batches and with the random numbers that each update will have."""

        def look() -> None:
            with torch.no_grad():
                for i in range(self.steps + 1):
                    self.starts.append(self._first_look(i))
                    if len(self.shorts.batches) == 1 and i == 1 and self.starts[0] == self.starts[1]:
                        break

        self.shorts.run(lambda _: _never, 0, look=look)
        self.cost += len(self.starts) / 3
        self.starts += self.starts[-1:] * (self.steps + 1 - len(self.starts))
        if all(math.isfinite(x) for x in self.starts):
            self.noise = NOISE * statistics.pstdev(self.starts) if len(set(self.starts)) > 1 else 0.0

    def first(self) -> float:
        """The loss of the first batch as it is; refuses what has none."""

        def look() -> float:
            with torch.no_grad():
                return self._first_look(0)

        return float(self.shorts.run(lambda _: _never, 0, look=look).seen)

    def _first_look(self, i: int) -> float:
        """The loss of batch i; refuses what has none."""
        at = self.at
        args, kwargs, targets = self.shorts.batch(i)
        whole = at.whole(args, kwargs)
        if at.step is None and at.criterion.settled(whole, targets).kind == COTANGENT:
            raise UsageError("A rate trains where the loss falls; there are no targets and no loss. Pass targets=....")
        return float(at.value(whole, targets))

    def guess(self) -> float:
        """The rate to try first, by the first gradient or the user's own rate; 0 or no number where the gradient is."""
        sizes: list[float] = []

        def begin(copies: Any) -> Any:
            def update(args: Any, kwargs: Any, targets: Any) -> Tensor:
                value = self.shorts.value(args, kwargs, targets)
                wanted = [p for p in copies.values() if p.requires_grad]
                found = torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else []
                sizes.append(float(sum(g.double().abs().pow(self.power or 2).sum() for g in found if g is not None)))
                return value.detach()

            return update

        self.shorts.run(begin, 1)
        self.cost += 1
        if not 0 < sizes[0] < math.inf:
            return math.nan
        return self.times * (max(abs(self.start), 1e-12) / sizes[0] if self.power else self.base or 1e-3)

    def stays(self, rate: float) -> bool:
        """Run at a rate; whether it trains."""
        risen = False

        def rises(losses: list[float]) -> bool:
            nonlocal risen
            risen = risen or not self.moved(losses) <= max(self.noise, ROUNDING * abs(self.start))
            return risen

        def after() -> float:
            if risen:
                return math.nan
            self.cost += 1 / 3
            with torch.no_grad():
                return float(self.shorts.value(*self.shorts.batch(self.steps)))

        course = self.course(rate, self.steps, until=rises, look=after)
        self.cost += len(course.losses)
        losses = list(course.losses)
        if not (risen or course.blown):
            losses.append(course.seen)
            rises(losses)
        self.runs.append((rate, tuple(losses), not (risen or course.blown)))
        return self.runs[-1][2]

    def course(
        self,
        rate: float,
        steps: int,
        *,
        until: Callable[[list[float]], bool] | None = None,
        look: Callable[[], Any] | None = None,
        rates: Sequence[float] = (),
    ) -> Course:
        """``steps`` updates at a rate, or at one of ``rates`` after another; see `ShortRuns.run`."""
        own, made = self.own, []

        def make(parameters: list[Tensor]) -> torch.optim.Optimizer:
            if own is None:
                made.append(self.make(parameters, rate))
                return made[-1]
            to_its_rate(own.twin)
            for group in own.twin.param_groups:
                group["lr"] = group["lr"] * (rate / self.base) if self.base else rate
            made.append(own.twin)
            return own.twin

        def begin(copies: Any) -> Any:
            update = self.shorts.plain(make)(copies)
            return _growing(update, made[-1], rates, rate) if rates else update

        return self.shorts.run(begin, steps, until=until, look=look, around=None if own is None else own.around)


def _growing(update: Update, optimizer: torch.optim.Optimizer, rates: Sequence[float], base: float) -> Update:
    """An update at the next of the rates each time; groups keep their ratios to ``base``."""
    shares = [float(group["lr"]) / base for group in optimizer.param_groups]
    left = iter(rates)

    def grown(args: tuple[Any, ...], kwargs: dict[str, Any], targets: Any) -> Tensor:
        rate = next(left)
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        return update(args, kwargs, targets)

    return grown


def _never(*_: Any) -> Tensor:
    raise AssertionError("no update is made")
