"""The HTML faces of a race: one self-contained page, and a table with its curves for a notebook cell."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

from normscope.core.extra import needs_extra

with needs_extra():
    import altair  # noqa: F401  (the charts)
    import jinja2  # noqa: F401
    import vl_convert

from markupsafe import Markup

from normscope.core.files import write
from normscope.report import _race_charts, _theme
from normscope.report._frame import bundle, environment, policy, template
from normscope.report._race_content import RaceContent, cells, explained

#: Heights of a chart and of a map, pixels.
HEIGHT, MAP_HEIGHT = 280, 190
_VERDICTS = {"better": "fine", "worse": "error", "diverged": "error", "baseline": "quiet"}


def render(content: RaceContent) -> str:
    """The race as one HTML page that needs no network: styles, data and the chart library are in it."""
    lines, maps = _race_charts.lines(content), _race_charts.maps(content)
    scripts = [Markup(bundle()), Markup(template("race.js"))]
    return environment().get_template("race.html").render(
        title=content.title,
        policy=policy(scripts),
        css=Markup(template("page.css") + template("race.css")),
        palette=_palette(content),
        variants=content.variants,
        heads=_heads(content),
        rows=_rows(content),
        explained=explained(content),
        conditions=_conditions(content),
        lines=lines,
        maps=maps,
        ramp=_race_charts.RAMP,
        settings=_settings(content),
        rates=_rates(content),
        notes=list(content.facts.get("notes", ())),
        data=_data(content, lines, maps),
        scripts=scripts,
    )  # fmt: skip


def save(content: RaceContent, path: str | os.PathLike[str]) -> Path:
    """Write `render`'s page; the path of the file."""
    return write(render(content), path)


def fragment(content: RaceContent) -> str:
    """The final table and the training loss, for a notebook cell; no scripts."""
    pictures = []
    for chart in _race_charts.lines(content)[:2]:
        spec = {**chart.spec, "width": 340, "height": 190, "config": {**_theme.config("neutral", "sans-serif")}}
        spec["config"]["range"] = {"category": [_theme.colour(i) for i in range(len(content.variants))]}
        svg = str(vl_convert.vegalite_to_svg(json.dumps(_still(spec))))
        pictures.append((chart, base64.b64encode(svg.encode()).decode()))
    return environment().get_template("race_fragment.html").render(
        title=content.title,
        css=Markup(template("fragment.css")),
        palette=_palette(content),
        heads=_heads(content),
        rows=_rows(content),
        explained=explained(content),
        pictures=pictures,
        notes=list(content.facts.get("notes", ())),
    )  # fmt: skip


def _still(spec: Any) -> Any:
    """A spec that nobody hovers: no selections, and what depends on them at rest."""
    if isinstance(spec, list):
        return [_still(x) for x in spec]
    if not isinstance(spec, dict):
        return spec
    kept = {k: _still(v) for k, v in spec.items()}
    if "params" in kept:
        kept["params"] = [p for p in kept["params"] if "select" not in p]
    if "layer" in kept:
        kept["layer"] = [part for part in kept["layer"] if part.get("mark", {}).get("type") != "circle"]
    return kept


def _palette(content: RaceContent) -> list[tuple[str, str]]:
    return [(_theme.colour(i), _theme.colour(i, "dark")) for i in range(len(content.variants))]


def _heads(content: RaceContent) -> list[tuple[str, str]]:
    """(key of `cells`, head) of the final table's numbers."""
    heads = [("lr", "lr"), ("train_loss", "train loss")]
    heads += [("test_accuracy", "test accuracy, %")] if content.tested else []
    heads += [("steps", f"steps to {content.target}")] if content.target else []
    heads += [("diverged", "diverged")]
    rows = [cells(line) for line in content.lines]
    heads += [(key, head) for key, head in (("p_loss", "p (loss)"), ("p_accuracy", "p (accuracy)"))
              if any(row[key] for row in rows)]  # fmt: skip
    return [*heads, ("milliseconds", "ms a step")]


def _rows(content: RaceContent) -> list[dict[str, Any]]:
    return [
        {**cells(line), "index": i, "tone": _VERDICTS.get(line["verdict"], "soft")}
        for i, line in enumerate(content.lines)
    ]


def _conditions(content: RaceContent) -> list[str]:
    facts = content.facts
    seeds, momentum = len(facts["seeds"]), facts["momentum"]
    optimiser = facts["optimiser"] + (f", momentum {momentum:g}" if momentum else "")
    return [
        f"{facts['epochs']} epochs of {facts['steps_per_epoch']} steps",
        f"batch {facts['batch']}",
        optimiser,
        f"{seeds} seed{'s' * (seeds != 1)}",
        "the same batches in the same order for all",
    ]


def _settings(content: RaceContent) -> list[tuple[str, str]]:
    facts = content.facts
    titles = {
        "optimiser": "optimiser", "momentum": "momentum", "nesterov": "Nesterov", "weight_decay": "weight decay",
        "warmup": "warm-up steps", "batch": "batch", "epochs": "epochs", "steps": "steps", "loss": "loss", "data": "data",
        "test": "test data", "probe_samples": "probed samples", "device": "device", "dtype": "type", "torch": "torch",
    }  # fmt: skip
    shown = [(title, facts[key]) for key, title in titles.items() if facts.get(key) not in (None, "", False, 0)]
    seeds = ", ".join(map(str, facts["seeds"]))
    return [*((title, str(value)) for title, value in shown), ("seeds", seeds), *_cost(content)]


def _cost(content: RaceContent) -> list[tuple[str, str]]:
    """Seconds of all runs together."""
    import polars as pl

    found = []
    for what in ("training", "evaluation", "geometry"):
        total = content.table.filter(pl.col("metric") == f"seconds_{what}")["value"].sum()
        found.append((f"time in {what}", f"{total:.1f} s"))
    return found


def _rates(content: RaceContent) -> list[str]:
    """How the rates that were not given came about."""
    said = []
    for name, rate in content.facts["rates"].items():
        if rate["how"] == "given":
            continue
        text = f"{name}: {rate['lr']:.3g}, {rate['how']}"
        if rate["tried"]:
            tried = ", ".join(f"{lr:g} {'diverged' if x is None else f'{x:.4g}'}" for lr, x in rate["tried"])
            text += f"; loss at the end of a pilot: {tried}"
        if rate["lambda_max"] is not None:
            text += f"; λ_max {rate['lambda_max']:.4g}"
        said.append(f"{text} ({rate['seconds']:.1f} s)")
    return said


def _data(content: RaceContent, lines: list[_race_charts.Chart], maps: list[_race_charts.Maps]) -> dict[str, Any]:
    charts = {
        c.key: {"spec": {**c.spec, "height": HEIGHT}, "log": c.log and {**c.log, "height": HEIGHT}} for c in lines
    }
    charts |= {c.key: {"spec": {**c.spec, "height": MAP_HEIGHT}, "log": None} for m in maps for c in m.charts}
    return {
        "charts": charts,
        "variants": content.variants,
        "config": {scheme: _theme.config(scheme) for scheme in ("light", "dark")},
    }


__all__ = ["RaceContent", "fragment", "render", "save"]
