"""A few scalars a measured step, for loggers that draw curves."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from normscope.core.favourites import LOGGED

if TYPE_CHECKING:
    import polars


def summary(frame: polars.DataFrame, prefix: str = "normscope") -> dict[str, float]:
    """Scalars of one measured step: ``prefix/signal_metric/min``, ``median``, ``max`` over layers and ``deepest``.

    ``deepest`` is the last layer in the order of the forward pass that has the metric, the output layer left out. NaN
    is left out of minimum, median and maximum, so that one bad layer does not hide the others, and shows in
    ``deepest``.
    """
    import polars as pl

    last = frame["layer"].max()
    scalars: dict[str, float] = {}
    for signal, metric in LOGGED:
        part = frame.filter(pl.col("signal") == signal, pl.col("metric") == metric).sort("layer", "call")
        if part.is_empty():
            continue
        values = part["value"].fill_nan(None).drop_nulls()
        hidden = part.filter(pl.col("layer") != last)
        tag = f"{prefix}/{signal}_{metric}"
        scalars |= {f"{tag}/{how}": _number(getattr(values, how)()) for how in ("min", "median", "max")}
        scalars[f"{tag}/deepest"] = _number((part if hidden.is_empty() else hidden)["value"][-1])
    return scalars


def scalars(frame: polars.DataFrame, prefix: str = "normscope", layers: bool = False) -> dict[str, float]:
    """`summary`, with ``layers`` also ``prefix/<number>-<module>/<signal>_<metric>`` of each layer."""
    found = summary(frame, prefix)
    for row in frame.iter_rows(named=True) if layers else ():
        if (row["signal"], row["metric"]) in LOGGED:
            found[f"{prefix}/{place(row)}/{row['signal']}_{row['metric']}"] = row["value"]
    return found


def place(row: dict[str, Any]) -> str:
    """A layer in a tag: its number, its module, and the call where there are several."""
    return f"{row['layer']:03}-{row['name'] or row['kind']}" + (f"-call{row['call']}" if row["call"] else "")


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
