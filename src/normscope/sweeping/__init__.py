"""Sweeps: a grid of cells, any executor, one file a cell, one tidy table. Knows no science."""

from __future__ import annotations

from normscope.sweeping.grid import Cell, Grid
from normscope.sweeping.run import SweepStopped, sweep
from normscope.sweeping.store import Store
from normscope.sweeping.task import TASKS

__all__ = ["TASKS", "Cell", "Grid", "Store", "SweepStopped", "sweep"]
