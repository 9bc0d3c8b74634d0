"""The charts over depth: one a metric, all models overlaid, with what was found marked on the lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from normscope.report import _labels, _layers
from normscope.report._content import Content
from normscope.report._layers import Layer, codes_at, measured
from normscope.report.grammar import Axis, Chart, Colour, Dash, Spec, dimmed, fits, heat, layer, lines, measure, tip

#: Sources of numbers and their dash pattern.
SOURCES = {"measured": [1, 0], "predicted": [6, 4], "simulated": [2, 3]}
HEIGHT, SMALL = 232, 180
#: The parts of a model with a residual stream that its main line shows; all of them; and the others, kind by kind.
MAIN = ("", "stream")
ALL = ("", "stream", "attention", "mlp", "branch", "norm", "embedding", "between", "head")
KINDS = {
    "attention": "attention",
    "mlp": "mlp",
    "branch": "branches",
    "norm": "norms",
    "embedding": "outside the blocks",
}
_OUTSIDE = ("embedding", "between", "head")
_FOCUS = "(focus === null || datum['model'] === focus)"


@dataclass(frozen=True)
class Scene:
    """What the chart functions see: the content, and its table as layers."""

    content: Content
    layers: Sequence[Layer]

    @classmethod
    def of(cls, content: Content) -> Scene:
        """The scene of a report's content."""
        return cls(content, _layers.layers(content))

    @property
    def streams(self) -> bool:
        """Whether a model has a residual stream."""
        return any(at.part for at in self.layers)

    @property
    def depth(self) -> int:
        """Number of the deepest layer."""
        return max((at.layer for at in self.layers), default=0)


def over_depth(
    scene: Scene,
    metric: str,
    *,
    companion: str = "",
    findings: Sequence[str] = (),
    batch_line: bool = False,
    domain: tuple[float, float] | None = None,
    strict: bool = True,
    parts: Sequence[str] = MAIN,
) -> Chart | None:
    """One metric over the layers, all models overlaid; of a model with a residual stream only the stream.

    companion: a second column, dotted. findings: metrics, besides this one, whose findings are marked here.
    batch_line: a line at the batch size. strict: NaN is trouble and marked; otherwise it says "does not apply".
    parts: the layers that are drawn, by the part they play.
    """
    label, content = _labels.label(metric), scene.content
    every = [at for at in scene.layers if at.part in parts]
    has = [at for at in every if metric in at.values]
    shown = has if strict else [at for at in has if not math.isnan(at.values[metric])]
    others = [at for at in every if math.isfinite(at.values.get(companion, math.nan))]
    if not shown and not others:
        return None
    sizes = sorted({int(f["batch_size"]) for f in content.facts if f.get("batch_size")}) if batch_line else []
    numbers = [at.values[c] for at in scene.layers for c in (metric, companion) if c in at.values]
    scale: Spec = {"domain": list(domain)} if domain and not label.log else {}
    kind = parts[0] if parts not in (MAIN, ALL) else ""
    y = measure(metric, label.short if kind else label.heading, [*numbers, *sizes], log=label.log, **scale)
    whole = {"format": "d", "tickMinStep": 1, "labelOverlap": "greedy", "labelFlush": False}
    x = Axis("layer", "layer", scale={"domain": [0, max(scene.depth, 1)], "nice": False}, ticks=whole)
    colour = Colour("model", content.models)
    about = (metric, *findings)
    starting = {m: [f for f in content.findings_of(m) if f["metric"] in about] for m in content.models}
    marks, head = _starts(scene, every, starting, metric, label.log) if parts == MAIN else ([], 0)
    under = [_cursor(x), *_batch_lines(sizes)]
    if others:
        under.append(_companion(companion, label.log, x, colour, parts if scene.streams else ()))
    some = {at.source for at in has} != {"measured"}
    rows = [row(at, [c for c in (metric, companion) if strict or not math.isnan(at.values.get(c, 0))]) for at in every]
    also = [Axis(companion, _labels.label(companion).title)] if others else []
    only = parts if scene.streams else ()
    return lines(
        KINDS.get(kind, label.title), rows, x, y, colour=colour, dash=Dash("source", SOURCES) if some else None,
        told=_told(shown, metric, companion), joined=_drawn(metric, label.log, only), apart="slot" if kind else "",
        dotted=f"{_drawn(metric, label.log, only)} && isValid(datum.{metric})", data="layers", under=under, also=also,
        over=[*marks, *_off_axis(shown, metric, label.log, colour)], reading="" if kind else label.reading,
        unit="" if kind else label.unit, key=f"{metric}.{kind}" if kind else metric, head=head,
        height=SMALL if kind else HEIGHT,
    )  # fmt: skip


#: The charts of the library's metrics, in the order of the page (others that have a ``reading`` follow): metric,
#: further metrics whose findings it marks, options of `over_depth`.
CHARTS: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
    ("participation_rank", ("soft_rank", "entropy_rank"), {"batch_line": True}),
    ("mean_abs_cosine", ("mean_cosine", "max_abs_cosine", "mean_shift"), {"domain": (0, 1)}),
    (
        "orthogonality_gap",
        ("orthogonality_gap_floor", "isometry_gap", "sigma_min"),
        {"companion": "orthogonality_gap_floor"},
    ),
    ("gradient_norm", ("gradient_growth", "gradient_collinearity"), {}),
    ("weight_gradient_norm", (), {}),
    ("mean_norm", ("norm_spread",), {}),
    ("numerical_rank", ("numerical_rank_float32",), {"companion": "numerical_rank_float32", "batch_line": True}),
    ("odd_point_score", ("odd_point_index", "odd_point_coherence"), {"domain": (0, 1), "strict": False}),
    ("dead_units", ("saturated_units",), {"companion": "saturated_units", "domain": (0, 1), "strict": False}),
)
#: Columns that a chart draws beside its own.
COMPANIONS = tuple(options["companion"] for _, _, options in CHARTS if "companion" in options)


def charts(scene: Scene) -> list[Chart]:
    """Every chart there is data for."""
    more = [(name, (), {"strict": False}) for name in _labels.charted(but=[metric for metric, _, _ in CHARTS])]
    made = (over_depth(scene, metric, findings=marked, **options) for metric, marked, options in (*CHARTS, *more))
    return [chart for chart in made if chart is not None]


def by_kind(scene: Scene, metrics: Sequence[str]) -> dict[str, list[Chart]]:
    """Heading of a metric -> a small chart for each kind of layer around a residual stream."""
    options = {name: given for name, _, given in CHARTS}
    found: dict[str, list[Chart]] = {}
    for metric in metrics if scene.streams else ():
        domain = options.get(metric, {}).get("domain")
        groups = [_OUTSIDE if kind == "embedding" else (kind,) for kind in KINDS]
        made = (over_depth(scene, metric, domain=domain, strict=False, parts=parts) for parts in groups)
        if drawn := [chart for chart in made if chart is not None]:
            found[_labels.label(metric).heading] = drawn
    return found


def attention(scene: Scene) -> list[Chart]:
    """How widely attention looks and what its heads fill, layer by layer; and head by head."""
    pairs = (("attention_entropy", "attention_entropy_null"), ("head_rank", "head_rank_null"))
    made = [over_depth(scene, m, companion=null, strict=False, parts=ALL) for m, null in pairs]
    maps: list[Chart] = []
    for name in scene.content.models:
        told = scene.content.facts_of(name).get("attention") or ()
        rows = [
            {"layer": at["layer"], "module": at["name"], "head": h, "share": value / at["entropy_null"]}
            for at in told if at["entropy_null"] > 0 for h, value in enumerate(at["entropy"])
        ]  # fmt: skip
        if len(rows) > 1:
            heads, deep = len({r["head"] for r in rows}), len({r["layer"] for r in rows})
            upright: Spec = {"labelAngle": 0, "labelOverlap": True}
            maps.append(heat(
                "Entropy of each head" + (f": {name}" if len(scene.content.models) > 1 else ""), rows,
                Axis("head", "head", kind="ordinal", ticks=upright), Axis("layer", "layer", kind="ordinal",
                ticks=upright), Axis("share", "share of log keys", scale={"domain": [0, 1]}), legend=True,
                told=[tip("module"), tip("layer"), tip("head"), tip("share", "of uniform", ".3~f")],
                size=(max(14, min(30, 300 // heads)) * heads, max(14, min(30, 360 // deep)) * deep),
                reading="Entropy of the weights of each head over that of uniform attention. 1: it looks everywhere "
                "alike, 0: at one key.",
                height=max(14, min(30, 360 // deep)) * deep, key=f"heads{len(maps)}",
            ))  # fmt: skip
    return [*(c for c in made if c is not None), *maps]


def row(at: Layer, columns: Sequence[str], digits: int = 5) -> dict[str, Any]:
    """A row of the charts' data: an absent metric has no key; one that is not finite is null and breaks the line."""
    place: dict[str, Any] = {c: getattr(at, c) for c in ("model", "source", "layer", "module", "kind", "part")}
    place |= {"slot": at.slot} if at.part else {}
    known = {c: at.values[c] for c in columns if c in at.values}
    return place | {c: float(f"{v:.{digits}g}") if math.isfinite(v) else None for c, v in known.items()}


def _drawn(metric: str, log: bool, parts: Sequence[str] = ()) -> str:
    """Which rows have the metric; a null in it breaks the line. parts: of which layers; of all where none is named."""
    positive = f" && (datum.{metric} === null || datum.{metric} > 0)" if log else ""
    of = f" && indexof({json.dumps(list(parts))}, datum.part) >= 0" if parts else ""
    return f"isDefined(datum.{metric}){positive}{of}"


def _companion(metric: str, log: bool, x: Axis, colour: Colour, parts: Sequence[str] = ()) -> Spec:
    """A second metric of the same unit: thin and dotted."""
    place = {"x": x.channel(), "y": {"field": metric, "type": "quantitative"}, "color": colour.channel()}
    detail = {"detail": {"field": "source", "type": "nominal"}, "opacity": dimmed(_FOCUS, 0.9, 0.1)}
    mark = {"type": "line", "strokeWidth": 1.4, "strokeDash": [1, 4]}
    return layer(mark, place | detail, f"{_drawn(metric, log, parts)} && isValid(datum.{metric})")


def _cursor(x: Axis) -> Spec:
    """A rule at the layer under the pointer, in every chart of the page."""
    return layer({"type": "rule", "style": "cursor"}, {"x": x.channel()}, "datum.layer === at_layer")


def _batch_lines(sizes: Iterable[int]) -> list[Spec]:
    """A line at each batch size, with its name."""
    values = [{"batch": size, "text": f"batch size {size}"} for size in sizes]
    y = {"y": {"field": "batch", "type": "quantitative"}}
    text = {"type": "text", "align": "right", "baseline": "bottom", "dx": -2, "dy": -3, "aria": False}
    named = {**y, "text": {"field": "text", "type": "nominal"}, "x": {"value": "width"}}
    made = [layer({"type": "rule", "style": "reference"}, y, values=values), layer(text, named, values=values)]
    return made if values else []


def _starts(
    scene: Scene, drawn: Sequence[Layer], findings: dict[str, list[dict[str, Any]]], metric: str, log: bool
) -> tuple[list[Spec], int]:
    """Where findings start: a thin rule, a ring on the line, the code above the chart; and the height of the codes."""
    last = scene.depth
    marks: list[dict[str, Any]] = []
    for name, found in findings.items():
        on_line = {at.layer: at.values.get(metric) for at in reversed(measured(drawn, name))}
        for at, here in sorted(codes_at(found).items()):
            value = on_line.get(at)
            mark = {"model": name, "layer": at, "codes": " ".join(dict.fromkeys(f["code"] for f in here))}
            mark |= {"titles": "; ".join(dict.fromkeys(f["title"] for f in here)), "left": at <= 0.8 * last}
            marks.append({**mark, "value": value if fits(value, log) else None})
    if not marks:
        return [], 0
    height = _stack(marks, last)
    place = {"x": _LAYER, "color": Colour("model", scene.content.models).channel()}
    says = [tip("codes", "finding"), tip("titles", "says"), tip("model"), tip("layer", "from layer")]
    told = {"opacity": dimmed(_FOCUS), "tooltip": says}
    rule = layer({"type": "rule", "strokeWidth": 1, "strokeDash": [3, 3]}, place | {"opacity": dimmed(_FOCUS, 0.55,
        0.08)},
                 values=marks)  # fmt: skip
    ring = {"type": "point", "size": 90, "strokeWidth": 1.8, "filled": False}
    at_value = {"y": {"field": "value", "type": "quantitative"}}
    parts = [rule, layer(ring, {**place, **at_value, **told}, "isValid(datum.value)", marks)]
    text: Spec = {"type": "text", "style": "start-text", "y": {"expr": "datum.top"}}
    codes = {**place, "text": {"field": "codes", "type": "nominal"}, **told}
    parts.append(layer({**text, "align": "left", "dx": 2}, codes, "datum.left", marks))
    parts.append(layer({**text, "align": "right", "dx": -2}, codes, "!datum.left", marks))
    return parts, height


_LAYER = {"field": "layer", "type": "quantitative"}


def _off_axis(shown: Sequence[Layer], metric: str, log: bool, colour: Colour) -> list[Spec]:
    """A cross on the layer axis for each number without a place in the chart: NaN, infinite, or 0 on a log axis."""
    marks = [
        {"model": at.model, "layer": at.layer, "module": at.module, "value": _labels.number(at.values[metric])}
        for at in shown
        if not fits(at.values[metric], log)
    ]
    if not marks:
        return []
    told = [tip("model"), tip("layer"), tip("module"), tip("value", _labels.label(metric).title.lower())]
    return [crosses(marks, _LAYER, colour, told, _FOCUS)]


def crosses(marks: Sequence[dict[str, Any]], x: Spec, colour: Colour, told: Sequence[Spec], focus: str) -> Spec:
    """Crosses on the lower edge, for what has no place above it."""
    cross = {"type": "point", "shape": "cross", "angle": 45, "size": 46, "filled": True, "clip": False}
    place = {"x": x, "y": {"value": "height"}, "color": colour.channel()}
    return layer(cross, {**place, "tooltip": list(told), "opacity": dimmed(focus)}, values=marks)


def _stack(marks: list[dict[str, Any]], last: int) -> int:
    """Give codes that would overlap different heights (``top``, pixels above the chart); return the highest."""
    ends: list[float] = []
    for mark in sorted(marks, key=lambda m: m["layer"]):
        wide = (0.02 + 0.021 * len(mark["codes"])) * last  # of a chart on a phone
        start = mark["layer"] if mark["left"] else mark["layer"] - wide
        at = next((i for i, end in enumerate(ends) if end <= start), len(ends))
        ends[at : at + 1] = [start + wide]
        mark["top"] = -8 - 13 * at
    return 13 * len(ends)


def _told(shown: Sequence[Layer], metric: str, other: str) -> list[Spec]:
    """Model, layer, module, kind and the number; source and companion where there are several."""
    told = [tip("model"), tip("layer"), tip("module"), tip("kind")]
    told += [tip("source")] if {at.source for at in shown} != {"measured"} else []
    known = [c for c in (metric, other) if c and any(c in at.values for at in shown)]
    return told + [tip(c, _labels.label(c).title.lower(), ".4~g") for c in known]
