"""The charts of a report: a list of functions, each from the scene to a chart, or to ``None`` where it has no data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import altair as alt

from normscope.report import _labels, _layers, _marks
from normscope.report._content import Content
from normscope.report._layers import Layer


@dataclass(frozen=True)
class Scene:
    """What the chart functions see: the content, and its table as layers."""

    content: Content
    layers: Sequence[Layer]

    @classmethod
    def of(cls, content: Content) -> Scene:
        """The scene of a report's content."""
        return cls(content, _layers.layers(content))


@dataclass(frozen=True)
class Chart:
    """A drawn metric.

    spec: reads the data `_marks.DATA`; it has no size, no theme and no legend. columns: what it draws.
    head: room it needs above for the codes of findings, pixels.
    """

    key: str
    label: _labels.Label
    spec: Any
    columns: tuple[str, ...] = ()
    head: int = 0


def over_depth(
    scene: Scene,
    metric: str,
    *,
    companion: str = "",
    findings: Sequence[str] = (),
    batch_line: bool = False,
    domain: tuple[float, float] | None = None,
    strict: bool = True,
) -> Chart | None:
    """One metric over the layers, all models overlaid.

    companion: a second column, dotted. findings: metrics, besides this one, whose findings are marked here.
    batch_line: a line at the batch size. strict: NaN is trouble and marked; otherwise it says "does not apply".
    """
    label = _labels.label(metric)
    has = [at for at in scene.layers if metric in at.values]
    shown = has if strict else [at for at in has if not math.isnan(at.values[metric])]
    others = [at for at in scene.layers if math.isfinite(at.values.get(companion, math.nan))]
    if not shown and not others:
        return None
    sizes = {int(f["batch_size"]) for f in scene.content.facts if f.get("batch_size")} if batch_line else set()
    numbers = [at.values[c] for at in scene.layers for c in (metric, companion) if c in at.values]
    x, y = _marks.depth(scene.layers), _marks.value(metric, label, [*numbers, *sizes], domain)
    colour = _marks.model(scene.content.models)
    sources = [s for s in ("measured", "predicted", "simulated") if any(at.source == s for at in has)]
    about = (metric, *findings)
    starting = {m: [f for f in scene.content.findings_of(m) if f["metric"] in about] for m in scene.content.models}
    starting_marks, head = _marks.starts(scene.layers, starting, metric, label.log, colour)
    parts = [_marks.cursor(), *_marks.batch_lines(sorted(sizes))]
    if others:
        parts.append(_marks.companion(companion, label.log, x, colour))
    parts.append(_marks.lines(metric, label.log, x, y, colour, sources))
    parts.append(_marks.dots(shown, metric, companion, label.log, x, y, colour))
    parts += [*starting_marks, *_marks.off_axis(shown, metric, label.log, colour)]
    parameters = [alt.param(name="at", value=None), alt.param(name="focus", value=None)]
    return Chart(metric, label, alt.layer(*parts).add_params(*parameters), (metric, companion), head)


#: The charts of the library's metrics, in the order of the page; other metrics that have a ``reading`` follow.
CHARTS: tuple[partial[Chart | None], ...] = (
    partial(over_depth, metric="participation_rank", batch_line=True, findings=("soft_rank", "entropy_rank")),
    partial(
        over_depth,
        metric="mean_abs_cosine",
        findings=("mean_cosine", "max_abs_cosine", "mean_shift"),
        domain=(0, 1),
    ),
    partial(
        over_depth,
        metric="orthogonality_gap",
        companion="orthogonality_gap_floor",
        findings=("orthogonality_gap_floor", "isometry_gap", "sigma_min"),
    ),
    partial(over_depth, metric="gradient_norm", findings=("gradient_growth", "gradient_collinearity")),
    partial(over_depth, metric="weight_gradient_norm"),
    partial(over_depth, metric="mean_norm", findings=("norm_spread",)),
    partial(
        over_depth,
        metric="numerical_rank",
        companion="numerical_rank_float32",
        batch_line=True,
        findings=("numerical_rank_float32",),
    ),
    partial(
        over_depth,
        metric="odd_point_score",
        findings=("odd_point_index", "odd_point_coherence"),
        domain=(0, 1),
        strict=False,
    ),
    partial(
        over_depth,
        metric="dead_units",
        companion="saturated_units",
        findings=("saturated_units",),
        domain=(0, 1),
        strict=False,
    ),
)


def charts(scene: Scene) -> list[Chart]:
    """Every chart there is data for."""
    others = _labels.charted(but=[make.keywords["metric"] for make in CHARTS])
    more = [partial(over_depth, metric=name, strict=False) for name in others]
    return [chart for make in (*CHARTS, *more) if (chart := make(scene)) is not None]


def row(at: Layer, columns: Sequence[str], digits: int = 5) -> dict[str, Any]:
    """A row of the charts' data: an absent metric has no key; one that is not finite is null and breaks the line."""
    place = {"model": at.model, "source": at.source, "layer": at.layer, "module": at.module, "kind": at.kind}
    known = {c: at.values[c] for c in columns if c in at.values}
    return place | {c: float(f"{v:.{digits}g}") if math.isfinite(v) else None for c, v in known.items()}
