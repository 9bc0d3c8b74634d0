"""Pictures of a sweep: lines with bands over seeds, heat maps, a table; as one HTML page or one PNG. Reads the
table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from normscope.core.errors import unknown
from normscope.core.favourites import SWEPT
from normscope.report import _labels, sheet

#: Charts of a page without ``metrics``.
MOST = 6
#: Rows of the page's table.
ROWS = 400


@dataclass(frozen=True)
class Sweep:
    """What is drawn: the tidy table of a sweep, its parameters, and what was asked of the picture.

    x, y: parameters (or ``layer``) on the axes; ``colour``, ``facet``: the next ones; those left open follow from the
    grid. metrics: their names; kind: ``lines``, ``heat``, ``auto``; log: parameters and metrics with a log scale.
    """

    table: pl.DataFrame
    parameters: tuple[str, ...]
    task: str = ""
    x: str | None = None
    y: str | None = None
    metrics: tuple[str, ...] | None = None
    colour: str | None = None
    facet: str | None = None
    kind: str = "auto"
    title: str | None = None
    log: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = [*self.parameters, "layer"]
        for what in (self.x, self.y, self.colour, self.facet):
            if what is not None and what not in known:
                raise unknown("parameter of the sweep", what, known)
        for metric in self.metrics or ():
            if metric not in names(self.table):
                raise unknown("metric of the sweep", metric, names(self.table))


def names(table: pl.DataFrame) -> list[str]:
    """The metrics of a table as they are called here: with their signal where it is not the activation's."""
    return list(_named(table)["metric"].unique(maintain_order=True).drop_nulls())


def main_metrics(table: pl.DataFrame) -> list[str]:
    """The metrics, the main ones first."""
    found = names(table)
    return [m for m in SWEPT if m in found] + [m for m in found if m not in SWEPT]


def summary(table: pl.DataFrame, parameters: Sequence[str]) -> pl.DataFrame:
    """Over the seeds of a cell: ``mean, sd, least, most, count`` of each metric; one row a point and metric.

    Points are the parameters without ``seed``, and ``layer`` where cells have several. A value that is not finite
    leaves the mean not finite; ``finite`` counts those that are.
    """
    named = _named(table.filter(pl.col("metric").is_not_null()))
    axes = [p for p in parameters if p != "seed"]
    cells = [p for p in parameters if p in named.columns]
    several = named.group_by(*cells, "metric", "source", maintain_order=True).agg(pl.col("layer").n_unique())["layer"]
    if (several > 1).any():
        axes.append("layer")
    value = pl.col("value")
    return named.group_by(*axes, "metric", maintain_order=True).agg(
        value.mean().alias("mean"),
        value.std().fill_null(0).alias("sd"),
        value.min().alias("least"),
        value.max().alias("most"),
        value.is_finite().sum().alias("finite"),
        value.len().alias("count"),
    )


def rows(summarised: pl.DataFrame, axes: Sequence[str], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """One dict a point: its parameters, and metric -> (mean, sd, count)."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    keys = [*axes, *(["layer"] if "layer" in summarised.columns and "layer" not in axes else [])]
    for row in summarised.filter(pl.col("metric").is_in(list(metrics))).iter_rows(named=True):
        point = tuple(row[k] for k in keys)
        found.setdefault(point, dict(zip(keys, point, strict=True)))[row["metric"]] = (
            row["mean"],
            row["sd"],
            row["count"],
        )
    return list(found.values())


def sheet_of(sweep: Sweep) -> sheet.Sheet:
    """The sheet of a sweep."""
    from normscope.report._panels import panels

    found = summary(sweep.table, sweep.parameters)
    drawn = panels(sweep, found)
    axes = [a for a in (*sweep.parameters, "layer") if a in found.columns and a != "seed" and found[a].n_unique() > 1]
    metrics = list(sweep.metrics or main_metrics(sweep.table)[:8])
    points = rows(found, axes, metrics)
    failed = sweep.table.filter(pl.col("error").is_not_null())
    sections = [
        sheet.Section(title, charts=[p.chart for p in drawn if p.kind == kind])
        for kind, title in (("heat", "Heat maps"), ("lines", "Lines"))
        if any(p.kind == kind for p in drawn)
    ]
    if len(failed):
        shown = [(_point(r, sweep.parameters), last_line(r["error"])) for r in failed.head(50).iter_rows(named=True)]
        sections.append(
            sheet.Section(f"{len(failed)} cells failed", table=sheet.Table(("cell", "why"), shown, numeric=()))
        )
    table = sheet.Table(
        [*axes, *(_labels.label(m).title for m in metrics)],
        [[*(_text(r[a]) for a in axes), *(_spread(r.get(m)) for m in metrics)] for r in points[:ROWS]],
        numeric=range(len(axes) + len(metrics)),
    )
    more = [f"{len(points) - ROWS} more rows are in the CSV file."] if len(points) > ROWS else []
    sections.append(
        sheet.Section("Numbers: mean ± standard deviation over seeds", table=table, notes=more, folded=True)
    )
    sections.append(sheet.Section("The sweep", facts=_facts(sweep)))
    return sheet.Sheet(_title(sweep), sections)


def render(sweep: Sweep) -> str:
    """One HTML page that needs no network."""
    return sheet.render(sheet_of(sweep))


def last_line(error: str) -> str:
    """What a traceback says in one line."""
    lines = [line for line in error.splitlines() if line.strip()] or [""]
    said = lines[0] if not lines[0].startswith("Traceback") else lines[-1]
    return said if len(said) <= 300 else said[:300] + " ..."


def png(sweep: Sweep, scale: float = 2.0) -> bytes:
    """All charts as a picture, drawn without a browser."""
    from normscope.report import _picture

    made = _picture.picture(sheet_of(sweep), "png", scale=scale)
    assert isinstance(made, bytes)
    return made


def _named(table: pl.DataFrame) -> pl.DataFrame:
    """With the signal in the metric's name where it is not the plain one."""
    kinds = table.filter(pl.col("metric").is_not_null()).group_by("metric").agg(pl.col("signal").n_unique())
    several = kinds.filter(pl.col("signal") > 1)["metric"].to_list()
    prefixed = pl.col("metric").is_in(several) & (pl.col("signal") != "activation") & (pl.col("signal") != "gradient")
    other = (
        pl.col("metric").is_in(several)
        & (pl.col("signal") == "gradient")
        & ~pl.col("metric").str.starts_with("gradient")
    )
    return table.with_columns(
        pl.when(prefixed | other)
        .then(pl.col("signal") + "_" + pl.col("metric"))
        .otherwise(pl.col("metric"))
        .alias("metric")
    )


def _title(sweep: Sweep) -> str:
    return sweep.title or f"Sweep: {sweep.task}"


def _facts(sweep: Sweep) -> dict[str, str]:
    table = sweep.table
    cells = table.select([p for p in sweep.parameters if p in table.columns]).unique()
    facts = {"task": sweep.task, "cells": str(len(cells))}
    for name in sweep.parameters:
        values = table[name].unique(maintain_order=True).to_list() if name in table.columns else []
        shown = ", ".join(map(_text, values[:8]))
        facts[name] = shown + (f", ... {_text(values[-1])} ({len(values)})" if len(values) > 8 else "")
    sources = ", ".join(table["source"].drop_nulls().unique().sort().to_list())
    return {**facts, "source": sources} if sources else facts


def _point(row: dict[str, Any], parameters: Sequence[str]) -> str:
    return ", ".join(f"{p} = {_text(row[p])}" for p in parameters if p in row)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)


def _spread(value: tuple[float, float, int] | None) -> str:
    if value is None:
        return ""
    mean, sd, count = value
    wide = count > 1 and sd > 0 and sd == sd
    return _labels.number(mean) + (f" ± {_labels.number(sd, 2)}" if wide else "")
