"""The charts of a sweep, as Vega-Lite: which parameter goes where, lines with bands, and heat maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from normscope.report import _labels
from normscope.report.sheet import Chart

if TYPE_CHECKING:
    from normscope.report.sweeps import Sweep

#: A parameter whose values span this factor (or go by one factor) is drawn on a log axis, a metric from this one.
_LOG_AXIS, _LOG_METRIC = 15.0, 200.0
#: Metrics that are shares: their colours span 0 to 1.
_SHARES = {"trained", "diverged", "accuracy", "mean_abs_cosine", "odd_point_score", "dead_units", "saturated_units"}
#: Cells of a heat map that still have their numbers written in them.
_WRITTEN = 70
#: Facets in a row.
_COLUMNS = 4
_FORMAT = (
    "datum.value == 0 || (abs(datum.value) >= 1e-3 && abs(datum.value) < 1e5)"
    " ? format(datum.value, '.3~r') : format(datum.value, '.1~e')"
)


@dataclass(frozen=True)
class Panel:
    """One chart, of a ``kind``: ``heat`` or ``lines``."""

    kind: str
    chart: Chart


@dataclass(frozen=True)
class _Roles:
    """Which axis of the grid plays which part."""

    x: str | None
    y: str | None
    colour: str | None
    facet: tuple[str, ...]
    lines_facet: tuple[str, ...]


def panels(sweep: Sweep, summary: pl.DataFrame) -> list[Panel]:
    """A heat map and lines of each metric, as far as the grid has the axes for them."""
    from normscope.report.sweeps import MOST, main_metrics

    wanted = list(sweep.metrics or main_metrics(sweep.table)[:MOST])
    gaps = [a for a in sweep.parameters if a in summary.columns and summary[a].has_nulls()]
    summary = summary.with_columns(pl.col(a).cast(pl.String).str.strip_suffix(".0").fill_null("none") for a in gaps)
    roles = _roles(sweep, summary)
    if roles.x is None:
        return []
    found: list[Panel] = []
    heat = roles.y is not None and sweep.kind in ("auto", "heat")
    lines = sweep.kind == "lines" or not heat or sweep.kind == "auto"
    for metric in wanted:
        part = summary.filter((pl.col("metric") == metric) & (pl.col("finite") > 0))
        whole = summary.filter(pl.col("metric") == metric)
        if heat and len(whole):
            found.append(_heat(metric, whole, roles, sweep))
        if lines and len(part):
            found.append(_lines(metric, part, roles, sweep))
    return sorted(found, key=lambda p: p.kind)


def _roles(sweep: Sweep, summary: pl.DataFrame) -> _Roles:
    taken = [a for a in (sweep.x, sweep.y, sweep.colour, sweep.facet) if a]
    varied = [
        a for a in (*sweep.parameters, "layer") if a in summary.columns and a != "seed" and summary[a].n_unique() > 1
    ]
    varied = [a for a in varied if a in taken or not _follows(a, varied, taken, summary)]
    numeric = [a for a in varied if summary[a].dtype.is_numeric()]
    words = [a for a in varied if a not in numeric]
    free = [a for a in numeric if a not in taken]
    if sweep.x is None and "layer" in free:
        free.sort(key=lambda a: a != "layer")
    anything = next((a for a in sweep.parameters if a in summary.columns and a != "seed"), None)
    x = sweep.x or (free.pop(0) if free else (words[0] if words else anything))
    y = sweep.y or (free.pop(0) if free else None)
    rest = [a for a in varied if a not in (x, y, sweep.colour, sweep.facet)]
    by_word = [a for a in rest if a in words]
    colour = sweep.colour or (by_word[0] if by_word else y)
    left = [a for a in varied if a not in (x, colour)]
    facet = tuple(a for a in varied if a not in (x, y))
    if sweep.facet:
        facet = (sweep.facet, *(a for a in facet if a != sweep.facet))
        left = [sweep.facet, *(a for a in left if a != sweep.facet)]
    return _Roles(x, y, colour, facet, tuple(left))


def _follows(name: str, varied: list[str], taken: list[str], summary: pl.DataFrame) -> bool:
    """Whether a number goes side by side with another one, asked for or before it: such a pair is one axis."""
    before = [a for a in varied if a in taken or varied.index(a) < varied.index(name)]
    count = summary[name].n_unique()
    return summary[name].dtype.is_numeric() and any(
        summary[a].dtype.is_numeric() and summary[a].n_unique() == count == summary.select(a, name).unique().height
        for a in before
    )


def _heat(metric: str, part: pl.DataFrame, roles: _Roles, sweep: Sweep) -> Panel:
    label = _labels.label(metric)
    assert roles.x is not None
    assert roles.y is not None
    rows = _data(part, roles.facet)
    good = [r["mean"] for r in rows if r["mean"] is not None]
    log = metric in sweep.log or (bool(good) and min(good) > 0 and max(good) / min(good) > _LOG_METRIC)
    share = metric in _SHARES
    columns, lines = part[roles.x].n_unique(), part[roles.y].n_unique()
    written = columns * lines <= _WRITTEN
    size = 46 if written else max(9, min(26, 420 // max(columns, lines)))
    log = log and not share
    scale = alt.Scale(scheme="viridis", type="log" if log else "linear", domain=[0, 1] if share else alt.Undefined)
    legend = alt.Legend(title=None, gradientLength=max(90, min(200, size * lines)), format=".3~g")
    angle = 0 if written else -60
    x = alt.X(
        f"{roles.x}:O",
        axis=alt.Axis(labelAngle=angle, labelOverlap=True, domain=False, ticks=False, **_short(part[roles.x])),
    )
    y = alt.Y(
        f"{roles.y}:O", sort="descending",
        axis=alt.Axis(titleAnchor="middle", labelOverlap=True, **_short(part[roles.y])),
    )  # fmt: skip
    tips = [alt.Tooltip(f"{a}:N") for a in (roles.x, roles.y, *roles.facet)]
    tips += [alt.Tooltip("told:N", title=label.title), alt.Tooltip("count:Q", title="seeds")]
    base = alt.Chart().encode(x=x, y=y)
    grey = base.mark_rect(color="#8888", stroke=None).encode(tooltip=tips)
    cells = base.transform_filter("isValid(datum.mean)").mark_rect(stroke=None)
    parts: list[Any] = [grey, cells.encode(color=alt.Color("mean:Q", scale=scale, legend=legend), tooltip=tips)]
    if written:
        ends = (min(good), max(good)) if good else (0.0, 1.0)
        ends = (0.0, 1.0) if share else ends
        middle = math.sqrt(ends[0] * ends[1]) if log else (ends[0] + ends[1]) / 2
        ink = alt.condition(f"isValid(datum.mean) && datum.mean > {middle:.6g}", alt.value("#111"), alt.value("#fff"))
        spread = any(r["count"] > 1 for r in rows)
        parts.append(base.mark_text(fontSize=10.5, dy=-5 if spread else 0).encode(text="short:N", color=ink))
        if spread:
            parts.append(base.mark_text(fontSize=8.5, dy=8).encode(text="spread:N", color=ink, opacity=alt.value(0.85)))
    chart = alt.layer(*parts).properties(width=size * columns, height=(size if not written else 38) * lines)
    seeds = max((r["count"] for r in rows), default=1)
    subtitle = f"mean{' ± sd' if seeds > 1 and written else ''} of {seeds} seed{'s' * (seeds > 1)}"
    if any(r["mean"] is None for r in rows):
        subtitle += "; grey: not finite"
    height = (size if not written else 38) * lines
    return Panel(
        "heat", Chart(label.title, *_faceted(chart, rows, roles.facet, subtitle), label.unit, height, bool(roles.facet))
    )


def _short(values: pl.Series) -> dict[str, Any]:
    """Fractions in an axis's labels, to three digits."""
    return {"labelExpr": _FORMAT} if values.dtype.is_float() else {}


def _lines(metric: str, part: pl.DataFrame, roles: _Roles, sweep: Sweep) -> Panel:
    label = _labels.label(metric)
    assert roles.x is not None
    rows = [r for r in _data(part, roles.lines_facet) if r["mean"] is not None]
    good = [r["mean"] for r in rows]
    log = metric in sweep.log or (label.log or max(good) / min(good) > _LOG_METRIC if good and min(good) > 0 else False)
    if log:
        rows = [r for r in rows if r["mean"] > 0]
        for r in rows:
            r["low"] = max(r["low"], r["least"]) if r["least"] > 0 else r["mean"]
    x = _quantity(roles.x, part, sweep)
    domain = {"domain": [0, 1]} if metric in _SHARES else {"zero": False} if not log else {"type": "log", "nice": False}
    ticks = _ticks(min(r["low"] for r in rows), max(r["high"] for r in rows)) if log and rows else []
    axis = alt.Axis(labelExpr=_FORMAT, **({"values": ticks} if len(ticks) > 1 else {"tickCount": 5}))
    y = alt.Y("mean:Q", title=None, scale=alt.Scale(**domain), axis=axis)
    base = alt.Chart().encode(x=x)
    if roles.colour is not None:
        base = base.encode(color=_colour(roles.colour, part))
    tips = [
        alt.Tooltip(f"{a}:N")
        for a in dict.fromkeys((roles.x, *([roles.colour] if roles.colour else []), *roles.lines_facet))
    ]
    tips += [alt.Tooltip("told:N", title=label.title), alt.Tooltip("count:Q", title="seeds")]
    band = base.mark_area(opacity=0.18, line=False).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    line = base.mark_line().encode(y=y)
    dots = base.mark_circle(size=26, opacity=0.9).encode(y=y, tooltip=tips)
    panels = len({r["facet"] for r in rows}) if roles.lines_facet else 1
    chart = alt.layer(band, line, dots).properties(
        width=560 if panels == 1 else 300 if panels == 2 else 230, height=220
    )
    seeds = max((r["count"] for r in rows), default=1)
    subtitle = f"mean of {seeds} seeds; band: two standard errors each way" if seeds > 1 else "one seed"
    wide = panels > 1
    return Panel(
        "lines", Chart(label.title, *_faceted(chart, rows, roles.lines_facet, subtitle), label.unit, 240, wide)
    )


def _quantity(name: str, part: pl.DataFrame, sweep: Sweep) -> alt.X:
    values = part[name].drop_nulls()
    if not values.dtype.is_numeric():
        return alt.X(f"{name}:N", sort=None, axis=alt.Axis(labelAngle=0))
    least, most = float(values.min()), float(values.max())  # type: ignore[arg-type]
    ticks = sorted(set(values.to_list()))
    if least > 0 and (name in sweep.log or most / least >= _LOG_AXIS or _geometric(ticks)):
        base = 2 if all(math.log2(v).is_integer() for v in ticks) else 10
        axis = (
            alt.Axis(values=ticks, labelOverlap=True, format="~g")
            if len(ticks) <= 16
            else alt.Axis(tickCount=6, format="~g")
        )
        return alt.X(f"{name}:Q", scale=alt.Scale(type="log", base=base, nice=False), axis=axis)
    return alt.X(f"{name}:Q", scale=alt.Scale(nice=False, zero=False), axis=alt.Axis(format="~g", tickCount=8))


def _geometric(values: list[float]) -> bool:
    """Whether the values go by one factor."""
    triples = zip(values, values[1:], values[2:], strict=False)
    return len(values) > 2 and all(math.isclose(a * c, b * b) for a, b, c in triples)


def _ticks(least: float, most: float) -> list[float]:
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


def _colour(name: str, part: pl.DataFrame) -> alt.Color:
    values = part[name].unique(maintain_order=True).drop_nulls()
    legend = alt.Legend(orient="top", symbolType="stroke", symbolOpacity=1, columns=6)
    if values.dtype.is_numeric():
        ordered = sorted(values.to_list())
        return alt.Color(f"{name}:O", sort=ordered, scale=alt.Scale(scheme="viridis"), legend=legend)
    return alt.Color(f"{name}:N", sort=values.to_list(), scale=alt.Scale(domain=values.to_list()), legend=legend)


def _data(part: pl.DataFrame, facet: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows for the chart; what is not finite is null, with its word."""
    rows = []
    for row in part.iter_rows(named=True):
        mean, sd, count = row["mean"], row["sd"], row["count"]
        fine = mean is not None and math.isfinite(mean)
        error = sd / math.sqrt(count) if fine and count > 1 and math.isfinite(sd) else 0.0
        short = _labels.number(mean) if fine else ("inf" if row["finite"] < count and mean == math.inf else "nan")
        wide = fine and count > 1
        rows.append(
            {
                **{k: v for k, v in row.items() if k not in ("metric", "most", "finite", "mean", "sd", "least")},
                "mean": float(f"{mean:.6g}") if fine else None,
                "least": row["least"] if fine else None,
                "low": mean - 2 * error if fine else None,
                "high": mean + 2 * error if fine else None,
                "short": short,
                "spread": f"± {_labels.number(sd, 2)}" if wide else "",
                "told": short + (f" ± {_labels.number(sd, 2)} (sd)" if wide else ""),
                "facet": ", ".join(f"{a} = {row[a]}" for a in facet),
            }
        )
    return rows


def _faceted(chart: Any, rows: list[dict[str, Any]], facet: tuple[str, ...], subtitle: str) -> tuple[Any, str]:
    """The chart over its rows, a panel a facet; and the sentence below its title."""
    order = list(dict.fromkeys(r["facet"] for r in rows))
    if not facet or len(order) < 2:
        return chart.properties(data=alt.Data(values=rows)), subtitle
    header = alt.Header(title=None, labelFontSize=12, labelFontWeight=600, labelAnchor="start", labelColor="#7d8188")
    drawn = chart.facet(
        facet=alt.Facet("facet:N", sort=order, header=header), columns=_COLUMNS, data=alt.Data(values=rows)
    )
    return drawn.resolve_axis(x="independent"), subtitle
