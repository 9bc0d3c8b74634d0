"""Colours and type of the charts, in light and in dark."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from normscope.core.spec import NORMS

#: One colour a model, distinguishable with every kind of colour vision (after Okabe and Ito); light, dark.
LIGHT = ("#0a62ad", "#d2570b", "#0f8a68", "#ad3f8d", "#8a7200", "#3fa0d8", "#6b6f76", "#7b3fb5")
DARK = ("#62aef5", "#ff9a4d", "#3ecba0", "#f08fce", "#e3c84a", "#9bdcff", "#b9bdc4", "#c7a3f5")


_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_INK = {
    #         strong     muted      axis       grid
    "light": ("#1b1c1f", "#5f636a", "#c9cacc", "#ececea"),
    "dark": ("#ececea", "#a3a7ae", "#4a4e55", "#2a2d32"),
    "neutral": ("#7d8188", "#7d8188", "#a9adb3", "#8881"),
}


def order(names: Iterable[Any]) -> list[Any]:
    """The names in the order of their colours: others as they come, norms in one order for every chart of every page,
    whichever of them it shows.
    """
    found = list(dict.fromkeys(names))
    if not found or not set(found) <= set(NORMS):
        return found
    return sorted(NORMS, key=lambda name: (NORMS[name].colour is None, NORMS[name].colour))


def colour(index: int, scheme: str = "light") -> str:
    """The colour of the model at ``index``; repeats after eight."""
    palette = DARK if scheme == "dark" else LIGHT
    return palette[index % len(palette)]


def config(scheme: str = "light", font: str = _FONT) -> dict[str, Any]:
    """Vega-Lite configuration: ``light``, ``dark``, or ``neutral`` (no background, readable on both)."""
    strong, muted, axis, grid = _INK[scheme]
    return {
        "background": None,
        "font": font,
        "view": {"stroke": None},
        "padding": 2,
        "axis": {
            "labelColor": muted, "titleColor": muted, "tickColor": axis, "domainColor": axis, "gridColor": grid,
            "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal", "labelPadding": 5, "titlePadding": 7,
            "tickSize": 4,
        },
        "axisX": {"grid": False},
        "axisY": {"domain": False, "ticks": False, "titleAnchor": "end"},
        "title": {"color": strong, "subtitleColor": muted, "fontSize": 13, "fontWeight": 600, "anchor": "start",
                  "offset": 12},
        "legend": {"labelColor": strong, "titleColor": muted, "labelFontSize": 12, "symbolStrokeWidth": 3,
                   "labelLimit": 420},
        "range": {"category": list(DARK if scheme == "dark" else LIGHT)},
        "mark": {"color": colour(0, scheme)},
        "line": {"strokeWidth": 1.8, "strokeJoin": "round", "strokeCap": "round"},
        "rule": {"color": muted},
        "text": {"fontSize": 10.5, "color": muted},
        "style": {
            "reference": {"strokeWidth": 1, "strokeDash": [2, 3], "opacity": 0.75},
            "cursor": {"strokeWidth": 1, "opacity": 0.4},
            "start-text": {"fontWeight": 600},
        },
    }  # fmt: skip
