"""A `Sheet`: the sections of a page (prose, findings, facts, tables, charts), whatever result they are of, and its
forms.

A result is shown by a function that makes its sheet; the page, the notebook cell, the Altair chart and the picture are
made of that here. The page needs no network, follows the reader's light or dark scheme, and prints.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from normscope.core.files import write
from normscope.report import _theme
from normscope.report.grammar import Chart, Table

#: Width of a chart on paper, where two stand side by side, pixels.
PRINT_WIDTH = 430


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order; ``folded``: closed until pressed.

    findings: of one model, rows of `normscope.report._rows.finding`; ``None`` where there is no talk of any. legend:
        the
    page's names stand above the charts, to be pressed. name: the model or variant that the section is about. small: its
    charts are. ends: of a scale of colours. parts: sections below it. aside: beside the title.
    """

    title: str
    lead: str = ""
    facts: Mapping[str, Any] | None = None
    table: Table | None = None
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()
    folded: bool = False
    id: str = ""
    findings: Sequence[Mapping[str, Any]] | None = None
    legend: bool = False
    name: str = ""
    small: bool = False
    ends: tuple[str, str] | None = None
    parts: Sequence[Section] = ()
    aside: str = ""

    @property
    def drawn(self) -> list[Chart]:
        """Its charts, and those of its parts."""
        return [*self.charts, *(c for part in self.parts for c in part.drawn)]


@dataclass(frozen=True)
class Card:
    """A model at the head of a page: its verdict, its main numbers, and how it was measured."""

    label: str
    verdict: str
    tally: str
    conditions: Sequence[str]
    headline: Sequence[str] = ()


@dataclass(frozen=True)
class Sheet:
    """A whole page.

    names: the models or variants that have a colour. sources: those of the numbers that have a dash. rows: what the
    charts over ``data="layers"`` draw; ``data`` is the same, as the page holds it. main: keys of the charts that a
    picture shows; default all.
    """

    title: str
    sections: Sequence[Section]
    lead: str = ""
    conditions: Sequence[str] = ()
    cards: Sequence[Card] = ()
    names: Sequence[str] = ()
    sources: Sequence[str] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    main: Sequence[str] = ()

    @property
    def charts(self) -> dict[str, Chart]:
        """Every chart by its key; those without one are counted."""
        return {c.key or f"c{i}": c for i, c in enumerate(c for s in self.sections for c in s.drawn)}

    @property
    def pictured(self) -> dict[str, Chart]:
        """The charts of a picture."""
        return {k: self.charts[k] for k in self.main or self.charts if k in self.charts}


def render(sheet: Sheet) -> str:
    """The page as one HTML text."""
    from normscope.report._frame import bundle, policy, template

    charts = sheet.charts
    scripts = [bundle(), template("page.js")] if charts else []
    data = {
        **sheet.data,
        "charts": {key: _sized(c) for key, c in charts.items()},
        "logs": {key: c.log for key, c in charts.items() if c.log},
        "models": list(sheet.names),
        "printWidth": PRINT_WIDTH,
        "config": {scheme: _theme.config(scheme) for scheme in ("light", "dark")},
    }
    return _filled(sheet, "page.css", policy=policy(scripts), scripts=scripts, data=data, svgs=None)


def cell(sheet: Sheet) -> str:
    """The sheet in small, for a notebook: its words and tables, its charts as still pictures; no scripts."""
    from normscope.report import _picture

    svgs = {key: _picture.still(sheet, c) for key, c in sheet.charts.items()}
    return _filled(sheet, "cell.css", svgs=svgs)


def _filled(sheet: Sheet, css: str, **more: Any) -> str:
    from normscope.report._frame import environment, template

    keys = {id(c): key for key, c in sheet.charts.items()}
    order = _theme.order(sheet.names)
    palette = [(_theme.colour(order.index(n)), _theme.colour(order.index(n), "dark")) for n in sheet.names]
    return environment().get_template("page.html").render(
        sheet=sheet, keys=keys, idof=id, palette=palette, version=version("normscope"), css=template(css), **more
    )  # fmt: skip


def save(sheet: Sheet, path: str | os.PathLike[str], kind: str = "") -> Path:
    """Write the page or a picture: ``html``, ``png``, ``svg`` or ``pdf``, by default as the path ends."""
    from normscope.report import _picture

    kind = kind or Path(path).suffix.lower().removeprefix(".")
    return write(render(sheet) if kind in ("html", "htm") else _picture.picture(sheet, kind), path)


def chart(sheet: Sheet) -> Any:
    """The main charts as one Altair chart."""
    from normscope.report import _picture

    return _picture.altair_chart(sheet)


def _sized(chart: Chart) -> dict[str, Any]:
    """A chart's specification as wide as its box; a facet keeps the size of its cells."""
    spec = chart.plain
    if "facet" in spec:
        return spec
    spec |= {"width": "container", "height": chart.height + chart.head}
    if "params" not in spec:
        return spec | {"autosize": {"type": "fit-x", "contains": "padding"}}
    padding = {"left": 2, "right": 10, "bottom": 2, "top": max(chart.head, 2) + 6}
    return spec | {"autosize": {"type": "fit", "contains": "padding"}, "padding": padding}
