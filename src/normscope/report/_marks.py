"""The parts a chart over depth is layered from: axes, lines, the dots one hovers, and what is marked on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from normscope.report import _labels
from normscope.report._layers import Layer, codes_at, measured

#: Name of the data that all charts share; whoever draws a chart provides it.
DATA = "layers"
#: Beyond this many layers the lines carry no dots.
DOTTED_UP_TO = 64
_FOCUSED = "(focus === null || datum.model === focus)"
_WRITTEN = (
    "datum.value == 0 || (abs(datum.value) >= 1e-3 && abs(datum.value) < 1e5)"
    " ? format(datum.value, '.5~r') : replace(format(datum.value, '.2~e'), '+', '')"
)


def fits(value: float | None, log: bool) -> bool:
    """Whether a value has a place on the axis."""
    return value is not None and math.isfinite(value) and (value > 0 or not log)


def data(metric: str, log: bool) -> alt.Chart:
    """The rows that have the metric; a null in it breaks the line."""
    test = f"isDefined(datum.{metric})" + (f" && (datum.{metric} === null || datum.{metric} > 0)" if log else "")
    return alt.Chart(alt.NamedData(name=DATA)).transform_filter(test)


def depth(layers: Sequence[Layer]) -> alt.X:
    """The axis of layers, whole numbers from the input to the deepest model's end."""
    last = max((at.layer for at in layers), default=0)
    axis = alt.Axis(format="d", tickMinStep=1, labelOverlap="greedy", labelFlush=False)
    return alt.X("layer:Q", title="layer", scale=alt.Scale(domain=[0, max(last, 1)], nice=False), axis=axis)


def value(metric: str, label: _labels.Label, numbers: Iterable[float], domain: tuple[float, float] | None) -> alt.Y:
    """The axis of a metric that shows ``numbers``. Its unit is in the title of the chart."""
    if label.log:
        ends, ticks = _decades([n for n in numbers if fits(n, log=True)] or [1.0])
        scale = alt.Scale(type="log", nice=False, domain=ends)
        return alt.Y(f"{metric}:Q", title=None, scale=scale, axis=alt.Axis(labelExpr=_WRITTEN, values=ticks))
    scale = alt.Scale(domain=list(domain)) if domain else alt.Scale(zero=True, nice=True)
    return alt.Y(f"{metric}:Q", title=None, scale=scale, axis=alt.Axis(labelExpr=_WRITTEN, tickCount=5))


def _decades(numbers: Sequence[float]) -> tuple[list[float], list[float]]:
    """Ends and ticks of a log axis: powers of ten, and 2, 5 (or more) between them where there are few."""
    low, high = math.log10(min(numbers)), math.log10(max(numbers))
    margin = max(0.04 * (high - low), (0.3 - (high - low)) / 2, 0.0)
    low, high = low - margin, high + margin
    between = (1, 1.5, 2, 3, 4, 5, 7) if high - low < 0.8 else (1, 2, 5) if high - low < 2.4 else (1,)
    step = max(1, math.ceil((high - low) / 7))
    powers = [e for e in range(math.floor(low), math.ceil(high) + 1) if e % step == 0]
    ticks = [m * 10.0**e for e in powers for m in between if low <= math.log10(m) + e <= high]
    return [10**low, 10**high], ticks


def model(models: Sequence[str]) -> alt.Color:
    """The colour of a model: its place in the report, whatever this chart shows. The page has the legend."""
    return alt.Color("model:N", scale=alt.Scale(domain=list(models)), legend=None)


def lines(metric: str, log: bool, x: alt.X, y: alt.Y, colour: alt.Color, sources: Sequence[str]) -> alt.Chart:
    """One line a model; dashed where it is predicted, dotted where it is simulated."""
    dash: dict[str, Any] = {}
    if list(sources) != ["measured"]:
        strokes = alt.Scale(domain=["measured", "predicted", "simulated"], range=[[1, 0], [6, 4], [2, 3]])
        dash = {"strokeDash": alt.StrokeDash("source:N", scale=strokes, legend=None)}
    opacity = alt.condition(_FOCUSED, alt.value(1), alt.value(0.12))
    return data(metric, log).mark_line().encode(x=x, y=y, color=colour, detail="source:N", opacity=opacity, **dash)


def companion(metric: str, log: bool, x: alt.X, colour: alt.Color) -> alt.Chart:
    """A second metric of the same unit: thin and dotted."""
    opacity = alt.condition(_FOCUSED, alt.value(0.9), alt.value(0.1))
    drawn = data(metric, log).transform_filter(f"isValid(datum.{metric})").mark_line(strokeWidth=1.4, strokeDash=[1, 4])
    return drawn.encode(x=x, y=f"{metric}:Q", color=colour, detail="source:N", opacity=opacity)


def dots(
    shown: Sequence[Layer], metric: str, other: str, log: bool, x: alt.X, y: alt.Y, colour: alt.Color
) -> alt.Chart:
    """What one hovers: a dot a layer, seen where there are few layers, or at the cursor."""
    few = max((at.layer for at in shown), default=0) <= DOTTED_UP_TO
    resting = f"{_FOCUSED} ? {0.8 if few else 0} : 0"
    opacity = alt.condition("datum.layer === at", alt.value(1), alt.value(alt.expr(resting)))
    hover = alt.selection_point(
        name="hover", fields=["layer"], nearest=True, on="pointermove", clear="pointerout", empty=False
    )
    drawn = data(metric, log).transform_filter(f"isValid(datum.{metric})").mark_circle(size=24)
    return drawn.encode(x=x, y=y, color=colour, opacity=opacity, tooltip=_tooltip(shown, metric, other)).add_params(
        hover
    )


def cursor() -> alt.Chart:
    """A rule at the layer under the pointer, in every chart of the page."""
    return (
        alt.Chart(alt.NamedData(name=DATA))
        .transform_filter("datum.layer === at")
        .mark_rule(style="cursor")
        .encode(x="layer:Q")
    )


def batch_lines(sizes: Iterable[int]) -> list[alt.Chart]:
    """A line at each batch size, with its name."""
    values = [{"batch": size, "text": f"batch size {size}"} for size in sizes]
    base = alt.Chart(alt.Data(values=values)).encode(y="batch:Q")
    named = base.mark_text(align="right", baseline="bottom", dx=-2, dy=-3, aria=False)
    return [base.mark_rule(style="reference"), named.encode(text="text:N", x=alt.value("width"))] if values else []


def starts(
    layers: Sequence[Layer], findings: dict[str, list[dict[str, Any]]], metric: str, log: bool, colour: alt.Color
) -> tuple[list[alt.Chart], int]:
    """Where findings start: a thin rule, a ring on the line, the code above the chart; and the height of the codes."""
    last = max((at.layer for at in layers), default=1)
    marks: list[dict[str, Any]] = []
    for name, found in findings.items():
        on_line = {at.layer: at.values.get(metric) for at in reversed(measured(layers, name))}
        for layer, here in sorted(codes_at(found).items()):
            at = on_line.get(layer)
            mark = {"model": name, "layer": layer, "codes": " ".join(dict.fromkeys(f["code"] for f in here))}
            mark |= {"titles": "; ".join(dict.fromkeys(f["title"] for f in here)), "left": layer <= 0.8 * last}
            marks.append({**mark, "value": at if fits(at, log) else None})
    if not marks:
        return [], 0
    height = _stack(marks, last)
    base = alt.Chart(alt.Data(values=marks)).encode(x="layer:Q", color=colour)
    told = {
        "opacity": alt.condition(_FOCUSED, alt.value(1), alt.value(0.12)),
        "tooltip": _rows(codes="finding", titles="says", model="model", layer="from layer"),
    }
    faint = alt.condition(_FOCUSED, alt.value(0.55), alt.value(0.08))
    parts = [base.mark_rule(strokeWidth=1, strokeDash=[3, 3]).encode(opacity=faint)]
    ring = base.transform_filter("isValid(datum.value)").mark_point(size=90, strokeWidth=1.8, filled=False)
    parts.append(ring.encode(y="value:Q", **told))
    top = alt.expr("datum.top")
    after = base.transform_filter("datum.left").mark_text(style="start-text", y=top, align="left", dx=2)
    before = base.transform_filter("!datum.left").mark_text(style="start-text", y=top, align="right", dx=-2)
    parts += [text.encode(text="codes:N", **told) for text in (after, before)]
    return parts, height


def off_axis(shown: Sequence[Layer], metric: str, log: bool, colour: alt.Color) -> list[alt.Chart]:
    """A cross on the layer axis for each number without a place in the chart: NaN, infinite, or 0 on a log axis."""
    marks = [
        {"model": at.model, "layer": at.layer, "module": at.module, "value": _labels.number(at.values[metric])}
        for at in shown
        if not fits(at.values[metric], log)
    ]
    if not marks:
        return []
    base = alt.Chart(alt.Data(values=marks)).encode(x="layer:Q", color=colour)
    told = base.mark_point(shape="cross", angle=45, size=46, filled=True, clip=False)
    tooltip = _rows(model="model", layer="layer", module="module", value=_labels.label(metric).title.lower())
    return [
        told.encode(
            y=alt.value("height"), tooltip=tooltip, opacity=alt.condition(_FOCUSED, alt.value(1), alt.value(0.12))
        )
    ]


def _stack(marks: list[dict[str, Any]], last: int) -> int:
    """Give codes that would overlap different heights (``top``, pixels above the chart); return the highest."""
    ends: list[float] = []
    for mark in sorted(marks, key=lambda m: m["layer"]):
        wide = (0.02 + 0.021 * len(mark["codes"])) * last  # of a chart on a phone
        start = mark["layer"] if mark["left"] else mark["layer"] - wide
        row = next((i for i, end in enumerate(ends) if end <= start), len(ends))
        ends[row : row + 1] = [start + wide]
        mark["top"] = -8 - 13 * row
    return 13 * len(ends)


def _tooltip(shown: Sequence[Layer], metric: str, other: str) -> list[alt.Tooltip]:
    """Model, layer, module, kind and the number; source and companion where there are several."""
    rows = _rows(model="model", layer="layer", module="module", kind="kind")
    if {at.source for at in shown} != {"measured"}:
        rows += _rows(source="source")
    for column in filter(None, (metric, other)):
        if any(column in at.values for at in shown):
            rows.append(alt.Tooltip(f"{column}:Q", title=_labels.label(column).title.lower(), format=".4~g"))
    return rows


def _rows(**titles: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()]
