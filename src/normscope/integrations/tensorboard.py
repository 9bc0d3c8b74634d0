"""A tracker's writer for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope.core.extra import needs_extra
from normscope.core.favourites import LOGGED
from normscope.integrations._summary import place, summary

with needs_extra("TensorBoardWriter needs", "tensorboard"):
    from torch.utils.tensorboard import SummaryWriter

if TYPE_CHECKING:
    import polars


class TensorBoardWriter:
    """Scalars of every measured step: ``Tracker(model, writers=TensorBoardWriter("runs/1"))``.

    target: a folder, or a ``SummaryWriter`` (anything with ``add_scalar``), which stays open when the tracker closes.
    layers: also one curve for every layer, ``normscope/<signal>_<metric>/layer/<number>-<name>``.
    """

    def __init__(self, target: str | Path | Any, *, layers: bool = False) -> None:
        self._own = isinstance(target, str | Path)
        self._board: Any = SummaryWriter(str(target)) if self._own else target
        self._layers = layers

    def __call__(self, frame: polars.DataFrame) -> None:
        """Draw one measured step."""
        step = frame["step"][0]
        for tag, value in summary(frame).items():
            self._board.add_scalar(tag, value, step)
        for row in frame.iter_rows(named=True) if self._layers else ():
            if (row["signal"], row["metric"]) in LOGGED:
                tag = f"normscope/{row['signal']}_{row['metric']}/layer/{place(row)}"
                self._board.add_scalar(tag, row["value"], step)
        self._board.flush()

    def close(self) -> None:
        """Close the ``SummaryWriter``, if it was made here."""
        if self._own:
            self._board.close()
