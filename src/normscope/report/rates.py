"""Learning rates that were tried: the rows of a table, and the page with the loss against the rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from normscope.report import _labels
from normscope.report.curvature import of_sharpness
from normscope.report.grammar import Axis, Chart, Colour, Spec, Table, layer, lines, measure
from normscope.report.sheet import Section, Sheet

if TYPE_CHECKING:
    from normscope.curvature import Sharpness
    from normscope.learning_rates import Rates

HEAD = ("optimizer", "largest rate", "between", "best rate", "as good", "passes", "remark")
#: What stands above the table on a terminal.
TRIED = "by trials of {steps} steps, where the loss never rises above its start:"
READING = (
    "The loss after {steps} steps at each rate that was tried; runs that rose on the way stand at the loss of the "
    "start. The largest rate lies in the shade. Dashed, as far as they are known: the best one, that of the optimizer "
    "as it was given, and 2 / λ_max, where linearised full-batch descent turns unstable."
)
MEANING = (
    "A rate trains if the loss never rises above its start by more than its noise over the next {steps} steps, from "
    "where the model is, with the batches that were tried. The largest is the upper end of the lowest window of such "
    "rates; beyond {steps} steps, and with other batches, another rate may be the largest."
)


def rows(tried: Sequence[Rates]) -> list[tuple[str, ...]]:
    """A row an optimizer, under ``HEAD``."""

    def between(ends: tuple[float, float]) -> str:
        return "" if math.isnan(ends[0]) else f"{ends[0]:.3g} to {ends[1]:.3g}"

    def number(x: float) -> str:
        return "none" if math.isnan(x) else f"{x:.3g}"

    return [
        (r.optimizer, number(r.largest), between(r.largest_interval), number(r.best), between(r.best_interval),
         str(r.cost), r.reason)
        for r in tried
    ]  # fmt: skip


def of_rates(found: Rates, brief: bool = False) -> Sheet:
    """What one optimizer's trials said: the two rates, and the loss against the rate."""
    low, high = found.largest_interval
    facts: dict[str, Any] = {"optimizer": found.optimizer, "steps of a run": found.steps, "passes": found.cost}
    if not math.isnan(found.largest):
        near = " to ".join(_labels.number(x) for x in found.best_interval)
        facts["largest rate"] = f"{_labels.number(found.largest)}, between {_labels.number(low)} and "
        facts["largest rate"] += _labels.number(high)
        facts["best rate"] = f"{_labels.number(found.best)}, as good: {near}"
    named = {"rate as given": found.own, "2 / λ_max": found.stability}
    facts |= {what: _labels.number(x) for what, x in named.items() if not math.isnan(x)}
    lead = "" if brief else MEANING.format(steps=found.steps)
    notes = [found.reason] if found.reason else []
    return Sheet("Learning rates", [Section("", lead, facts=facts, charts=charts([found]), notes=notes)])


def section(tried: Sequence[Rates], of: str = "") -> Section:
    """The rates of several optimizers, to stand among other sections; ``of``: the model's name where it needs one."""
    title = "Learning rates that were tried" + (f": {of}" if of else "")
    table = Table(HEAD, rows(tried), numeric=(1, 3, 5))
    lead = MEANING.format(steps=tried[0].steps)
    return Section(title, lead, table=table, charts=charts(tried), small=True)


def with_sharpness(found: Sharpness, tried: Sequence[Rates]) -> Sheet:
    """The sheet of a sharpness, and behind it the rates that were tried."""
    whole = of_sharpness(found)
    return replace(whole, title="Sharpness and learning rates", sections=[*whole.sections, section(tried)])


def charts(tried: Sequence[Rates]) -> list[Chart]:
    """A chart for each optimizer that trains at some rate."""
    return [_drawn(r) for r in tried if not math.isnan(r.largest)]


def _drawn(found: Rates) -> Chart:
    """The loss at the end of each run against its rate, the bracket, and rates of interest as lines."""
    most = found.start + found.noise
    low, high = found.largest_interval
    points: list[dict[str, Any]] = [
        {"rate": rate, "loss": min(losses[-1], most) if math.isfinite(losses[-1]) else most,
         "run": "trains" if stayed else "rises"}
        for rate, losses, stayed in sorted(found.runs)
        if rate < 4 * high  # what rises far above says nothing more
    ]  # fmt: skip
    x = Axis("rate", "learning rate", scale={"type": "log", "nice": False, "padding": 8})
    y = measure("loss", f"loss after {found.steps} steps", [p["loss"] for p in points])
    across = x.channel()
    ends = {"low": low, "high": high if math.isfinite(high) else low}
    marked = {"best": found.best, "as given": found.own, "2 / λ_max": found.stability}
    marked = {name: rate for name, rate in marked.items() if 0 < rate < math.inf}
    shade = layer({"type": "rect", "opacity": 0.2}, {"x": {**across, "field": "low"}, "x2": {"field": "high"}}, "",
                  [ends])  # fmt: skip
    under: list[Spec] = [shade, *(ruled(name, rate, i, across) for i, (name, rate) in enumerate(marked.items()))]
    return lines(
        found.optimizer, points, x, y, colour=Colour("run", ["trains", "rises"], legend=True, title="run"),
        joined="false", under=under, reading=READING.format(steps=found.steps),
    )  # fmt: skip


def ruled(name: str, rate: float, i: int, across: Spec) -> Spec:
    """An upright line at a rate, with its name beside it."""
    line = layer({"type": "rule", "strokeDash": [6, 3]}, {})
    word = layer({"type": "text", "align": "left", "dx": 4, "dy": -8 - 13 * i},
                 {"y": {"value": "height"}, "text": {"field": "line"}})  # fmt: skip
    return {
        "data": {"values": [{"rate": rate, "line": name}]},
        "encoding": {"x": across, "tooltip": {"field": "line", "type": "nominal"}},
        "layer": [line, word],
    }
