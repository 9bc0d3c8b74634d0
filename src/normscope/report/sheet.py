"""A page of sections (prose, facts, tables, charts) for results other than a diagnosis: races, sweeps, verdicts.

Self-contained HTML in the dress of a diagnosis: it needs no network, follows the reader's light or dark scheme, and
prints. ``render(Sheet(...))`` gives the page, ``files.write`` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from normscope.report import _theme
from normscope.report._frame import bundle, environment, policy, template

if TYPE_CHECKING:
    import altair as alt

#: Width of a chart on paper, where two stand side by side, pixels.
PRINT_WIDTH = 430


@dataclass(frozen=True)
class Table:
    """``rows`` of cells under ``head``. Numbers stand to the right; format them as text beforehand to choose digits.

    numeric: which columns stand to the right (indices); by default those whose cells are all numbers or number-like.
    marks: a class a row: ``good``, ``bad``, ``unsure`` or empty.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numeric: Sequence[int] | None = None
    marks: Sequence[str] = ()

    @property
    def right(self) -> set[int]:
        """The columns that stand to the right."""
        if self.numeric is not None:
            return set(self.numeric)
        return {i for i in range(len(self.head)) if self.rows and all(_numeric(r[i]) for r in self.rows)}


def _numeric(cell: Any) -> bool:
    return isinstance(cell, int | float) or (
        isinstance(cell, str) and bool(cell) and cell.lstrip("+-−<> ")[:1].isdigit()
    )


@dataclass(frozen=True)
class Chart:
    """An Altair chart (no width: it takes its box's), its title, the sentence that says how to read it, its height.

    wide: it has a row of the page for itself.
    """

    title: str
    spec: alt.Chart | alt.LayerChart | alt.FacetChart | Any
    reading: str = ""
    unit: str = ""
    height: int = 260
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order; ``folded``: closed until pressed."""

    title: str
    lead: str = ""
    facts: Mapping[str, Any] | None = None
    table: Table | None = None
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()
    folded: bool = False


@dataclass(frozen=True)
class Sheet:
    """A whole page."""

    title: str
    sections: Sequence[Section]
    lead: str = ""


def render(sheet: Sheet) -> str:
    """The page as one HTML text."""
    charts = {f"c{i}": c for i, c in enumerate(c for s in sheet.sections for c in s.charts)}
    keys = {id(c): key for key, c in charts.items()}
    scripts = [Markup(bundle()), Markup(template("sheet.js"))] if charts else []
    data = {
        "charts": {key: _spec(c) for key, c in charts.items()},
        "printWidth": PRINT_WIDTH,
        "config": {scheme: _theme.config(scheme) for scheme in ("light", "dark")},
    }
    return environment().get_template("sheet.html").render(
        sheet=sheet, keys=keys, version=version("normscope"), policy=policy(scripts), css=Markup(template("page.css")),
        scripts=scripts, data=data, idof=id,
    )  # fmt: skip


def _spec(chart: Chart) -> dict[str, Any]:
    """A chart's specification as wide as its box; a facet keeps the size of its cells."""
    spec = chart.spec
    if hasattr(spec, "mark") or hasattr(spec, "layer"):
        spec = spec.properties(width="container", height=chart.height)
    out = spec.to_dict(validate=False)
    if "width" in out:
        out["autosize"] = {"type": "fit-x", "contains": "padding"}
    return {k: v for k, v in out.items() if k not in ("$schema", "config")}
