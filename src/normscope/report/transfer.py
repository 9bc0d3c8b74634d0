"""The page of a transfer: the best rate against width and depth, the coordinate check, and the laws fitted to them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import polars as pl

from normscope.report import _labels
from normscope.report.grammar import Axis, Chart, Colour, Table, lines, measure, tip
from normscope.report.sheet import Section, Sheet

if TYPE_CHECKING:
    from normscope.learning_rates.transfer import Transfer

HEAD = ("quantity", "over depth", "between", "over width", "between", "scatter")
#: What each number is, in the order of the page.
TITLES = {
    "best": "Best learning rate", "largest": "Largest learning rate that trains",
    "edge": "Largest learning rate that trains over eight steps",
    "reach": "Reach of a step (relative change a unit of the rate)",
    "activation": "Activations at the start, {}", "change": "Change of activations after five steps, {}",
    "update": "Relative update of the weights after five steps, {}",
}  # fmt: skip
COORDINATES = (
    "Root mean squares over the batch, the mean of the seeds, all nets at one rate. Where a parametrisation transfers "
    "over width, changes of activations and outputs are of no width."
)


def title(metric: str) -> str:
    """A quantity in words."""
    what, _, place = metric.partition(" ")
    return TITLES.get(what, what).format({"first": "first layer", "hidden": "hidden layers"}.get(place, place))


def rows(found: Transfer) -> list[tuple[str, ...]]:
    """A row a law, under ``HEAD``: exponents, and the 90 % intervals of them."""

    def exponent(value: float, ends: tuple[float, float]) -> tuple[str, str]:
        return ("", "") if ends == (0.0, 0.0) else (f"{value:.2f}", f"{ends[0]:.2f} to {ends[1]:.2f}")

    ordered = sorted(found.laws, key=lambda m: list(TITLES).index(m.partition(" ")[0]))
    laws = [(title(m), found.laws[m]) for m in ordered]
    return [
        (
            name,
            *exponent(x.depth, x.depth_interval),
            *exponent(x.width, x.width_interval),
            f"x {math.exp(x.scatter):.2f}",
        )
        for name, x in laws
    ]


def of_transfer(found: Transfer, brief: bool = False) -> Sheet:
    """The verdict, the rates, the coordinate check, and the exponents."""
    facts: dict[str, Any] = {"nets": found.name, "optimizer": found.optimizer}
    if not math.isnan(found.rate):
        low, high = map(_labels.number, found.interval)
        how = "measured" if found.measured else "foretold"
        facts[f"best rate at width {found.width}, depth {found.depth}, {how}"] = (
            f"{_labels.number(found.rate)} ({low} to {high})"
        )
    for by, told in (("the large net's edge", found.by_edge), ("the power law of the rates alone", found.by_law)):
        if not math.isnan(told[0]):
            rate, low, high = map(_labels.number, told)
            facts[f"foretold by {by}"] = f"{rate} ({low} to {high})"
    means = (
        found.table.filter(pl.col("value").is_finite() & (pl.col("value") > 0))
        .group_by("metric", "width", "depth", maintain_order=True)
        .agg(
            pl.col("value").log().mean().exp(), pl.col("value").min().alias("low"), pl.col("value").max().alias("high")
        )
    )
    drawn = {m: made for m in found.laws if (made := _drawn(m, means, found)) is not None}
    rates = [drawn.pop(m) for m in ("best", "largest", "edge", "reach") if m in drawn]
    laws = Table(HEAD, rows(found), numeric=(1, 3, 5))
    sections = [
        Section("", found.verdict, facts=facts, charts=rates, notes=[*found.advice, *found.failed]),
        Section("Coordinate check", COORDINATES, charts=list(drawn.values()), small=True),
        Section("Exponents", "Of power laws over depth and width, 90 % intervals.", table=laws),
    ]
    return Sheet("Does the learning rate transfer?", sections[:1] if brief else sections, main=[c.key for c in rates])


def _drawn(metric: str, means: pl.DataFrame, found: Transfer) -> Chart | None:
    """A quantity against the width, a line a depth; with the predicted rate of the large net."""
    part = means.filter(pl.col("metric") == metric).sort("depth", "width")
    points: list[dict[str, Any]] = [{**r, "depth": str(r["depth"])} for r in part.iter_rows(named=True)]
    if not points:
        return None
    if metric == "best" and not math.isnan(found.by_edge[0]):
        there = {"width": found.width, "depth": f"{found.depth}, foretold"}
        points.append({"metric": metric, **there, **dict(zip(("value", "low", "high"), found.by_edge, strict=True))})
    depths = list(dict.fromkeys(p["depth"] for p in points))
    widths = sorted({p["width"] for p in points})
    x = Axis("width", "width", scale={"type": "log", "nice": False, "padding": 8}, ticks={"values": widths})
    y = measure(
        "value", "rate" if metric in ("best", "largest", "edge") else "size", [p["value"] for p in points], log=True
    )
    told = [tip("width"), tip("depth"), tip("value", title(metric), ".3~g"), tip("low", "from", ".3~g"),
            tip("high", "to", ".3~g")]  # fmt: skip
    colour = Colour("depth", depths, legend=True, title="depth")
    return lines(title(metric), points, x, y, colour=colour, told=told, key=metric.replace(" ", "_"))
