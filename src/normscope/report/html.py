"""What a diagnosis shows, and a profile: verdicts, findings, charts over the layers, tables, facts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope.core.files import write
from normscope.report import _charts, _frame, _layers, _rows, rates, sheet  # noqa: F401  (_frame: missing extras)
from normscope.report._content import Content
from normscope.report.grammar import Table
from normscope.report.sheet import Card, Section, Sheet

if TYPE_CHECKING:
    from normscope.core.records import Profile
    from normscope.findings.diagnosis import Diagnosis

#: Charts of a notebook cell, and of a picture.
FRAGMENT = ("participation_rank", "mean_abs_cosine", "gradient_norm")
PANEL = (*FRAGMENT, "mean_norm")
#: Layers that a table of a notebook cell has room for.
BRIEF = 12
_MARKS = (
    "A ring and a code mark where a finding starts. A cross on the layer axis is a number without a place in the "
    "chart: NaN, infinite, or zero on a log axis. Hover for the module."
)


_KINDS = "The residual stream is the line of the charts above; here are the layers that write to it. Scales are shared."


def of_diagnosis(diagnosis: Diagnosis, brief: bool = False) -> Sheet:
    """The sheet of a diagnosis; ``brief``: of a notebook cell."""
    return sheet_of(diagnosis.content(), brief=brief)


def of_profile(profile: Profile, brief: bool = False) -> Sheet:
    """The sheet of a profile: its parameters are its name."""
    import polars as pl

    at = profile.parameters
    label = str(at.get("model") or ", ".join(f"{k}={v}" for k, v in at.items()) or "Profile")
    table = profile.frame().select(pl.lit(label).alias("model"), pl.all().exclude("model"))
    title = f"Profile: {label}" if at else label
    return sheet_of(
        Content(title, table, pl.DataFrame(), ({"label": label, **profile.facts},)), brief=brief, quiet=True
    )


def sheet_of(content: Content, *, brief: bool = False, quiet: bool = False) -> Sheet:
    """The sheet of a report's content. ``quiet``: nobody looked for findings, so that none are spoken of."""
    scene = _charts.Scene.of(content)
    drawn = [c for c in _charts.charts(scene) if not brief or c.key in FRAGMENT]
    models = _rows.models(content, scene.layers, most=BRIEF if brief else None, brief=brief)
    attention = [] if brief else _charts.attention(scene)
    keys = {d.key for d in (*drawn, *attention)} | {*_charts.COMPANIONS, *(f"{d.key}_null" for d in attention)}
    columns = [c for c in _layers.columns(scene.layers) if c in keys]
    rows = [_charts.row(at, columns) for at in scene.layers]
    several = len(models) > 1
    main = [*PANEL, *(f"{metric}.{kind}" for metric in FRAGMENT[::2] for kind in _charts.KINDS), "attention_entropy"]
    sections = [] if quiet else [_findings(models)]
    if drawn:
        sections.append(
            Section("Layer by layer", charts=drawn, id="charts", legend=True, notes=() if brief or quiet else [_MARKS])
        )
    kinds = {} if brief else _charts.by_kind(scene, PANEL)
    if kinds:
        parts = [Section(heading, charts=small, small=True) for heading, small in kinds.items()]
        sections.append(Section("By kind of layer", _KINDS, parts=parts, id="kinds"))
    if attention:
        sections.append(Section("Attention", charts=attention, id="attention"))
    tables = [_table(m, shut=several or not brief) for m in models if m["rows"]]
    sections.append(Section("Numbers", id="tables", parts=tables))
    rated = [(f["label"] if several else "", f["rates"]) for f in content.facts if f.get("rates")]
    sections += [] if brief else [rates.section(tried, of) for of, tried in rated]
    return Sheet(
        content.title, sections if brief else [*sections, _facts(content)], cards=[] if quiet else [
            Card(m["label"], m["verdict"], m["tally"], m["conditions"], m["headline"]) for m in models],
        names=content.models, sources=sorted({at.source for at in scene.layers} - {"measured"}), rows=rows,
        data=_packed(rows, columns), main=main if any(c.key in PANEL for c in drawn) else (),
    )  # fmt: skip


def render(content: Content) -> str:
    """The report as one HTML page that needs no network: styles, data and the chart library are in it."""
    return sheet.render(sheet_of(content))


def fragment(content: Content) -> str:
    """The report in small, for a notebook cell: verdicts, findings, static charts and a folded table; no scripts."""
    return sheet.cell(sheet_of(content, brief=True))


def to_png(
    content: Content,
    path: str | os.PathLike[str],
    *,
    charts: Sequence[str] = PANEL,
    columns: int = 2,
    width: int = 420,
    height: int = 210,
    scale: float = 2.0,
    scheme: str = "light",
) -> Path:
    """The main charts as one picture, drawn without a browser.

    charts: metrics, in order; those without data are left out. width, height: of one chart, pixels before ``scale``.
    scheme: ``light`` or ``dark``.
    """
    from normscope.report import _picture

    how: dict[str, Any] = {"keys": charts, "columns": columns, "width": width, "height": height, "scheme": scheme}
    return write(_picture.picture(sheet_of(content), "png", scale=scale, **how), path)


def _findings(models: Sequence[dict[str, Any]]) -> Section:
    """What was found, model by model."""
    named = [m["label"] if len(models) > 1 else "" for m in models]
    parts = [Section(label, name=label, findings=m["findings"]) for label, m in zip(named, models, strict=True)]
    return Section("Findings", parts=parts, id="findings")


def _table(model: dict[str, Any], *, shut: bool) -> Section:
    """The numbers of one model."""
    gap = [""] * (len(model["heads"]) + 1)
    body = [
        ["", r["fold"], "", *gap] if r["fold"] else [r["layer"], r["module"], r["kind"], *r["cells"], r["codes"]]
        for r in model["rows"]
    ]
    marks = ["start" if cells[-1] else "" for cells in body]
    head = ["layer", "module", "kind", *(short for short, _ in model["heads"]), "finding"]
    long = ["", "", "", *(long for _, long in model["heads"]), ""]
    right = [0, *range(3, 3 + len(model["heads"]))]
    return Section(
        model["label"], name=model["label"], folded=shut, aside=f"{model['depth']} rows",
        table=Table(head, body, numeric=right, marks=marks, long=long),
    )  # fmt: skip


def _facts(content: Content) -> Section:
    """How it was measured."""
    found = _rows.facts(content)
    differing = Table(["", *content.models], [[title, *values] for title, values in found["differing"]],
                      numeric=range(1, len(content.models) + 1))  # fmt: skip
    several = len(content.models) > 1
    notes = [Section(name if several else "", notes=said) for name, said in found["notes"]]
    table = differing if differing.rows else None
    return Section("How it was measured", facts=dict(found["same"]), table=table, parts=notes, id="facts")


def _packed(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> dict[str, Any]:
    """The rows by column, as the page holds them."""
    return {
        "places": {name: [row[name] for row in rows] for name in ("model", "source", "layer", "module", "kind", "part")}
        | ({"slot": [row.get("slot", "") for row in rows]} if any(row["part"] for row in rows) else {}),
        # null: the layer has no such number; "x": it has one that is not finite
        "values": {c: ["x" if row.get(c, 0) is None else row.get(c) for row in rows] for c in columns},
    }


__all__ = ["Content", "fragment", "of_diagnosis", "of_profile", "render", "sheet_of", "to_png"]
