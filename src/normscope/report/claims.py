"""The page and the terminal table of verdicts: per paper what holds, and its figures drawn from our numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from normscope.claims import CLAIMS, PAPERS, load
from normscope.claims.verify import tally
from normscope.report.files import write
from normscope.report.sheet import Chart, Section, Sheet, Table, render

if TYPE_CHECKING:
    from normscope.claims import Axes, Curve, Reading, Verdict, Verdicts

#: How a status is said, and its mark in a table: as it should be, or not.
_SAID = {
    "holds": "holds",
    "fails": "fails",
    "undecided": "undecided",
    "rejected": "control did not come out",
    "error": "error",
}


def said(verdict: Verdict) -> str:
    """The status in words: ``holds``, ``fails, as it must`` (wrong as printed), ``FAILS`` ..."""
    if verdict.status == "fails":
        return "fails, as it must" if verdict.as_expected else "FAILS"
    if verdict.status == "holds" and not verdict.as_expected:
        return "HOLDS, but must not"
    return _SAID[verdict.status]


def mark(verdict: Verdict) -> str:
    """``good``, ``bad`` or ``unsure``."""
    return "good" if verdict.as_expected else "unsure" if verdict.status == "undecided" else "bad"


def number(value: float) -> str:
    """A number in four digits."""
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def measured(reading: Reading) -> str:
    """``0.117 +- 0.002``."""
    spread = f" ± {reading.stderr:.2g}" if reading.stderr and math.isfinite(reading.stderr) else ""
    return number(reading.value) + spread


def band(reading: Reading) -> str:
    """The band as ``0.1 to 0.2``, ``≤ 3`` or ``≥ 1``."""
    if math.isinf(reading.low):
        return "any" if math.isinf(reading.high) else f"≤ {number(reading.high)}"
    if math.isinf(reading.high):
        return f"≥ {number(reading.low)}"
    return f"{number(reading.low)} to {number(reading.high)}"


def page(verdicts: Verdicts) -> str:
    """The report as one self-contained HTML page."""
    load()  # verdicts read from a file bring no papers with them
    papers = dict.fromkeys(v.claim.partition("/")[0] for v in verdicts)
    first = verdicts[0]
    lead = f"{len(verdicts)} verdict{'s' * (len(verdicts) != 1)}: {tally(verdicts)}."
    facts = {
        "size": first.size, "seeds": ", ".join(str(s) for s in dict.fromkeys(v.seed for v in verdicts)),
        "data": first.data, "device": first.device, "torch": first.torch,
        "seconds of the clock": f"{sum(v.seconds for v in verdicts if math.isfinite(v.seconds)):.0f}",
    }  # fmt: skip
    how = [
        "A claim is one statement of a paper. It is measured, and compared with a band: value ± 2 standard errors inside "
        "the band `holds`, outside `fails`, else `undecided`.",
        "Each claim has a control that breaks what the statement rests on. If the control does not come out the other "
        "way, the check proves nothing and the claim is not counted.",
        "A statement that is wrong as printed is a claim that must fail; the corrected one stands beside it.",
    ]
    sections = [Section("How to read this", facts=facts, notes=how)]
    sections += [s for key in papers for s in _paper(key, [v for v in verdicts if v.claim.startswith(f"{key}/")])]
    return render(Sheet("Four papers on batch normalization, checked", sections, lead))


def write_page(verdicts: Verdicts, path: str | Path) -> Path:
    """Write the page."""
    return write(page(verdicts), path)


def _paper(key: str, verdicts: list[Verdict]) -> Iterable[Section]:
    paper = PAPERS[key]
    head = ("claim", "where", "statement", "verdict", "deciding number", "measured", "band", "printed", "control")
    rows, marks = [], []
    for v in verdicts:
        claim, r = CLAIMS[v.claim], v.worst
        rows.append((
            v.claim.partition("/")[2] + (f" (seed {v.seed})" if v.seed else ""), claim.where, claim.statement, said(v),
            r.quantity if r else "", measured(r) if r else "", band(r) if r else "",
            number(r.printed) if r and r.printed is not None else "", v.control,
        ))  # fmt: skip
        marks.append(mark(v))
    table = Table(head, rows, numeric=(5, 7), marks=marks)
    figures = [c for v in verdicts if v.curves and v.seed == verdicts[0].seed for c in charts(v)]
    yield Section(
        f"{paper.title}",
        f"{paper.authors}, {paper.venue}. {paper.summary}",
        {"verdicts": tally(verdicts)},
        table,
        figures,
    )
    readings = [
        (v.claim.partition("/")[2], r.quantity, measured(r), band(r), r.status, r.reason)
        for v in verdicts
        for r in v.readings
    ]
    notes = [f"{v.claim.partition('/')[2]}: {note}" for v in verdicts for note in v.notes]
    notes += [f"Not checked: {row}. {why}" for row, why in paper.left_out.items()]
    errors = [f"{v.claim}: {v.error.strip().splitlines()[-1]}" for v in verdicts if v.error]
    yield Section(
        f"All readings of {paper.authors}",
        table=Table(("claim", "quantity", "measured", "band", "status", "why this band"), readings, numeric=(2,)),
        notes=[*errors, *notes], folded=True,
    )  # fmt: skip


def charts(verdict: Verdict) -> list[Chart]:
    """The figures of a claim, one a panel, in the paper's axes."""
    claim = CLAIMS[verdict.claim]
    if claim.axes is None:
        return []
    panels = dict.fromkeys(c.panel for c in verdict.curves)
    return [
        Chart(
            f"{claim.where}{': ' + panel if panel else ''}",
            _drawn([c for c in verdict.curves if c.panel == panel], claim.axes),
            claim.statement,
        )
        for panel in panels
    ]


#: Marks and dash pattern of a curve by its role.
_SHAPES = {"ours": "circle", "theory": "diamond", "printed": "square", "control": "triangle"}
_DASHES = {"ours": [1, 0], "theory": [6, 3], "printed": [2, 2], "control": [1, 4]}


def _drawn(curves: list[Curve], axes: Axes) -> Any:
    import altair as alt

    rows: list[dict[str, Any]] = []
    for c in curves:
        name = c.series if c.role == "ours" else f"{c.series} ({c.role})" if c.series else c.role
        joined = all(b >= a for a, b in pairwise(c.x))  # else a scatter: the order of its points means nothing
        for i, (at, y) in enumerate(zip(c.x, c.y, strict=True)):
            if not (math.isfinite(at) and math.isfinite(y)) or (axes.y_log and y <= 0) or (axes.x_log and at <= 0):
                continue
            low, high = (c.low[i], c.high[i]) if c.low else (None, None)
            if axes.y_log and low is not None and low <= 0:
                low = y
            rows.append({"series": name, "role": c.role, "joined": joined, "x": at, "y": y, "low": low, "high": high})
    frame = pl.DataFrame(
        rows,
        schema={"series": pl.String, "role": pl.String, "joined": pl.Boolean}
        | dict.fromkeys(("x", "y", "low", "high"), pl.Float64),
    )
    many = max(frame.group_by("series").len()["len"].to_list(), default=0)
    base: Any = alt.Chart(frame)
    x = alt.X("x:Q", title=axes.x, scale=alt.Scale(type="log" if axes.x_log else "linear", nice=False, zero=False))
    scale = alt.Scale(type="log" if axes.y_log else "linear", zero=False, nice=not axes.y_log)
    colour = alt.Color(
        "series:N",
        title=None,
        sort=None,
        legend=alt.Legend(orient="bottom", columns=2, symbolType="stroke", symbolOpacity=1),
    )
    roles = [r for r in _DASHES if r in set(frame["role"])]
    dash = alt.StrokeDash("role:N", scale=alt.Scale(domain=roles, range=[_DASHES[r] for r in roles]), legend=None)
    tooltip = [
        alt.Tooltip("series:N"),
        alt.Tooltip("x:Q", title=axes.x, format=".4g"),
        alt.Tooltip("y:Q", title=axes.y, format=".4g"),
    ]
    area = base.transform_filter("isValid(datum.low)").mark_area(opacity=0.18).encode(
        x=x, y=alt.Y("low:Q", title=axes.y, scale=scale), y2="high:Q", color=colour
    )  # fmt: skip
    line = base.transform_filter("datum.joined && datum.role != 'printed'").mark_line().encode(
        x=x, y=alt.Y("y:Q", title=axes.y, scale=scale), color=colour, strokeDash=dash, tooltip=tooltip
    )  # fmt: skip
    layers: list[Any] = [area, line]
    shown = "!datum.joined || datum.role == 'printed'" + ("" if many > 40 else " || datum.role == 'ours'")
    layers.append(
        base.transform_filter(shown).mark_point(filled=True, size=34).encode(
            x=x, y=alt.Y("y:Q", title=axes.y, scale=scale), color=colour, tooltip=tooltip,
            shape=alt.Shape("role:N", scale=alt.Scale(domain=list(_SHAPES), range=list(_SHAPES.values())), legend=None),
        )
    )  # fmt: skip
    return alt.layer(*layers)
