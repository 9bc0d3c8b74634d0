"""Charts as pictures, drawn through vl-convert: no browser, no script."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import altair as alt
import vl_convert

from normscope.core.errors import unknown
from normscope.report import _charts, _marks, _theme

#: Metrics of the main picture.
PANEL = ("participation_rank", "mean_abs_cosine", "gradient_norm", "mean_norm")
_FONT = "sans-serif"


def svg(scene: _charts.Scene, chart: _charts.Chart, width: int = 300, height: int = 170) -> str:
    """One chart as SVG without a background, readable on light and on dark."""
    spec = chart.spec.properties(width=width, height=height + chart.head).to_dict(validate=False)
    spec["autosize"] = {"type": "fit", "contains": "padding"}
    spec["padding"] = {"left": 2, "right": 8, "bottom": 2, "top": chart.head + 6}
    return str(vl_convert.vegalite_to_svg(json.dumps(_dressed(spec, scene, [chart], "neutral"))))


def png(
    scene: _charts.Scene, keys: Sequence[str], columns: int, width: int, height: int, scale: float, scheme: str
) -> bytes:
    """Charts side by side, with one legend."""
    if scheme not in ("light", "dark"):
        raise unknown("colour scheme", scheme, ("light", "dark"))
    by_key = {chart.key: chart for chart in _charts.charts(scene)}
    chosen = [by_key[key] for key in keys if key in by_key]
    if not chosen:
        raise unknown("chart with data", ", ".join(keys), by_key)
    panels = [_titled(chart, width, height, max(c.head for c in chosen)) for chart in chosen]
    with warnings.catch_warnings():  # altair says that the panels share their parameters, as they should
        warnings.simplefilter("ignore", UserWarning)
        panel = alt.concat(*panels, columns=columns, spacing={"row": 26, "column": 34}).resolve_scale(color="shared")
    spec = _dressed(panel.to_dict(validate=False), scene, chosen, scheme)
    _show_legend(spec)
    spec["padding"] = 18
    spec["config"] |= {"background": "#ffffff" if scheme == "light" else "#15171a"}
    return bytes(vl_convert.vegalite_to_png(json.dumps(spec), scale=scale))


def _titled(chart: _charts.Chart, width: int, height: int, head: int) -> alt.LayerChart:
    unit = f" ({chart.label.unit})" if chart.label.unit else ""
    title = alt.TitleParams(text=chart.label.title + unit, offset=10 + head, frame="group")
    return chart.spec.properties(width=width, height=height, title=title)


def _show_legend(spec: Any) -> None:
    """Give every colour the same legend, in place; the page has its own, so the charts come without one."""
    if isinstance(spec, dict):
        if spec.get("field") == "model" and spec.get("legend", 0) is None:
            spec["legend"] = {"title": None, "orient": "top", "symbolType": "stroke", "columns": 4, "offset": 18}
        for part in spec.values():
            _show_legend(part)
    elif isinstance(spec, list):
        for part in spec:
            _show_legend(part)


def _dressed(spec: dict[str, Any], scene: _charts.Scene, drawn: Sequence[_charts.Chart], scheme: str) -> dict[str, Any]:
    """The spec with its data and its theme."""
    columns = [column for chart in drawn for column in chart.columns if column]
    rows = [_charts.row(at, columns) for at in scene.layers]
    config = {**_theme.config(scheme, _FONT), "aria": False}
    spec["params"] = [p for p in spec.get("params", []) if "select" not in p]  # nobody hovers a picture
    return {**spec, "datasets": {**spec.get("datasets", {}), _marks.DATA: rows}, "config": config}
