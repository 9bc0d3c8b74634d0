"""Sweeps: a grid of cells, any executor, one file a cell, one tidy table. Knows no science."""

from __future__ import annotations

from normscope.sweep.grid import Cell, Grid
from normscope.sweep.run import SweepStopped, sweep
from normscope.sweep.store import Store
from normscope.sweep.task import TASKS

__all__ = ["TASKS", "Cell", "Grid", "Store", "SweepStopped", "sweep"]
