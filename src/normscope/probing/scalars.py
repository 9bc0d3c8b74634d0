"""Numbers of a whole training that its loop knows and a layer does not: the loss, the learning rate, a validation."""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

from torch import Tensor

from normscope.core.errors import UsageError, shown
from normscope.probing.measurement import key_schema

if TYPE_CHECKING:
    import polars

#: The signal of these rows; they are of no layer.
RUN = "run"


class Scalars:
    """What was told and is not in the table yet. Tensors wait as they are: to read one waits for the device."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, str, Any]] = []

    def add(self, step: int, told: dict[str, Any]) -> None:
        """Keep the numbers of a step. ``UsageError`` for what is no number and no tensor of one entry."""
        for name, value in told.items():
            if isinstance(value, Tensor) and value.numel() == 1:
                value = value.detach().clone() if value.device.type != "cpu" else value.item()
            elif not isinstance(value, numbers.Real):
                raise UsageError(
                    f"log() takes numbers, or tensors of one entry; {name} is {shown(value)}. Pass loss=loss."
                )
            self._waiting.append((step, name, value))

    def frame(self) -> polars.DataFrame:
        """The rows that wait, with the columns of the table."""
        return frame((step, name, float(value)) for step, name, value in self._waiting)

    def clear(self) -> None:
        """They are in the table now."""
        self._waiting.clear()

    def __len__(self) -> int:
        return len(self._waiting)


def frame(rows: Any) -> polars.DataFrame:
    """(step, name, value) as rows of a tracker's table, of no layer."""
    import polars as pl

    types = {"step": pl.Int64, "metric": pl.String, "value": pl.Float64}
    told = pl.DataFrame(list(rows), schema=types, orient="row")
    schema = {"source": pl.String, "step": pl.Int64, **key_schema(), "value": pl.Float64}
    blank = {"source": "measured", "signal": RUN, "call": 0, "name": "", "kind": ""}
    columns = [
        pl.col(c) if c in types else pl.lit(blank.get(c), dtype=dtype).alias(c) for c, dtype in schema.items()
    ]  # fmt: skip
    return told.select(columns)
