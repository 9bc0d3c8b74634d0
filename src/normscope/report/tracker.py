"""What a tracker shows: each metric as a map of the layers over the steps of the training that it saw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from normscope.report import _labels, _layers
from normscope.report.grammar import Chart, Table, fits
from normscope.report.race import over_time
from normscope.report.sheet import Section, Sheet

if TYPE_CHECKING:
    from normscope.probing.tracker import Tracker

#: Maps of a notebook cell or a picture.
MAIN = 4


def of_tracker(tracker: Tracker, brief: bool = False) -> Sheet:
    """The maps of what was measured so far."""
    found: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
    for r in tracker.frame().iter_rows(named=True):
        if not r["call"]:
            cell = {"step": r["step"], "layer": r["layer"], "module": r["name"] or "input", "value": r["value"]}
            found.setdefault(_layers.column(r["signal"], r["metric"]), {})[r["step"], r["layer"]] = cell
    order = [c for c in _labels.LABELS if c in found] + [c for c in found if c not in _labels.LABELS]
    drawn = [made for c in order if (made := _map(c, list(found[c].values()))) is not None]
    facts = {
        "steps seen": tracker.steps, "measured": tracker.measured, "every": tracker.every,
        "overhead": f"{tracker.overhead:.2%}",
    }  # fmt: skip
    lead = (
        "To the right: steps. Upwards: layers, from the input (0) to the output."
        if drawn
        else "Nothing was measured yet."
    )
    title = f"Training of {tracker.name}"
    last = [] if brief or not drawn else [Section("At the last measured step", table=_last(found, order), folded=True)]
    shown = drawn[:MAIN] if brief else drawn
    sections = [Section("Layers over time", lead, facts=facts, charts=shown, notes=tracker.notes), *last]
    return Sheet(title, sections, main=[c.key for c in drawn[:MAIN]])


def _map(column: str, rows: list[dict[str, Any]]) -> Chart | None:
    """One metric; ``None`` where no number of it has a colour."""
    label = _labels.label(column)
    good = [r["value"] for r in rows if fits(r["value"], label.log)]
    if not good:
        return None
    low, high = min(good), max(good)
    if low == high:
        high = low * 1.1 or 1.0
    rows = [{**r, "value": float(f"{r['value']:.5g}") if fits(r["value"], label.log) else None} for r in rows]
    ends = f"From {_labels.number(low)} (dark) to {_labels.number(high)} (bright)."
    return over_time(
        label.title, rows, label.heading, low, high, log=label.log,
        key=column, unit=label.unit, reading=ends, height=230,
    )  # fmt: skip


def _last(found: dict[str, dict[tuple[int, int], dict[str, Any]]], columns: list[str]) -> Table:
    """The numbers of the latest step, a row a layer."""
    step = max(at for cells in found.values() for at, _ in cells)
    layers = sorted({layer for cells in found.values() for at, layer in cells if at == step})
    names = {layer: cell["module"] for cells in found.values() for (_, layer), cell in cells.items()}
    blank: dict[str, Any] = {"value": None}
    rows = [
        [layer, names[layer], *(_labels.number(found[c].get((step, layer), blank)["value"]) for c in columns)]
        for layer in layers
    ]
    heads = [_labels.label(c).short for c in columns]
    return Table(["layer", "module", *heads], rows, numeric=[0, *range(2, 2 + len(columns))])
