"""The trial: a few dozen real steps on copies, of the user's own step and of plain SGD and Adam at several rates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.losses import COTANGENT
from normscope.call.step import Step
from normscope.findings.checkup.data import clean
from normscope.findings.checkup.scene import Scene
from normscope.training.own import Own, wants_a_closure
from normscope.training.short import Course, ShortRuns, Update, level

#: Updates of a run, and of the runs by which rates are screened; seconds that all of them together may take.
STEPS, SCREEN, SECONDS = 50, 8, 20.0
#: Rates that are tried.
RATES = {
    "sgd": (1e-3, 4e-3, 0.016, 0.064, 0.25, 1.0),
    "adam": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
}
#: A net trains where its loss falls below chance by this share of it (cross-validated: docs/findings.md).
TRAINS = 0.1
#: A run ends early where its loss has fallen to this share of chance; one that has not fallen goes on for so many times as long.
DONE, LONGER = 0.05, 4


def of_trial(
    scene: Scene,
    batches: Sequence[tuple[Any, Any]],
    valid: Sequence[tuple[Any, Any]],
    constant: float,
    steps: int | str,
) -> dict[str, Any]:
    """How the loss fell: ``own`` (the user's optimizer and loop), ``sgd`` and ``adam`` (the best of several rates).

    start: the loss of the first batches before training; ``constant``: of the best constant answer; ``chance``: the
    latter where there is one, else the former. progress: the share of ``chance`` by which a run's last losses lie below it.
    steps: of a run, or "auto": as many as fit into ``SECONDS``, at most ``STEPS`` and at least five.
    """
    at = scene.at
    if scene.loss is None or scene.loss.kind == COTANGENT or not any(p.requires_grad for p in at.root.parameters()):
        return {}
    runs = ShortRuns(at, [(clean(x), clean(t)) for x, t in batches])
    begun = time.perf_counter()

    train = at.root.training if at.mode is None else at.mode == "train"
    start = runs.run(lambda _: _never, 0, look=level(runs, train)).seen
    if not math.isfinite(start):
        return {"start": start}
    chance = constant if math.isfinite(constant) else start
    found: dict[str, Any] = {"start": start, "constant": constant, "chance": chance, "batches": len(runs.batches)}
    scale = max(abs(chance), abs(start) * 1e-3, 1e-12)

    def done(losses: list[float]) -> bool:
        return len(losses) >= 5 and chance > 0 and all(0 <= x < DONE * chance for x in losses[-3:])

    def told(course: Course) -> dict[str, Any]:
        end = course.end()
        progress = (chance - end) / scale
        fell = progress > TRAINS
        return {
            "end": end, "progress": progress, "losses": list(course.losses),
            "trains": fell if fell or course.blown or len(course.losses) >= ENOUGH else None,
            "blown": course.blown,
        }  # fmt: skip

    def left() -> float:
        return SECONDS - (time.perf_counter() - begun) if steps == "auto" else 0.0

    one = runs.run(runs.plain(lambda p: torch.optim.SGD(p, 1e-6)), 2).fastest
    k, screen, kept = plan(SECONDS / max(one, 1e-6)) if steps == "auto" else (int(steps), SCREEN, 9)
    found |= {"threshold": TRAINS, "steps": k, "auto": steps == "auto", "second_a_step": one}
    if at.optimizer is not None and not wants_a_closure(at.optimizer):
        found["own"] = _own(at, runs, valid, k, told)
    for name, kind in (("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)):
        found[name] = _race(runs, kind, RATES[name], k, screen, kept, done, told, left)
    if found["sgd"]["trains"] is False and found["adam"]["trains"] is False and len(runs.batches) > 1:
        few = ShortRuns(at)
        few.batches = runs.batches[:1]
        adam = partial(torch.optim.Adam, lr=found["adam"]["rate"])
        found["memorizes"] = told(few.run(few.plain(adam), k, until=done))["progress"]
    found["seconds"] = time.perf_counter() - begun
    return found


def _own(
    at: Step, runs: ShortRuns, valid: Sequence[tuple[Any, Any]], k: int, told: Callable[[Course], dict[str, Any]]
) -> dict[str, Any]:
    """The user's own steps, with the modes as the user left them, and what eval mode says afterwards."""
    steps = min(k, at.steps) if at.steps is not None else k
    as_left = ShortRuns(replace(at, mode=None))
    as_left.batches = runs.batches
    checks = ShortRuns(at, [(clean(x), clean(t)) for x, t in valid])
    before = runs.run(lambda _: _never, 0, look=level(checks, False)).seen if valid else math.nan
    rates: list[float] = []

    def after() -> tuple[float, float, float]:
        again = level(as_left, None)()
        return again, level(runs, False)(), level(checks, False)() if valid else math.nan

    mine = Own(at)

    def begin(copies: Mapping[int, Tensor]) -> Update:
        update = mine.begin(copies)

        def noted(*batch: Any) -> Tensor:
            rates.append(max(float(g.get("lr", math.nan)) for g in mine.twin.param_groups))
            return update(*batch)

        return noted

    course = as_left.run(begin, steps, look=after, around=mine.around)
    norms = [m for m in at.root.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    found = told(course) | {
        "steps": steps, "all": steps == at.steps, "valid_before": before, "warms_up": rates[-1] > 1.5 * rates[0],
        "slow_norm": any(m.momentum is None or m.momentum * steps < 2.5 for m in norms),
    }  # fmt: skip
    if course.seen is not None:
        found |= dict(zip(("again", "eval_after", "valid_after"), course.seen, strict=True))
    return found


#: (steps of a run, of a screening run, rates an optimizer), the first that fits.
PLANS = ((STEPS, SCREEN, 6), (30, 6, 5), (20, 20, 3), (20, 20, 2), (10, 10, 2), (5, 5, 2))
#: Steps from which on a loss that did not fall says something.
ENOUGH = 50


def plan(updates: float) -> tuple[int, int, int]:
    """One of ``PLANS`` for as many updates in all: the user's own run, and of both optimizers the screening and two runs."""
    for k, screen, kept in PLANS:
        if updates >= k + 2 * (kept * screen + (2 * k if screen < k else 0)):
            return k, screen, kept
    return PLANS[-1]


def _race(
    runs: ShortRuns, kind: Callable[..., torch.optim.Optimizer], rates: Sequence[float], steps: int, screen: int, kept: int,
    done: Callable[[list[float]], bool], told: Callable[[Course], dict[str, Any]],
    left: Callable[[], float],
) -> dict[str, Any]:  # fmt: skip
    """The best of several rates: each is tried for a few steps, the two that fell lowest for all of them."""
    middle = (len(rates) - 1) / 2
    rates = sorted(sorted(rates, key=lambda r: abs(rates.index(r) - middle))[:kept])

    def course(rate: float, n: int) -> Course:
        return runs.run(runs.plain(lambda p: kind(p, lr=rate)), n, until=done)

    tried = [(rate, course(rate, screen)) for rate in rates]
    tried.sort(key=lambda pair: pair[1].end(0.3))
    finals = [(rate, c if steps <= screen else course(rate, steps)) for rate, c in tried[:2]]
    rate, best = min(finals, key=lambda pair: pair[1].end())
    outcome = told(best)
    more = int(min(LONGER * steps, left() / max(best.fastest, 1e-6) / 4))
    if not outcome["trains"] and not best.blown and more > 1.5 * steps:
        outcome = told(course(rate, more))
    return {"rate": rate, "tried": [(r, c.end(0.3)) for r, c in tried], **outcome}


def _never(*_: Any) -> Any:
    raise AssertionError("a run of no steps")
