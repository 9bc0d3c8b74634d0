"""Records: one number with its coordinates. A ``Profile`` is a list of them, read as one tidy table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from normscope.core.faces import Shown

if TYPE_CHECKING:
    import pandas
    import polars

#: Columns of every table, in order; the parameters of a cell stand between ``source`` and ``seed``.
COLUMNS = ("source", "seed", "layer", "name", "call", "kind", "signal", "metric", "value", "stderr")
SOURCES = ("measured", "simulated", "predicted")
SIGNALS = ("activation", "gradient", "weight")


class Record(NamedTuple):
    """One number. ``(layer, call, signal, metric)`` is its key within a profile and a seed.

    ``layer`` counts from 0 (the input) in the order of the forward pass; ``name`` is the module's path
    (empty where there is no module); ``kind`` its class. ``signal`` says what was measured: the layer's
    output (``activation``), the loss gradient with respect to it (``gradient``), or the loss gradient
    with respect to the layer's own parameters (``weight``). ``stderr`` is one standard error, 0 where
    the value is exact up to rounding, NaN where it is unknown.
    """

    layer: int
    metric: str
    value: float
    signal: str = "activation"
    name: str = ""
    call: int = 0
    kind: str = ""
    stderr: float = 0.0
    seed: int = 0
    source: str = "measured"


@dataclass(frozen=True)
class Profile(Shown):
    """What a network does to a batch, layer by layer.

    ``records`` hold the numbers, ``parameters`` the coordinates shared by all of them (the spec, or
    the name of the model), ``facts`` how they came about (mode, batch size, dtype, device, loss ...).
    """

    face = "profile"
    records: tuple[Record, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def frame(self) -> polars.DataFrame:
        """The tidy table, one row a record; columns ``source, <parameters>, seed, layer, ...``."""
        import polars as pl

        types = {
            "source": pl.String, "seed": pl.Int64, "layer": pl.Int64, "name": pl.String, "call": pl.Int64,
            "kind": pl.String, "signal": pl.String, "metric": pl.String, "value": pl.Float64, "stderr": pl.Float64,
        }  # fmt: skip
        columns = {c: [getattr(r, c) for r in self.records] for c in COLUMNS}
        table = pl.DataFrame(columns, schema=types)
        shared = [pl.lit(v).alias(k) for k, v in self.parameters.items()]
        return table.select(pl.col("source"), *shared, pl.exclude("source"))

    def to_pandas(self) -> pandas.DataFrame:
        """The tidy table as a pandas frame (pandas must be installed)."""
        import pandas as pd

        return pd.DataFrame(self.frame().to_dict(as_series=False))

    def series(self, metric: str, signal: str = "activation", source: str | None = None) -> dict[int, float]:
        """layer -> value of one metric (first call of each layer; mean over seeds; of the first source, if not
        named).
        """
        found: dict[int, list[float]] = {}
        source = source or (self.records[0].source if self.records else "")
        for r in self.records:
            if r.metric == metric and r.signal == signal and r.call == 0 and r.source == source:
                found.setdefault(r.layer, []).append(r.value)
        return {layer: sum(v) / len(v) for layer, v in sorted(found.items())}

    def __add__(self, other: Profile) -> Profile:
        """Both sets of records, if they describe the same cell (the parameters must agree)."""
        if dict(self.parameters) != dict(other.parameters):
            raise ValueError("profiles of different cells do not add; concatenate their frames instead")
        return Profile(self.records + other.records, self.parameters, {**other.facts, **self.facts})

    def __repr__(self) -> str:
        layers = {r.layer for r in self.records}
        sources = ", ".join(sorted({r.source for r in self.records})) or "empty"
        metrics = len({r.metric for r in self.records})
        return f"Profile({sources}: {len(layers)} layers, {metrics} metrics, {len(self.records)} records)"


def flat(parameters: Mapping[str, Any]) -> dict[str, str | int | float | bool | None]:
    """Parameters as table cells: numbers, strings, booleans; anything else becomes its ``repr``."""
    plain = (str, int, float, bool, type(None))
    return {k: v if isinstance(v, plain) else repr(v) for k, v in parameters.items()}


#: A number that is written with its sign.
_SIGNED = r"(?i)^[+-](inf|(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)$"


def csv(table: polars.DataFrame, header: bool = True) -> str:
    """A table as CSV. A text that a spreadsheet would take for a formula (it begins with = + - @) gets an apostrophe
    in front; numbers stay as they are.
    """
    import polars as pl

    texts = pl.selectors.string()
    formula = texts.str.contains(r"^[=+\-@\t\r]") & ~texts.str.contains(_SIGNED)
    safe = pl.when(formula).then(pl.lit("'") + texts).otherwise(texts)
    return table.with_columns(safe.name.keep()).write_csv(include_header=header)


def concat(profiles: Iterable[Profile]) -> polars.DataFrame:
    """One table from several profiles; parameters that a profile lacks are null."""
    import polars as pl

    return pl.concat([p.frame() for p in profiles], how="diagonal_relaxed")
