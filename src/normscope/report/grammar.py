"""The one grammar of charts: `lines` over an axis and `heat` over two, as Vega-Lite in plain data.

A chart comes with its words (title, unit, how to read it), a description for those who do not see it, and a table of
its numbers. Nothing is validated here; a test holds every chart against the schema.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as by_default
from typing import Any

from normscope.report import _labels, _theme

Row = Mapping[str, Any]
Spec = dict[str, Any]

#: Beyond this many places on the axis the lines of a page with a legend carry no dots until they are pointed at.
DOTTED_UP_TO = 64
#: Rows of the table behind a chart; of more, this many are shown, evenly spaced.
TABLE_ROWS = 60
#: Facets in a row.
COLUMNS = 4
#: How the numbers on an axis are written.
WRITTEN = (
    "datum.value == 0 || (abs(datum.value) >= 1e-3 && abs(datum.value) < 1e5)"
    " ? format(datum.value, '.5~r') : replace(format(datum.value, '.2~e'), '+', '')"
)


@dataclass(frozen=True)
class Table:
    """``rows`` of cells under ``head``. Numbers stand to the right; format them as text beforehand to choose digits.

    numeric: which columns stand to the right (indices); by default those whose cells are all numbers or number-like.
    marks: a class a row: ``good``, ``bad``, ``unsure``, ``start`` or empty. names: what a row is about, where that has
        a
    colour on the page. long: what each head stands for.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    numeric: Sequence[int] | None = None
    marks: Sequence[str] = ()
    names: Sequence[str] = ()
    long: Sequence[str] = ()

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
    """A chart (Vega-Lite or Altair, without a width: it takes its box's), its title, how to read it, its height.

    wide: it has a row of the page for itself. log: what its y axis is on the reader's wish. head: room above for codes
    of findings, pixels. table: its numbers.
    """

    title: str
    spec: Any
    reading: str = ""
    unit: str = ""
    height: int = 260
    wide: bool = False
    key: str = ""
    log: Spec | None = None
    head: int = 0
    table: Table | None = None

    @property
    def heading(self) -> str:
        """Title and unit in one line."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def said(self) -> str:
        """What it shows, for those who do not see it."""
        return str(self.plain.get("description") or self.heading)

    @property
    def plain(self) -> Spec:
        """The specification as data, without a theme."""
        made = self.spec if isinstance(self.spec, dict) else self.spec.to_dict(validate=False)
        return {k: v for k, v in made.items() if k not in ("$schema", "config")}


@dataclass(frozen=True)
class Axis:
    """A column on an axis; its title says the unit. kind: ``quantitative``, ``ordinal`` or ``nominal``."""

    field: str
    title: str = ""
    kind: str = "quantitative"
    scale: Mapping[str, Any] = by_default(default_factory=dict)
    ticks: Mapping[str, Any] = by_default(default_factory=dict)
    sort: Any = "ascending"

    def channel(self) -> Spec:
        """As Vega-Lite has it."""
        made: Spec = {"field": self.field, "type": self.kind, "title": self.title or self.field.replace("_", " ")}
        made |= {} if self.kind == "quantitative" else {"sort": self.sort}
        return made | ({"scale": dict(self.scale)} if self.scale else {}) | {"axis": dict(self.ticks)}


@dataclass(frozen=True)
class Colour:
    """The column that has the colour. names: all there are on the page, so that each keeps its colour in every chart.

    legend: the chart has its own; otherwise the page's legend dims all but one name. ordered: numbers, along viridis.
    """

    field: str
    names: Sequence[Any]
    legend: bool = False
    ordered: bool = False
    title: str | None = None

    def channel(self) -> Spec:
        """As Vega-Lite has it."""
        shown: Spec = {"orient": "top", "symbolType": "stroke", "symbolOpacity": 1, "columns": 4, "title": self.title}
        if self.ordered:
            scale: Spec = {"scheme": "viridis"}
            return {"field": self.field, "type": "ordinal", "sort": list(self.names), "scale": scale, "legend": shown}
        legend = {**shown, "values": list(self.names)} if self.legend else None
        scale = {"domain": _theme.order(self.names)}
        return {"field": self.field, "type": "nominal", "scale": scale, "legend": legend}


@dataclass(frozen=True)
class Dash:
    """The column that has the dash pattern, and the shape of its points where there are shapes."""

    field: str
    patterns: Mapping[str, Sequence[int]]
    shapes: Mapping[str, str] = by_default(default_factory=dict)

    def channel(self) -> Spec:
        """As Vega-Lite has it."""
        scale = {"domain": list(self.patterns), "range": [list(p) for p in self.patterns.values()]}
        return {"field": self.field, "type": "nominal", "scale": scale, "legend": None}


def measure(column: str, title: str, numbers: Iterable[float | None], *, log: bool = False, **scale: Any) -> Axis:
    """The axis of numbers; on a log axis powers of ten, or round numbers between them, are its ticks."""
    if not log:
        return Axis(column, title, scale=scale or {"zero": True, "nice": True}, ticks=_LINEAR)
    shown = [math.log10(n) for n in numbers if n is not None and fits(n, log)] or [0.0]
    low, high = min(shown), max(shown)
    margin = max(0.04 * (high - low), (0.3 - (high - low)) / 2, 0.0)
    ends = [10 ** (low - margin), 10 ** (high + margin)]
    made: Spec = {"type": "log", "nice": False, "domain": ends} | scale
    return Axis(column, title, scale=made, ticks={"labelExpr": WRITTEN, "values": ticks(*made["domain"])})


_LINEAR: Spec = {"labelExpr": WRITTEN, "tickCount": 5}


def ticks(least: float, most: float) -> list[float]:
    """Of a log axis: powers of ten, or round numbers between them where it is short."""
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    step = max(1, math.ceil((high - low) / 7))
    found: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = [float(f"{d}e{k}") for k in range(low, high + 1, step) for d in digits]
        found = [t for t in found if least <= t <= most]
        if len(found) > 2:
            break
    return found


def fits(value: float | None, log: bool) -> bool:
    """Whether a value has a place on the axis."""
    return value is not None and math.isfinite(value) and (value > 0 or not log)


def tip(column: str, title: str = "", digits: str = "") -> Spec:
    """A line of what a point says of itself; ``digits``: it is a number, written so."""
    made: Spec = {"field": column, "type": "quantitative" if digits else "nominal", "title": title or column}
    return made | ({"format": digits} if digits else {})


def lines(
    title: str,
    rows: Sequence[Row],
    x: Axis,
    y: Axis,
    *,
    colour: Colour | None = None,
    dash: Dash | None = None,
    band: tuple[str, str] | None = None,
    facet: str = "",
    told: Sequence[Spec] = (),
    joined: str = "",
    apart: str = "",
    dotted: str = "",
    data: str = "",
    under: Sequence[Spec] = (),
    over: Sequence[Spec] = (),
    also: Sequence[Axis] = (),
    **words: Any,
) -> Chart:
    """One line a colour (and dash), a dot at each point; ``band``: the columns of its lower and upper end.

    apart: a column that keeps lines of one colour apart. told: what a dot says. joined, dotted: which rows have lines,
        dots (expressions). data: the name under which the page holds the rows. under, over: further layers; ``also``:
        the columns that they draw. words: further fields of `Chart`.
    """
    rows = _finite(rows)
    live = colour is not None and not colour.legend and not facet
    focus = f"(focus === null || datum[{colour.field!r}] === focus)" if live and colour else ""
    shared: Spec = {"x": x.channel()} | ({"color": colour.channel()} if colour else {})
    fields = [f for f in (dash and dash.field, apart) if f]
    detail: Spec = {"detail": [{"field": f, "type": "nominal"} for f in fields]} if apart else {}
    detail = {"detail": {"field": dash.field, "type": "nominal"}} if dash and not apart else detail
    height = y.channel()
    parts = list(under)
    if band:
        low: Spec = {**{k: v for k, v in height.items() if k != "axis"}, "field": band[0]}
        area: Spec = {"type": "area", "clip": True, "line": False} | ({} if focus else {"opacity": 0.18})
        faint = {"opacity": dimmed(focus, 0.18, 0.03)} if focus else {}
        encoding = {**shared, **detail, "y": {**low, "axis": height["axis"]}, "y2": {"field": band[1]}, **faint}
        parts.append(layer(area, encoding, f"isValid(datum[{band[0]!r}])"))
    seen: Spec = {"opacity": dimmed(focus)} if focus else {}
    stroke: Spec = {"strokeDash": dash.channel()} if dash else {}
    parts.append(layer({"type": "line", "clip": True}, {**shared, "y": height, **detail, **seen, **stroke}, joined))
    told = [*([tip(colour.field)] if colour and not told else ()), *told] or [tip(x.field), tip(y.field)]
    dots = _dots(rows, x, {**shared, "y": height, "tooltip": list(told)}, dash, focus)
    parts += [dots | _filter(dotted or f"isValid(datum[{y.field!r}])"), *over]
    by = list(dict.fromkeys(f for f in (colour and colour.field, dash and dash.field, facet) if f))
    spec: Spec = {"data": {"name": data} if data else {"values": rows}}
    spec |= _faceted({"layer": parts}, rows, facet)
    if live:
        spec["params"] = [{"name": name, "value": None} for name in ("focus", f"at_{x.field}")]
    return _chart(title, spec, _pivot(rows, x, [y, *also], by), f"{_named(y)} over {_named(x)}", rows, by, words)


def layer(mark: Spec, encoding: Spec, where: str = "", values: Sequence[Row] | None = None) -> Spec:
    """One mark of a chart: of its rows, or of ``values``; ``where``: of which."""
    own: Spec = {} if values is None else {"data": {"values": list(values)}}
    return own | _filter(where) | {"mark": mark, "encoding": encoding}


def dimmed(focus: str, bright: float = 1, dark: float = 0.12) -> Spec:
    """An opacity: ``bright`` unless the page's legend is pointed at another name."""
    return {"condition": {"test": focus, "value": bright}, "value": dark}


def _filter(where: str) -> Spec:
    return {"transform": [{"filter": where}]} if where else {}


def _dots(rows: Sequence[Row], x: Axis, encoding: Spec, dash: Dash | None, focus: str) -> Spec:
    """The points: of a page with a legend they show where there are few, and at the place that is pointed at."""
    if dash and dash.shapes:
        scale = {"domain": list(dash.shapes), "range": list(dash.shapes.values())}
        shape = {"field": dash.field, "type": "nominal", "scale": scale, "legend": None}
        return layer({"type": "point", "filled": True, "size": 42, "clip": True}, {**encoding, "shape": shape})
    few = len({r[x.field] for r in rows}) <= DOTTED_UP_TO
    if not focus:
        return layer({"type": "circle", "size": 26, "opacity": 0.9 if few else 0, "clip": True}, encoding)
    here = {"test": f"datum[{x.field!r}] === at_{x.field}", "value": 1}
    opacity = {"condition": here, "value": {"expr": f"{focus} ? {0.8 if few else 0} : 0"}}
    nearest: Spec = {"type": "point", "fields": [x.field], "nearest": True, "on": "pointermove", "clear": "pointerout"}
    drawn = layer({"type": "circle", "size": 28, "clip": True}, {**encoding, "opacity": opacity})
    return {**drawn, "params": [{"name": "hover", "select": nearest}]}


def heat(
    title: str,
    rows: Sequence[Row],
    x: Axis,
    y: Axis,
    value: Axis,
    *,
    legend: bool = False,
    written: Sequence[tuple[str, float, float]] = (),
    ends: tuple[float, float] = (0.0, 1.0),
    facet: str = "",
    told: Sequence[Spec] = (),
    size: tuple[int, int] | None = None,
    **words: Any,
) -> Chart:
    """A map of ``value`` over two axes; what has no colour is grey.

    written: columns written into the cells, with their size and place. ends: of the colours, where ``written`` turns
        from
    light to dark. size: of a map, pixels, where the box does not say it.
    """
    rows = _finite(rows)
    scale = {"scheme": "viridis", **value.scale}
    shown = {"title": None, "gradientLength": 140, "labelExpr": WRITTEN} if legend else None
    colour = {"field": value.field, "type": "quantitative", "scale": scale, "legend": shown}
    place: Spec = {"x": x.channel(), "y": y.channel()}
    told = list(told) or [tip(x.field), tip(y.field), tip(value.field, value.title, ".4~g")]
    valid = f"isValid(datum[{value.field!r}])"
    parts = [layer({"type": "rect", "color": "#8888", "stroke": None}, {**place, "tooltip": told})]
    edge: Spec = {} if legend else {"stroke": colour}  # hides the seams; with a legend it would be a second one
    cells = {**place, "color": colour, **edge, "tooltip": told}
    parts.append(layer({"type": "rect", "strokeWidth": 0.7}, cells, valid))
    log = scale.get("type") == "log" and ends[0] > 0
    middle = math.sqrt(ends[0] * ends[1]) if log else (ends[0] + ends[1]) / 2
    bright = {"test": f"{valid} && datum[{value.field!r}] > {middle:.6g}", "value": "#111"}
    ink = {"condition": bright, "value": "#fff"}
    for column, points, down in written:
        text = {**place, "text": {"field": column, "type": "nominal"}, "color": ink}
        parts.append(layer({"type": "text", "fontSize": points, "dy": down, "aria": False}, text))
    sized: Spec = {"width": size[0], "height": size[1]} if size else {}
    spec: Spec = {"data": {"values": rows}, **_faceted({"layer": parts, **sized}, rows, facet)}
    said = f"{value.title or value.field} as colour, over {_named(x)} and {_named(y)}"
    return _chart(
        title, spec, _pivot(rows, y, [value], [*([facet] if facet else []), x.field]), said, rows, [facet], words
    )


def _faceted(view: Spec, rows: Sequence[Row], facet: str) -> Spec:
    """The view, or one of it for each value of the facet."""
    order = list(dict.fromkeys(r[facet] for r in rows)) if facet else []
    if len(order) < 2:
        return view
    header = {
        "title": None,
        "labelFontSize": 12,
        "labelFontWeight": 600,
        "labelAnchor": "start",
        "labelColor": "#7d8188",
    }
    by = {"field": facet, "type": "nominal", "sort": order, "header": header}
    return {"facet": by, "columns": COLUMNS, "spec": view, "resolve": {"axis": {"x": "independent"}}}


def _finite(rows: Sequence[Row]) -> list[Spec]:
    """The rows with null for what is not finite, which JSON has no word for."""
    return [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()} for r in rows]


def _named(axis: Axis) -> str:
    return axis.title or axis.field.replace("_", " ")


def _chart(
    title: str, spec: Spec, table: Table, said: str, rows: Sequence[Row], by: Sequence[str], words: Mapping[str, Any]
) -> Chart:
    """The chart with its description, which a screen reader reads."""
    names = {f: list(dict.fromkeys(str(r[f]) for r in rows if f in r)) for f in by if f}
    parts = [f"{f.replace('_', ' ')}: {', '.join(n[:8])}{', ...' if len(n) > 8 else ''}" for f, n in names.items()]
    return Chart(title, {"description": f"{title}: {'; '.join([said, *parts])}.", **spec}, table=table, **words)


def _pivot(rows: Sequence[Row], x: Axis, drawn: Sequence[Axis], by: Sequence[str]) -> Table:
    """The numbers of a chart: one row a place on the axis, one column a line."""
    cells: dict[Any, dict[tuple[Any, ...], Any]] = {}
    for r in rows:
        for y in drawn:
            if y.field in r:
                cells.setdefault(r[x.field], {}).setdefault((_named(y), *(r.get(f) for f in by)), r[y.field])
    columns = list(dict.fromkeys(c for row in cells.values() for c in row))
    places = list(cells)
    if all(isinstance(p, int | float) for p in places):
        places.sort()
    most = min(len(places), TABLE_ROWS)
    shown = [places[round(i * (len(places) - 1) / max(most - 1, 1))] for i in range(most)]
    several = [i for i in range(1 + len(by)) if len({c[i] for c in columns}) > 1]
    heads = [", ".join(_cell(c[i]) for i in several) or c[0] for c in columns]
    body = [[_cell(p), *(_cell(cells[p].get(c, "")) for c in columns)] for p in shown]
    return Table([_named(x), *heads], body, numeric=range(1, len(columns) + 1))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return _labels.number(value, 4)
    return "not finite" if value is None else str(value)
