"""What a training shows that was recorded: its losses, each layer over its steps, and what went wrong, and where."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from normscope.core.favourites import FOLLOWED
from normscope.findings import RULES
from normscope.report import _labels, _layers, _rows
from normscope.report.grammar import Axis, Chart, Colour, Spec, Table, fits, layer, lines, measure, tip
from normscope.report.race import over_time
from normscope.report.sheet import Section, Sheet

if TYPE_CHECKING:
    from normscope.findings import Finding
    from normscope.findings.review import Review
    from normscope.probing.tracker import Tracker

#: Charts of a notebook cell or a picture.
MAIN = 4
#: Places on the axis of the steps, layers of a map, layers with a curve of their own: of more, so many, evenly spaced;
#: and cells of a map that steps are left out for (13 maps of 4000 cells are a page of 5 MB).
STEPS, LAYERS, CURVES, CELLS, FEWEST = 400, 200, 12, 4000, 20
#: The curves of the whole training: metrics on one chart, its title, the name of its axis.
WHOLE = (
    ("Loss", {"loss": "training", "val_loss": "validation"}, "loss"),
    ("Learning rate", {"lr": "learning rate"}, "rate"),
    ("Gradient norm", {"grad_norm": "all weights"}, "norm"),
)
READING = "To the right: {unit}s. Upwards: layers, from the input to the output. A code stands where a finding began."
#: Which maps and curves a finding is marked on, besides that of its own metric.
OF_WEIGHTS = ("gradient_norm", "relative_gradient", "weight_norm", "relative_update")

Cells = dict[tuple[int, int], dict[str, Any]]


def of_tracker(tracker: Tracker, brief: bool = False) -> Sheet:
    """The page of what was tracked so far, with its findings."""
    from normscope.findings.review import review

    return of_review(review(tracker.run()), brief)


def of_review(found: Review, brief: bool = False) -> Sheet:
    """The page of a training: findings, losses, curves and maps of the layers, the numbers of the last step."""
    cells, names = _cells(found)
    order = [c for c in (*FOLLOWED, *_labels.LABELS) if c in cells]
    order = list(dict.fromkeys([*order, *cells]))
    marks = {c: [f for f in found.findings if c in _columns(f.metric) or _everywhere(f)] for c in order}
    whole = _whole(found)
    curves = [made for c in FOLLOWED if c in cells and (made := _curves(c, cells[c], names, found)) is not None]
    maps = [made for c in order if (made := _map(c, cells[c], marks[c], found.run.unit)) is not None]
    heard = [told(found, f) for f in found.findings]
    sections = [
        Section("Findings while training", facts=found.facts, findings=heard, notes=found.run.notes, id="findings")
    ]
    if whole:
        sections.append(Section("The training as a whole", charts=whole[:1] if brief else whole, id="losses"))
    if maps:
        shown = maps[:MAIN] if brief else maps
        lead = READING.format(unit=found.run.unit) + _drawn(found, cells)
        sections.append(Section("Layers over time", lead, charts=shown, id="maps"))
    elif not whole:
        sections.append(Section("Layers over time", "Nothing was measured yet."))
    if curves and not brief:
        lead = "A line a layer: dark near the input, bright near the output." + (
            f" Of {found.layers} layers {CURVES}, evenly spaced." if found.layers > CURVES else ""
        )
        sections.insert(-1, Section("Layers as curves", lead, charts=curves, id="curves"))
    if not brief:
        sections += (
            [Section("At the last measured step", table=_last(cells, names, order), folded=True)] if maps else []
        )
        sections += _unseen(found)
    main = [c.key for c in (*whole[:1], *maps)][:MAIN]
    return Sheet(f"Training of {found.run.label}", sections, lead=found.verdict, main=main)


def told(found: Review, finding: Finding) -> dict[str, Any]:
    """A finding in words, with the step and the layer at which it began."""
    return _rows.finding({**asdict(finding), "unit": found.run.unit})


def _everywhere(finding: Finding) -> bool:
    """What is not finite is so in every number from there on."""
    return not math.isfinite(finding.value)


def _columns(metric: str) -> tuple[str, ...]:
    return (f"weight_{metric}", metric) if metric in OF_WEIGHTS else (metric,)


def _cells(found: Review) -> tuple[dict[str, Cells], dict[int, str]]:
    """Column -> (step, layer) -> its cell, of layers; and layer -> module."""
    columns: dict[str, Cells] = {}
    names: dict[int, str] = {}
    table = found.run.table
    table = table.filter(table["layer"].is_not_null() & (table["call"] == 0))
    layers, steps = table["layer"].unique().to_list(), table["step"].unique().to_list()
    began = [f for f in found.findings if f.layer is not None and f.step is not None]
    at = {*_thinned(layers, LAYERS), *(f.layer for f in began)}
    most = min(STEPS, max(FEWEST, CELLS // max(len(at), 1)))
    when = {*_thinned(steps, most), *(min((s for s in steps if s >= (f.step or 0)), default=max(steps)) for f in began)}
    table = table.filter(table["layer"].is_in(list(at)) & table["step"].is_in(list(when)))
    for r in table.select("step", "layer", "name", "kind", "signal", "metric", "value").iter_rows(named=True):
        name = names.setdefault(r["layer"], r["name"] or r["kind"] or "input")
        cell = {"step": r["step"], "layer": r["layer"], "module": name, "value": r["value"]}
        columns.setdefault(_layers.column(r["signal"], r["metric"]), {})[r["step"], r["layer"]] = cell
    return columns, dict(sorted(names.items()))


def _drawn(found: Review, cells: Mapping[str, Cells]) -> str:
    """How many of the measured steps and layers are drawn, where that is not all."""
    table = found.run.table
    measured = table.filter(table["layer"].is_not_null())["step"].n_unique()
    steps, layers = ({place[i] for column in cells.values() for place in column} for i in (0, 1))
    told = [f"{len(steps)} of {measured} measured steps" if len(steps) < measured else ""]
    told += [f"{len(layers)} of {found.layers} layers" if len(layers) < found.layers else ""]
    return f" Drawn are {' and '.join(filter(None, told))}, evenly spaced." if any(told) else ""


def _thinned(steps: Iterable[int], most: int = STEPS) -> list[int]:
    """At most so many of the steps, evenly spaced, the last one among them."""
    known = sorted(set(steps))
    if len(known) <= most:
        return known
    return sorted({known[round(i * (len(known) - 1) / (most - 1))] for i in range(most)})


def _rounded(value: float, log: bool) -> float | None:
    return float(f"{value:.5g}") if fits(value, log) else None


def _map(column: str, cells: Cells, marks: Sequence[Any], unit: str) -> Chart | None:
    """One metric, layers over steps; ``None`` where no number of it has a colour."""
    label = _labels.label(column)
    rows = list(cells.values())
    good = [r["value"] for r in rows if fits(r["value"], label.log)]
    if not good:
        return None
    low, high = min(good), max(good)
    if low == high:
        high = low * 1.1 or 1.0
    rows = [{**r, "value": _rounded(r["value"], label.log)} for r in rows]
    ends = f"From {_labels.number(low)} (dark) to {_labels.number(high)} (bright)."
    chart = over_time(
        label.title, rows, label.heading, low, high, log=label.log,
        key=column, unit=label.unit, reading=ends, height=230,
    )  # fmt: skip
    spec = _renamed(chart.spec, unit)
    spec["layer"] = [*spec["layer"], *_began(marks, cells)]
    return Chart(**{**vars(chart), "spec": spec})


def _renamed(spec: Spec, unit: str) -> Spec:
    """The chart with the axis of steps under the name of what they are."""
    spec = {**spec, "layer": [dict(part) for part in spec["layer"]]}
    for part in spec["layer"]:
        part["encoding"] = {**part["encoding"], "x": {**part["encoding"]["x"], "title": unit}}
    return spec


def _began(marks: Sequence[Any], cells: Cells) -> list[Spec]:
    """Codes where findings began: at their step (the next one that was measured) and layer."""
    steps, layers = sorted({s for s, _ in cells}), {at for _, at in cells}
    values = [
        {"step": next((s for s in steps if s >= f.step), steps[-1]), "layer": f.layer, "code": f.code, "title": f.title}
        for f in marks
        if f.step is not None and f.layer in layers
    ]
    if not values:
        return []
    place: Spec = {
        "x": {"field": "step", "type": "ordinal"}, "y": {"field": "layer", "type": "ordinal", "sort": "descending"},
        "tooltip": [tip("code", "finding"), tip("title", "says"), tip("step"), tip("layer")],
    }  # fmt: skip
    late = f"datum.step > {steps[len(steps) * 3 // 4]}"
    ring = {"type": "point", "size": 110, "strokeWidth": 2.5, "color": "#ff3b30", "filled": False}
    text = {"type": "text", "fontSize": 11, "fontWeight": 700, "color": "#fff", "stroke": "#c00000", "strokeWidth": 3,
            "strokeJoin": "round", "aria": False}  # fmt: skip
    word = {**{k: place[k] for k in ("x", "y")}, "text": {"field": "code", "type": "nominal"}}
    made = [layer(ring, place, values=values)]
    for where, align, dx in ((f"!({late})", "left", 9), (late, "right", -9)):
        some = {**text, "align": align, "dx": dx}
        made.append(layer(some, word, where, values))  # the edge of the letters, then the letters
        made.append(layer({k: v for k, v in some.items() if not k.startswith("stroke")}, word, where, values))
    return made


def _curves(column: str, cells: Cells, names: Mapping[int, str], found: Review) -> Chart | None:
    """One metric as a line a layer."""
    label, unit = _labels.label(column), found.run.unit
    layers = _thinned((at for _, at in cells), CURVES)
    rows: list[dict[str, Any]] = [
        {"step": s, "layer": at, "module": names[at], "value": _rounded(cell["value"], label.log)}
        for (s, at), cell in sorted(cells.items())
        if at in layers
    ]
    good = [r["value"] for r in rows if r["value"] is not None]
    if not good:
        return None
    x = Axis("step", unit, scale={"nice": False}, ticks={"tickMinStep": 1, "format": "d"})
    says = [tip("layer"), tip("module"), tip("step", unit), tip("value", label.title.lower(), ".4~g")]
    return lines(
        label.title, rows, x, measure("value", label.heading, good, log=label.log),
        colour=Colour("layer", layers, legend=True, ordered=True, title="layer"), told=says, key=f"curves-{column}",
        unit=label.unit, reading=label.reading.partition(" Dotted")[0],
    )  # fmt: skip


def _whole(found: Review) -> list[Chart]:
    """The curves of the training as a whole, with a rule where each finding began that is of no layer."""
    table = found.run.table
    table = table.filter(table["layer"].is_null())
    known = {m: part for (m,), part in table.group_by("metric", maintain_order=True)}
    return [
        made
        for title, metrics, heading in WHOLE
        if (made := _line(title, {m: known[m] for m in metrics if m in known}, metrics, heading, found)) is not None
    ]


def _line(title: str, parts: Mapping[str, Any], named: Mapping[str, str], heading: str, found: Review) -> Chart | None:
    unit = found.run.unit
    rows: list[dict[str, Any]] = []
    for metric, part in parts.items():
        kept = set(_thinned(part["step"]))
        values = zip(part["step"].to_list(), part["value"].to_list(), strict=True)
        rows += [{"step": s, "curve": named[metric], "value": _rounded(v, False)} for s, v in values if s in kept]
    good = [r["value"] for r in rows if r["value"] is not None]
    if not good:
        return None
    log = min(good) > 0 and max(good) > 30 * min(good)
    scale: Spec = {} if log else {"zero": False, "nice": True}
    x = Axis("step", unit, scale={"nice": False}, ticks={"tickMinStep": 1, "format": "d"})
    marks = [{"step": f.step, "code": f.code, "title": f.title} for f in found.findings
             if (f.metric in parts or _everywhere(f)) and f.step is not None and f.severity != "info"]  # fmt: skip
    at: Spec = {"x": {"field": "step", "type": "quantitative"}, "tooltip": [tip("code"), tip("title"), tip("step")]}
    over = [
        layer({"type": "rule", "strokeDash": [3, 3], "color": "#d62728"}, at, values=marks),
        layer({"type": "text", "align": "left", "baseline": "top", "dx": 3, "color": "#d62728", "aria": False},
              {**at, "y": {"value": 2}, "text": {"field": "code", "type": "nominal"}}, values=_first_of_each(marks)),
    ] if marks else []  # fmt: skip
    curves = [named[m] for m in parts]
    colour = Colour("curve", curves, legend=len(curves) > 1, title="")
    gap = sum(r["value"] is None for r in rows)
    return lines(
        title, rows, x, measure("value", heading, good, log=log, **scale), colour=colour, over=over,
        told=[tip("curve"), tip("step", unit), tip("value", heading, ".4~g")], key=f"run-{heading}",
        wide=title == "Loss", reading=f"{gap} values that are not finite are left out." if gap else "",
    )  # fmt: skip


def _first_of_each(marks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Codes that begin at one step, written together."""
    by: dict[int, dict[str, Any]] = {}
    for m in marks:
        there = by.setdefault(m["step"], {**m, "code": ""})
        there["code"] = f"{there['code']} {m['code']}".strip()
    return list(by.values())


def _last(found: dict[str, Cells], names: Mapping[int, str], columns: Sequence[str]) -> Table:
    """The numbers of the latest measured step, a row a layer."""
    step = max(at for cells in found.values() for at, _ in cells)
    layers = sorted({at for cells in found.values() for s, at in cells if s == step})
    rows = [
        [at, names[at], *(_labels.number(found[c].get((step, at), {"value": None})["value"]) for c in columns)]
        for at in layers
    ]
    heads = [_labels.label(c).short for c in columns]
    return Table(["layer", "module", *heads], rows, numeric=[0, *range(2, 2 + len(columns))])


def _unseen(found: Review) -> list[Section]:
    """The checks that could not run, and what they would have needed."""
    if not found.unseen:
        return []
    rows = [[code, RULES[code].title, why] for code, why in found.unseen.items()]
    return [Section("Checks that could not run", table=Table(["code", "finding", "needs"], rows, numeric=()))]


def curves(found: Review) -> list[tuple[str, list[float], bool]]:
    """What a terminal draws: title, values over the steps, whether by their logarithms."""
    import polars as pl

    table, made = found.run.table, []
    for metric, title in (("loss", "loss"), ("val_loss", "validation"), ("lr", "rate"), ("grad_norm", "gradient")):
        part = table.filter(table["layer"].is_null(), metric=metric)
        if len(part):
            made.append((title, part["value"].to_list(), False))
    for column in FOLLOWED:
        signal = "weight" if column.startswith("weight_") else "activation"
        part = table.filter(signal=signal, metric=column.removeprefix("weight_") if signal == "weight" else column)
        part = (
            part.filter(part["value"].is_finite()).group_by("step", maintain_order=True).agg(pl.col("value").median())
        )
        values = [v for v in part["value"].to_list() if not math.isnan(v)]
        if values:
            made.append((f"{_labels.label(column).short}, middle layer", values, _labels.label(column).log))
    return made
