"""A training that was recorded: by a tracker, by Hugging Face's ``Trainer``, by a table of losses; read from files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope.core import files
from normscope.core.errors import UsageError, brief
from normscope.core.records import SIGNALS
from normscope.probing import logs
from normscope.probing.measurement import key_schema
from normscope.probing.scalars import RUN, frame

if TYPE_CHECKING:
    import polars

#: What can be read, for whoever named something else.
TAKEN = (
    "the folder or the CSV file that a Tracker wrote (writers=), Hugging Face's trainer_state.json or a folder that "
    "holds one, or a CSV file of losses (columns such as step, loss, val_loss, lr, grad_norm)"
)


@dataclass(frozen=True)
class Run:
    """A training over its steps.

    table: a tracker's tidy table (`normscope.Tracker.frame`), without rows of layers where nobody tracked them.
    facts: how it was recorded. notes: what could not be measured or read. unit: what the column ``step`` counts.
    """

    label: str
    table: polars.DataFrame
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    unit: str = "step"

    @property
    def layered(self) -> bool:
        """Whether layers were measured."""
        return (
            not self.table.filter(signal="activation").is_empty() or not self.table.filter(signal="weight").is_empty()
        )


def read(path: str | Path) -> Run:
    """A run from a file or a folder; in a folder all that is known there, layers and losses, is one run.

    Raises ``UsageError`` for what is not there, cannot be read, or says nothing of a training.
    """
    place = files.expanded(path)
    if not files.path_text(path) or not os.path.lexists(place):
        raise UsageError(f"There must be such a file or folder; there is no {str(path)!r}. Name {TAKEN}.")
    try:
        found = [place] if not place.is_dir() else _inside(place)
        runs = [_file(one) if one.is_file() else _read(one) for one in found]
    except OSError as error:
        raise UsageError(f"{place} must be readable; it is not ({error.strerror or error}). Name another.") from None
    if not runs:
        raise UsageError(f"{place} holds no record of a training. Name {TAKEN}.")
    return _together(place.name or str(place), runs)


def _inside(folder: Path) -> list[Path]:
    """What is read of a folder: a tracker's parts there or in ``normscope/``, the trainer's state, tables of losses."""
    parts = [f for f in (folder, folder / "normscope") if any(f.glob("*.parquet"))][:1]
    saved = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda f: (len(f.parent.name), f.parent.name))
    states = [f for f in (folder / "trainer_state.json", *reversed(saved)) if f.is_file()][:1]
    tables = [] if parts or states else sorted(folder.glob("*.csv"))
    if len(tables) > 1:
        named = [f for f in tables if f.name == "metrics.csv"]
        if not named:
            names = ", ".join(f.name for f in tables[:4])
            raise UsageError(f"A folder must hold one run; {folder} holds the tables {names}. Name one of them.")
        tables = named
    lightning = folder / "metrics.csv"
    if parts and not states and lightning.is_file():
        tables = [lightning]
    return [*parts, *states, *tables]


def _file(path: Path) -> Run:
    """One file, by how it ends."""
    files.check_readable(path)
    kind = path.suffix.lower()
    if kind == ".json":
        return _logged(path, *logs.trainer_state(path))
    if kind in (".csv", ".tsv"):
        table = logs.csv_table(path)
        if {"step", "layer", "signal", "metric", "value"} <= set(table.columns):
            return Run(path.stem, _typed(table, path), {"read from": str(path)})
        return _logged(path, *logs.losses(table, path))
    if kind == ".parquet":
        return _parts([path], path)
    raise UsageError(f"A record of a training must be a file or a folder of a known kind; {path} is not. Name {TAKEN}.")


def _read(place: Path) -> Run:
    """A folder of parts; what is neither file nor folder is refused."""
    if not place.is_dir():
        files.check_readable(place)
    return _parts(sorted(place.glob("*.parquet")), place)


def _parts(paths: Sequence[Path], place: Path) -> Run:
    """A tracker's parquet parts as one run."""
    import polars as pl

    tables, promised = [], 0
    for path in paths:
        files.check_readable(path)
        try:
            columns = pl.read_parquet_schema(path)
            rows = pl.scan_parquet(path).select(pl.len()).collect().item()
            promised += 8 * rows * len(columns)
            files.check_bytes(promised, place)
            tables.append(pl.read_parquet(path, columns=[c for c in _schema() if c in columns]))
        except UsageError:
            raise
        except Exception as error:  # polars raises what its reader in Rust says
            raise UsageError(
                f"{path} must be a parquet file; it cannot be read ({brief(error, 120)}). Delete it, or name another."
            ) from None
    return Run(place.stem, pl.concat([_typed(t, p) for t, p in zip(tables, paths, strict=True)]),
               {"read from": str(place)})  # fmt: skip


def _schema() -> dict[str, Any]:
    import polars as pl

    return {"source": pl.String, "step": pl.Int64, **key_schema(), "value": pl.Float64}


def _typed(table: polars.DataFrame, path: Path) -> polars.DataFrame:
    """The table with the columns of a tracker; ``UsageError`` for somebody else's."""
    import polars as pl

    schema = _schema()
    missing = [c for c in schema if c not in table.columns and c not in ("source", "samples", "kind")]
    numbers = [c for c, t in schema.items() if c in table.columns and t != pl.String]
    if not missing:
        made = table.with_columns(pl.lit(None).alias(c) for c in schema if c not in table.columns)
        made = made.select(pl.col(c).cast(t, strict=False) for c, t in schema.items())
        made = made.with_columns(pl.col("name", "kind").fill_null(""))
        known = made["signal"].is_in([*SIGNALS, RUN])
        lost = made.filter(pl.col("step").is_null() | pl.col("value").is_null() | ~known.fill_null(False))
        if len(lost) <= 1:  # the row that was being written
            return made.filter(pl.col("step").is_not_null() & pl.col("value").is_not_null() & known)
    what = f"the columns {', '.join(missing)} are missing" if missing else f"{', '.join(numbers)} hold other things"
    raise UsageError(f"{path} must be a table that a Tracker wrote; {what}. Name {TAKEN}.")


def _logged(path: Path, rows: Sequence[tuple[int, str, float]], unit: str, facts: Mapping[str, Any],
            notes: Sequence[str]) -> Run:  # fmt: skip
    """A run of which no layer is known."""
    return Run(path.stem, frame(rows), {"read from": str(path), **facts}, notes, unit)


def _together(label: str, runs: Sequence[Run]) -> Run:
    import polars as pl

    table = pl.concat([r.table for r in runs])
    if table.is_empty():
        raise UsageError(f"{label} holds a record of a training without a number in it. Name {TAKEN}.")
    facts = {"read from": ", ".join(dict.fromkeys(str(r.facts["read from"]) for r in runs))}
    for r in runs:
        facts |= {k: v for k, v in r.facts.items() if k != "read from"}
    # The same number of one step twice: a run that went on from a checkpoint. The later one is meant.
    keys = ["step", "layer", "name", "call", "signal", "metric"]
    table = table.unique(keys, keep="last", maintain_order=True).sort("step", maintain_order=True)
    steps = table["step"].to_list()
    facts |= {f"{runs[0].unit}s": f"{min(steps)} to {max(steps)}"}
    return Run(label, table, facts, tuple(n for r in runs for n in r.notes), runs[-1].unit)
