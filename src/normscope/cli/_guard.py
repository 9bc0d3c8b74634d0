"""A run as a guard: which findings are ignored, known or new, whether they fail it, and how they are told."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope.cli._app import console, json_text, warn
from normscope.cli._config import Config
from normscope.cli._index import index
from normscope.cli._outputs import Writer, absolute, say_written
from normscope.core.errors import UsageError, brief, unknown
from normscope.core.files import write
from normscope.core.words import distinct

if TYPE_CHECKING:
    from normscope.findings import Finding
    from normscope.findings.diagnosis import Diagnosis
    from normscope.findings.guard import Baseline, Key

TEXT, JSON = "text", "json"
FORMATS = (TEXT, JSON, "github", "sarif", "junit")
#: Of what ``diagnose --json`` prints; docs/ci.md is its page.
SCHEMA = "normscope.diagnosis/1"
STATES = ("new", "worse", "known")


@dataclass(frozen=True)
class Judged:
    """Findings held against configuration and baseline: one row each, diagnoses without what is ignored, what is gone,
    and the new baseline, if one is written, which accepts all.
    """

    rows: list[dict[str, Any]]
    diagnoses: list[Diagnosis]
    labels: list[str]
    gone: list[Key]
    written: Baseline | None

    @property
    def fails(self) -> bool:
        """Whether the run fails."""
        return self.written is None and any(row["fails"] for row in self.rows)

    @property
    def verdicts(self) -> dict[str, str]:
        """label -> verdict, which names what is ignored."""
        return {label: d.facts["verdict"] for label, d in zip(self.labels, self.diagnoses, strict=True)}

    def count(self, state: str) -> int:
        """How many findings of a state there are, those that are ignored left out."""
        return sum(row["state"] == state and not row["ignored"] for row in self.rows)


@dataclass(frozen=True)
class Guard:
    """What a command was asked to guard, its files read and looked at before the work.

    write_to: the file of a new baseline; keeps: what it keeps of the old one.
    """

    config: Config
    fail_on: tuple[str, ...] = ()
    path: Path | None = None
    baseline: Baseline | None = None
    write_to: Path | None = None
    keeps: Baseline | None = None
    form: str = TEXT
    file: Path | None = None

    @classmethod
    def of(
        cls, config: Config, fail_on: list[str] | None, baseline: Path | None, write_baseline: Path | None,
        output_format: str | None, output_file: Path | None, json: bool, *, some: bool = False,
    ) -> Guard:  # fmt: skip
        """The options of a command line over what the configuration says; some: not all of its models are looked at."""
        from normscope.findings.guard import Baseline, check_wanted

        wanted = tuple(fail_on or config.fail_on)
        check_wanted(wanted, index()["rules"])
        if output_format is not None and output_format not in FORMATS:
            raise unknown("output format", output_format, FORMATS)
        if json and output_format not in (None, JSON):
            raise UsageError(f"--json is --output-format json; got {output_format} too. Leave one of them out.")
        form = JSON if json else output_format or TEXT
        if output_file is not None and form == TEXT:
            raise UsageError(
                f"--output-file takes what --output-format makes, one of {', '.join(FORMATS[1:])}. Name it."
            )
        path = baseline or (None if write_baseline else config.baseline)
        keeps = Baseline.read(write_baseline) if write_baseline and some and write_baseline.exists() else None
        return cls(
            config, wanted, path, Baseline.read(path) if path else None, absolute(write_baseline), keeps, form,
            absolute(output_file),
        )  # fmt: skip

    @property
    def talks(self) -> bool:
        """Whether standard output is for people."""
        return self.form == TEXT or self.file is not None

    def judge(
        self, diagnoses: Sequence[Diagnosis], place: Callable[[int, Finding], tuple[str, int]]
    ) -> Judged:  # fmt: skip
        """Every finding with its state; ``place(i, finding)``: where it stands, file and line."""
        from normscope.findings.guard import Baseline, named

        rows: list[dict[str, Any]] = []
        kept: list[Diagnosis] = []
        labels = distinct([d.label for d in diagnoses])
        # A baseline alone fails for what is grave; --fail-on says otherwise.
        wanted = self.fail_on or (("warning",) if self.baseline is not None else ())
        for i, (label, d) in enumerate(zip(labels, diagnoses, strict=True)):
            for f in d.findings:
                cover = next((g for g in self.config.ignores if g.covers(label, f)), None)
                state = self.baseline.state(label, f) if self.baseline is not None and cover is None else ""
                file, line = place(i, f)
                rows.append({
                    **asdict(f), "model": label, "state": state, "ignored": cover is not None,
                    "reason": cover.reason if cover else "", "file": file, "line": line,
                    "fails": cover is None and state != "known" and named(f, wanted),
                })  # fmt: skip
            kept.append(_without(d, rows[len(rows) - len(d.findings) :]))
        counted = [(label, f) for label, d in zip(labels, kept, strict=True) for f in d.findings]
        gone = self.baseline.gone(counted, labels) if self.baseline is not None else []
        written = None
        if self.write_to is not None:
            old = self.keeps.kept(labels).known if self.keeps else {}
            written = Baseline({**old, **Baseline.of(counted).known})
        return Judged(rows, kept, labels, gone, written)

    def files(self, judged: Judged, **more: Any) -> dict[Path | None, Writer]:
        """Writers of the baseline and of the output file, for `attempt`."""
        made: dict[Path | None, Writer] = {}
        if (baseline := judged.written) is not None and judged.labels:
            made[self.write_to] = lambda path: write(baseline.text(), path)
        if self.file is not None:
            made[self.file] = lambda path: write(self.document(judged, **more), path)
        return made

    def document(self, judged: Judged, **more: Any) -> str:
        """What was found, in the format that was asked for."""
        from normscope.report.formats import FORMATS as MADE

        if self.form != JSON:
            return MADE[self.form](judged.rows, judged.verdicts, index()["rules"])
        models = []
        for label, d in zip(judged.labels, judged.diagnoses, strict=True):
            rows = [{k: v for k, v in row.items() if k != "model"} for row in judged.rows if row["model"] == label]
            models.append({**d.to_dict(), "label": label, "verdict": d.facts["verdict"], "findings": rows})
        compared = None
        if self.baseline is not None:
            gone = [dict(zip(("model", "code", "module"), key, strict=True)) for key in judged.gone]
            compared = {"file": str(self.path), **{s: judged.count(s) for s in STATES}, "gone": gone}
        ignored = sum(row["ignored"] for row in judged.rows)
        told = {"schema": SCHEMA, "fails": judged.fails, "ignored": ignored, "baseline": compared}
        return json_text(told | more | {"models": models})

    def show(self, judged: Judged, report: Any, written: Sequence[Path], **more: Any) -> None:
        """The report for people, or the document on standard output; ``more``: keys of the JSON."""
        self.warn(judged.labels)
        if not self.talks:
            sys.stdout.write(self.document(judged, **more))
            return
        from normscope.report import terminal

        if report is not None:
            terminal.render(report, console)
        self.tell(judged)
        say_written(written)

    def tell(self, judged: Judged) -> None:
        """What people read behind a report: what is ignored, new, worse and gone."""

        def line(text: str) -> None:
            console.print(f"  {brief(text, 500)}", soft_wrap=True, highlight=False, markup=False)

        hidden = [row for row in judged.rows if row["ignored"]]
        if hidden:
            console.print(f"{len(hidden)} ignored by the configuration", soft_wrap=True, highlight=False)
            for row in hidden:
                line(f"{_said(row)}{f': {reason}' if (reason := row['reason']) else ''}")
        if self.baseline is not None:
            counts = ", ".join(f"{judged.count(state)} {state}" for state in STATES)
            told = f"Against {self.path}: {counts}, {len(judged.gone)} gone."
            console.print(told, soft_wrap=True, highlight=False, markup=False)
            for row in judged.rows:
                if row["state"] in ("new", "worse"):
                    line(f"{row['state']}: {row['severity']} {_said(row)}")
            for model, code, module in judged.gone:
                line(f"gone: {code}{f' in {module}' if module else ''} of {model}")
        if judged.written is not None and judged.labels:
            many = len(judged.written.known)
            line(f"The baseline accepts {many} finding{'s' if many != 1 else ''}.")

    def warn(self, labels: Sequence[str]) -> None:
        """Ignores whose model pattern names no model."""
        known = [*labels, *(e.label for e in self.config.entries)]
        for i, ignore in enumerate(self.config.ignores, 1):
            if not any(map(ignore.of_model, known)):
                warn(
                    f"[[tool.normscope.ignore]] {i} ({ignore}) names no model: {ignore.model!r} fits none of "
                    f"{', '.join(dict.fromkeys(known))}. Correct the pattern, or take it out."
                )


def _without(d: Diagnosis, rows: Sequence[Mapping[str, Any]]) -> Diagnosis:
    """A diagnosis without what is ignored; its verdict and notes say so."""
    hidden = [row for row in rows if row["ignored"]]
    if not hidden:
        return d
    kept = replace(d, findings=[f for f, row in zip(d.findings, rows, strict=True) if not row["ignored"]])
    told = ", ".join(dict.fromkeys(row["code"] for row in hidden))
    verdict = f"{kept.verdict} {len(hidden)} ignored by the configuration ({told})."
    return replace(kept, facts={**d.facts, "verdict": verdict})


def _said(row: Mapping[str, Any]) -> str:
    return f"{row['code']} {row['title']}{f' in {name}' if (name := row['name']) else ''} of {row['model']}"
