"""The trial: a few dozen real steps on copies, of the user's own step and of plain SGD and Adam at several rates."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from normscope.call.arguments import tensors
from normscope.call.losses import COTANGENT
from normscope.call.step import Step
from normscope.findings.checkup.beside import Rewritten, copies_of, equal
from normscope.findings.checkup.data import clean
from normscope.findings.checkup.scene import Scene
from normscope.training.own import Own, wants_a_closure
from normscope.training.short import Course, ShortRuns, Update, both_modes, level, untouched

#: Updates of a run, and of the runs by which rates are screened; seconds that all of them together may take.
STEPS, SCREEN, SECONDS = 50, 8, 20.0
#: Optimizers that race, and their rates.
RACES: dict[str, tuple[Callable[..., torch.optim.Optimizer], tuple[float, ...]]] = {
    "sgd": (torch.optim.SGD, (1e-3, 4e-3, 0.016, 0.064, 0.25, 1.0)),
    "adam": (torch.optim.Adam, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
}
#: A net trains where its loss falls below chance by this share of it (cross-validated: docs/findings.md); a loss
#: without a known chance, and the user's own few steps, by the second share.
TRAINS, FALLS = 0.6, 0.1
#: The first share of a race that took more than ``STEPS`` steps (cross-validated too): of the nets with which Adam
#: learns one batch, but only then, hardly one learns from fresh batches in as many steps.
LATE = {"sgd": 0.675, "adam": math.inf}
#: Where the user's own steps on several outputs end so many chances higher, they go on, as far as the training.
RISE = 0.5
#: A race ends early at this share of chance; one that has not got there goes on for so many times as long.
DONE, LONGER = 0.05, 4
#: Progress of the user's own steps below which a race over all batches is run as well.
LITTLE = 0.3
#: Steps from which on a loss that did not fall says something.
ENOUGH = 50
#: (steps of a run, of a screening run, rates an optimizer, finalists), the first that fits.
PLANS = (
    (STEPS, SCREEN, 6, 3),
    (STEPS, SCREEN, 4, 2),
    (30, 6, 4, 2),
    (20, 20, 3, 0),
    (20, 20, 2, 0),
    (10, 10, 2, 0),
    (5, 5, 2, 0),
)


def of_trial(
    scene: Scene,
    batches: Sequence[tuple[Any, Any]],
    valid: Sequence[tuple[Any, Any]],
    constant: float,
    steps: int | str,
    observed: Mapping[str, Any],
) -> dict[str, Any]:
    """How the loss fell: ``own`` (the user's optimizer and loop, on ``batches``), ``sgd`` and ``adam`` (the best of
    several rates, on the one batch again and again: a network that learns can learn that by heart).

    start: the loss of the batch before training; ``constant``: of the best constant answer; ``chance``: the latter
    where there is one, else the former. progress: the share of ``chance`` by which a run's last losses lie below it.
    steps: of a run, or "auto": as many as fit into ``SECONDS``, at most ``STEPS`` and at least five; a race that did
    not get there goes on to 200. observed: losses and rates of the user's own running loop, which then is not run
    again.
    """
    at = scene.at
    if scene.loss is None or scene.loss.kind == COTANGENT or not any(p.requires_grad for p in at.root.parameters()):
        return {}
    trial = _Trial(at, [(clean(x), clean(t)) for x, t in batches], constant, steps)
    if not math.isfinite(trial.start):
        return {"start": trial.start}
    found = trial.facts()
    if observed.get("losses"):
        found["own"] = trial.seen(observed) | trial.held_out(observed, [(clean(x), clean(t)) for x, t in valid])
    elif at.optimizer is not None and not wants_a_closure(at.optimizer):
        parts = sum(x.is_floating_point() for x in tensors(scene.whole))
        found["own"] = trial.own([(clean(x), clean(t)) for x, t in valid], parts > 2)
    if found.get("own", {}).get("game"):  # several networks against each other: no loss of one of them tells
        return {"start": trial.start, "game": True}
    for name in RACES:
        found[name] = trial.race(name)
    _same_floor(found["sgd"], found["adam"])
    if trial.several and "own" in found and found["own"]["progress"] < LITTLE:
        best = min(RACES, key=lambda name: found[name]["end"])
        n = trial.longer(trial.steps, trial.second)
        found["stream"] = trial.told(trial.course(trial.stream, best, found[best]["rate"], n))
        if found[best]["trains"] or found[best].get("slow"):
            found["stream"]["unseen"] = trial.unseen(best, found[best]["rate"], n)
    found["seconds"] = time.perf_counter() - trial.begun
    return found


def raced(at: Step, steps: int, most: float) -> dict[str, float] | None:
    """The loss of the batch at the ``start``, and where ``sgd`` and ``adam`` bring it in so many steps, each at its
    best rate; ``None`` where it is no number at the start and of a frozen model, empty where a step takes more than
    ``most`` seconds.
    """
    if not any(p.requires_grad for p in at.root.parameters()):
        return None
    trial = _Trial(at, [(at.inputs, at.targets)], math.nan, steps)
    if not math.isfinite(trial.start):
        return None
    if trial.second > most:
        return {}
    return {"start": trial.start} | {name: trial.race(name)["end"] for name in RACES}


class _Trial:
    """Races and the user's own run from one start."""

    def __init__(self, at: Step, batches: list[tuple[Any, Any]], constant: float, steps: int | str) -> None:
        self.at, self.constant, self.auto = at, constant, steps == "auto"
        self.begun = time.perf_counter()
        self.one, self.stream = ShortRuns(at), ShortRuns(at, batches)
        self.several = len(batches) > 1
        train = at.root.training if at.mode is None else at.mode == "train"
        self.start = self.one.run(_never, 0, look=level(self.one, train)).seen
        self.chance = constant if math.isfinite(constant) else self.start
        self.scale = max(abs(self.chance), abs(self.start) * 1e-3, 1e-12)
        self.second = self.one.run(self.one.plain(lambda p: torch.optim.SGD(p, 1e-6)), 2).fastest
        self.steps, self.screen, self.kept, self.finalists = (
            plan(SECONDS / max(self.second, 1e-6)) if steps == "auto" else (int(steps), SCREEN, 9, 2)
        )

    def facts(self) -> dict[str, Any]:
        return {
            "start": self.start, "constant": self.constant, "chance": self.chance, "batches": len(self.stream.batches),
            "steps": self.steps, "auto": self.auto, "second_a_step": self.second,
        }  # fmt: skip

    @property
    def left(self) -> float:
        return SECONDS - (time.perf_counter() - self.begun) if self.auto else 0.0

    def longer(self, steps: int, second: float) -> int:
        """How many steps a longer run has, as the seconds that are left allow."""
        more = int(min(LONGER * steps, self.left / max(second, 1e-6) / 4))
        return more if more > 1.5 * steps else steps

    def done(self, losses: list[float]) -> bool:
        return len(losses) >= 5 and self.chance > 0 and all(0 <= x < DONE * self.chance for x in losses[-3:])

    def progress(self, end: float, start: float) -> float:
        """How far a run gets from chance to zero; where no constant answer is known, from its own ``start``, which is
        another one for batches of another size.
        """
        if math.isfinite(self.constant) or not math.isfinite(start):
            return (self.chance - end) / self.scale
        return (start - end) / max(abs(start), 1e-12)

    def told(self, course: Course, start: float = math.nan) -> dict[str, Any]:
        """A course in numbers. ``trains``: ``None`` where its steps are too few to say no."""
        end = course.end()
        progress = self.progress(end, start)
        trains = progress > (TRAINS if math.isfinite(self.constant) else FALLS)
        return {
            "end": end, "progress": progress, "steps": len(course.losses), "losses": list(course.losses),
            "trains": trains if trains or course.blown or len(course.losses) >= ENOUGH else None, "blown": course.blown,
        }  # fmt: skip

    def course(self, runs: ShortRuns, name: str, rate: float, n: int, look: Any = None) -> Course:
        return runs.run(runs.plain(lambda p: RACES[name][0](p, lr=rate)), n, until=self.done, look=look)

    def race(self, name: str) -> dict[str, Any]:
        """The best of several rates: each is tried for a few steps, those that fell lowest for more, the best for
        most.
        """
        rates = RACES[name][1]
        middle = (len(rates) - 1) / 2
        rates = tuple(sorted(sorted(rates, key=lambda r: abs(rates.index(r) - middle))[: self.kept]))
        tried = [(rate, self.course(self.one, name, rate, self.screen)) for rate in rates]
        tried.sort(key=lambda pair: pair[1].end(0.3))
        look = partial(_likeness, self.one)
        last = [rate for rate, _ in tried[: self.finalists]]
        finals = [(rate, self.course(self.one, name, rate, self.steps, look)) for rate in last] or tried
        rate, best = min(finals, key=lambda pair: pair[1].end())
        outcome = self.told(best) | {"likeness": math.nan if best.seen is None else best.seen}
        more = self.longer(self.steps, best.fastest)
        if not outcome["trains"] and not best.blown and more > self.steps:
            longer = self.course(self.one, name, rate, more, look)
            outcome = self.told(longer) | {"likeness": math.nan if longer.seen is None else longer.seen}
            if outcome["trains"] and outcome["steps"] > STEPS and math.isfinite(self.constant):
                outcome |= {"trains": outcome["progress"] > LATE[name], "slow": True}
        return {"rate": rate, "tried": [(r, c.end(0.3)) for r, c in finals], **outcome}

    def unseen(self, name: str, rate: float, n: int) -> float:
        """The lowest loss of the last quarter of the batches while the race runs on the others; NaN for fewer than
        eight batches, and where it was never a number.
        """
        k = len(self.stream.batches) * 3 // 4
        if k < 6:
            return math.nan
        seen, rest = ShortRuns(self.at), ShortRuns(self.at)
        seen.batches, rest.batches = self.stream.batches[:k], self.stream.batches[k:]
        lowest = [math.inf]
        look = level(rest, True)

        def until(losses: list[float]) -> bool:
            if len(losses) in (n // 8, n // 4, n // 2, n):
                lowest[0] = min(lowest[0], look())
            done = self.done(losses)
            if done:
                lowest[0] = min(lowest[0], look())
            return done

        seen.run(seen.plain(lambda p: RACES[name][0](p, lr=rate)), n, until=until)
        return lowest[0] if math.isfinite(lowest[0]) else math.nan

    def seen(self, observed: Mapping[str, Any]) -> dict[str, Any]:
        """The losses of the user's own loop as a run."""
        losses, rates = observed["losses"], observed["rates"]
        course = Course(tuple(losses), math.nan, not all(map(math.isfinite, losses)))
        start, end = sum(losses[:3]) / len(losses[:3]), course.end()
        found = self.told(course) | {"start": start, "again": end, "warms_up": rates[-1] > 1.5 * rates[0]}
        fell = found["progress"] > FALLS
        return found | {
            "trains": fell if fell or len(losses) >= ENOUGH else None,
            "all": observed.get("all", False),
            "valid_before": math.nan, "rates": list(rates), "alike": observed.get("alike", math.nan),
            "spread": observed.get("spread", [math.nan, math.nan]),
        }  # fmt: skip

    def held_out(self, observed: Mapping[str, Any], valid: list[tuple[Any, Any]]) -> dict[str, Any]:
        """The same of data that the user's own loop holds out: its loss at best, of when that of the training was below
        chance.
        """
        told = observed.get("held_out", {})
        if not told:
            return {}
        n, first, checks = len(observed["losses"]), observed["losses"][:3], ShortRuns(self.at, valid)
        falls = [v for t, v in told.get("rounds", ()) if self.progress(t, sum(first) / len(first)) > LITTLE]
        before = checks.run(_never, 0, look=level(checks, False)).seen if valid else math.nan
        after = min(falls, default=math.nan)
        return told | {"valid_before": before, "valid_after": after, "slow_norm": _slow(self.at.root, n)}

    def own(self, valid: list[tuple[Any, Any]], parts: bool) -> dict[str, Any]:
        """The user's own steps, with the modes as the user left them, and what eval mode says afterwards.

        parts: whether there are several outputs, which may move apart at first, as a codebook and its encoder do.
        """
        at, runs = self.at, self.stream
        steps = min(self.steps, at.steps) if at.steps is not None else self.steps
        as_left = ShortRuns(replace(at, mode=None))
        as_left.batches = runs.batches
        checks = ShortRuns(at, valid)
        before = runs.run(_never, 0, look=level(checks, False)).seen if valid else math.nan
        start = as_left.run(_never, 0, look=level(as_left, None)).seen
        rates: list[float] = []
        spread = [math.nan, math.nan]
        trains = {f"{n}." if n else "" for n, m in at.root.named_modules() if m.training}
        moving = {
            n: b.clone() for n, b in at.root.named_buffers()
            if "running" in n and b.is_floating_point() and n[: n.rfind(".") + 1] in trains
        }  # fmt: skip
        still: list[str] = []
        asides: list[str] = []
        twins, rewritten = copies_of(at), Rewritten()

        def after() -> tuple[float, float, float]:
            spread[1] = _spread(as_left)
            still.extend(n for n, b in at.root.named_buffers() if n in moving and torch.equal(b, moving[n]))
            asides.extend(n or type(m).__name__ for n, m, was in twins if equal(m, was))
            return *both_modes(as_left, None), level(checks, False)() if valid else math.nan

        mine = Own(at)

        def begin(copies: Mapping[int, Tensor]) -> Update:
            update = mine.begin(copies)
            spread[0] = _spread(as_left)
            marks = list(copies.values())

            def noted(*batch: Any) -> Tensor:
                rates.append(max(float(g.get("lr", math.nan)) for g in mine.twin.param_groups))
                hook = register_optimizer_step_pre_hook(lambda *_: rewritten.before(len(rates) - 1, marks))
                try:
                    return update(*batch)
                finally:
                    hook.remove()
                    rewritten.behind(marks)

            return noted

        course = as_left.run(begin, steps, look=after, around=mine.around)
        if parts and steps < (at.steps or 0) and course.seen is not None and course.seen[0] > start + RISE * self.scale:
            steps = min(at.steps or 0, LONGER * steps)
            for noted_down in (rates, still, asides):
                noted_down.clear()
            rewritten = Rewritten()
            course = as_left.run(begin, steps, look=after, around=mine.around)
        found = self.told(course, start) | {
            "keyed": at.train_step is not None and isinstance(at.inputs, Mapping),
            "all": steps == at.steps, "start": start, "valid_before": before, "warms_up": rates[-1] > 1.5 * rates[0],
            "slow_norm": _slow(at.root, steps),
        }  # fmt: skip
        if course.seen is not None:
            found |= dict(zip(("again", "eval_after", "valid_after"), course.seen, strict=True))
        fell = found["progress"] > FALLS
        found |= {
            "rates": rates,
            "handed": mine.handed,
            "anew": len(mine.steppers) == 2
            and all(mine.steppers)
            and not mine.steppers[0].keys() & mine.steppers[1].keys(),
            "game": any(a.isdisjoint(b) for s in mine.steppers for a, b in itertools.combinations(s.values(), 2)),
            "changed": mine.changed,
            "evaluates": mine.evaluates,
            "still": still,
            "asides": asides,
            "rewritten": rewritten.steps,
        }
        found["spread"] = spread
        if mine.changed and not course.blown:
            usual = Own(replace(at, train_step=None))
            found["plain"] = self.told(as_left.run(usual.begin, steps, around=usual.around), start)["progress"]
            found["progress_again"] = self.progress(found["again"], start)
        return found | {"trains": fell if fell or course.blown or len(course.losses) >= ENOUGH else None}


def _slow(root: nn.Module, steps: int) -> bool:
    """Whether running statistics cannot have caught up in so many steps."""
    norms = [m for m in root.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    return any(m.momentum is None or m.momentum * steps < 2.5 for m in norms)


def _spread(runs: ShortRuns) -> float:
    """How far the outputs of samples differ, relative to their size; inside a run."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), untouched(runs.at.root):
        args, kwargs, _ = runs.batch(0)
        outputs = [t.float() for t in tensors(runs.at.whole(args, kwargs)) if t.is_floating_point() and t.dim() > 1]
    size = [
        float(t.std(0).square().mean().sqrt() / t.square().mean().sqrt().clamp_min(1e-30))
        for t in outputs
        if len(t) > 1
    ]
    return max(size, default=math.nan)


def _likeness(runs: ShortRuns) -> float:
    """Of several outputs the one of the targets' shape: its squared correlation with them, their means over samples
    left out; NaN where there is none. Inside a run.
    """
    args, kwargs, targets = runs.batch(0)
    if (
        runs.at.step is not None
        or not isinstance(targets, Tensor)
        or not targets.is_floating_point()
        or targets.dim() < 2
    ):
        return math.nan
    with torch.no_grad(), torch.random.fork_rng(devices=[]), untouched(runs.at.root):
        outputs = [t for t in tensors(runs.at.whole(args, kwargs)) if t.is_floating_point()]
        alike = [t - t.mean(0) for t in outputs if t.shape == targets.shape]
        right = targets - targets.mean(0)
        if len(outputs) < 2 or not alike or not float(right.norm()):
            return math.nan
        return max(
            float((t * right).sum().square() / (t.square().sum() * right.square().sum()).clamp_min(1e-30))
            for t in alike
        )


def _same_floor(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two optimizers that end at the same loss, below chance and flat, have trained: the network can do no more."""
    low, high = sorted((one["progress"], other["progress"]))
    if low > FALLS and low > 0.9 * high and all(_flat(x["losses"]) for x in (one, other)):
        one["trains"] = other["trains"] = True


def _flat(losses: Sequence[float]) -> bool:
    """Whether the last fifth lies as low as the one before, to 5 % of the whole fall."""
    fifth = max(1, len(losses) // 5)
    last, before = (
        sum(losses[-fifth:]) / fifth,
        sum(losses[-2 * fifth : -fifth]) / max(1, len(losses[-2 * fifth : -fifth])),
    )
    return len(losses) >= ENOUGH and before - last < 0.05 * (losses[0] - last)


def plan(updates: float) -> tuple[int, int, int, int]:
    """One of ``PLANS`` for as many updates in all: the user's own run, and of both optimizers the screening and the
    finals.
    """
    for k, screen, kept, finalists in PLANS:
        if updates >= k + 2 * (kept * screen + finalists * k):
            return k, screen, kept, finalists
    return PLANS[-1]


def _never(*_: Any) -> Any:
    """The update of a run of no steps."""
