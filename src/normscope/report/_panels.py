"""The charts of a sweep: which parameter goes where, lines with bands, and heat maps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from normscope.report import _labels
from normscope.report.grammar import WRITTEN, Axis, Chart, Colour, Spec, fits, heat, lines, measure, tip

if TYPE_CHECKING:
    from normscope.report.sweeps import Sweep

#: A parameter whose values span this factor (or go by one factor) is drawn on a log axis, a metric from this one.
_LOG_AXIS, _LOG_METRIC = 15.0, 200.0
#: Metrics that are shares: their colours span 0 to 1.
_SHARES = {"trained", "diverged", "accuracy", "mean_abs_cosine", "odd_point_score", "dead_units", "saturated_units"}
#: Cells of a heat map that still have their numbers written in them.
_WRITTEN = 70


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
    share = metric in _SHARES
    log = not share and (metric in sweep.log or _spans(good, _LOG_METRIC))
    columns, count = part[roles.x].n_unique(), part[roles.y].n_unique()
    written = columns * count <= _WRITTEN
    size = 46 if written else max(9, min(26, 420 // max(columns, count)))
    scale: Spec = {"type": "log" if log else "linear"} | ({"domain": [0, 1]} if share else {})
    flat = {"labelAngle": 0 if written else -60, "labelOverlap": True, "domain": False, "ticks": False}
    x = Axis(roles.x, kind="ordinal", ticks=flat | _short(part[roles.x]))
    upright = {"titleAnchor": "middle", "labelOverlap": True}
    y = Axis(roles.y, kind="ordinal", sort="descending", ticks=upright | _short(part[roles.y]))
    seeds = max((r["count"] for r in rows), default=1)
    texts = [("short", 10.5, -5.0 if seeds > 1 else 0.0), *([("spread", 8.5, 8.0)] if seeds > 1 else [])]
    reading = f"mean{' ± sd' if seeds > 1 and written else ''} of {seeds} seed{'s' * (seeds > 1)}"
    if any(r["mean"] is None for r in rows):
        reading += "; grey: not finite"
    tall = (38 if written else size) * count
    drawn = heat(
        label.title, rows, x, y, Axis("mean", label.heading, scale=scale), legend=True,
        written=texts if written else (),
        ends=(0.0, 1.0) if share or not good else (min(good), max(good)), facet="facet" if roles.facet else "",
        told=_told((roles.x, roles.y, *roles.facet), label.title), size=(size * columns, tall), reading=reading,
        unit=label.unit, height=tall, wide=bool(roles.facet),
    )  # fmt: skip
    return Panel("heat", drawn)


def _told(axes: Iterable[str], title: str) -> list[Spec]:
    return [*(tip(a) for a in dict.fromkeys(axes)), tip("told", title), tip("count", "seeds")]


def _spans(values: list[float], factor: float) -> bool:
    """Whether positive numbers span more than this factor."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > factor


def _short(values: pl.Series) -> Spec:
    """Fractions in an axis's labels, in few digits."""
    return {"labelExpr": WRITTEN} if values.dtype.is_float() else {}


def _lines(metric: str, part: pl.DataFrame, roles: _Roles, sweep: Sweep) -> Panel:
    label = _labels.label(metric)
    assert roles.x is not None
    rows = [r for r in _data(part, roles.lines_facet) if r["mean"] is not None]
    good = [r["mean"] for r in rows]
    positive = bool(good) and min(good) > 0
    log = metric in sweep.log or (positive and (label.log or _spans(good, _LOG_METRIC)))
    if log:
        rows = [r for r in rows if r["mean"] > 0]
        for r in rows:
            r["low"] = max(r["low"], r["least"]) if r["least"] > 0 else r["mean"]
    ends = [r[k] for r in rows for k in ("low", "high")]
    scale: Spec = {"domain": [0, 1]} if metric in _SHARES else {} if log else {"zero": False}
    seeds = max((r["count"] for r in rows), default=1)
    several = roles.lines_facet and len({r["facet"] for r in rows}) > 1
    drawn = lines(
        label.title, rows, _quantity(roles.x, part, sweep), measure("mean", label.heading, ends, log=log, **scale),
        colour=None if roles.colour is None else _colour(roles.colour, part), band=("low", "high"),
        facet="facet" if several else "",
        told=_told((roles.x, *([roles.colour] if roles.colour else []), *roles.lines_facet), label.title),
        reading=f"mean of {seeds} seeds; band: two standard errors each way" if seeds > 1 else "one seed",
        unit=label.unit, height=240, wide=bool(several),
    )  # fmt: skip
    return Panel("lines", drawn)


def _quantity(name: str, part: pl.DataFrame, sweep: Sweep) -> Axis:
    values = part[name].drop_nulls()
    if not values.dtype.is_numeric():
        return Axis(name, kind="nominal", ticks={"labelAngle": 0}, sort=None)
    ticks = sorted(set(values.to_list()))
    least, most = float(ticks[0]), float(ticks[-1])
    if fits(least, log=True) and (name in sweep.log or most / least >= _LOG_AXIS or _geometric(ticks)):
        scale = {"type": "log", "base": 2 if all(math.log2(v).is_integer() for v in ticks) else 10, "nice": False}
        few: Spec = {"values": ticks, "labelOverlap": True} if len(ticks) <= 16 else {"tickCount": 6}
        return Axis(name, scale=scale, ticks={**few, "format": "~g"})
    return Axis(name, scale={"nice": False, "zero": False}, ticks={"format": "~g", "tickCount": 8})


def _geometric(values: list[float]) -> bool:
    """Whether the values go by one factor."""
    triples = zip(values, values[1:], values[2:], strict=False)
    return len(values) > 2 and all(math.isclose(a * c, b * b) for a, b, c in triples)


def _colour(name: str, part: pl.DataFrame) -> Colour:
    values = part[name].unique(maintain_order=True).drop_nulls()
    ordered = values.dtype.is_numeric()
    names = sorted(values.to_list()) if ordered else values.to_list()
    return Colour(name, names, legend=True, ordered=ordered, title=name.replace("_", " "))


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
