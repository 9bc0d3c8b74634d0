"""What a report shows: a tidy table, the findings and the facts, whatever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from normscope.core.errors import UsageError
from normscope.core.words import distinct

if TYPE_CHECKING:
    import polars

    from normscope.findings.diagnosis import Diagnosis

#: Columns a report reads; others are ignored.
TABLE_COLUMNS = ("model", "source", "seed", "layer", "name", "call", "kind", "signal", "metric", "value")
FINDING_COLUMNS = (
    "model", "code", "severity", "title", "layer", "name", "metric", "value", "threshold", "source",
    "evidence", "meaning", "cure",
)  # fmt: skip
#: From the worst to the mildest.
SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Content:
    """The content of one report.

    table: tidy, one number a row: ``model, source, seed, layer, name, call, kind, signal, metric, value, stderr``
        (layer 0 is the input; values may be NaN or infinite).
    findings: one finding a row: ``model, code, severity, title, layer, name, metric, value, threshold, source,
        evidence, meaning, cure``; may have no rows.
    facts: one mapping a model, in the order of the report: ``label`` (the ``model`` of the tables), ``verdict``,
        ``mode``, ``batch_size``, ``dtype``, ``device``, ``loss``, ``parameters``, ``layers``, ``seconds``, ``torch``,
        ``normscope``, ``notes``, ``rates`` (`normscope.Rates` that were tried); what is missing is not shown.
    """

    title: str
    table: polars.DataFrame
    findings: polars.DataFrame
    facts: tuple[Mapping[str, Any], ...]

    def __post_init__(self) -> None:
        for what, frame, columns in (
            ("table", self.table, TABLE_COLUMNS),
            ("findings", self.findings, FINDING_COLUMNS),
        ):
            missing = [c for c in columns if c not in frame.columns]
            if missing and (what == "table" or len(frame)):
                raise UsageError(
                    f"The {what} of a report needs the columns {', '.join(columns)}; {', '.join(missing)} are missing."
                )

    @property
    def models(self) -> tuple[str, ...]:
        """Labels of the models, in the order of the facts; then those only the table knows."""
        known = [str(fact.get("label", "")) for fact in self.facts]
        return tuple(dict.fromkeys([*known, *self.table["model"].unique(maintain_order=True).to_list()]))

    def facts_of(self, model: str) -> Mapping[str, Any]:
        """The facts of one model; empty if it has none."""
        return next((fact for fact in self.facts if str(fact.get("label", "")) == model), {})

    def findings_of(self, model: str) -> list[dict[str, Any]]:
        """The findings of one model, the worst first, else in their own order: causes before what follows from them."""
        rank = {severity: i for i, severity in enumerate(SEVERITIES)}
        found = [f for f in self.findings.iter_rows(named=True) if f["model"] == model]
        return sorted(found, key=lambda f: rank.get(f["severity"], len(rank)))


def of_diagnoses(diagnoses: Sequence[Diagnosis], title: str | None = None) -> Content:
    """Several diagnoses as the tables of one report; equal labels are told apart by a number."""
    import polars as pl

    labels = distinct([d.label for d in diagnoses])
    tables, rows, facts = [], [], []
    for label, d in zip(labels, diagnoses, strict=True):
        tables.append(d.profile.frame().select(pl.lit(label).alias("model"), pl.all()))
        rows += [{"model": label, **asdict(f)} for f in d.findings]
        facts.append({**d.facts, "label": label, "rates": d.rates})
    numbers = {"layer": pl.Int64, "value": pl.Float64, "threshold": pl.Float64}
    schema = {c: numbers.get(c, pl.String) for c in FINDING_COLUMNS}
    return Content(
        title or (f"normscope: {labels[0]}" if len(labels) == 1 else f"normscope: {len(labels)} models compared"),
        pl.concat(tables, how="diagonal_relaxed"),
        pl.DataFrame(rows, schema=schema),
        tuple(facts),
    )
