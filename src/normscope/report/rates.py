"""Learning rates that were tried: the rows of a table, and the page with the loss against the rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from normscope.report.curvature import of_sharpness
from normscope.report.grammar import Axis, Chart, Colour, Spec, Table, lines, measure
from normscope.report.sheet import Section, Sheet

if TYPE_CHECKING:
    from normscope.curvature import Sharpness
    from normscope.learning_rates import Rates

HEAD = ("optimizer", "largest rate", "between", "best rate", "as good", "passes", "remark")
#: What linear stability is the threshold of, by the names of `normscope.curvature.stable_rates`.
STABILITY = {"sgd": "gradient descent", "momentum": "heavy ball"}
READING = (
    "The loss after {steps} steps at each rate that was tried; runs that rose on the way stand at the loss of the "
    "start. The largest rate lies in the shade. Dashed: 2 / λ_max, the linear stability of full-batch gradient descent."
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


def of_rates(sharpness: Sharpness, tried: Sequence[Rates]) -> Sheet:
    """The sheet of a sharpness, and behind it the rates that were tried."""
    steps, stable = tried[0].steps, sharpness.rates()
    charts = [
        _drawn(r, stable.get(STABILITY.get(r.optimizer, ""), math.nan))
        for r in tried
        if any(stayed for _, _, stayed in r.runs)
    ]
    table = Table(HEAD, rows(tried), numeric=(1, 3, 5))
    more = Section("Learning rates that were tried", MEANING.format(steps=steps), table=table, charts=charts)
    whole = of_sharpness(sharpness)
    return replace(whole, title="Sharpness and learning rates", sections=[*whole.sections, more])


def _drawn(found: Rates, stable: float) -> Chart:
    """The loss at the end of each run against its rate, the bracket, and 2 / lambda_max."""
    most = found.start + found.noise
    low, high = found.largest_interval
    points: list[dict[str, Any]] = [
        {"rate": rate, "loss": min(losses[-1], most) if math.isfinite(losses[-1]) else most,
         "run": "trains" if stayed else "rises"}
        for rate, losses, stayed in sorted(found.runs)
        if rate < 4 * high  # what rises far above says nothing more
    ]  # fmt: skip
    x = Axis("rate", "learning rate", scale={"type": "log", "nice": False})
    y = measure("loss", f"loss after {found.steps} steps", [p["loss"] for p in points])
    across = x.channel()
    ends = {"low": low, "high": high if math.isfinite(high) else low}
    under: list[Spec] = [{
        "data": {"values": [ends]}, "mark": {"type": "rect", "opacity": 0.2},
        "encoding": {"x": {**across, "field": "low"}, "x2": {"field": "high"}},
    }]  # fmt: skip
    if 0 < stable < math.inf:
        line = {"rate": stable, "line": "2 / λ_max"}
        under.append({
            "data": {"values": [line]}, "mark": {"type": "rule", "strokeDash": [6, 3]},
            "encoding": {"x": across, "tooltip": {"field": "line", "type": "nominal"}},
        })  # fmt: skip
    return lines(
        found.optimizer, points, x, y, colour=Colour("run", ["trains", "rises"], legend=True, title="run"),
        joined="false",
        under=under, reading=READING.format(steps=found.steps),
    )  # fmt: skip
