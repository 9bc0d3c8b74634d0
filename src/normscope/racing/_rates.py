"""The learning rate of a variant: given, searched on a grid, by short trials, or from the sharpness at the start."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from normscope.call.step import copied
from normscope.core.errors import UsageError, unknown
from normscope.curvature import sharpness
from normscope.learning_rates import rates
from normscope.training import OPTIMISERS, Recipe, Samples, Training

#: Half a decade apart; chosen by us.
GRIDS = {"sgd": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1), "adam": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}
#: Steps of a pilot run at most (twice the warm-up where that is longer), and the share at its end that is averaged.
PILOT, END = 100, 0.2
#: A pilot that ends above this share of its first loss has not begun to train.
LOWERED = 0.99
#: Share of the stability threshold that ``lr="sharpness"`` takes: chosen by us, because the threshold is of one batch
#: at the start, and the sharpness mostly grows from there.
FRACTION = 0.5
#: Updates of a trial of ``lr="auto"``.
TRIAL = 20
Rule = float | str


@dataclass(frozen=True)
class Rate:
    """A learning rate and how it came about. ``tried``: (rate, smoothed loss at the end; infinite where it
    diverged).
    """

    lr: float
    how: str
    tried: tuple[tuple[float, float], ...] = ()
    seconds: float = 0.0
    steps: int = 0
    lambda_max: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers and strings; infinities as ``null``."""
        return asdict(self) | {"tried": [[lr, x if math.isfinite(x) else None] for lr, x in self.tried]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rate:
        """Back from `to_dict`."""
        tried = tuple((lr, math.inf if x is None else x) for lr, x in data["tried"])
        return cls(**{**data, "tried": tried})


def rules(lr: Rule | Mapping[str, Rule], variants: Sequence[str]) -> dict[str, Rule]:
    """The rule of each variant, checked: a number, or such as ``search:0.01,0.1``, ``auto`` and ``sharpness:0.8``."""
    if isinstance(lr, Mapping):
        for name in lr:
            if name not in variants:
                raise unknown("variant", name, variants)
        missing = [v for v in variants if v not in lr]
        if missing:
            raise UsageError(f"lr must have a rate for each variant; {', '.join(missing)} has none. Add it.")
        found = {v: lr[v] for v in variants}
    else:
        found = dict.fromkeys(variants, lr)
    for rule in found.values():
        if isinstance(rule, str):
            _parse(rule)
        elif isinstance(rule, bool) or not isinstance(rule, int | float) or not 0 < rule < math.inf:
            raise UsageError(f"lr must be a positive number, 'auto', 'search' or 'sharpness'; got {rule!r}.")
    return {v: rule if isinstance(rule, str) else float(rule) for v, rule in found.items()}


def choose(rule: Rule, model: nn.Module, samples: Samples, recipe: Recipe, stage: Callable[[str], None]) -> Rate:
    """The rate of one variant; ``model`` is the one its first seed starts from, and stays as it is."""
    if not isinstance(rule, str):
        return Rate(rule, "given")
    kind, numbers = _parse(rule)
    start = time.perf_counter()
    if kind == "search":
        rate = _search(numbers or GRIDS.get(recipe.optimiser, GRIDS["adam"]), model, samples, recipe, stage)
    elif kind == "auto":
        stage("auto: trials")
        rate = _from_trials(numbers[0] if numbers else 1.0, model, samples, recipe)
    else:
        rate = _from_sharpness(numbers[0] if numbers else FRACTION, model, samples, recipe)
    return replace(rate, seconds=time.perf_counter() - start)


def _search(
    grid: Sequence[float], model: nn.Module, samples: Samples, recipe: Recipe, stage: Callable[[str], None]
) -> Rate:
    """A short run at each rate, on the batches that the race will see first; the lowest smoothed loss at its end
    wins.
    """
    tried, spent, first = [], 0, math.inf
    for lr in sorted(grid):
        stage(f"search: lr {lr:g}")
        pilot = Training(copied(model), samples, replace(recipe, lr=lr))
        steps = min(pilot.steps, max(PILOT, 2 * recipe.warmup))
        pilot.advance(steps)
        spent += len(pilot.losses)
        first = pilot.losses[0]
        end = pilot.losses[-max(1, round(END * steps)) :]
        tried.append((lr, math.inf if pilot.diverged is not None else sum(end) / len(end)))
    best = min(tried, key=lambda pair: (pair[1], pair[0]))
    note = ""
    if not math.isfinite(best[1]):
        note = "every rate of the grid diverged; the smallest was taken"
    elif best[1] > LOWERED * first:
        note = f"no rate of the grid lowers the loss within {steps} steps"
    elif len(tried) > 1 and best in (tried[0], tried[-1]):
        note = f"the best rate is the {'smallest' if best == tried[0] else 'largest'} of the grid: widen it"
    return Rate(best[0], "search", tuple(tried), steps=spent, note=note)


def _from_trials(share: float, model: nn.Module, samples: Samples, recipe: Recipe) -> Rate:
    """A share of the best rate of `normscope.rates`, on the batches that the race will see first, without a warm-up."""
    first = Training(copied(model), samples, recipe)
    batches = [samples.take(first.batch(i)) for i in range(TRIAL + 1)]
    data = [(b.inputs, b.targets) for b in batches]
    own = OPTIMISERS[recipe.optimiser]([p for p in first.model.parameters() if p.requires_grad], recipe)
    found = rates(first.model, loss=recipe.loss, optimizer=own, data=data, steps=TRIAL, mode="train", seed=recipe.seed)
    if not math.isfinite(found.best):
        raise UsageError(f"lr='auto' found no rate that trains: {found.reason}. Give a rate, or another start.")
    tried = tuple(sorted((rate, seen[-1] if stayed else math.inf) for rate, seen, stayed in found.runs))
    how = "the best of trials" if share == 1 else f"{share:g} of the best of trials"
    return Rate(share * found.best, how, tried, steps=found.cost, note=found.reason)


def _from_sharpness(fraction: float, model: nn.Module, samples: Samples, recipe: Recipe) -> Rate:
    r"""A fraction of the largest stable rate of the optimiser, 2 / lambda_max with its momentum, on the first batch."""
    if recipe.optimiser != "sgd":
        raise UsageError(
            f"lr='sharpness' is the threshold of gradient descent; {recipe.optimiser} rescales the curvature. "
            "Use optimiser='sgd', or lr='search'."
        )
    first = Training(copied(model), samples, recipe)
    batch = samples.take(first.batch(0))
    found = sharpness(
        first.model, batch.inputs, batch.targets, recipe.loss,
        tol=1e-2, probes=0, compare_modes=False, mode="train", seed=recipe.seed,
    )  # fmt: skip
    names = {(False, False): "gradient descent", (True, False): "heavy ball", (True, True): "nesterov"}
    limit = found.rates(recipe.momentum, recipe.weight_decay)[names[bool(recipe.momentum), recipe.nesterov]]
    if not math.isfinite(limit):
        raise UsageError("lr='sharpness' needs a loss that depends on the parameters; its curvature is 0. Give a rate.")
    return Rate(fraction * limit, f"{fraction:g} of the stability threshold", lambda_max=found.lambda_max)


def _parse(rule: str) -> tuple[str, tuple[float, ...]]:
    """``search:0.01,0.1`` -> (``search``, (0.01, 0.1))."""
    kind, colon, rest = rule.partition(":")
    if kind not in ("auto", "search", "sharpness"):
        raise unknown("rule for the learning rate", rule, ("auto", "search", "sharpness"))
    try:
        numbers = tuple(float(x) for x in rest.split(",")) if colon else ()
        if (
            len(set(numbers)) < len(numbers)
            or any(not 0 < x < math.inf for x in numbers)
            or (kind != "search" and len(numbers) > 1)
        ):
            raise ValueError
    except ValueError:
        raise UsageError(
            "A rule is written search:0.01,0.03,0.1 (different rates), auto:0.5 or sharpness:0.5 (a share); got "
            f"{rule!r}. Bare search, auto and sharpness take the usual ones."
        ) from None
    return kind, numbers
