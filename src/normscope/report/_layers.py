"""The tidy table turned around: one row a layer, one column a metric."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from normscope.report._content import Content


@dataclass(frozen=True)
class Layer:
    """One call of one module of one model: its place and its numbers (averaged over seeds)."""

    model: str
    source: str
    layer: int
    call: int
    name: str
    kind: str
    #: What it is around a residual stream (`normscope.call.streams.PARTS`); "": there is none.
    part: str = ""
    values: dict[str, float] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """The module's path, its class where there is none, with ``#2`` for a second call."""
        name = self.name or self.kind or ("input" if self.layer == 0 else "")
        return f"{name}#{self.call + 1}" if self.call else name

    @property
    def slot(self) -> str:
        """The module's path without the numbers in it: the same place in each block."""
        return re.sub(r"(?<![^.])\d+(?![^.])", "*", self.name)

    @property
    def spoken(self) -> str:
        """`module`, with its class where the path ends in a number, which says nothing: ``8 · Linear``."""
        last = self.name.rpartition(".")[2]
        return f"{self.module} · {self.kind}" if last.isdecimal() and self.kind else self.module


def column(signal: str, metric: str) -> str:
    """Column of a metric: its name, with ``weight_`` before what was measured on the parameters."""
    return f"weight_{metric}" if signal == "weight" and not metric.startswith("weight_") else metric


def layers(content: Content) -> list[Layer]:
    """All layers of a report, by model (in the report's order), source, layer and call."""
    sums: dict[tuple[str, str, int, int], dict[str, list[float]]] = {}
    names: dict[tuple[str, str, int, int], tuple[str, str]] = {}
    for row in content.table.iter_rows(named=True):
        key = (row["model"], row["source"], int(row["layer"]), int(row["call"] or 0))
        name, kind = names.get(key, ("", ""))
        names[key] = (name or row["name"] or "", kind or row["kind"] or "")
        value = math.nan if row["value"] is None else float(row["value"])
        sums.setdefault(key, {}).setdefault(column(row["signal"], row["metric"]), []).append(value)
    order = {model: i for i, model in enumerate(content.models)}
    parts = {model: content.facts_of(model).get("parts") or {} for model in content.models}
    return [
        Layer(*key, *names[key], parts[key[0]].get(key[2], ""), {m: sum(v) / len(v) for m, v in sums[key].items()})
        for key in sorted(sums, key=lambda k: (order[k[0]], k[1], k[2], k[3]))
    ]


def measured(found: Iterable[Layer], model: str) -> list[Layer]:
    """The layers of one model as measured; as simulated or predicted if that is all there is."""
    mine = [layer for layer in found if layer.model == model]
    for source in ("measured", "simulated", "predicted"):
        chosen = [layer for layer in mine if layer.source == source]
        if chosen:
            return chosen
    return mine


def columns(found: Iterable[Layer]) -> list[str]:
    """Every column that some layer has."""
    return list(dict.fromkeys(metric for layer in found for metric in layer.values))


def codes_at(findings: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """layer -> the findings that start there."""
    starts: dict[int, list[dict[str, Any]]] = {}
    for finding in findings:
        if finding["layer"] is not None:
            starts.setdefault(int(finding["layer"]), []).append(finding)
    return starts
