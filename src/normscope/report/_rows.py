"""The words and cells of a report, model by model: what templates and terminal print."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from normscope.core import favourites
from normscope.report import _labels, _layers
from normscope.report._content import SEVERITIES, Content
from normscope.report._fold import Folded, fold
from normscope.report._layers import Layer

#: Facts, in order: key -> name. What is not here is not shown.
_FACTS = {
    "mode": "mode", "data": "data", "batch_size": "batch size", "shape": "last hidden batch", "loss": "loss",
    "curvature_loss": "loss of λ_max", "lambda_max": "λ_max (Fisher)", "max_stable_lr": "largest stable rate",
    "lambda_max_predicted": "λ_max, theory", "lambda_max_centred": "λ_max, outputs centred",
    "dtype": "dtype", "device": "device", "layers": "layers", "parameters": "parameters", "seconds": "seconds",
    "torch": "torch", "normscope": "normscope",
}  # fmt: skip


def models(
    content: Content, found: Sequence[Layer], *, most: int | None = None, brief: bool = False
) -> list[dict[str, Any]]:
    """Per model: label, verdict, tally of findings, the findings, and the table of its layers (folded to ``most``)."""
    return [
        {
            "label": name,
            "verdict": content.facts_of(name).get("verdict", ""),
            "headline": headline(content.facts_of(name)),
            "conditions": conditions(content.facts_of(name)),
            "tally": tally(content.findings_of(name)),
            "findings": [finding(f) for f in content.findings_of(name)],
            **table(_layers.measured(found, name), content.findings_of(name), most=most, brief=brief),
        }
        for name in content.models
    ]


def tally(findings: Sequence[Mapping[str, Any]]) -> str:
    """``2 errors, 1 warning``; empty without findings."""
    counts = {s: sum(f["severity"] == s for f in findings) for s in SEVERITIES}
    plural = {"info": "notes"}
    return ", ".join(
        f"{n} {plural.get(s, s + 's') if n > 1 else 'note' if s == 'info' else s}" for s, n in counts.items() if n
    )


def finding(row: Mapping[str, Any]) -> dict[str, Any]:
    """A finding in words: where it starts, and the number beside its threshold."""
    layer = "" if row["layer"] is None else f"layer {row['layer']}"
    step = "" if row.get("step") is None else f"from {row.get('unit', 'step')} {row['step']}"
    where = ", ".join(filter(None, (layer, row["name"], step)))
    against = ""
    if row["value"] is not None:
        metric = _labels.label(row["metric"] or "").title.lower()
        against = f"{metric} {_labels.number(row['value'])}"
        if row["threshold"] is not None:
            source = f" ({row['source']})" if row["source"] else ""
            against += f", threshold {_labels.number(row['threshold'])}{source}"
    return {**row, "where": where or "the whole model", "against": against}


def table(
    rows: Sequence[Layer], findings: Sequence[Mapping[str, Any]], *, most: int | None = None, brief: bool = False
) -> dict[str, Any]:
    """Heads and rows of the layer table: cells as text; columns without any number are left out."""
    wanted = favourites.BRIEF if brief else (*favourites.TABLE, *_labels.charted(but=favourites.TABLE))
    columns = [c for c in wanted if any(not math.isnan(at.values.get(c, math.nan)) for at in rows)]
    starts = _layers.codes_at(dict(f) for f in findings)
    shown = fold(rows, set(starts), [(c, _labels.label(c).log) for c in columns], most) if most else list(rows)
    body = [
        {"fold": str(at)}
        if isinstance(at, Folded)
        else {
            "fold": "",
            "layer": at.layer,
            "module": at.module,
            "kind": at.kind,
            "codes": " ".join(dict.fromkeys(f["code"] for f in starts.get(at.layer, []))) if not at.call else "",
            "cells": [_labels.number(at.values.get(c)) for c in columns],
        }
        for at in shown
    ]
    heads = [(_labels.label(c).short, _labels.label(c).title) for c in columns]
    return {"heads": heads, "rows": body, "depth": len(rows)}


def conditions(fact: Mapping[str, Any]) -> list[str]:
    """How a model was measured: ``train mode``, ``batch 128``, ``float32``, ``2.1 M parameters``, ``0.4 s`` ..."""
    parts = (
        ("mode", "{} mode", str),
        ("data", "{}", str),
        ("batch_size", "batch {}", str),
        ("loss", "loss {}", str),
        ("dtype", "{}", str),
        ("device", "{}", str),
        ("parameters", "{} parameters", _count),
        ("layers", "{} layers", str),
        ("seconds", "{} s", lambda s: _labels.number(s, 2)),
    )
    return [text.format(write(fact[key])) for key, text, write in parts if fact.get(key) not in (None, "")]


def headline(fact: Mapping[str, Any]) -> list[str]:
    """The numbers that one looks for first, where they were asked for: λ_max with its rate, the rates that train."""
    said = []
    if (top := fact.get("lambda_max")) is not None:
        rate = _labels.number(fact.get("max_stable_lr"))
        said.append(f"λ_max {_labels.number(top)}: gradient descent is linearly stable up to the rate {rate}.")
    for r in fact.get("rates") or ():
        trains = f"trains up to the rate {_labels.number(r.largest)}, best {_labels.number(r.best)}"
        said.append(f"{r.optimizer}: {'no rate trains' if math.isnan(r.largest) else trains}.")
    return said


def facts(content: Content) -> dict[str, Any]:
    """The facts as a table: the same for all models once, the others a column a model; and the notes."""
    names = content.models
    same: list[tuple[str, list[str]]] = []
    differing: list[tuple[str, list[str]]] = []
    for key, title in _FACTS.items():
        values = [_fact(key, content.facts_of(name).get(key)) for name in names]
        if any(values):
            (same if len(set(values)) == 1 else differing).append((title, values))
    notes = [(name, [str(n) for n in content.facts_of(name).get("notes") or ()]) for name in names]
    return {
        "same": [(title, values[0]) for title, values in same],
        "differing": differing,
        "notes": [(name, lines) for name, lines in notes if lines],
    }


def _fact(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key == "parameters":
        return f"{value:,}".replace(",", "\u202f")
    return _labels.number(value) if isinstance(value, float) else str(value)


def _count(n: int) -> str:
    """A count in three digits: ``2.1 M``."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if n >= size:
            return f"{n / size:.3g} {letter}"
    return str(n)
