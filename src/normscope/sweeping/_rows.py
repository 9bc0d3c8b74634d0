"""A cell's result as rows of one fixed schema, and as the bytes of a parquet file."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from normscope.core.errors import UsageError
from normscope.core.records import COLUMNS, Profile, Record
from normscope.core.words import version

if TYPE_CHECKING:
    import polars as pl

#: Of the files, and of those that can be read (the first had no column ``step``); a store of another is refused.
SCHEMA, KNOWN = 2, (1, 2)
MAGIC = b"PAR1"


def schema() -> dict[str, Any]:
    """Columns of a cell's file. One row a record; a failed cell has one row, with ``error`` and no metric."""
    import polars as pl

    return {
        "key": pl.String, "task": pl.String, "parameters": pl.String, "attempts": pl.Int64, "seconds": pl.Float64,
        "error": pl.String, "row": pl.Int64, "step": pl.Int64,
        "source": pl.String, "seed": pl.Int64, "layer": pl.Int64, "name": pl.String, "call": pl.Int64,
        "kind": pl.String, "signal": pl.String, "metric": pl.String, "value": pl.Float64, "stderr": pl.Float64,
    }  # fmt: skip


def records(result: Any, task: str = "the task") -> list[Record]:
    """What a task may return, as records: a `Profile`, records, a dict metric -> number (or a list of such dicts, one a
    record), a number, or a polars frame with the columns ``metric`` and ``value``; NaN is a number like others.
    """
    if isinstance(result, Profile):
        return list(result.records)
    if isinstance(result, Record):
        return [result]
    if isinstance(result, Mapping):
        return [Record(0, str(metric), _number(value, metric, task)) for metric, value in result.items()]
    if hasattr(result, "iter_rows") and hasattr(result, "columns"):
        return [_record(row, task) for row in result.iter_rows(named=True)]
    if isinstance(result, Iterable) and not isinstance(result, str | bytes) and getattr(result, "ndim", 1) > 0:
        return [r if isinstance(r, Record) else _record(r, task) for r in result]
    return [Record(0, "value", _number(result, "value", task))]


def encode(
    found: Sequence[Record],
    *,
    key: str,
    task: str,
    parameters: str,
    attempts: int = 1,
    seconds: float = 0.0,
    error: str | None = None,
    seed: int | None = None,
) -> bytes:
    """A parquet file of a finished cell, or of a failed one (``error``: its traceback).

    seed: the cell's; it is that of every record, unless the task told its own (then they are not all 0).
    """
    import polars as pl

    rows: list[Any] = list(found)
    if seed is not None and not any(r.seed for r in rows):
        rows = [r._replace(seed=seed) for r in rows]
    if error is not None or not rows:  # one row that says so
        rows = [_Nothing(seed)]
    n = len(rows)
    columns: dict[str, Any] = {
        "key": [key] * n, "task": [task] * n, "parameters": [parameters] * n, "attempts": [attempts] * n,
        "seconds": [seconds] * n, "error": [error] * n, "row": range(n),
        "step": [getattr(r, "step", None) for r in rows],
    }  # fmt: skip
    columns |= {c: [getattr(r, c, None) for r in rows] for c in COLUMNS}
    frame = pl.DataFrame(columns, schema=schema(), strict=False)
    return to_bytes(frame, [key], failed=error is not None)


@dataclass(frozen=True)
class _Nothing:
    """A row without a number."""

    seed: int | None


def to_bytes(frame: pl.DataFrame, keys: Sequence[str], *, failed: bool = False) -> bytes:
    """A frame as a parquet file that says what it is."""
    buffer = io.BytesIO()
    about = {
        "normscope.schema": str(SCHEMA),
        "normscope.version": version(),
        "normscope.cells": str(len(keys)),
        "normscope.key": keys[0] if len(keys) == 1 else "",
        "normscope.failed": str(failed).lower(),
    }
    frame.write_parquet(buffer, statistics=False, metadata=about)
    return buffer.getvalue()


def torn(data: bytes, key: str) -> str | None:
    """What is wrong with the bytes of a cell's file, as far as its two ends tell; ``None`` if nothing is."""
    if len(data) < 12 or data[:4] != MAGIC:
        return "it is empty or torn" if not data.strip(b"\0") or MAGIC.startswith(data[:4]) else "it is no parquet file"
    if data[-4:] != MAGIC:
        return "it is torn: its end is missing"
    (size,) = struct.unpack("<I", data[-8:-4])
    if size + 12 > len(data):
        return "it is torn: its footer is longer than the file"
    footer = data[-8 - size : -8]
    if b"normscope.schema" not in footer:
        return "it is a parquet file that normscope did not write"
    if key.encode() not in footer:
        return "it is the file of another cell"
    return None


def read(data: bytes) -> pl.DataFrame:
    """The rows of a file; raises ``ValueError`` for anything that is not one of ours."""
    import polars as pl

    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except Exception as error:  # polars raises many kinds, and panics on some damage
        raise ValueError(f"it cannot be read ({str(error).splitlines()[0][:120]})") from error
    if "step" not in frame.columns and "row" in frame.columns:
        frame = frame.insert_column(frame.columns.index("row") + 1, pl.lit(None, pl.Int64).alias("step"))
    if dict(frame.schema) != schema():
        raise ValueError("its columns are not those of a cell")
    return frame


def parameter_columns(texts: Mapping[str, str]) -> pl.DataFrame:
    """``key`` and one typed column a parameter, from key -> canonical JSON: whole numbers are Int64, numbers with a
    fraction among them make Float64; lists, dicts and mixtures stay JSON; what a cell lacks is null.
    """
    import polars as pl

    cells = [json.loads(t) for t in texts.values()]
    names = list(dict.fromkeys(name for c in cells for name in c))
    columns: dict[str, pl.Series] = {"key": pl.Series(list(texts), dtype=pl.String)}
    for name in names:
        values = [c.get(name) for c in cells]
        kinds = {type(v) for v in values if v is not None}
        if kinds <= {int} and all(v is None or abs(v) < 2**63 for v in values):
            columns[name] = pl.Series(values, dtype=pl.Int64)
        elif kinds <= {int, float}:
            columns[name] = pl.Series([None if v is None else float(v) for v in values], dtype=pl.Float64)
        elif kinds <= {bool}:
            columns[name] = pl.Series(values, dtype=pl.Boolean)
        elif kinds <= {str}:
            columns[name] = pl.Series(values, dtype=pl.String)
        else:
            written = [v if isinstance(v, str) or v is None else json.dumps(v) for v in values]
            columns[name] = pl.Series(written, dtype=pl.String)
    return pl.DataFrame(columns)


def _record(row: Any, task: str) -> Record:
    if not isinstance(row, Mapping):
        raise UsageError(
            f"{task} must return a Profile, records, dicts or numbers; its list holds a {type(row).__name__}."
        )
    strange = set(row) - set(COLUMNS)
    if strange or "metric" not in row or "value" not in row:
        raise UsageError(
            f"A row of {task} has metric and value, and may have {', '.join(c for c in COLUMNS)}; "
            f"got {', '.join(map(str, row))}."
        )
    given = {k: v for k, v in row.items() if v is not None}
    value = _number(row["value"], row["metric"], task)
    return Record(**{"layer": 0, "stderr": 0.0, **given, "metric": str(row["metric"]), "value": value})


def _number(value: Any, metric: object, task: str) -> float:
    try:
        return float("nan") if value is None else float(value)
    except (TypeError, ValueError):
        raise UsageError(
            f"{task} must return numbers; {metric!r} is a {type(value).__name__}. Reduce it to a number, or give one "
            "record a number."
        ) from None
