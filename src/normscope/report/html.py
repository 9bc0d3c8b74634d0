"""The HTML faces of a diagnosis: one self-contained page, and a small fragment for a notebook cell."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from normscope.core.extra import needs_extra

with needs_extra():
    import altair  # noqa: F401  (the charts)

from normscope.core.files import write
from normscope.report import _charts, _layers, _picture, _rows, _theme
from normscope.report._content import Content
from normscope.report._frame import bundle, environment, policy, template

#: Height of a chart on the page without the room for the codes above it, pixels.
HEIGHT = 232
#: Width of a chart on paper, where two stand side by side, pixels.
PRINT_WIDTH = 430
#: Charts of a notebook cell.
FRAGMENT = ("participation_rank", "mean_abs_cosine", "gradient_norm")


def render(content: Content) -> str:
    """The report as one HTML page that needs no network: styles, data and the chart library are in it."""
    scene = _charts.Scene.of(content)
    drawn = _charts.charts(scene)
    scripts = [Markup(bundle()), Markup(template("page.js"))]
    return environment().get_template("page.html").render(
        title=content.title,
        version=next((fact["normscope"] for fact in content.facts if fact.get("normscope")), ""),
        policy=policy(scripts),
        css=Markup(template("page.css")),
        scripts=scripts,
        palette=[(_theme.colour(i), _theme.colour(i, "dark")) for i in range(len(content.models))],
        models=_rows.models(content, scene.layers),
        charts=drawn,
        sources=sorted({at.source for at in scene.layers} - {"measured"}),
        facts=_rows.facts(content),
        data=_data(scene, drawn),
    )  # fmt: skip


def save(content: Content, path: str | os.PathLike[str]) -> Path:
    """Write `render`'s page; the path of the file."""
    return write(render(content), path)


def fragment(content: Content, *, max_layers: int = 12) -> str:
    """The report in small, for a notebook cell: verdicts, findings, static charts and a folded table; no scripts."""
    scene = _charts.Scene.of(content)
    pictures = [c for c in _charts.charts(scene) if c.key in FRAGMENT]
    svgs = [(c.label, _picture.svg(scene, c)) for c in pictures]
    return environment().get_template("fragment.html").render(
        title=content.title,
        css=Markup(template("fragment.css")),
        palette=[(_theme.colour(i), _theme.colour(i, "dark")) for i in range(len(content.models))],
        models=_rows.models(content, scene.layers, most=max_layers, brief=True),
        pictures=[(label, base64.b64encode(svg.encode()).decode()) for label, svg in svgs],
    )  # fmt: skip


def to_png(
    content: Content,
    path: str | os.PathLike[str],
    *,
    charts: Sequence[str] = _picture.PANEL,
    columns: int = 2,
    width: int = 420,
    height: int = 210,
    scale: float = 2.0,
    scheme: str = "light",
) -> Path:
    """The main charts as one picture, drawn without a browser.

    charts: metrics, in order; those without data are left out. width, height: of one chart, pixels before ``scale``.
    scheme: ``light`` or ``dark``.
    """
    scene = _charts.Scene.of(content)
    return write(_picture.png(scene, charts, columns, width, height, scale, scheme), path)


def _data(scene: _charts.Scene, drawn: Sequence[_charts.Chart]) -> dict[str, Any]:
    """What the page's script reads: the layers by column, a spec a chart, both themes."""
    columns = [c for c in _layers.columns(scene.layers) if any(c in chart.columns for chart in drawn)]
    rows = [_charts.row(at, columns) for at in scene.layers]
    place = ("model", "source", "layer", "module", "kind")
    return {
        "places": {name: [row[name] for row in rows] for name in place},
        # null: the layer has no such number; "x": it has one that is not finite
        "values": {c: ["x" if row.get(c, 0) is None else row.get(c) for row in rows] for c in columns},
        "models": scene.content.models,
        "charts": {c.key: _sized(c) for c in drawn},
        "titles": {c.key: f"{c.label.title} ({c.label.unit})" if c.label.unit else c.label.title for c in drawn},
        "printWidth": PRINT_WIDTH,
        "config": {scheme: _theme.config(scheme) for scheme in ("light", "dark")},
    }


def _sized(chart: _charts.Chart) -> dict[str, Any]:
    """A chart's spec as wide as its box."""
    spec = chart.spec.properties(width="container", height=HEIGHT + chart.head).to_dict(validate=False)
    spec["autosize"] = {"type": "fit", "contains": "padding"}
    spec["padding"] = {"left": 2, "right": 10, "bottom": 2, "top": max(chart.head, 13) + 6}
    return {k: v for k, v in spec.items() if k not in ("$schema", "config")}


__all__ = ["fragment", "render", "save", "to_png"]
