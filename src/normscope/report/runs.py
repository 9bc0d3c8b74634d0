"""The sheets of single runs: a learning-rate range test, and one batch that is to be learnt by heart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from normscope.report import _labels
from normscope.report.grammar import Axis, Chart, Colour, Spec, layer, lines, measure
from normscope.report.rates import ruled
from normscope.report.sheet import Section, Sheet

if TYPE_CHECKING:
    from normscope.learning_rates import Overfit, RateRange

_WHOLE: Spec = {"format": "d", "tickMinStep": 1}
RANGE = (
    "One run whose rate grows at every step. The loss falls fastest at the suggested rate and is least shortly before "
    "it blows up. A rough guide: each rate is seen for one step, from where the smaller ones led."
)


def of_range(found: RateRange, brief: bool = False) -> Sheet:
    """The loss over the rate, raw and smoothed, with the rates of interest."""
    most = _most([x for x in found.smoothed if math.isfinite(x)], found.start)
    rows: list[dict[str, Any]] = [
        {"rate": rate, "loss": value if math.isfinite(value) and value <= most else None, "line": name}
        for name, values in (("smoothed", found.smoothed), ("each step", found.losses))
        for rate, value in zip(found.rates, values, strict=True)
    ]
    x = Axis("rate", "learning rate", scale={"type": "log", "nice": False})
    y = measure("loss", "loss", [r["loss"] for r in rows], zero=False)
    marked = {"falls fastest": found.suggested, "least": found.least, "diverged": found.diverged}
    marked = {name: rate for name, rate in marked.items() if not math.isnan(rate)}
    under = [ruled(name, rate, i, x.channel()) for i, (name, rate) in enumerate(marked.items())]
    colour = Colour("line", ["smoothed", "each step"], legend=True, title="")
    chart = lines(found.optimizer, rows, x, y, colour=colour, under=under, reading="" if brief else RANGE, key="range")
    facts: dict[str, Any] = {"optimizer": found.optimizer, "steps": len(found.rates)}
    facts |= {name: _labels.number(rate) for name, rate in marked.items()}
    notes = [found.reason] if found.reason else []
    return Sheet("Learning-rate range test", [Section("", facts=facts, charts=[chart], notes=notes)])


def of_overfit(found: Overfit, brief: bool = False) -> Sheet:
    """The loss over the steps, and the floor."""
    facts: dict[str, Any] = {
        "optimizer": found.optimizer, "rate": _labels.number(found.rate), "loss": f"{_labels.number(found.start)} to "
        f"{_labels.number(found.end)}", "floor": _labels.number(found.floor), "steps": len(found.losses),
    }  # fmt: skip
    return Sheet(
        "Overfitting one batch", [Section("", "" if brief else f"{found}.", facts=facts, charts=_curve(found))]
    )


def _curve(found: Overfit) -> list[Chart]:
    rows = [{"step": i, "loss": x} for i, x in enumerate(found.losses)]
    if not rows:
        return []
    positive = all(x > 0 for x in found.losses if math.isfinite(x))
    floor = [found.floor] if math.isfinite(found.floor) else []
    y = measure("loss", "loss", [*(r["loss"] for r in rows), *floor], log=positive, **({} if positive else {"zero": 0}))
    rule: Spec = layer({"type": "rule", "style": "reference"}, {"y": {"field": "floor", "type": "quantitative"}}, "",
                       [{"floor": x} for x in floor])  # fmt: skip
    return [
        lines("Loss", rows, Axis("step", "step", scale={"nice": False}, ticks=_WHOLE), y, under=[rule] if floor else [],
              reading="The loss of the batch before each update. Dashed: the memorisation floor.", key="loss")
    ]  # fmt: skip


def _most(smoothed: list[float], start: float) -> float:
    """What is drawn at most: what blew up would flatten all else."""
    low = min(smoothed, default=start)
    return max(start, max(smoothed[:1], default=start)) + 0.5 * abs(start - low) + 1e-12
