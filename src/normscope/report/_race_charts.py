"""The charts of a race: curves over steps, all variants overlaid, and a map of the layers over time for each variant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import altair as alt

from normscope.report import _race_curves as curves
from normscope.report._race_content import RaceContent

_FOCUSED = "(focus === null || datum.variant === focus)"
_WRITTEN = (
    "datum.value == 0 || (abs(datum.value) >= 1e-3 && abs(datum.value) < 1e5)"
    " ? format(datum.value, '.4~r') : replace(format(datum.value, '.1~e'), '+', '')"
)
#: Viridis, for the key beside the maps: readable on light and on dark, and in grey.
RAMP = "#440154, #472f7d, #39568c, #2a788e, #1f988b, #35b779, #7ad151, #d2e21b"
#: How far above the median variant's first loss a linear axis goes.
_ABOVE = 1.3
#: (signal, metric, title, unit, reading, log)
MAPS = (
    ("activation", "participation_rank", "Participation rank", "of the probed samples",
     "How many directions the samples spread over; 1 is collapse.", False),
    ("activation", "orthogonality_gap", "Orthogonality gap", "0 orthogonal, 1 collapsed",
     "How far the samples are from mutually orthogonal.", False),
    ("gradient", "gradient_norm", "Gradient norm", "of the loss, with respect to a layer's output",
     "Even from layer to layer is good; fading or growing by decades is not.", True),
)  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """One drawn chart: its key on the page, a Vega-Lite spec without a size, and the other one with a log axis."""

    key: str
    title: str
    unit: str
    reading: str
    spec: dict[str, Any]
    log: dict[str, Any] | None = None


@dataclass(frozen=True)
class Maps:
    """One quantity over layers and time: a chart a variant on one scale of colours."""

    title: str
    unit: str
    reading: str
    low: str
    high: str
    charts: Sequence[Chart]


def lines(content: RaceContent) -> list[Chart]:
    """Training loss, accuracy and evaluated loss."""
    rows, width = curves.losses(content)
    drawn = []
    if rows:
        smoothed = f"mean of the last {width} batches" if width > 1 else "every batch"
        reading = f"In training mode, {smoothed}; line: mean over seeds, band: their range."
        diverged = curves.divergences(content)
        if diverged:
            reading += " A cross on the axis: a run diverged there."
        both = [_spec(content, rows, "step", log=log, crosses=diverged) for log in (False, True)]
        logged = both[1] if all(r["mean"] > 0 for r in rows) else None
        drawn.append(Chart("loss", "Training loss", "of each step's batch", reading, both[0], logged))
    for metric, title in (("accuracy", "Accuracy"), ("loss", "Evaluated loss")):
        rows = [r for r in curves.scores(content, metric) if r["mean"] is not None]
        if rows:
            tested = any(r["split"] == "test" for r in rows)
            which = "solid: test, dashed: training samples" if tested else "training samples"
            reading = f"In eval mode, with running statistics; {which}."
            right = metric == "accuracy"
            specs = [_spec(content, rows, "epoch", log=log, split=tested, bounded=not right) for log in (False, True)]
            logged = specs[1] if not right and all(r["mean"] > 0 for r in rows) else None
            drawn.append(Chart(f"eval-{metric}", title, "after each epoch", reading, specs[0], logged))
    return drawn


def maps(content: RaceContent) -> list[Maps]:
    """Every quantity that was followed, layer by layer."""
    found = []
    for signal, metric, title, unit, reading, log in MAPS:
        by_variant = curves.layers(content, signal, metric, log=log)
        # A variant that only diverges must not set the colours of the others.
        ended = [line["variant"] for line in content.lines if line["diverged"] < line["seeds"]]
        scaled = [by_variant[v] for v in ended if v in by_variant] or list(by_variant.values())
        values = [r["value"] for rows in scaled for r in rows if r["value"] is not None]
        values = [v for v in values if v > 0 or not log]
        if not values:
            continue
        low, high = min(values), max(values)
        if metric == "orthogonality_gap":
            low, high = 0.0, max(high, 0.05)
        if low == high:
            high = low * 1.1 or 1.0
        charts = [
            Chart(f"{metric}-{content.variants.index(v)}", v, "", "", _map(rows, low, high, title, log=log))
            for v, rows in by_variant.items()
        ]
        found.append(Maps(title, unit, reading, f"{low:.2g}", f"{high:.2g}", charts))
    return found


def _spec(
    content: RaceContent, rows: curves.Rows, x: str, *, log: bool, split: bool = False, bounded: bool = True,
    crosses: curves.Rows | None = None,
) -> dict[str, Any]:  # fmt: skip
    base = alt.Chart(alt.Data(values=rows))
    colour = alt.Color("variant:N", scale=alt.Scale(domain=content.variants), legend=None)
    scale = alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False, nice=True)
    low, high = min(r["low"] for r in rows), max(r["high"] for r in rows)
    firsts = [next(r["mean"] for r in rows if r["variant"] == v) for v in {r["variant"] for r in rows}]
    limit = _ABOVE * median_low(firsts) * (1000 if log else 1)
    if bounded and high > limit > low:  # what goes up leaves the chart, so that the others can be seen
        scale.domain = [low if log else min(low, 0.0), limit]
    y = alt.Y("mean:Q", title=None, scale=scale, axis=alt.Axis(labelExpr=_WRITTEN, tickCount=5))
    horizontal = alt.X(f"{x}:Q", title=x, scale=alt.Scale(nice=False), axis=alt.Axis(tickMinStep=1))
    opacity = alt.condition(_FOCUSED, alt.value(1), alt.value(0.12))
    parts = []
    banded = base.transform_filter("datum.split !== 'train'").mark_area(clip=True)
    faint = alt.condition(_FOCUSED, alt.value(0.18), alt.value(0.03))
    parts.append(banded.encode(x=horizontal, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=colour, opacity=faint))
    dash: dict[str, Any] = {}
    if split:
        strokes = alt.Scale(domain=["test", "train"], range=[[1, 0], [5, 4]])
        dash = {"strokeDash": alt.StrokeDash("split:N", scale=strokes, legend=None)}
    parts.append(base.mark_line(clip=True).encode(x=horizontal, y=y, color=colour, opacity=opacity, **dash))
    told = [alt.Tooltip("variant:N"), alt.Tooltip(f"{x}:Q"), alt.Tooltip("mean:Q", format=".4~g")]
    told += [alt.Tooltip("low:Q", format=".4~g"), alt.Tooltip("high:Q", format=".4~g")]
    told += [alt.Tooltip("split:N", title="samples")] if split else []
    hover = alt.selection_point(name="hover", nearest=True, on="pointermove", clear="pointerout", empty=False)
    dots = base.mark_circle(size=40, clip=True).encode(
        x=horizontal, y=y, color=colour, tooltip=told, opacity=alt.condition(hover, alt.value(1), alt.value(0))
    )
    parts.append(dots.add_params(hover))
    if crosses:
        marks = alt.Chart(alt.Data(values=crosses)).mark_point(
            shape="cross", angle=45, size=60, filled=True, clip=False
        )
        where = [alt.Tooltip("variant:N"), alt.Tooltip("seed:Q"), alt.Tooltip("step:Q", title="diverged at step")]
        parts.append(marks.encode(x="step:Q", y=alt.value("height"), color=colour, tooltip=where, opacity=opacity))
    drawn = alt.layer(*parts).add_params(alt.param(name="focus", value=None))
    return _plain(drawn)


def _map(rows: curves.Rows, low: float, high: float, title: str, *, log: bool) -> dict[str, Any]:
    scale = alt.Scale(type="log" if log else "linear", scheme="viridis", domain=[low, high], clamp=True)
    told = [alt.Tooltip("step:O"), alt.Tooltip("layer:O"), alt.Tooltip("module:N")]
    told.append(alt.Tooltip("value:Q", title=title.lower(), format=".4~g"))
    layers = sorted({r["layer"] for r in rows})
    few = max(1, len(layers) // 6)
    shown = alt.Axis(values=layers[::few], ticks=False, domain=False, offset=3)
    across = alt.Axis(labelAngle=0, labelOverlap=True)
    drawn = alt.Chart(alt.Data(values=rows)).mark_rect(strokeWidth=0.7).encode(
        x=alt.X("step:O", title="step", scale=alt.Scale(paddingInner=0), axis=across),
        y=alt.Y("layer:O", title=None, sort="descending", scale=alt.Scale(paddingInner=0), axis=shown),
        color=alt.Color("value:Q", scale=scale, legend=None),
        stroke=alt.Stroke("value:Q", scale=scale, legend=None),
        tooltip=told,
    )  # fmt: skip
    return _plain(drawn)


def _plain(chart: Any) -> dict[str, Any]:
    spec = chart.properties(width="container").to_dict(validate=False)
    spec["autosize"] = {"type": "fit", "contains": "padding"}
    spec["padding"] = {"left": 2, "right": 10, "bottom": 2, "top": 8}
    return {k: v for k, v in spec.items() if k not in ("$schema", "config")}
