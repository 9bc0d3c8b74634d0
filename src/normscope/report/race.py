"""What a race shows: its final table, curves over steps, a map of the layers over time for each variant, how it was
run.
"""

from __future__ import annotations

from statistics import median_low
from typing import TYPE_CHECKING, Any

from normscope.report import _race_curves as curves
from normscope.report._charts import crosses
from normscope.report._race_content import RaceContent, cells, explained
from normscope.report.grammar import Axis, Chart, Colour, Dash, Spec, Table, heat, lines, measure, tip
from normscope.report.sheet import Section, Sheet

if TYPE_CHECKING:
    from normscope.racing import Race

#: Heights of a chart and of a map, pixels.
HEIGHT, MAP_HEIGHT = 280, 190
#: How far above the median variant's first loss a linear axis goes.
_ABOVE = 1.3
_FOCUS = "(focus === null || datum['variant'] === focus)"
_MARKS = {"better": "good", "worse": "bad", "diverged": "bad"}
#: (signal, metric, title, unit, reading, log)
MAPS = (
    ("activation", "participation_rank", "Participation rank", "of the probed samples",
     "How many directions the samples spread over; 1 is collapse.", False),
    ("activation", "orthogonality_gap", "Orthogonality gap", "0 orthogonal, 1 collapsed",
     "How far the samples are from mutually orthogonal.", False),
    ("gradient", "gradient_norm", "Gradient norm", "of the loss, with respect to a layer's output",
     "Even from layer to layer is good; fading or growing by decades is not.", True),
)  # fmt: skip


def of_race(race: Race, brief: bool = False) -> Sheet:
    """The sheet of a race; ``brief``: of a notebook cell."""
    return sheet_of(race.content(), brief=brief)


def sheet_of(content: RaceContent, *, brief: bool = False) -> Sheet:
    """The sheet of a race's content."""
    drawn, notes = charts(content), list(content.facts.get("notes", ()))
    said = [Section("What the columns are", notes=explained(content), folded=True)] if brief else []
    sections = [Section("", table=_table(content), notes=[*([] if brief else explained(content)), *notes], id="result")]
    if drawn:
        shown = drawn[:2] if brief else drawn
        sections.append(Section("While training", charts=shown, legend=True, id="curves"))
    if not brief and (found := maps(content)):
        lead = (
            "To the right: steps, most of them early. Upwards: layers, from the input (0) to the output. Training "
            "mode, mean over seeds."
        )
        sections.append(Section("Layers over time", lead, parts=found, id="layers"))
    if not brief:
        sections.append(_settings(content))
    return Sheet(
        content.title, [*sections, *said], conditions=_conditions(content), names=content.variants,
        main=[c.key for c in drawn],
    )  # fmt: skip


def charts(content: RaceContent) -> list[Chart]:
    """Training loss, accuracy and evaluated loss."""
    rows, width = curves.losses(content)
    drawn = []
    if rows:
        smoothed = f"mean of the last {width} batches" if width > 1 else "every batch"
        out = curves.divergences(content)
        said = f"In training mode, {smoothed}; line: mean over seeds, band: their range."
        said += " A cross on the axis: a run diverged there." if out else ""
        drawn.append(_curve("Training loss", content, rows, "step", out=out, key="loss", unit="of each step's batch",
                            reading=said))  # fmt: skip
    for metric, title in (("accuracy", "Accuracy"), ("loss", "Evaluated loss")):
        rows = [r for r in curves.scores(content, metric) if r["mean"] is not None]
        if rows:
            tested = any(r["split"] == "test" for r in rows)
            said = "solid: test, dashed: training samples" if tested else "training samples"
            rows = [r if r["split"] == "test" or not tested else {**r, "low": None, "high": None} for r in rows]
            drawn.append(_curve(title, content, rows, "epoch", share=metric == "accuracy", split=tested,
                key=f"eval-{metric}",
                                unit="after each epoch",
                                reading=f"In eval mode, with running statistics; {said}."))  # fmt: skip
    return drawn


def _curve(
    title: str, content: RaceContent, rows: curves.Rows, at: str, *, share: bool = False, split: bool = False,
    out: curves.Rows | None = None, **words: Any,
) -> Chart:  # fmt: skip
    """The mean over seeds and their range. A loss that goes up leaves the chart, so that the others can be seen."""
    firsts = [next(r["mean"] for r in rows if r["variant"] == v) for v in {r["variant"] for r in rows}]
    ends = [r[k] for r in rows for k in ("low", "high", "mean") if r[k] is not None]
    low, high, limit = min(ends), max(ends), _ABOVE * median_low(firsts)
    cut = not share and high > limit > low
    said = f"{title.lower()} ({'share' if share else 'mean over samples'})"
    y = measure("mean", said, ends, **({"domain": [min(low, 0.0), limit]} if cut else {"zero": False, "nice": True}))
    log: Spec | None = None
    if not share and low > 0:
        axis = measure("mean", said, ends, log=True, **({"domain": [low, 1000 * limit]} if high > 1000 * limit else {}))
        log = {"scale": dict(axis.scale), "axis": dict(axis.ticks)}
    x = Axis(at, at, scale={"nice": False}, ticks={"tickMinStep": 1})
    colour = Colour("variant", content.variants)
    told = [tip("variant"), *([tip("split", "samples")] if split else []), tip(at, at, ".4~g")]
    told += [tip(k, k, ".4~g") for k in ("mean", "low", "high")]
    where = [tip("variant"), tip("seed"), tip("step", "diverged at step")]
    over = [crosses(out, {"field": "step", "type": "quantitative"}, colour, where, _FOCUS)] if out else []
    return lines(
        title, rows, x, y, colour=colour, dash=Dash("split", {"test": [1, 0], "train": [5, 4]}) if split else None,
        band=("low", "high"), told=told, over=over, log=log, height=HEIGHT, **words,
    )  # fmt: skip


def maps(content: RaceContent) -> list[Section]:
    """Every quantity that was followed, layer by layer: a chart a variant on one scale of colours."""
    found = []
    for signal, metric, title, unit, reading, log in MAPS:
        by_variant = curves.layers(content, signal, metric, log=log)
        # A variant that only diverges must not set the colours of the others.
        ended = [line["variant"] for line in content.lines if line["diverged"] < line["seeds"]]
        scaled = [by_variant[v] for v in ended if v in by_variant] or list(by_variant.values())
        values = [r["value"] for rows in scaled for r in rows if r["value"] is not None]
        values = [v for v in values if v > 0 or not log]
        if not values:
            continue
        low, high = min(values), max(values)
        if metric == "orthogonality_gap":
            low, high = 0.0, max(high, 0.05)
        if low == high:
            high = low * 1.1 or 1.0
        drawn = [
            over_time(v, rows, title, low, high, log=log, key=f"{metric}-{content.variants.index(v)}")
            for v, rows in by_variant.items()
        ]
        ends = (f"{low:.2g}", f"{high:.2g}")
        found.append(Section(title, reading, charts=drawn, small=True, aside=unit, ends=ends))
    return found


def over_time(title: str, rows: curves.Rows, what: str, low: float, high: float, *, log: bool, **words: Any) -> Chart:
    """Layers over steps, a number as colour."""
    layers = sorted({r["layer"] for r in rows})
    few = layers[:: max(1, len(layers) // 6)]
    shown = {"values": few, "ticks": False, "domain": False, "offset": 3, "titleAnchor": "middle"}
    x = Axis("step", "step", "ordinal", {"paddingInner": 0}, {"labelAngle": 0, "labelOverlap": True})
    y = Axis("layer", "layer", "ordinal", {"paddingInner": 0}, shown, "descending")
    colour = Axis("value", what, scale={"type": "log" if log else "linear", "domain": [low, high], "clamp": True})
    told = [tip("step"), tip("layer"), tip("module"), tip("value", what.lower(), ".4~g")]
    return heat(title, rows, x, y, colour, told=told, **{"height": MAP_HEIGHT, **words})


def _table(content: RaceContent) -> Table:
    """The final table."""
    heads = [("variant", "variant"), *_heads(content), ("verdict", "verdict")]
    rows = [cells(line) for line in content.lines]
    return Table(
        [head for _, head in heads], [[row[key] for key, _ in heads] for row in rows], numeric=range(1, len(heads) - 1),
        marks=[_MARKS.get(line["verdict"], "") for line in content.lines], names=[row["variant"] for row in rows],
    )  # fmt: skip


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


def _settings(content: RaceContent) -> Section:
    """How it was run."""
    facts = content.facts
    titles = {
        "optimiser": "optimiser", "momentum": "momentum", "nesterov": "Nesterov", "weight_decay": "weight decay",
        "warmup": "warm-up steps", "batch": "batch", "epochs": "epochs", "steps": "steps", "loss": "loss",
        "data": "data",
        "test": "test data", "probe_samples": "probed samples", "device": "device", "dtype": "type", "torch": "torch",
    }  # fmt: skip
    shown = [(title, facts[key]) for key, title in titles.items() if facts.get(key) not in (None, "", False, 0)]
    seeds = ", ".join(map(str, facts["seeds"]))
    rates = _rates(content)
    parts = [Section("Learning rates", notes=rates)] if rates else []
    told = [*((title, str(value)) for title, value in shown), ("seeds", seeds), *_cost(content)]
    return Section("How it was run", facts=dict(told), parts=parts, id="facts")


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
