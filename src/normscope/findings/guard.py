"""A guard over findings: what is ignored, what fails a run, and what is new or worse than a baseline.

A finding is the same as one of the baseline if model, code and module are; it is worse if its severity is. No number of
the evidence counts: those change with the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from normscope.core import files
from normscope.core.errors import UsageError, brief, shown, unknown
from normscope.core.words import version
from normscope.findings import RULES, Finding
from normscope.findings._rules import SEVERITIES

SCHEMA = "normscope.baseline/1"
#: (model, code, module)
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Ignore:
    """Findings that are known and meant: of one code, in the models and modules that the glob patterns name.

    ``module`` ``None``: wherever it was found, the whole model included; ``reason``: why it may stay.
    """

    code: str
    model: str = "*"
    module: str | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.code not in RULES:
            raise unknown("finding code", self.code, RULES)

    def of_model(self, label: str) -> bool:
        """Whether the pattern names this model."""
        return fnmatchcase(label, self.model)

    def covers(self, label: str, finding: Finding) -> bool:
        """Whether it is this finding of this model that is ignored."""
        within = self.module is None or fnmatchcase(finding.name, self.module)
        return finding.code == self.code and self.of_model(label) and within

    def __str__(self) -> str:
        model = f" in {self.model}" if self.model != "*" else ""
        return f"{self.code}{model}{f', modules {self.module}' if self.module is not None else ''}"


def check_wanted(wanted: Iterable[str], codes: Iterable[str], name: str = "fail_on") -> None:
    """``UsageError`` unless each of ``wanted`` is a severity or one of the codes."""
    codes = list(codes)
    for item in wanted:
        if not isinstance(item, str):
            raise UsageError(f"{name} must be severities or codes; got {shown(item)}. Pass 'error' or 'NS101'.")
        if item not in SEVERITIES and item not in codes:
            raise unknown("severity or finding code", item, ["warning", "error", *codes])


def named(finding: Finding, wanted: Iterable[str]) -> bool:
    """Whether a finding is of a wanted code, or at least as grave as a wanted severity."""
    rank = SEVERITIES.index(finding.severity)
    return any(w == finding.code or (w in SEVERITIES and rank <= SEVERITIES.index(w)) for w in wanted)


@dataclass(frozen=True)
class Baseline:
    """What was found once and is accepted: (model, code, module) -> severity."""

    known: Mapping[Key, str]

    @classmethod
    def of(cls, found: Iterable[tuple[str, Finding]]) -> Baseline:
        """The baseline of (label of the model, finding); of several with one key the gravest counts."""
        known: dict[Key, str] = {}
        for label, f in found:
            key = (label, f.code, f.name)
            known[key] = min(f.severity, known.get(key, f.severity), key=SEVERITIES.index)
        return cls(known)

    @classmethod
    def read(cls, path: Path) -> Baseline:
        """What `write` wrote. Raises ``UsageError`` where there is no such file, or it is none of these."""
        again = "Write it with --write-baseline."
        try:
            found = files.read(path, json.load)
        except files.Damaged as error:
            raise UsageError(f"A baseline must be JSON; {path} is not ({brief(error)}). {again}") from None
        if found is None:
            raise UsageError(f"There must be a baseline {path}; there is none. {again}")
        if not isinstance(found, Mapping) or found.get("schema") != SCHEMA:
            got = shown(found.get("schema")) if isinstance(found, Mapping) else f"a {type(found).__name__}"
            raise UsageError(f"A baseline must have the schema {SCHEMA!r}; {path} has {got}. {again}")
        fields = ("model", "code", "module", "severity")
        rows: list[Any] = listed if isinstance(listed := found.get("findings"), list) else [None]
        for row in rows:
            whole = isinstance(row, Mapping) and all(isinstance(row.get(k), str) for k in fields)
            if not whole or row["severity"] not in SEVERITIES:
                raise UsageError(
                    f"Each finding of a baseline must have model, code, module and severity; {path} has "
                    f"{brief(shown(row))}. {again}"
                )
        return cls({(r["model"], r["code"], r["module"]): r["severity"] for r in rows})

    def text(self) -> str:
        """As JSON: a line a finding, in order, so that a change is a change of few lines."""
        rows = [
            json.dumps(dict(zip(("model", "code", "module", "severity"), (*key, severity), strict=True)))
            for key, severity in sorted(self.known.items())
        ]
        body = ",\n  ".join(rows)
        head = f'"schema": {json.dumps(SCHEMA)},\n "normscope": {json.dumps(version())}'
        return f'{{{head},\n "findings": [{f"{chr(10)}  {body}{chr(10)} " if rows else ""}]}}\n'

    def kept(self, looked_at: Sequence[str]) -> Baseline:
        """Its part of models that were not looked at."""
        return Baseline({k: v for k, v in self.known.items() if k[0] not in looked_at})

    def state(self, label: str, finding: Finding) -> str:
        """``new``, ``worse`` or ``known``."""
        before = self.known.get((label, finding.code, finding.name))
        if before is None:
            return "new"
        return "worse" if SEVERITIES.index(finding.severity) < SEVERITIES.index(before) else "known"

    def gone(self, found: Iterable[tuple[str, Finding]], looked_at: Sequence[str]) -> list[Key]:
        """What of the models that were looked at is there no more."""
        now = Baseline.of(found).known
        return sorted(k for k in self.known if k[0] in looked_at and k not in now)
