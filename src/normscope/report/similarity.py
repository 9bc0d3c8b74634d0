"""The sheet of a similarity of layers: a map of all pairs, and the layers in the plane."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from normscope.report.grammar import Axis, Spec, heat, lines, tip
from normscope.report.sheet import Section, Sheet

if TYPE_CHECKING:
    from normscope.probing.similarity import Similarity

TITLES = {"cka": "CKA of layers, unbiased", "rdm": "Correlation of the distances between samples"}


def of_similarity(found: Similarity, brief: bool = False) -> Sheet:
    """A map of all pairs; and, from three layers on, the path of the layers in the plane."""
    title = TITLES[found.kind]
    rows = [
        {"layer": i, "other": j, "module": a, "beside": b, "value": found.values[i][j]}
        for i, a in enumerate(found.names) for j, b in enumerate(found.names)
    ]  # fmt: skip
    ticks: Spec = {"labelOverlap": True, "labelAngle": 0}
    side = max(6, min(30, 420 // max(len(found.names), 1)))
    told = [tip("module"), tip("beside"), tip("value", title, ".3~f")]
    size = side * len(found.names)
    charts = [
        heat(
            title, rows, Axis("other", "layer", kind="ordinal", ticks=ticks),
            Axis("layer", "layer", kind="ordinal", sort="descending", ticks=ticks),
            Axis("value", title, scale={"domain": [0, 1], "clamp": True}), legend=True, told=told, size=(size, size),
            reading="1: the same geometry up to rotation and scale. 0: nothing in common, as of independent layers.",
            height=size, key="pairs",
        )
    ]  # fmt: skip
    path: list[dict[str, Any]] = [
        {"layer": i, "module": name, "x": x, "y": y}
        for i, (name, (x, y)) in enumerate(zip(found.names, found.places, strict=True)) if math.isfinite(x)
    ]  # fmt: skip
    if len(path) > 2:
        order: Spec = {"order": {"field": "layer", "type": "quantitative"}}
        line = {
            "mark": {"type": "trail", "opacity": 0.5},
            "encoding": {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y", "type": "quantitative"},
                         **order, "size": {"field": "layer", "type": "quantitative", "scale": {"range": [1, 5]},
                                           "legend": None}},
        }  # fmt: skip
        charts.append(
            lines(
                "Layers in the plane", path, Axis("x", "first axis", scale={"zero": False, "padding": 12}),
                Axis("y", "second axis", scale={"zero": False, "padding": 12}), joined="false", under=[line],
                told=[tip("layer"), tip("module")], key="plane", height=300,
                reading="Classical scaling of the distances sqrt(2 - 2 similarity); the path widens with depth.",
            )
        )  # fmt: skip
    return Sheet("Similarity of layers", [Section("", "" if brief else f"{found.samples} samples.", charts=charts)])
