"""The table of the evidence: what was said of every net of the zoo, and what training then did.

    python benchmarks/zoo/table.py [--training FILE] [--diagnosis FILE] [--every] [--out FILE]

``page(training, said)`` is the text; docs/generate.py puts it into docs/findings.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from judging import CLOSE, OPTIMIZERS, SHARE, Rate, balanced, labels, leave_one_kind_out
from numpy.typing import NDArray

from normscope.findings.checkup.trial import LATE, STEPS, TRAINS

RESULTS = Path(__file__).resolve().parents[2] / "results"
NAMES = {"sgd": "SGD", "adam": "Adam"}
TRIALS = {"one": "with a trial on the same 128 samples", "many": "with a trial on 16 batches of 64"}

#: Other lines than ``SHARE``.
LINES = (0.3, 0.5, 0.65, 0.8, 0.9)


def how(trial: str) -> str:
    return TRIALS.get(trial, "without a trial")


def share(flags: pl.Series) -> float:
    return float(flags.to_numpy().mean())


#: Numbers that are tried as forecasts by themselves, without any rule: (column, of which diagnosis, optimizer).
ALONE = (
    ("min participation_rank", "no", "sgd"), ("max dead_units", "no", "sgd"), ("gradient_ratio", "no", "sgd"),
    ("trial sgd progress", "one", "sgd"), ("trial adam progress", "one", "adam"),
    ("trial sgd progress", "many", "sgd"), ("trial adam progress", "many", "adam"),
    ("trial sgd progress, lower if late", "one", "sgd"), ("trial adam progress, lower if late", "one", "adam"),
)  # fmt: skip
#: What is taken off the progress of a late race; Adam's never counts.
LATER = {name: min(late - TRAINS, 1.0) for name, late in LATE.items()}


def joined(training: pl.DataFrame, said: pl.DataFrame, trial: str, share: float = SHARE) -> pl.DataFrame:
    """A row a net: its labels, and what was said of its first seed; ``worst``: 0 nothing, 1 info, 2 warning, 3
    error.
    """
    first = said.filter((pl.col("trial") == trial) & (pl.col("seed") == pl.col("seed").min()))
    codes = [c for c in said.columns if c.startswith("NS")]
    worst = pl.max_horizontal(*(pl.col(c).fill_null(0) for c in codes), pl.col("refused") * 3).alias("worst")
    return labels(training, share).join(
        first.drop("kind", "task", "group", "recipe", "seed").with_columns(worst), on="net"
    )


@dataclass(frozen=True)
class Forecast:
    """One way of reading a diagnosis: ``says`` that a net will train with an optimizer.

    counts: nets that it is held against: not close to the line, and not undecided (a trial too short to say).
    """

    reading: str
    name: str
    says: NDArray[np.bool_]
    truth: NDArray[np.bool_]
    undecided: NDArray[np.bool_]
    counts: NDArray[np.bool_]

    def rate(self, among: NDArray[np.bool_] | None = None) -> Rate:
        """Balanced accuracy among the nets that count."""
        mask = self.counts if among is None else among & ~self.undecided
        return balanced(self.says[mask], self.truth[mask])


def forecasts(table: pl.DataFrame, trial: str) -> Iterator[Forecast]:
    """Every way of reading a diagnosis."""
    worst = table["worst"].to_numpy()
    nobody = np.zeros(len(table), bool)

    def made(reading: str, name: str, says: NDArray[np.bool_], undecided: NDArray[np.bool_]) -> Forecast:
        truth, close = (table[f"{name} {what}"].to_numpy() for what in ("trains", "close"))
        return Forecast(reading, name, says, truth, undecided, ~close & ~undecided)

    yield made("no warning, no error", "sgd", worst < 2, nobody)
    yield made("no warning, no error", "adam", worst < 2, nobody)
    yield made("no error", "adam", worst < 3, nobody)
    if trial != "no":
        for name in OPTIMIZERS:
            # No trial at all where the loss was not finite from the start: that is a no.
            trains, progress = table[f"trial {name} trains"], table[f"trial {name} progress"]
            undecided = (trains.is_null() & progress.is_not_null()).to_numpy()
            yield made(f'`trains["{name}"]`', name, trains.fill_null(0).to_numpy() > 0, undecided)


def page(training: pl.DataFrame, said: pl.DataFrame, *, every: bool = False) -> str:
    """The section "The evidence"; ``every``: with a row for each net."""
    truth = labels(training)
    trials = [t for t in ("no", *TRIALS) if t in said["trial"].unique().to_list()]
    tables = {t: joined(training, said, t) for t in trials}
    parts = [
        _opening(training, truth),
        *_overall(tables),
        *_lines(training, said, trials),
        *_kinds(tables),
        *_alone(tables),
        *_rules(tables["no"]),
    ]
    last = trials[-1]
    parts += [*_lists(tables["no"], "no"), *(_lists(tables[last], last) if last != "no" else ())]
    parts += [*_close(tables["no"]), *(_every(tables[last]) if every else ())]
    return "\n".join(parts) + "\n"


def _opening(training: pl.DataFrame, truth: pl.DataFrame) -> str:
    trained = " and ".join(f"{share(truth[f'{name} trains']):.0%} with {NAMES[name]}" for name in OPTIMIZERS)
    twice = training.group_by("net").len().filter(pl.col("len") > 1).height
    return (
        "## The evidence\n\n"
        f"{len(truth)} nets of {truth['kind'].n_unique()} kinds on {truth['group'].n_unique()} tasks (MNIST, "
        "Fashion-MNIST, part of CIFAR-10, digits, tables, series, tokens), each diagnosed as it was made, on 128 "
        f"training samples, and then trained ({twice} of them from two seeds): 200 steps of 64 samples with SGD at "
        "five rates and with Adam at three, the best of which counts. Most nets are a random sample of wide grids "
        "(depth, width, activation, norm, law of the weights, gain, skip, task); the planted ones are known faults, "
        f"and oddities that look like faults. A net *trains* with an optimizer where it comes {SHARE:.0%} of the way "
        "from chance to the best net of its task with that optimizer, in accuracy, or in explained variance, on fresh "
        f"training samples in training mode. Of all nets {trained} do. Nets within {CLOSE * SHARE:.2f} of that line, "
        "or on both sides of it with two seeds, are neither here nor there: they are left out of the first numbers, "
        "and stand apart below. Made by `benchmarks/zoo/`; numbers in `results/zoo_training.csv` and "
        "`results/zoo_diagnosis.csv`.\n"
    )


def _overall(tables: dict[str, pl.DataFrame]) -> Iterator[str]:
    yield (
        "Balanced accuracy: the mean of the shares that are answered rightly among nets that train and among those "
        "that do not;"
    )
    yield "in brackets 95 % of bootstrap samples of the nets.\n"
    heads = (
        "diagnosis",
        'read as "it trains"',
        "with",
        "nets",
        "undecided",
        "balanced accuracy",
        "of those that train",
        "of the others",
    )
    yield f"| {' | '.join(heads)} | close ones too |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for trial, table in tables.items():
        for f in forecasts(table, trial):
            r, everyone = f.rate(), f.rate(np.ones(len(table), bool))
            yield (
                f"| {how(trial)} | {f.reading} | {NAMES[f.name]} | {r.n} | {f.undecided.sum()} | **{r.value:.1%}** "
                f"({r.low:.1%} to {r.high:.1%}) | {r.good:.1%} | {r.bad:.1%} | {everyone.value:.1%} of {everyone.n} |"
            )
    yield ""
    yield "What a diagnosis costs, the median and the dearest twentieth:\n"
    yield "| diagnosis | seconds | passes forward | backward |\n|---|---|---|---|"
    for trial, table in tables.items():
        numbers = [
            (table[c].drop_nulls().to_numpy(), d) for c, d in (("seconds", 2), ("forwards", 0), ("backwards", 0))
        ]
        cells = [f"{np.median(x):.{d}f}, {np.quantile(x, 0.95):.{d}f}" for x, d in numbers]
        yield f"| {how(trial)} | {' | '.join(cells)} |"
    yield ""


def _lines(training: pl.DataFrame, said: pl.DataFrame, trials: list[str]) -> Iterator[str]:
    """The same with other lines between training and not."""
    yield "Where the line is drawn is a choice. Balanced accuracy (and the share of nets that train) with others:\n"
    found: dict[tuple[str, str, str], list[str]] = {}
    for line in LINES:
        for trial in trials:
            table = joined(training, said, trial, line)
            for f in forecasts(table, trial):
                cell = f"{f.rate().value:.1%} ({f.truth[f.counts].mean():.0%})"
                found.setdefault((how(trial), f.reading, NAMES[f.name]), []).append(cell)
    heads = ("diagnosis", 'read as "it trains"', "with", *(f"{line:.0%} of the way" for line in LINES))
    yield f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
    for key, cells in found.items():
        yield f"| {' | '.join((*key, *cells))} |"
    yield ""


def _kinds(tables: dict[str, pl.DataFrame]) -> Iterator[str]:
    """Balanced accuracy by kind: one column a reading."""
    readings = [(trial, f) for trial, table in tables.items() for f in forecasts(table, trial)]
    yield (
        "By kind (balanced accuracy of nets that are not close to the line; in brackets how many train, and how "
        "many do not):\n"
    )
    short = {"no": "", "one": ", trial", "many": ", trial on 16 batches"}
    heads = [f"{f.reading}{short[trial]}: {NAMES[f.name]}" for trial, f in readings]
    yield f"| kind | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}"
    for kind in next(iter(tables.values()))["kind"].unique(maintain_order=True):
        cells = []
        for trial, f in readings:
            mine = (tables[trial]["kind"] == kind).to_numpy() & f.counts
            r, good = f.rate(mine), f.truth[mine].sum()
            cells.append(f"{'-' if np.isnan(r.value) else f'{r.value:.0%}'} ({good}, {mine.sum() - good})")
        yield f"| {kind} | {' | '.join(cells)} |"
    yield ""


def _alone(tables: dict[str, pl.DataFrame]) -> Iterator[str]:
    """One number and a threshold each, chosen on ten kinds and applied to the eleventh."""
    yield (
        "Single numbers as forecasts, each with the threshold (and the side) that is best on all kinds but the one "
        "it judges:\n"
    )
    yield "| number | with | nets | balanced accuracy | thresholds |\n|---|---|---|---|---|"
    for column, trial, name in ALONE:
        if trial not in tables or column.partition(",")[0] not in tables[trial].columns:
            continue
        table = tables[trial].filter(~pl.col(f"{name} close"))
        if column.endswith("late"):
            late = (pl.col(f"trial {name} steps") > STEPS).cast(pl.Float64) * LATER[name]
            table = table.with_columns((pl.col(f"trial {name} progress") - late).alias(column))
        score = table[column].cast(pl.Float64).fill_null(float("nan")).to_list()
        says, used = leave_one_kind_out(score, table[f"{name} trains"].to_list(), table["kind"].to_list())
        r = balanced(says, table[f"{name} trains"].to_numpy())
        where = f", {TRIALS[trial]}" if trial in TRIALS else ""
        yield f"| {column}{where} | {NAMES[name]} | {r.n} | {r} | {min(used):.3g} to {max(used):.3g} |"
    yield ""


def _rules(table: pl.DataFrame) -> Iterator[str]:
    yield "By rule, warnings and errors without a trial (a net may have several; close nets are left out):\n"
    yield "| code | nets | do not train with SGD | errors | do not train with Adam |\n|---|---|---|---|---|"
    for code in sorted(c for c in table.columns if c.startswith("NS")):
        cells = []
        for name, level in (("sgd", 2), ("adam", 3)):
            fired = table.filter((pl.col(code).fill_null(0) >= level) & ~pl.col(f"{name} close"))
            bad = (~fired[f"{name} trains"]).sum()
            cells += [str(len(fired)), f"{bad} ({bad / len(fired):.0%})" if len(fired) else "-"]
        if cells[0] != "0" or cells[2] != "0":
            yield f"| {code} | {' | '.join(cells)} |"
    yield ""


def _lists(table: pl.DataFrame, trial: str) -> Iterator[str]:
    for f in forecasts(table, trial):
        for title, wrong in (("Missed", f.says & ~f.truth), ("False alarms", ~f.says & f.truth)):
            nets = [_named(row, f.name) for row in table.filter(pl.Series(wrong & f.counts)).iter_rows(named=True)]
            what = f"{how(trial)}, {f.reading}, {NAMES[f.name]}"
            yield f"{title} ({what}; {len(nets)}): {'; '.join(nets) or 'none'}.\n"
        if f.undecided.any():
            yield f"Undecided with {NAMES[f.name]}: {', '.join(table['net'].filter(pl.Series(f.undecided)))}.\n"


def _codes(row: dict[str, Any]) -> str:
    """The codes of warnings and errors."""
    found = {c: v for c, v in row.items() if c.startswith("NS") and v is not None and v >= 2}
    told = " ".join(f"{c}{'!' if v == 3 else ''}" for c, v in found.items())
    return "refused" if row["refused"] else told


def _named(row: dict[str, Any], name: str) -> str:
    told = ", ".join(part for part in (f"{row[f'{name} relative']:.2f}", _codes(row) or "quiet") if part)
    return f"{row['net']} [{row['group']}; {told}]"


def _close(table: pl.DataFrame) -> Iterator[str]:
    for name in OPTIMIZERS:
        part = table.filter(pl.col(f"{name} close"))
        nets = "; ".join(_named(row, name) for row in part.iter_rows(named=True))
        yield f"Close to the line with {NAMES[name]} ({len(part)}): {nets or 'none'}.\n"


def _every(table: pl.DataFrame) -> Iterator[str]:
    yield "Every net (relative scores at the best rate; codes of warnings, with ! of errors):\n"
    yield "| net | task | recipe | SGD | Adam | said |\n|---|---|---|---|---|---|"
    for row in table.iter_rows(named=True):
        yield (
            f"| {row['net']} | {row['group']} | {row['recipe'] or ''} | {row['sgd relative']:.2f} | "
            f"{row['adam relative']:.2f} | {_codes(row)} |"
        )


def read(
    training: Path = RESULTS / "zoo_training.csv", said: Path = RESULTS / "zoo_diagnosis.csv", *, every: bool = False
) -> str:
    """The page of two files; empty where one of them is missing."""
    if not (training.exists() and said.exists()):
        return ""
    return page(*(pl.read_csv(path, infer_schema_length=None) for path in (training, said)), every=every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--training", type=Path, default=RESULTS / "zoo_training.csv")
    parser.add_argument("--diagnosis", type=Path, default=RESULTS / "zoo_diagnosis.csv")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--every", action="store_true", help="a row for each net too")
    args = parser.parse_args()
    text = read(args.training, args.diagnosis, every=args.every)
    if args.out is None:
        print(text)
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
