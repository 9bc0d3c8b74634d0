"""What a rule is, and what it gets to see."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from normscope.core.records import Profile, Record
from normscope.core.registry import Registry

SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """A rule that fired: where, on what evidence, what it means for training, and what to do about it."""

    code: str
    severity: str
    title: str
    layer: int | None
    name: str
    metric: str
    value: float
    threshold: float
    source: str
    evidence: str
    meaning: str
    cure: str
    #: Of a training: the step at which it began.
    step: int | None = None

    def __str__(self) -> str:
        return f"{self.severity} {self.code} {self.title}{self.place}: {self.evidence}. To do: {self.cure}"

    @property
    def place(self) -> str:
        """Where, as words behind the title: a layer of the pass, or a module."""
        if self.layer:
            return f" from layer {self.layer}"
        return f" ({self.name})" if self.name else ""


@dataclass(frozen=True)
class Rule:
    """A coded rule. ``text`` is the long explanation with formula and reference; ``source`` the threshold's origin.

    over: what it reads: the ``View`` of a measured batch, or the ``Course`` of a training (`findings.course`).
    """

    code: str
    title: str
    severity: str
    meaning: str
    cure: str
    source: str
    text: str
    check: Callable[[Any], Iterable[Hit]]
    over: str = "batch"

    def findings(self, view: Any) -> Iterator[Finding]:
        """The findings of this rule on one profile, or on one training."""
        for hit in self.check(view):
            yield Finding(
                code=self.code,
                severity=hit.severity or self.severity,
                title=self.title,
                layer=hit.at.layer if hit.at else None,
                name=hit.at.name if hit.at else hit.name,
                metric=hit.metric,
                value=hit.value,
                threshold=hit.threshold,
                source=self.source,
                evidence=hit.evidence,
                meaning=self.meaning,
                cure=hit.cure or self.cure,
                step=hit.step,
            )


@dataclass(frozen=True)
class Hit:
    """Evidence for a rule: the record where it starts (or the module's ``name``), the number that crossed the
    threshold, and a sentence; ``cure``: what to do, where the evidence knows better than the rule."""

    at: Record | None
    metric: str
    value: float
    threshold: float
    evidence: str
    severity: str = ""
    name: str = ""
    step: int | None = None
    cure: str = ""


RULES: Registry[Rule] = Registry("finding code")


def rule(
    code: str, title: str, *, severity: str, meaning: str, cure: str, source: str, over: str = "batch"
) -> Callable[[Callable[[Any], Iterable[Hit]]], Rule]:
    """Decorator: enrol a function of a `View` (or a `Course`) as the rule ``code``; its docstring is the long
    explanation.
    """

    def enrol(check: Callable[[Any], Iterable[Hit]]) -> Rule:
        text = check.__doc__ or ""
        return RULES.add(code, Rule(code, title, severity, meaning, cure, source, text, check, over))

    return enrol


def listed(names: Sequence[str], most: int = 4) -> str:
    """A few names in words."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def inside(module: str) -> str:
    """Words for the module that was running; none for the model itself."""
    return f" in {module}" if module else ""


#: Families in the order in which they are read where several are equally severe: causes before what follows from them.
ROOTS = ("NS8", "NS6", "NS7", "NS11", "NS12", "NS406")
CAUSES = (*ROOTS, "NS40", "NS1", "NS2", "NS3", "NS41", "NS5", "NS9", "NS42")


def find(profile: Profile) -> list[Finding]:
    """All findings on one measured profile: errors first, causes before their consequences, then by layer.

    Where data, wiring, loss or who sees whom are at fault, what geometry, gradients and rates show may follow from
    that: it comes after. A trial decides how grave geometry, gradients and rates are.
    """
    view = View(profile)
    found = [f for r in RULES.values() if r.over == "batch" for f in r.findings(view)]
    found = [_in_the_light_of(view.section("trial"), f) for f in found]
    cause = at_fault(found)
    if cause:
        found = [f for f in found if f.code not in AFTERWARDS]
    if any(f.code.startswith("NS8") and f.severity != "info" for f in found):
        found = [f for f in found if f.code != "NS713"]  # numbers far off make outputs far off

    def key(f: Finding) -> tuple[bool, int, int, str, int]:
        family = _family(f.code)
        return cause and family >= len(ROOTS), SEVERITIES.index(f.severity), family, f.code, f.layer or 0

    return sorted(found, key=key)


def at_fault(found: Iterable[Finding]) -> bool:
    """Whether data, wiring, loss, or who sees whom are at fault."""
    return any(_family(f.code) < len(ROOTS) and f.severity != "info" for f in found)


#: Rates are judged only where wiring, loss and data are clean.
AFTERWARDS = ("NS402", "NS403", "NS407", "NS423")
#: What a trial decides: predictions from one batch at the start. The rates of the user's own optimizer by its own
#: trial.
PREDICTIONS, RATES = (
    ("NS101", "NS102", "NS103", "NS104", "NS105", "NS106", "NS126", "NS2", "NS3", "NS401", "NS508", "NS713"),
    ("NS403", "NS405", "NS407"),
)


def _in_the_light_of(trial: Mapping[str, Any], f: Finding) -> Finding:
    """A finding with the severity that the trial leaves: predictions are notes of what trained, errors of what did
    not.
    """
    if "sgd" not in trial or f.severity == "info":
        return f
    races = [trial[name].get("slow") or trial[name]["trains"] for name in ("sgd", "adam")]
    own = trial.get("own", {}).get("trains")
    # a group that is no part of the training, and what shows late
    sure = (f.metric == "learning_rate" and 0 < f.value < 0.01 * f.threshold) or f.metric == "momentum"
    if f.code.startswith(RATES) and not sure:
        return replace(f, severity="info", evidence=f"{f.evidence} (yet its own trial trained)") if own else f
    if not f.code.startswith(PREDICTIONS):
        return f
    if own or (any(races) and False not in races):
        return replace(f, severity="info", evidence=f"{f.evidence} (yet the trial trained)")
    return f if None in races else replace(f, severity="warning" if any(races) else "error")


def _family(code: str) -> int:
    return next(i for i, start in enumerate(CAUSES) if code.startswith(start))


#: Layers of one role from which on they alone are compared (chosen by us: two blocks repeat their roles).
REPEATED = 2


class View:
    """A profile as the rules read it: curves in the order of execution, the output layer apart from the hidden ones."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.facts = profile.facts
        self.samples = int(profile.facts.get("batch_size", 0))

    def section(self, name: str) -> Mapping[str, Any]:
        """One section of the check-up (`normscope.findings.checkup`); empty where it did not run."""
        found: Mapping[str, Any] = self.facts.get("checkup", {}).get(name, {})
        return found

    def given(self, name: str) -> bool:
        """Whether the step came with an ``optimizer``, ``data``, ``valid`` or ``train_step``."""
        return name in self.facts.get("checkup", {}).get("given", ())

    def width(self, record: Record) -> float:
        """Entries a sample of a layer's output; infinite where the check-up did not see it."""
        name = record.name if record.layer else "the inputs"
        return float(self.facts.get("checkup", {}).get("widths", {}).get(name, math.inf))

    def curve(self, metric: str, signal: str = "activation") -> list[Record]:
        """Records of one metric in the order of execution, with the input and the output."""
        return self._curves.get((metric, signal), [])

    def hidden(self, metric: str, signal: str = "activation") -> list[Record]:
        """The same between the input and the output: layers whose geometry is the network's own doing."""
        curve = [r for r in self.curve(metric, signal) if r.layer > 0]
        return [r for r in curve if (r.layer, r.call) != self._output] if len(curve) > 1 else curve

    def alike(self, metric: str, signal: str = "activation") -> list[Record]:
        """Hidden records of the commonest kind of module (the later one of two as common): like beside like.

        Gradients are also of one role: the later one of the commonest names but for their numbers
        (``layer.#.output.dense``),
        as a query's are small in every block.

        Without what a skip leads around while its branch starts at zero, as it should: layers without any gradient
        although an earlier one has one, and layers of output zero (NaN) although a later one has a value.
        """
        curve, everyone = self.hidden(metric, signal), self.curve(metric, signal)
        if signal == "gradient":
            live = [(r.layer, r.call) for r in everyone if r.value > 0]
            curve = [r for r in curve if r.value != 0 or not live or (r.layer, r.call) < live[0]]
        else:
            known = [(r.layer, r.call) for r in everyone if not math.isnan(r.value)]
            curve = [r for r in curve if not math.isnan(r.value) or not known or (r.layer, r.call) > known[-1]]
        curve = _commonest(curve, lambda r: r.kind)
        if signal == "gradient":
            same = _commonest(curve, lambda r: re.sub(r"\d+", "#", r.name))
            curve = same if len(same) >= REPEATED else curve
        return curve

    def at_input(self, metric: str) -> float:
        """Value at layer 0; NaN where the input is not a floating tensor."""
        return next((r.value for r in self.curve(metric) if r.layer == 0), math.nan)

    @cached_property
    def _curves(self) -> dict[tuple[str, str], list[Record]]:
        curves: dict[tuple[str, str], list[Record]] = {}
        for r in self.profile.records:
            if r.source == "measured":
                curves.setdefault((r.metric, r.signal), []).append(r)
        return curves

    @cached_property
    def _output(self) -> tuple[int, int]:
        last = self.curve("participation_rank")[-1:]
        return (last[0].layer, last[0].call) if last else (-1, -1)


def _commonest(curve: list[Record], key: Callable[[Record], str]) -> list[Record]:
    """The records of the commonest key, the later one of two as common."""
    counts = Counter(key(r) for r in curve)
    most = max(reversed(counts), key=counts.__getitem__, default="")
    return [r for r in curve if key(r) == most]


def settles(curve: list[Record], bad: Callable[[float], bool]) -> Record | None:
    """The first record from which on every value is bad, NaN aside; ``None`` if the last one is not."""
    start = None
    for r in reversed(curve):
        if math.isnan(r.value):
            continue
        if not bad(r.value):
            break
        start = r
    return start


def where(r: Record) -> str:
    """A record's place in words."""
    call = f", call {r.call}" if r.call else ""
    return f"layer {r.layer} ({r.name or r.kind}{call})"
