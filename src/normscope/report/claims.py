"""The page and the terminal table of verdicts: per paper what holds, and its figures drawn from our numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from normscope.claims import CLAIMS, PAPERS, load
from normscope.claims.verdict import LOOKS
from normscope.claims.verification import covered, tally
from normscope.report import sheet
from normscope.report.grammar import Axis, Chart, Colour, Dash, lines, measure, tip
from normscope.report.sheet import Section, Sheet, Table

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
    """The band as ``0.1 to 0.2``, ``≤ 3``, ``≥ 1``, or ``63 ± 6e-09`` where four digits do not tell its ends apart."""
    if math.isinf(reading.low):
        return "any" if math.isinf(reading.high) else f"≤ {number(reading.high)}"
    if math.isinf(reading.high):
        return f"≥ {number(reading.low)}"
    low, high = number(reading.low), number(reading.high)
    if low == high:
        return f"{low} ± {(reading.high - reading.low) / 2:.1g}"
    return f"{low} to {high}"


def of_verdicts(found: Verdicts | Verdict, brief: bool = False) -> Sheet:
    """The sheet of verdicts, or of a single one; ``brief``: without all their readings."""
    verdicts: Sequence[Verdict] = found if isinstance(found, Sequence) else (found,)
    if not verdicts:
        return Sheet("No verdicts", [])
    load()  # verdicts read from a file bring no papers with them
    papers = dict.fromkeys(v.claim.partition("/")[0] for v in verdicts)
    first = verdicts[0]
    lead = f"{len(verdicts)} verdict{'s' * (len(verdicts) != 1)}: {tally(verdicts)}. {covered(verdicts)}."
    facts = {
        "size": first.size, "seeds": ", ".join(str(s) for s in dict.fromkeys(v.seed for v in verdicts)),
        "data": first.data, "device": first.device, "torch": first.torch,
        "seconds in all": f"{sum(v.seconds for v in verdicts if math.isfinite(v.seconds)):.0f}",
    }  # fmt: skip
    how = [
        "A claim is one statement of a paper. It is measured, and compared with a band: value ± 2 standard errors "
        "inside the band `holds`, outside `fails`, else `undecided`. What would be undecided is measured up to "
        f"{LOOKS} times, with other draws, and the means decide.",
        "Each claim has a control that breaks what the statement rests on. If the control does not come out the other "
        "way, the check proves nothing and the claim is not counted.",
        "For each reading the tables say whether it turns under its claim's `control`, is `exact` (an identity, "
        "checked to rounding), or has `none`: then nothing shows that it could fail.",
        "Reference runs are earlier ones of ours, written without this library; a tolerance or bound set beforehand "
        "was fixed before the claim was first run.",
        "A statement that is wrong as printed is a claim that must fail; the corrected one stands beside it.",
        "In the figures solid lines are ours, dashed ones theory, dotted ones the control (cut off where it would "
        "dwarf the rest), squares are what the paper prints or reference runs gave, triangles points of the control. "
        "Shades span runs or twice a standard error.",
    ]
    sections = [] if brief else [Section("How to read this", facts=facts, notes=how)]
    parts = [s for key in papers for s in _paper(key, [v for v in verdicts if v.claim.startswith(f"{key}/")])]
    sections += [s for s in parts if not (brief and s.folded)]
    title = "Four papers on batch normalization, checked" if len(verdicts) > 1 else f"Claim {first.claim}"
    return Sheet(title, sections, lead)


def page(verdicts: Verdicts) -> str:
    """The report as one self-contained HTML page."""
    return sheet.render(of_verdicts(verdicts))


def _paper(key: str, verdicts: Sequence[Verdict]) -> Iterable[Section]:
    paper = PAPERS[key]
    head = ("claim", "statement", "verdict", "deciding number", "measured", "band", "printed")
    rows, marks = [], []
    for v in verdicts:
        claim, r = CLAIMS[v.claim], v.worst
        rows.append((
            v.claim.partition("/")[2] + (f" (seed {v.seed})" if v.seed else ""), f"{claim.statement} "
            f"({claim.where})", said(v),
            r.quantity if r else "", measured(r) if r else "", band(r) if r else "",
            number(r.printed) if r and r.printed is not None else "",
        ))  # fmt: skip
        marks.append(mark(v))
    table = Table(head, rows, numeric=(4, 6), marks=marks)
    figures = [c for v in verdicts if v.curves and v.seed == verdicts[0].seed for c in charts(v)]
    yield Section(
        f"{paper.title}",
        f"{paper.authors}, {paper.venue}. {paper.summary}",
        {"verdicts": tally(verdicts)},
        table,
        figures,
    )
    readings = [
        (v.claim.partition("/")[2], r.quantity, measured(r), band(r), r.status, v.guard(r), r.reason)
        for v in verdicts
        for r in v.readings
    ]
    notes = [f"{v.claim.partition('/')[2]}: {note}" for v in verdicts for note in v.notes]
    notes += [f"Not checked: {row}. {why}" for row, why in paper.left_out.items()]
    errors = [f"{v.claim}: {v.error.strip().splitlines()[-1]}" for v in verdicts if v.error]
    yield Section(
        f"All readings of {paper.authors}",
        table=Table(
            ("claim", "quantity", "measured", "band", "status", "control", "why this band"), readings, numeric=(2,)
        ),
        notes=[*errors, *notes], folded=True,
    )  # fmt: skip


def charts(verdict: Verdict) -> list[Chart]:
    """The figures of a claim, one a panel, in the paper's axes; the first one says what the claim states."""
    claim = CLAIMS[verdict.claim]
    if claim.axes is None:
        return []
    panels = list(dict.fromkeys(c.panel for c in verdict.curves))
    return [
        _drawn(
            f"{claim.where}{': ' + panel if panel else ''}",
            [c for c in verdict.curves if c.panel == panel],
            claim.axes,
            panel,
            reading=claim.statement if panel == panels[0] else "",
            unit=claim.name.partition("/")[2],
        )
        for panel in panels
    ]


#: Marks and dash pattern of a curve by its role.
_SHAPES = {"ours": "circle", "theory": "diamond", "printed": "square", "control": "triangle"}
_DASHES = {"ours": [1, 0], "theory": [6, 3], "printed": [2, 2], "control": [1, 4]}
#: A control may widen an axis by this share of what the other curves take of it; beyond, it is cut off.
_ROOM = 0.5
#: Points of a curve that are still dots.
_DOTTED = 40


def _rows(curves: Sequence[Curve], axes: Axes) -> list[dict[str, Any]]:
    """The points that the axes can show, one a row."""
    rows: list[dict[str, Any]] = []
    for c in curves:
        joined = all(b >= a for a, b in pairwise(c.x))  # else a scatter: the order of its points means nothing
        for i, (at, y) in enumerate(zip(c.x, c.y, strict=True)):
            if not (math.isfinite(at) and math.isfinite(y)) or (axes.y_log and y <= 0) or (axes.x_log and at <= 0):
                continue
            low, high = (c.low[i], c.high[i]) if c.low else (None, None)
            if axes.y_log and low is not None and low <= 0:
                low = y
            name = c.series or c.role
            rows.append({"series": name, "role": c.role, "joined": joined, "x": at, "y": y, "low": low, "high": high})
    return rows


def domain(main: Sequence[float], control: Sequence[float], log: bool) -> list[float] | None:
    """What an axis shows: all of the curves, a control as far as there is room, and a margin; None without any
    point.
    """
    to, back = (math.log10, lambda v: 10.0**v) if log else (float, float)
    kept, others = [to(v) for v in main or control], [to(v) for v in control]
    if not kept:
        return None
    low, high = min(kept), max(kept)
    room = _ROOM * (high - low)
    low, high = (
        min([low, *(v for v in others if v >= low - room)]),
        max([high, *(v for v in others if v <= high + room)]),
    )
    margin = 0.04 * (high - low) or 0.05 * abs(high) or 0.05
    return [back(low - margin), back(high + margin)]


def _axis(rows: Sequence[dict[str, Any]], columns: Sequence[str], title: str, log: bool) -> Axis:
    """The axis of these columns."""
    main, control = (
        [r[c] for r in rows if (r["role"] == "control") is wanted for c in columns if r[c] is not None]
        for wanted in (False, True)
    )
    shown: dict[str, Any] = {"zero": False, "nice": False} | (
        {"domain": d} if (d := domain(main, control, log)) else {}
    )
    if log:
        return measure(columns[0], title, [*main, *control], log=True, **shown)
    whole = all(float(v).is_integer() for v in (*main, *control))
    return Axis(columns[0], title, scale=shown, ticks={"tickMinStep": 1} if whole else {})


def _drawn(title: str, curves: Sequence[Curve], axes: Axes, panel: str, **words: Any) -> Chart:
    """Colour is the series; solid lines are ours, dashed theory, dotted the control, squares are printed."""
    rows, y_title = _rows(curves, axes), axes.y or panel
    x, y = _axis(rows, ["x"], axes.x, axes.x_log), _axis(rows, ["y", "low", "high"], y_title, axes.y_log)
    roles = {r["role"] for r in rows}
    most = max((len(c.x) for c in curves), default=0)
    return lines(
        title, rows, x, y, colour=Colour("series", list(dict.fromkeys(r["series"] for r in rows)), legend=True),
        dash=Dash("role", {r: d for r, d in _DASHES.items() if r in roles}, _SHAPES), band=("low", "high"),
        told=[tip("series"), tip("role"), tip("x", axes.x, ".4g"), tip("y", y_title, ".4g")],
        joined="datum.joined && datum.role != 'printed'",
        dotted="!datum.joined || datum.role == 'printed'" + ("" if most > _DOTTED else " || datum.role == "
        "'ours'"), **words,
    )  # fmt: skip
