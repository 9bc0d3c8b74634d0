"""One net of one size: its rates, how far a step reaches, and the sizes of activations and updates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import tensors
from normscope.call.batches import read_batch
from normscope.call.step import Step
from normscope.core.load import user_error
from normscope.learning_rates._rates import narrowed, search, tried
from normscope.learning_rates._trials import Trials
from normscope.training.short import ShortRuns, untouched

#: Make: (width, depth, seed) -> module.
Make = Callable[[int, int, int], nn.Module]
#: Where a layer stands: the first with parameters, those between, the outputs.
PLACES = ("first", "hidden", "outputs")
#: The relative change that a vanishing step should make, and how far off it may be.
TINY, OFF = 1e-3, 10.0
#: Updates of the short runs whose largest rate is the `edge`, and their forward and backward passes at most.
EARLY, PASSES = 8, 120
#: Updates of the coordinate check (chosen by us: those of Yang et al. 2022, app. D.1, are three to twenty).
FEW = 5

Looked = tuple[list[Tensor], list[Tensor]]


@dataclass(frozen=True, eq=False)
class Sizes:
    """A task of a sweep. make: a module of a width, depth and seed; optimizer: of a module, where it has no name."""

    make: Make
    inputs: Any
    targets: Any
    loss: Any
    batches: Sequence[Any] = ()
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None

    def __call__(
        self, *, of: str, width: int, depth: int, optimizer: str, steps: int, budget: int, rate: float | None = None,
        seed: int = 0,
    ) -> dict[str, float]:  # fmt: skip
        """The numbers of one net. budget 0: its best rate is not sought; rate: the coordinate check at that rate."""
        trials = self.trials(width, depth, seed, optimizer, steps)
        if rate is not None:
            return coordinates(trials, rate)
        found: dict[str, float] = {}
        if budget:
            rates = tried(trials, budget, time.perf_counter())
            found = {"best": rates.best, "largest": rates.largest}
        elif not trials.starts:
            trials.begin()
        found["edge"] = edge(self.trials(width, depth, seed, optimizer, min(EARLY, steps)))
        found["reach"] = reach(trials)
        outputs, _ = trials.course(0.0, 0, look=lambda: look(trials)).seen
        return found | {f"activation {k}": v for k, v in _by_place([_rms(x) for x in outputs]).items()}

    def trials(self, width: int, depth: int, seed: int, optimizer: str, steps: int) -> Trials:
        """Trials of one net, which is made for them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.make(width, depth, seed)
        own = None
        if self.optimizer is not None:
            try:
                own = self.optimizer(model)
            except Exception as error:
                raise user_error("Making an optimizer of the module", error) from error
        data = list(self.batches) or None
        at = Step.of(model, self.inputs, self.targets, self.loss, mode="train", seed=seed, optimizer=own, data=data)
        read = [(b, None) if at.step is not None else read_batch(b) for b in self.batches]
        return Trials(at, ShortRuns(at, read), optimizer, steps)


def edge(trials: Trials) -> float:
    """The largest rate that trains over the steps of the trials, the middle of a bracket of 20 %; NaN: none, or all."""
    search(trials, PASSES, narrowed)
    low, high = trials.bracket if trials.runs else (0.0, math.inf)
    return math.sqrt(low * high) if 0 < low < high < math.inf else math.nan


def reach(trials: Trials) -> float:
    r"""The largest relative change of any layer's outputs in one step, per unit of the rate: $\max_l\|\Delta h_l\| /
    \|h_l\| / \eta$ at a vanishing rate.

    NaN where nothing moves.
    """
    before, _ = trials.course(0.0, 0, look=lambda: look(trials)).seen
    rate = trials.guess() * TINY
    for _ in range(4):
        if not 0 < rate < math.inf:
            return math.nan
        course = trials.course(rate, 1, look=lambda: look(trials))
        if course.blown:
            return math.nan
        after, _ = course.seen
        moved = max((_rms(b - a) / max(_rms(a), 1e-30) for a, b in zip(before, after, strict=True)), default=0.0)
        if TINY / OFF < moved < TINY * OFF:
            return moved / rate
        rate *= TINY / moved if moved > 0 else 100.0
    return math.nan


def coordinates(trials: Trials, rate: float) -> dict[str, float]:
    """How far outputs and weights have moved after a few updates at one rate, by place; the weights' relative to them.

    Activations: root mean squares over the batch, of the differences to the start.
    """
    before = trials.course(rate, 0, look=lambda: look(trials)).seen
    course = trials.course(rate, FEW, look=lambda: look(trials))
    if course.blown:
        return {f"change {k}": math.inf for k in PLACES}
    (old, weights), (new, others) = before, course.seen
    changes = _by_place([_rms(b - a) for a, b in zip(old, new, strict=True)])
    updates = _by_place([_rms(b - a) / max(_rms(a), 1e-30) for a, b in zip(weights, others, strict=True)])
    return {f"change {k}": v for k, v in changes.items()} | {f"update {k}": v for k, v in updates.items()}


def look(trials: Trials) -> Looked:
    """Inside a run: outputs of all modules that hold parameters, in order of execution, then the model's; matrices."""
    root = trials.at.root
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, result: Any) -> None:
        found.extend(t.detach().clone() for t in list(tensors(result))[:1] if t.is_floating_point())

    holders = [m for m in root.modules() if m is not root and any(True for _ in m.parameters(recurse=False))]
    hooks = [m.register_forward_hook(keep) for m in holders]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), untouched(root):
            torch.manual_seed(0)
            args, kwargs, _ = trials.shorts.batch(0)
            whole = trials.at.whole(args, kwargs)
            if not found or not any(torch.equal(found[-1], t) for t in tensors(whole)):
                keep(root, None, whole)
    finally:
        for hook in hooks:
            hook.remove()
    return found, [p.detach().clone() for p in root.parameters() if p.dim() > 1]


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def _by_place(sizes: list[float]) -> dict[str, float]:
    """Of the first, the geometric mean of those between, of the last."""
    if len(sizes) < 2:
        return {}
    between = [s for s in sizes[1:-1] if s > 0]
    middle = {"hidden": math.exp(sum(map(math.log, between)) / len(between))} if between else {}
    return {"first": sizes[0], **middle, "outputs": sizes[-1]}
