"""A training that was recorded, with its findings, and with what could not be looked at."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from normscope.core.faces import Shown
from normscope.findings import RULES, Finding
from normscope.findings._rules import SEVERITIES
from normscope.findings.course import Course, Missing
from normscope.probing.runs import Run, read


@dataclass(frozen=True, repr=False)
class Review(Shown):
    """What a run shows: ``findings`` (the worst first), ``unseen`` (code -> what the rule would have needed)."""

    face = "review"
    run: Run
    findings: Sequence[Finding]
    unseen: Mapping[str, str]
    layers: int = 0

    @property
    def verdict(self) -> str:
        """One sentence: what went wrong while it trained, and where that began."""
        worst = [f for f in self.findings if f.severity == "error"] or [
            f for f in self.findings if f.severity == "warning"
        ]
        looked = len([r for r in RULES.values() if r.over == "steps"]) - len(self.unseen)
        rest = f"; {len(self.unseen)} could not run" if self.unseen else ""
        seen = f"{looked} check{'s' * (looked != 1)} ran{rest}"
        if not looked:
            return f"Nothing can be told: none of the checks could run ({next(iter(self.unseen.values()))})."
        if not worst:
            return f"Nothing found ({seen})."
        names = ", ".join(f.title + self._place(f) for f in worst)
        return f"{'Went wrong' if worst[0].severity == 'error' else 'At risk'}: {names} ({seen})."

    def _place(self, finding: Finding) -> str:
        layer = f", layer {finding.layer}" if finding.layer is not None else ""
        return f" from {self.run.unit} {finding.step}{layer}"

    @property
    def facts(self) -> dict[str, Any]:
        """How it was recorded, and the curves in numbers."""
        found: dict[str, Any] = {**self.run.facts}
        if self.layers:
            found["layers"] = self.layers
        course = Course(self.run)
        for metric, title in (("loss", "loss"), ("val_loss", "validation loss"), ("lr", "learning rate")):
            try:
                s = course.scalar(metric, 1)
            except Missing:
                continue
            same = len(s.values) > 1 and len(set(s.values.tolist())) == 1
            found[title] = f"constant, {s.values[0]:.4g}" if same else f"{s.values[0]:.4g} to {s.values[-1]:.4g}"
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single numbers, ready for JSON."""
        return {
            "label": self.run.label, "verdict": self.verdict, "facts": self.facts,
            "findings": [asdict(f) for f in self.findings],
            "not_run": [{"code": c, "title": RULES[c].title, "needs": why} for c, why in self.unseen.items()],
            "notes": list(self.run.notes),
        }  # fmt: skip

    def __repr__(self) -> str:
        codes = ", ".join(f"{f.code} {f.severity}" for f in self.findings) or "no findings"
        return f"Review({self.run.label}: {codes}; {len(self.unseen)} checks not run)"


def review(run: Run | str | os.PathLike[str]) -> Review:
    """Apply every rule over the steps to a run, or to what a file or folder holds of one (`normscope.probing.runs`).

    Raises ``UsageError`` for a path that holds no record of a training.
    """
    run = run if isinstance(run, Run) else read(os.fspath(run))
    course, found, unseen = Course(run), [], {}
    for r in RULES.values():
        if r.over != "steps":
            continue
        try:
            found += list(r.findings(course))
        except Missing as missing:
            unseen[r.code] = str(missing)

    def key(f: Finding) -> tuple[int, float, str]:
        return SEVERITIES.index(f.severity), math.inf if f.step is None else f.step, f.code

    return Review(run, sorted(found, key=key), unseen, course.depth)
