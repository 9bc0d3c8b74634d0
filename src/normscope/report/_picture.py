"""Charts as pictures, drawn through vl-convert (no browser, no script), and as Altair charts."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import Any

from normscope.core import memory
from normscope.core.errors import UsageError, unknown
from normscope.core.extra import needs_extra
from normscope.report import _theme
from normscope.report.grammar import Chart
from normscope.report.sheet import Sheet

_FONT = "sans-serif"
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
#: What nobody sees of a still picture, half of its bytes: digits beyond a hundredth of a pixel, the roles of its marks.
_UNSEEN = re.compile(
    r"""(?<=\d\.\d\d)\d{3,}(?=[A-Za-z, )"])| (?:aria-hidden|aria-roledescription|role|pointer-events)="[\w -]*\""""
)
#: Size of a chart in a picture, pixels before ``scale``.
WIDTH, HEIGHT = 420, 210


def _converter() -> Any:
    """vl_convert; its engine reserves some 70 GB of addresses, and ends the process that may not have them."""
    with needs_extra():
        import vl_convert
    if (limit := memory.addresses()) < 10**11:
        raise UsageError(
            "Drawing a picture needs 100 GB of addresses (not of memory); this process may have "
            f"{memory.shown(limit)}. Raise ulimit -v, or write .html, which the browser draws."
        )
    return vl_convert


def picture(sheet: Sheet, kind: str, *, scale: float = 2.0, **how: Any) -> str | bytes:
    """The main charts side by side, with one legend: ``png``, ``svg`` or ``pdf``."""
    vl_convert = _converter()
    spec = json.dumps(standing(sheet, **how))
    if kind == "svg":
        return _UNSEEN.sub("", str(vl_convert.vegalite_to_svg(spec)))
    drawn = vl_convert.vegalite_to_pdf(spec) if kind == "pdf" else vl_convert.vegalite_to_png(spec, scale=scale)
    return bytes(drawn)


def still(sheet: Sheet, chart: Chart) -> str:
    """One chart as SVG without a background, readable on light and on dark, in base64."""
    vl_convert = _converter()
    spec = _view(chart, 300, 200) | {"config": {**_theme.config("neutral", _FONT), "aria": False}}
    spec |= _params([chart]) | {"datasets": {"layers": list(sheet.rows)}}
    if "facet" not in spec:
        spec["autosize"] = {"type": "fit", "contains": "padding"}
    spec["padding"] = {"left": 2, "right": 8, "bottom": 2, "top": chart.head + 6}
    svg = vl_convert.vegalite_to_svg(json.dumps({"$schema": _SCHEMA, **spec}))
    return base64.b64encode(str(svg).encode()).decode()


def altair_chart(sheet: Sheet) -> Any:
    """The main charts as one Altair chart, to be changed, saved or shown."""
    with needs_extra():
        import altair as alt

    spec = standing(sheet)
    spec.pop("padding")
    kind = alt.VConcatChart if "vconcat" in spec else alt.ConcatChart
    return kind.from_dict(spec, validate=False)


def standing(
    sheet: Sheet,
    *,
    keys: Sequence[str] | None = None,
    columns: int = 2,
    width: int = WIDTH,
    height: int = HEIGHT,
    scheme: str = "light",
) -> dict[str, Any]:
    """Charts with their titles, data, theme and legend, in one specification that needs nothing else."""
    if scheme not in ("light", "dark"):
        raise unknown("colour scheme", scheme, ("light", "dark"))
    by_key = sheet.charts
    chosen = [by_key[k] for k in keys if k in by_key] if keys is not None else list(sheet.pictured.values())
    if not chosen and keys:
        raise unknown("chart with data", ", ".join(keys), by_key)
    if not chosen:
        raise UsageError(f"A picture needs numbers to draw; {sheet.title!r} has none. Its page shows the rest.")
    head = max(c.head for c in chosen)
    views = [_titled(c, width, height, head) for c in chosen]
    shared = all("params" in c.plain for c in chosen)
    _show_legend(views, sheet.names)
    whole: dict[str, Any] = {"concat": views, "columns": columns, "spacing": {"row": 26, "column": 34}}
    if any("facet" in v for v in views):
        whole = {"vconcat": views, "spacing": 34}
    config = {
        **_theme.config(scheme, _FONT),
        "aria": False,
        "background": "#ffffff" if scheme == "light" else "#15171a",
    }
    return {
        "$schema": _SCHEMA, "title": {"text": sheet.title, "offset": 20}, "description": sheet.title, **whole,
        **_params(chosen), "datasets": {"layers": list(sheet.rows)}, "padding": 18, "config": config,
        "resolve": {"scale": {"color": "shared" if shared else "independent", "stroke": "independent"}},
    }  # fmt: skip


def _titled(chart: Chart, width: int, height: int, head: int) -> dict[str, Any]:
    title: dict[str, Any] = {"text": chart.heading, "anchor": "start", "offset": 10 + head, "frame": "group"}
    title |= {"subtitle": chart.reading} if "facet" in chart.plain and chart.reading else {}
    return _view(chart, width, height) | {"title": title}


def _view(chart: Chart, width: int, height: int) -> dict[str, Any]:
    """A chart that nobody hovers, of this size unless it has its own."""
    spec = {k: v for k, v in chart.plain.items() if k != "params"}
    if "layer" in spec:
        spec["layer"] = [{k: v for k, v in part.items() if k != "params"} for part in spec["layer"]]
    if "facet" in spec or "width" in spec:
        return spec
    return spec | {"width": width, "height": height + chart.head}


def _params(charts: Sequence[Chart]) -> dict[str, Any]:
    """The variables of the charts, each once, at rest."""
    names = dict.fromkeys(p["name"] for c in charts for p in c.plain.get("params", ()) if "select" not in p)
    return {"params": [{"name": name, "value": None} for name in names]} if names else {}


def _show_legend(spec: Any, names: Sequence[str]) -> None:
    """Give every colour of the page's names a legend, in place; the page has its own, so the charts come without
    one.
    """
    parts = spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ()
    for part in parts:
        _show_legend(part, names)
    if isinstance(spec, dict) and "legend" in spec and spec["legend"] is None and "domain" in spec.get("scale", ()):
        shown = [n for n in spec["scale"]["domain"] if n in names]
        look = {"title": None, "orient": "top", "symbolType": "stroke", "symbolOpacity": 1, "columns": 4, "offset": 18}
        spec["legend"] = {**look, "values": shown} if shown else None
