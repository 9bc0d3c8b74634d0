"""Cures applied: the one that was asked for, or the best of several by what is measured on a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from normscope.call.arguments import tensors
from normscope.call.losses import LossLike
from normscope.call.step import Step, copied
from normscope.call.traceless import alone
from normscope.core.errors import UsageError, unknown
from normscope.findings.checkup.trial import RACES, raced
from normscope.findings.readings import Reading, lambda_max, read
from normscope.init import CURES, Cure, Treatment, unchanged_on_error
from normscope.init.wrappers import off_centre

#: What ``auto`` tries, the quick ones first; controls among them are never chosen.
CANDIDATES = tuple(name for pace in ("quick", "middle", "slow") for name, c in CURES.items() if c.auto == pace)
#: What treats activations or branches, and is tried behind the best of the cures that draw weights too; the former also
#: behind those that are exact in their scale: which is best alone says little of what is best with it.
JOINED, SCALED = ("shape", "branch-scale"), ("lsuv", "delta-orthogonal")
#: A cure must beat the model as it is by this much (decades, a factor of 2): chosen by us, because redrawing the
#: weights of one law moves the cost by about as much.
LEAST_GAIN = 0.3
#: The best by signs race for so many steps of SGD and of Adam, at several rates, where a step takes at most so many
#: seconds. A loss below the last share of chance counts as that share.
FINALISTS, STEPS, SECONDS, FLOOR = 4, 30, 0.2, 0.05
#: Models of so few parameters are kept once they are treated.
SMALL = 1_000_000


def cure(
    model: nn.Module | Step, how: str, inputs: Any = None, targets: Any = None, *, seed: int = 0, loss: LossLike = None,
    data: Any = None, samples: int | None = None,
) -> nn.Module:  # fmt: skip
    """Give a model weights (or a norm) with which it can train: the same model, changed in place.

    how: a name of ``normscope.init.CURES``; several joined by ``+`` are applied in turn
        (``"orthogonal+center-outputs"``); or ``"auto"``: the best of `rank_cures` on this batch.
    model, inputs, targets, loss, data, samples: as in `diagnose`; most cures look at the inputs only.
    seed: of every random choice; equal seeds give bit-identical weights (``auto`` goes by time too, where a net is so
        large that its candidates, or a race, would take long).

    Returns the model; for ``center-outputs`` and ``last-batch-norm`` the module that wraps it. Nothing but the weights
    and biases of the treated layers changes. ``normscope.findings.cures.treat`` takes the same arguments and also says
    which layers were treated, and why others were not.
    Raises ``UsageError`` for an unknown name, fewer than 2 samples, values that are not finite (naming the layer), or a
    model without a layer to treat; then the model is as before.
    """
    return treat(model, how, inputs, targets, seed=seed, loss=loss, data=data, samples=samples).model


@unchanged_on_error
@alone
def treat(
    model: nn.Module | Step, how: str, inputs: Any = None, targets: Any = None, *, seed: int = 0, loss: LossLike = None,
    data: Any = None, samples: int | None = None,
) -> Treatment:  # fmt: skip
    """`cure`, with the account of what was done to which layer."""
    parts = parts_of(how)
    at = Step.of(model, inputs, targets, loss, mode="train", seed=seed, data=data, samples=samples)
    if at.targets is not None or at.criterion.kind:
        _check_loss(at)
    if how == "auto":
        how = rank_cures(at)[0].name
        parts = parts_of(how)
    treatment = Treatment(model.model if isinstance(model, Step) else model)
    for part in parts:
        done = part.apply(treatment.model, at, at.targets, torch.Generator().manual_seed(seed))
        treatment = Treatment(
            done.model,
            tuple(dict.fromkeys((*treatment.treated, *done.treated))),
            {**treatment.left_alone, **done.left_alone},
            tuple(dict.fromkeys((*treatment.notes, *done.notes))),
        )
    return treatment


@torch.no_grad()
def _check_loss(at: Step) -> None:
    """The ``UsageError`` that every verb raises of these targets and this loss, before anything is changed."""

    def work() -> None:
        args, kwargs, _ = at.arguments()
        whole = at.whole(args, kwargs)
        at.settled(whole).value(whole, at.own_targets(), at.seed)

    at.run(work)


def parts_of(how: str) -> list[Cure]:
    """The cures that a name stands for, in order; none for ``auto``. ``UsageError`` names the nearest known one."""
    names = str(how).split("+") if how != "auto" else []
    if "auto" in names:
        raise UsageError(
            f"auto chooses a cure and cannot be joined with others; got {how!r}. Use auto alone, or name each cure, as "
            "in orthogonal+center-outputs."
        )
    listed = [name.strip() for name in str(how).split(",")]
    if len(listed) > 1 and all(name in CURES for name in listed):
        raise UsageError(f"Cures are joined by +; got {how!r}. Write {'+'.join(listed)}.")
    for name in names:
        if name not in CURES:
            raise unknown("cure", name, [*CURES, "auto"])
    return [CURES[name] for name in names]


@dataclass(frozen=True)
class Trial:
    """A candidate of ``auto``: what it was measured to do on a copy of the model, or the reason why it could not be
    tried.

    left: what short races on the batch leave of the loss, in decades below chance, SGD's and Adam's added; NaN where
    it did not race.
    """

    name: str
    control: bool
    seconds: float
    reading: Reading | None
    reason: str = ""
    left: float = math.nan

    @property
    def key(self) -> tuple[float, ...]:
        """Order of the ranking: tried before not tried, usable before controls; what raced, by what is left; then
        without error findings first, by the cost less the sharpness, which is not measured of all.
        """
        if self.reading is None:
            return (2.0,)
        errors, signs = float(self.reading.errors > 0), self.reading.cost - self.reading.terms["sharpness"]
        return (float(self.control), 1.0, errors, signs) if math.isnan(self.left) else (0.0, 0.0, self.left, signs)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        found = self.reading.to_dict() if self.reading else {}
        about = {"name": self.name, "control": self.control, "seconds": self.seconds, "reason": self.reason}
        return about | {"left": self.left} | found


def rank_cures(
    model: nn.Module | Step,
    inputs: Any = None,
    targets: Any = None,
    *,
    fresh: tuple[Any, Any] | None = None,
    candidates: Sequence[str] = CANDIDATES,
    loss: LossLike = None,
    curvature: bool = True,
    seconds: float | None = 40.0,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[Trial]:
    """Try cures on copies of the model and rank them by what is measured, the best first.

    model, inputs, targets, loss: a batch as in `cure`.
    fresh: (inputs, targets) to measure on, better than the batch that the cures have seen.
    candidates: names as for `cure`. The best that draws weights is also tried with each of `JOINED` that can be
        applied, those of `SCALED` with ``shape``, and the best of all with ``center-outputs``.
    seconds: start no further candidate after so many CPU seconds, but ``center-outputs`` behind a race.
    curvature: measure lambda_max too, of what raced or is best.

    Signs at initialization, `Reading.cost`, choose `FINALISTS` candidates, at most two of them joined; with a loss
    these and the model as it is race, `STEPS` steps of SGD and of Adam on the batch, at several rates, and what is left
    of the loss decides. Where a step takes more than `SECONDS` there is no race, and the signs decide. The model as it
    is stays first unless a cure is better by `LEAST_GAIN`. Controls are shown and never first.
    """
    at = Step.of(model, inputs, targets, loss, mode="train", seed=seed)
    on = _fresh(at, fresh)
    _check_differ(on.inputs)
    _check_differ(at.inputs)
    begin, made = time.process_time(), _Made(at)
    trials: dict[str, Trial] = {}
    say = progress or (lambda _name: None)

    def attempt(name: str, *, late: bool = False) -> Trial:
        if not late and seconds is not None and time.process_time() - begin > seconds and trials:
            trials[name] = Trial(name, False, 0.0, None, "not tried: no time left")
        else:
            say(name)
            trials[name] = _try(name, on, made)
        return trials[name]

    def usable(*but: str) -> list[Trial]:
        found = [t for t in trials.values() if t.reading and not t.control and t.name not in but]
        return sorted(found, key=lambda t: t.key)

    for name in candidates:
        attempt(name)
    drawn = [t.name for t in usable(*JOINED, "none", "zero-branches")]
    pairs = {"shape": dict.fromkeys([*drawn[:1], *(n for n in SCALED if n in drawn)]), "branch-scale": drawn[:1]}
    joins = [attempt(f"{d}+{n}").name for n, first in pairs.items() if n in trials and trials[n].reading for d in first]
    both = [t.name for t in usable() if t.name in joins][:2]
    finalists = [t.name for t in usable("none", *joins)[: FINALISTS - len(both)]] + both
    finalists += ["none"] if "none" in trials and trials["none"].reading else []
    ends: dict[str, dict[str, float]] = {}
    slow = [False]  # where the steps of one are too long, so are the others'

    def sharpened(name: str) -> None:
        reading = trials[name].reading
        if curvature and reading is not None:
            peak = lambda_max(replace(on, model=made(name)))
            trials[name] = replace(trials[name], reading=replace(reading, lambda_max=peak))

    def race(name: str) -> None:
        say(f"{name}, racing")
        found = _race(replace(at, model=made(name)))
        if not found:
            slow[0] = found is not None
            return
        sharpened(name)
        ends[name] = found
        chance = min(e["start"] for e in ends.values())
        for other, end in ends.items() if chance > 0 else ():
            shares = [max(end[o] / chance, FLOOR) if math.isfinite(end[o]) else math.inf for o in RACES]
            trials[other] = replace(trials[other], left=sum(math.log10(min(s, 10.0)) for s in shares))

    for name in finalists:
        if not slow[0]:
            race(name)
    best = min(trials.values(), key=lambda t: t.key)
    if not ends:
        sharpened(best.name)
        best = trials[best.name]
    sharp = best.reading is not None and best.reading.terms["sharpness"] > 0
    if sharp and "center-outputs" not in best.name and not off_centre(at.targets):
        name = "center-outputs" if best.name == "none" else f"{best.name}+center-outputs"
        if attempt(name, late=bool(ends)).reading is not None:
            race(name) if ends else sharpened(name)
    ranked = sorted(trials.values(), key=lambda t: t.key)
    centred = trials.get(f"{best.name}+center-outputs".removeprefix("none+"))
    if not ends and centred is not None and centred.reading is not None and best.reading is not None:
        ranked.remove(centred)
        ranked.insert(int(centred.reading.cost >= best.reading.cost), centred)
    if ranked[0].reading is None:
        raise UsageError(f"No cure could be tried on this model: {ranked[0].reason}")
    plain = trials.get("none")
    if plain is not None and plain.reading is not None and _no_better(ranked[0], plain):
        ranked.remove(plain)
        ranked.insert(0, plain)
    return ranked


def _check_differ(inputs: Any) -> None:
    """``UsageError`` where all samples are the same: every net then collapses them, and no cure is better than
    another.
    """
    leaves = [v for v in tensors(inputs) if v.dim()]
    n = max((len(v) for v in leaves), default=0)
    leaves = [v for v in leaves if len(v) == n]
    if n > 1 and all(bool((v == v[:1]).all()) for v in leaves):
        raise UsageError(
            f"Cures are ranked by how a net keeps samples apart, so the samples must differ; all {n} are the same. "
            "Give samples of the training set, or name a cure."
        )


def _fresh(at: Step, fresh: tuple[Any, Any] | None) -> Step:
    """The step that is measured: on the samples that the cures have not seen, if there are some."""
    return at if fresh is None else replace(at, inputs=fresh[0], targets=fresh[1], data=None)


def _no_better(best: Trial, plain: Trial) -> bool:
    """Whether a candidate is not better than the model as it is by `LEAST_GAIN`."""
    assert best.reading is not None
    assert plain.reading is not None
    if not math.isnan(best.left) and not math.isnan(plain.left):
        return plain.left - best.left < LEAST_GAIN
    return best.key[:-1] == plain.key[:-1] and plain.reading.cost - best.reading.cost < LEAST_GAIN


def _race(at: Step) -> dict[str, float] | None:
    """`raced`; ``None`` without a loss, too."""
    if at.targets is None and not at.criterion.kind and at.step is None:
        return None
    try:
        return raced(at, STEPS, SECONDS)
    except UsageError:
        return None


class _Made:
    """Treated copies of a step's model, by name; small ones are kept."""

    def __init__(self, at: Step) -> None:
        self.at = at
        self.kept: dict[str, nn.Module] = {}
        self.small = sum(p.numel() for p in at.root.parameters()) <= SMALL

    def __call__(self, name: str) -> nn.Module:
        if name in self.kept:
            return self.kept[name]
        model = treat(replace(self.at, model=copied(self.at.model)), name, seed=self.at.seed).model
        if self.small:
            self.kept[name] = model
        return model


def _try(name: str, on: Step, made: _Made) -> Trial:
    control, start = any(part.control for part in parts_of(name)), time.monotonic()
    try:
        reading = read(replace(on, model=made(name)), curvature=False, checkup=False)
    except UsageError as error:
        return Trial(name, control, time.monotonic() - start, None, str(error))
    return Trial(name, control, time.monotonic() - start, reading)


@dataclass(frozen=True)
class Course:
    """A model before and after a cure: the `Reading` of both, what was done, and the candidates if the cure was chosen
    here.
    """

    how: str
    treatment: Treatment
    before: Reading
    after: Reading
    trials: tuple[Trial, ...]
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        t = self.treatment
        return {
            "how": self.how,
            **self.facts,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "treated": list(t.treated),
            "left_alone": dict(t.left_alone),
            "notes": list(t.notes),
            "trials": [t.to_dict() for t in self.trials],
        }


def follow(
    model: nn.Module | Step,
    how: str,
    inputs: Any = None,
    targets: Any = None,
    *,
    fresh: tuple[Any, Any] | None = None,
    loss: LossLike = None,
    curvature: bool = True,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Course:
    """`cure` a model and measure it before and after, on ``fresh`` = (inputs, targets) if given; arguments as
    `rank_cures`.
    """
    say = progress or (lambda _name: None)
    parts_of(how)
    at = Step.of(model, inputs, targets, loss, mode="train", seed=seed)
    on = _fresh(at, fresh)
    trials: list[Trial] = []
    if how == "auto":
        trials = rank_cures(at, fresh=fresh, curvature=curvature, progress=progress)
        how = trials[0].name
    say("before")
    before = read(on, curvature=curvature)
    say(how)
    start = time.monotonic()
    treatment = treat(at, how, seed=at.seed)
    facts = {
        "seconds": time.monotonic() - start,
        "loss": before.loss,
        "measured_on": "fresh samples" if fresh else "the batch of the cure",
        "samples": at.rows.n,
        "samples_measured": on.rows.n,
    }
    say("after")
    after = read(replace(on, model=treatment.model), curvature=curvature)
    return Course(how, treatment, before, after, tuple(trials), facts)
