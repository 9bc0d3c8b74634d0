"""The largest learning rate that trains over the next steps, and the best one, each with an interval."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.batches import pull, read_batch
from normscope.call.losses import LossLike
from normscope.call.step import Step
from normscope.call.traceless import alone
from normscope.core.errors import UsageError, unknown, whole_number
from normscope.training.own import Own, wants_a_closure
from normscope.training.short import Course, ShortRuns

Make = Callable[[list[Tensor], float], torch.optim.Optimizer]
#: Optimizers by name: (what makes one, the rate that is tried first; ``None``: from the first gradient).
OPTIMIZERS: dict[str, tuple[Make, float | None]] = {
    "sgd": (lambda p, lr: torch.optim.SGD(p, lr), None),
    "momentum": (lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), None),
    "nesterov": (lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9, nesterov=True), None),
    "adam": (lambda p, lr: torch.optim.Adam(p, lr), 3e-3),
    "adamw": (lambda p, lr: torch.optim.AdamW(p, lr), 3e-3),
}
#: Rates are searched within these; the bracket ends at this ratio; beyond it so many rates so far apart are looked at for a
#: second window (chosen by us: a run that rises ends after a few steps).
LEAST, MOST = 1e-9, 1e6
RATIO = 1.08
BEYOND, APART = 12, 1.15
#: Standard deviations of the batches' losses at the start by which a loss may lie above the mean (0 of one batch).
NOISE = 2.0


@dataclass(frozen=True)
class Rates:
    r"""What short runs of one optimizer said of its learning rate. Print it, or read the fields.

    largest: the largest rate at which the loss of ``steps`` updates never rose above its start by more than its noise;
    ``largest_interval`` (lower, upper): it lies between. ``inf`` where nothing that was tried rises, NaN where no rate trains.
    best: the rate with the least loss at the end of as many steps; ``best_interval``: rates within noise of it.
    runs: (rate, losses, stayed) of all that was tried, in order. cost: updates, each a forward and a backward pass.
    reason: why there is no rate, or what is not known; "" where all is.
    """

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
    runs: tuple[tuple[float, tuple[float, ...], bool], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        if math.isnan(self.largest):
            return f"{self.optimizer}: no rate, {self.reason}"
        low, high = self.largest_interval
        text = f"{self.optimizer}: largest rate {self.largest:.3g} ({low:.3g} to {high:.3g}), best {self.best:.3g} "
        text += "({:.3g} to {:.3g})".format(*self.best_interval) + f" over {self.steps} steps; {self.cost} updates"
        return text + (f"; {self.reason}" if self.reason else "")


@alone
def rates(
    model: nn.Module | Step,
    inputs: Any = None,
    targets: Any = None,
    loss: LossLike = None,
    optimizer: torch.optim.Optimizer | str | None = None,
    *,
    data: Any = None,
    steps: int = 20,
    budget: int = 200,
    mode: str | None = None,
    samples: int | None = None,
    seed: int = 0,
) -> Rates:
    r"""The largest learning rate that trains from where the model is, and the best one, by short runs on copies.

    A rate *trains* where the loss of the next ``steps`` updates, on fresh batches of ``data`` (on the one batch where there
    is one), and after the last, never rises above its start by more than its noise: the mean over the batches at the start
    plus two standard deviations of them. The bracket is doubled or halved from a first guess, then bisected until it is 8 %
    wide, and a few larger rates are looked at for a second window. Measured, not predicted: 2 / lambda_max of `sharpness`
    is where *linearised full-batch* descent turns unstable, and off by factors from .4 to 60.

    optimizer: "sgd" (the default), "momentum" and "nesterov" (.9), "adam", "adamw", or a ``torch.optim`` instance, whose
        settings, groups and state count (rates of its groups keep their ratios).
    budget: updates at most (a run that rises ends early). model, inputs, targets, loss, data, mode, samples, seed: as in
        `diagnose`. Nothing is left behind.
    Raises ``UsageError`` for an unknown optimizer, a loss without targets, steps < 2 or a budget below three runs.
    """
    begun = time.perf_counter()
    whole_number("steps", steps, 2, "The usual number is 20.")
    whole_number("budget", budget, 3 * steps, "It is in updates; the usual number is 200.")
    if not isinstance(model, Step):
        mode = "train" if mode is None else mode
    own = None if isinstance(optimizer, str) else optimizer
    at = Step.of(model, inputs, targets, loss, mode=mode, seed=seed, samples=samples, data=data, optimizer=own)
    name = optimizer if isinstance(optimizer, str) else "sgd" if at.optimizer is None else type(at.optimizer).__name__
    batches = (
        [] if at.data is None else [(b, None) if at.step is not None else read_batch(b) for b in pull(at.data, 64)]
    )
    trial = _Trial(at, ShortRuns(at, batches), name, steps, budget)
    if not any(p.requires_grad for p in at.root.parameters()):
        return trial.none("no parameter takes a gradient", begun)
    return trial.search(begun)


class _Trial:
    """Runs at one rate or another, counted, with the start that they are held against."""

    def __init__(self, at: Step, runs: ShortRuns, name: str, steps: int, budget: int) -> None:
        self.at, self.shorts, self.name, self.steps, self.budget = at, runs, name, steps, budget
        self.cost = 0
        self.runs: list[tuple[float, tuple[float, ...], bool]] = []
        given = at.optimizer
        if given is None or name in OPTIMIZERS:
            if name not in OPTIMIZERS:
                raise unknown("optimizer", name, tuple(OPTIMIZERS))
            self.make, self.first = OPTIMIZERS[name]
            self.own = None
        else:
            if wants_a_closure(given):
                raise UsageError(
                    f"A rate is tried step by step; {name} evaluates the loss itself. Pass 'sgd' or 'adam'."
                )
            self.own = Own(at)
            self.base = max(float(g["lr"]) for g in given.param_groups) or 1e-3
            self.first = self.base
        self.start, self.noise = math.nan, 0.0

    @property
    def limit(self) -> float:
        """What a loss may be."""
        return self.start + (self.noise if self.noise else 1e-6 * abs(self.start))

    def begin(self) -> None:
        """The losses of the batches at the start: their mean, and the noise about it."""
        values: list[float] = []

        def look() -> None:
            with torch.no_grad():
                values.extend(
                    float(self.shorts.value(*self.shorts.batch(i)))
                    for i in range(min(self.steps, len(self.shorts.batches)))
                )

        settled: list[Any] = []

        def never(_: Any) -> Any:
            settled.append(None)
            return None

        self.shorts.run(never, 0, look=look)
        self.start = sum(values) / len(values)
        if len(values) > 1:
            self.noise = NOISE * float(torch.tensor(values, dtype=torch.float64).std())

    def stays(self, rate: float) -> bool:
        """Whether the loss stays below ``limit`` over all steps and after the last."""
        losses: tuple[float, ...]

        def rises(so_far: list[float]) -> bool:
            return not so_far[-1] <= self.limit

        if self.own is None:
            course = self.shorts.run(
                self.shorts.plain(lambda p: self.make(p, rate)), self.steps, until=rises, look=self._after
            )
        else:
            course = self._run_own(rate, rises)
        losses = course.losses + (() if course.seen is None else (course.seen,))
        stayed = not course.blown and all(x <= self.limit for x in losses)
        self.cost += len(course.losses)
        self.runs.append((rate, losses, stayed))
        return stayed

    def _after(self) -> float:
        with torch.no_grad():
            return float(self.shorts.value(*self.shorts.batch(self.steps)))

    def _run_own(self, rate: float, rises: Callable[[list[float]], bool]) -> Course:
        assert self.own is not None
        factor, own = rate / self.base, self.own

        def begin(copies: Any) -> Any:
            for group in own.twin.param_groups:
                group["lr"] = group["lr"] * factor
            return self.shorts.plain(lambda _: own.twin)(copies)

        return self.shorts.run(begin, self.steps, until=rises, look=self._after, around=own.around)

    def none(self, why: str, begun: float) -> Rates:
        """No rate, and the reason."""
        both = (math.nan, math.nan)
        took = time.perf_counter() - begun
        return Rates(
            self.name, math.nan, both, math.nan, both, self.steps, self.start, self.noise, self.cost, took, why,
            tuple(self.runs),
        )  # fmt: skip

    def search(self, begun: float) -> Rates:
        """The bracket, the window beyond it, and the best of what was tried."""
        self.begin()
        if not math.isfinite(self.start):
            return self.none(f"the loss is {self.start} at the start", begun)
        rate = self.first or self._by_gradient()
        if rate is None:
            return self.none("the gradient is zero, or no number", begun)
        low, high = self._bracket(rate)
        if low == 0:
            return self.none(f"the loss rises at every rate down to {high:.1e}", begun)
        if math.isinf(high):
            return self._told(low, high, "nothing that was tried makes the loss rise", begun)
        low, high = self._bisect(*(self._window(high) or (low, high)))
        narrow = high <= low * RATIO * 1.01
        return self._told(low, high, "" if narrow else "the budget ended before the bracket was narrow", begun)

    def _by_gradient(self) -> float | None:
        """The rate at which the linear model of the loss reaches zero; a tenth of it with momentum."""
        norms: list[float] = []

        def begin(copies: Any) -> Any:
            def update(args: Any, kwargs: Any, targets: Any) -> Tensor:
                value = self.shorts.value(args, kwargs, targets)
                wanted = [p for p in copies.values() if p.requires_grad]
                found = torch.autograd.grad(value, wanted, allow_unused=True) if value.requires_grad else []
                norms.append(float(sum(g.float().square().sum() for g in found if g is not None)))
                return value.detach()

            return update

        self.shorts.run(begin, 1)
        self.cost += 1
        if not (norms and 0 < norms[0] < math.inf):
            return None
        rate = max(abs(self.start), 1e-12) / norms[0] * (1.0 if self.name == "sgd" else 0.1)
        return min(max(rate, LEAST * 2), MOST / 2)

    def _bracket(self, rate: float) -> tuple[float, float]:
        """Neighbours a factor two apart, the lower of which stays."""
        good = self.stays(rate)
        while self.cost + (self.steps if good else 1) <= self.budget:
            other = rate * 2 if good else rate / 2
            if not LEAST < other < MOST:
                break
            if self.stays(other) != good:
                return (rate, other) if good else (other, rate)
            rate = other
        return (rate, math.inf) if good else (0.0, rate)

    def _bisect(self, low: float, high: float) -> tuple[float, float]:
        while high > low * RATIO and self.cost + self.steps <= self.budget:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.stays(middle) else (low, middle)
        return low, high

    def _window(self, high: float) -> tuple[float, float] | None:
        """A second window of rates that stay, beyond the first that does not, and its upper end's bracket."""
        found: tuple[float, float] | None = None
        for k in range(1, BEYOND + 1):
            if self.cost + 3 * self.steps > self.budget:
                break
            if self.stays(high * APART**k):
                found = high * APART**k, high * APART ** (k + 1)
        return found

    def _told(self, low: float, high: float, reason: str, begun: float) -> Rates:
        whole = [(r, sum(x[-5:]) / len(x[-5:])) for r, x, stayed in self.runs if stayed]
        best, least = min(whole, key=lambda pair: pair[1])
        near = [r for r, end in whole if end <= least + 0.1 * abs(self.start - least)]
        took = time.perf_counter() - begun
        fell = least < self.start - 1e-6 * abs(self.start)
        wide = 1.05 if self.noise == 0 else 1.25
        return Rates(
            self.name, low, (low / wide, high * wide), best, (min(near), max(near)), self.steps, self.start, self.noise,
            self.cost, took, reason or ("" if fell else "the loss hardly falls at any rate"), tuple(self.runs),
        )  # fmt: skip
