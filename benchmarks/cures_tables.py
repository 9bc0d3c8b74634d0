"""The rows of `benchmarks/cures.py` as results/cures.csv, and as tables in results/cures.md.

    python benchmarks/cures_tables.py --work runs/cures --out results/cures

The words around the tables are in `benchmarks/cures_words.md`; ``{{part}}`` stands for the tables of a part.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

#: A net trains if its loss comes at least half of the way from ln 10 to the lowest loss of any arm on the same data.
HALF = 0.5
KEYS = {"mlp": ("data", "depth"), "vgg": ("net",), "resnet": ("net",), "depths": ("depth",)}


def half_way(rows: pl.DataFrame) -> float:
    """The loss that a net must reach to count as trained, on one data set."""
    best = rows["loss"].drop_nans().drop_nulls().min()
    return math.log(10) + HALF * (float(best) - math.log(10))  # type: ignore[arg-type]


def spread(values: Sequence[float | None], digits: int = 2) -> str:
    """Mean (lowest to highest) of the finite values; a dash without any."""
    found = [v for v in values if v is not None and math.isfinite(v)]
    if not found:
        return "-"
    mean = f"{sum(found) / len(found):.{digits}f}"
    low, high = f"{min(found):.{digits}f}", f"{max(found):.{digits}f}"
    return mean if low == high else f"{mean} ({low} to {high})"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def in_order(frame: pl.DataFrame, column: str) -> list[Any]:
    return frame[column].unique(maintain_order=True).to_list()


def trainability(rows: pl.DataFrame) -> str:
    """Depth by arm, a table a data set: loss at the end, and in bold where the mean counts as trained."""
    text = []
    for data in in_order(rows, "data"):
        mine = rows.filter(data=data)
        goal, depths = half_way(mine), sorted(in_order(mine, "depth"))
        lines = []
        for arm in in_order(mine, "arm"):
            line = [arm]
            for depth in depths:
                cell = mine.filter(arm=arm, depth=depth)
                if cell.is_empty():
                    line.append("not run")
                    continue
                gone = int(cell["diverged"].sum())
                losses = [x for x in cell["loss"].to_list() if x is not None and math.isfinite(x)]
                shown = spread(losses)
                trained = losses and not gone and sum(losses) / len(losses) <= goal
                mark = f"; {gone} of {len(cell)} diverged" if gone else ""
                lr = cell["lr"][0]
                line.append((f"**{shown}**" if trained else shown) + f", {_percent(cell)}, lr {lr:g}{mark}")
            lines.append(line)
        first = mine.row(0, named=True)
        text.append(
            f"**{data}**, {first['steps']} steps of {first['batch']}, {mine['seed'].n_unique()} seeds; "
            f"bold: loss at most {goal:.2f}\n\n" + table(["arm", *(f"depth {d}" for d in depths)], lines)
        )
    return "\n\n".join(text)


def _percent(cell: pl.DataFrame) -> str:
    values = [v for v in cell["train_accuracy"].to_list() if v is not None]
    return f"{100 * sum(values) / len(values):.0f} %" if values else "- %"


def nets(rows: pl.DataFrame) -> str:
    """One table a net: loss at the end, steps to the target, accuracies."""
    text = []
    for net in in_order(rows, "net"):
        mine = rows.filter(net=net)
        lines = []
        for arm in in_order(mine, "arm"):
            cell = mine.filter(arm=arm)
            reached = [str(x) if x is not None else "never" for x in cell["steps_to_target"].to_list()]
            lines.append(
                [arm, f"{cell['lr'][0]:g}", spread(cell["loss"].to_list()), ", ".join(reached), _percent(cell),
                 spread([100 * x for x in cell["test_accuracy"].to_list() if x is not None], 0) + " %",
                 f"{int(cell['diverged'].sum())} of {len(cell)}"]
            )  # fmt: skip
        first = mine.row(0, named=True)
        head = ["arm", "lr", "loss at the end", f"steps to {first['target']:.2f}", "train", "test", "diverged"]
        text.append(f"**{net}**, {first['steps']} steps of {first['batch']}\n\n" + table(head, lines))
    return "\n\n".join(text)


def figure6(rows: pl.DataFrame) -> str:
    """The arms of the rank paper's figure 6 against the rules of its specification."""
    high, printed = (0, 1.5), "0.84 to 1.10"
    rules = {"none": (2.29, math.inf), "bn tanh": (0, 0.7), "bn tanh, U[0, 2a]": (2.0, math.inf)} | {
        f"high, {how}": high for how in ("the paper's steps", "raise_rank_(scale='keep')", "raise_rank_")
    }
    published = {"none": "2.30", "low, the paper's steps": "2.02 to 2.30", "high, the paper's steps": printed,
                 "bn tanh": "0.44 to 0.46", "bn tanh, U[0, 2a]": "2.18"}  # fmt: skip
    lines = []
    for arm in in_order(rows, "arm"):
        cell = rows.filter(arm=arm)
        losses = cell["loss"].to_list()
        low, high = rules.get(arm, (None, None))
        met = "-" if low is None else "yes" if all(x is not None and low <= x <= high for x in losses) else "**no**"
        rule = "-" if low is None else f">= {low}" if high == math.inf else f"<= {high}"
        lines.append(
            [
                arm,
                spread([r for ranks in cell["ranks"].to_list() for r in ranks]),
                spread(losses),
                _percent(cell),
                published.get(arm, "-"),
                rule,
                met,
            ]
        )
    head = ["arm", "mean r at the start", "loss, last batches", "train", "with the authors' classes", "rule", "met"]
    return table(head, lines)


def centring(rows: pl.DataFrame) -> str:
    """lambda_max before and after, and what became of each race."""
    text = []
    for net, loss in rows.select("net", "training").unique(maintain_order=True).iter_rows():
        mine = rows.filter(net=net, training=loss)
        plain, centred = mine["lambda_plain"][0].to_list(), mine["lambda_centred"][0].to_list()
        factors = [a / b for a, b in zip(plain, centred, strict=True)]
        lines = []
        for rate in in_order(mine, "rate"):
            for arm in in_order(mine, "arm"):
                cell = mine.filter(rate=rate, arm=arm)
                own = plain if arm == "none" else centred
                times = cell["lr"][0] * sum(own) / len(own) / 2
                lines.append(
                    [rate, f"{cell['lr'][0]:.3g}", arm, f"{times:.2g}", spread(cell["first_loss"].to_list(), 3),
                     spread(cell["highest"].to_list(), 3), spread(cell["loss"].to_list(), 3),
                     f"{int(cell['diverged'].sum())} of {len(cell)}"]
                )  # fmt: skip
        head = ["rate", "lr", "arm", "times its threshold", "first loss", "highest loss", "loss at the end", "diverged"]
        text.append(
            f"**{net}, {loss}**: lambda_max {spread(plain)} plain, {spread(centred)} centred: lower by a factor of "
            f"{spread(factors, 1)}\n\n" + table(head, lines)
        )
    return "\n\n".join(text)


def auto(rows: pl.DataFrame, raced: pl.DataFrame) -> str:
    """The ranking before training against the losses after it."""
    lines = []
    for data, depth in rows.select("data", "depth").unique(maintain_order=True).iter_rows():
        mine = rows.filter(data=data, depth=depth).select("arm", "place", "control", "cost")
        ends = raced.filter(data=data, depth=depth).with_columns(pl.col("loss").fill_nan(10.0).fill_null(10.0))
        if ends.is_empty():
            continue
        means = ends.group_by("arm").agg(pl.col("loss").mean())
        names = {"none": "none (he)", "xavier": "none (xavier)", "torch": "none (torch)"}
        both = mine.with_columns(pl.col("arm").replace(names)).join(means, on="arm", how="inner").sort("place")
        usable = both.filter(~pl.col("control"))
        rho = both.select(pl.corr("place", "loss", method="spearman")).item()
        best, first = usable.sort("loss").row(0, named=True), usable.row(0, named=True)
        place = 1 + usable.sort("loss")["arm"].to_list().index(first["arm"])
        goal = half_way(raced.filter(data=data))
        lines.append(
            [data, depth, f"{first['arm']} ({first['loss']:.2f}, "
            f"{'trains' if first['loss'] <= goal else 'does not train'})",
             f"{best['arm']} ({best['loss']:.2f})", f"{place} of {len(usable)}", f"{rho:.2f}"]
        )  # fmt: skip
    head = [
        "data",
        "depth",
        "first by auto (its loss)",
        "best in the race",
        "auto's first came in",
        "Spearman, places and losses",
    ]
    return table(head, lines)


def provenance(rows: pl.DataFrame) -> str:
    """Versions, threads and what it cost."""
    used = rows.group_by("group").agg(pl.col("cpu_seconds").first())
    by = used.group_by(pl.col("group").str.split("/").list.first().alias("part"), maintain_order=True).agg(
        pl.col("cpu_seconds").sum()
    )
    cost = ", ".join(f"{part} {seconds:.0f}" for part, seconds in sorted(by.iter_rows()))
    return f"torch {torch.__version__}, one thread, float32; CPU seconds by part: {cost}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/cures"))
    parser.add_argument("--out", type=Path, default=Path("results/cures"))
    args = parser.parse_args()
    lines = [json.loads(line) for line in (args.work / "rows.jsonl").read_text().splitlines()]
    rows = pl.DataFrame(lines, infer_schema_length=None)
    of = {key[0]: part for key, part in rows.group_by(pl.col("group").str.split("/").list.first(), maintain_order=True)}
    makers = {
        "mlp": trainability,
        "vgg": nets,
        "resnet": nets,
        "depths": nets,
        "figure6": figure6,
        "centring": centring,
    }
    made = {part: makers[part](of[part]) for part in makers if part in of}
    if "auto" in of and "mlp" in of:
        made["auto"] = auto(of["auto"], of["mlp"])
    made["provenance"] = provenance(rows)
    words = (Path(__file__).parent / "cures_words.md").read_text()
    text = re.sub(r"\{\{(\w+)\}\}", lambda m: made.get(m[1], "*Not run.*"), words)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".md").write_text(text)
    flat = [name for name, kind in rows.schema.items() if not isinstance(kind, pl.List)]
    rows.select(flat).write_csv(args.out.with_suffix(".csv"))


if __name__ == "__main__":
    main()
