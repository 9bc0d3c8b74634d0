"""Learning rates that were tried: the rows of a table, and the page with the loss against the rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normscope.report.sheet import Chart, Section, Sheet, Table, render

if TYPE_CHECKING:
    from normscope.learning_rates import Rates

HEAD = ("optimizer", "largest rate", "between", "best rate", "as good", "passes", "remark")
#: What linear stability is the threshold of, by the names of `normscope.curvature.stable_rates`.
STABILITY = {"sgd": "gradient descent", "momentum": "heavy ball"}
READING = (
    "The loss after {steps} steps at each rate that was tried; crosses rose on the way and stand at the loss of the "
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


def page(title: str, tried: Sequence[Rates], stability: Mapping[str, float]) -> str:
    """The page; ``stability``: the rates at which linearised descent turns unstable."""
    steps = tried[0].steps
    charts = [
        Chart(r.optimizer, _drawn(r, stability.get(STABILITY.get(r.optimizer, ""))), READING.format(steps=steps))
        for r in tried
        if any(stayed for _, _, stayed in r.runs)
    ]
    table = Table(HEAD, rows(tried), numeric=(1, 3, 5))
    section = Section("Learning rates that were tried", MEANING.format(steps=steps), table=table, charts=charts)
    return render(Sheet(title, [section]))


def _drawn(found: Rates, stable: float | None) -> Any:
    """The loss at the end of each run against its rate, the bracket, and 2 / lambda_max."""
    import altair as alt
    import polars as pl

    most = found.start + found.noise
    low, high = found.largest_interval
    points = [
        {"rate": rate, "loss": min(losses[-1], most) if math.isfinite(losses[-1]) else most,
         "run": "trains" if stayed else "rises"}
        for rate, losses, stayed in found.runs
        if rate < 4 * high  # what rises far above says nothing more
    ]  # fmt: skip
    x = alt.X("rate:Q", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(title="learning rate"))
    y = alt.Y("loss:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title=f"loss after {found.steps} steps"))
    shape = alt.Shape("run:N", scale=alt.Scale(domain=["trains", "rises"], range=["circle", "cross"]), title=None)
    marks = alt.Chart(pl.DataFrame(points)).mark_point(filled=True, size=50).encode(x=x, y=y, shape=shape)
    ends = pl.DataFrame({"low": [low], "high": [high if math.isfinite(high) else low]})
    shade = alt.Chart(ends).mark_rect(opacity=0.2).encode(x=alt.X("low:Q"), x2="high:Q")
    layers = [shade, marks]
    if stable is not None and 0 < stable < math.inf:
        rule = alt.Chart(pl.DataFrame({"rate": [stable], "line": ["2 / λ_max"]}))
        layers.append(rule.mark_rule(strokeDash=[6, 3]).encode(x=x, tooltip="line:N"))
    return alt.layer(*layers)
