"""kill -9, in small: benchmarks/sweep_faults.py does it twenty times and more, and with a Dask cluster."""

import random
import runpy
import sys
from pathlib import Path

import pytest

FAULTS = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "sweep_faults.py"))
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
CELLS = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the task and an undisturbed run's table, made without the command line."""
    import normscope
    from normscope import Grid

    folder = tmp_path_factory.mktemp("faults")
    task = FAULTS["task_file"](folder, 0.01)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as executor:
        table = normscope.sweep(Grid(x=range(1, CELLS + 1)), f"{task}:cell", executor=executor)
    table.write_csv(folder / "undisturbed.csv")
    return folder


def test_a_killed_driver_loses_nothing(folder):
    FAULTS["task_file"](folder, 0.1)  # slower, so that the kill comes in the middle; its numbers are the same
    assert FAULTS["kill_drivers"](folder, CELLS, 1, random.Random(0)) == 1
    FAULTS["compare"](folder, "drivers", CELLS)


def test_the_comparison_can_fail(folder):
    rows = (folder / "undisturbed.csv").read_text().splitlines()
    store = folder / "bad" / "cells" / "00"
    store.mkdir(parents=True)
    for i in range(CELLS):
        (store / f"{i:032x}.parquet").touch()
    for wrong in (rows[:-1], [*rows[:-1], rows[1]], [*rows[:-1], rows[-1].replace("sum", "sun") + "1"]):
        (folder / "bad.csv").write_text("\n".join(wrong))
        with pytest.raises(FAULTS["Lost"]):
            FAULTS["compare"](folder, "bad", CELLS)
    (folder / "bad.csv").write_text("\n".join(rows))
    FAULTS["compare"](folder, "bad", CELLS)
    next(store.iterdir()).unlink()
    with pytest.raises(FAULTS["Lost"], match="49 of 50"):
        FAULTS["compare"](folder, "bad", CELLS)
