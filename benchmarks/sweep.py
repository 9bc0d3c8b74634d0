"""What a sweep costs: overhead a cell, 1 and 2 workers, memory of the driver, and a store of 10^5 cells.

    python benchmarks/sweep.py --cells 10000          # local processes, and Dask where it is installed
    python benchmarks/sweep.py --cells 2000 --milliseconds 20 --sleep   # scaling, whatever else the machine does
    python benchmarks/sweep.py --store 100000         # list, resume, read and compact a store

Wall seconds on whatever machine this is; the driver's own CPU seconds stand beside them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from normscope import Grid, sweep
from normscope.core.records import Record
from normscope.sweeping import Store, _rows, executors

HERE = Path(__file__).resolve()


def small(x: int, milliseconds: float = 0.0) -> dict[str, float]:
    """A cell of so much CPU time."""
    end = time.process_time() + milliseconds / 1000
    while time.process_time() < end:
        pass
    return {"square": float(x * x)}


def rest(x: int, milliseconds: float = 0.0) -> dict[str, float]:
    """A cell that takes so much time and no CPU."""
    time.sleep(milliseconds / 1000)
    return {"square": float(x * x)}


def resident() -> float:
    """Of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def timed(label: str, task: str, cells: int, milliseconds: float, executor: object, workers: int | None) -> None:
    """One sweep with a store; its line of the table. Wall seconds are those from the first cell on."""
    seen: list[tuple[float, float]] = []

    def tell(progress: object) -> None:
        if progress.finished in (1, cells // 10, cells):  # type: ignore[attr-defined]
            seen.append((time.perf_counter(), resident()))

    with tempfile.TemporaryDirectory() as folder:
        cpu = time.process_time()
        table = sweep(
            Grid(x=range(cells), milliseconds=milliseconds), f"{HERE}:{task}", Path(folder) / "store", executor,
            workers=workers, progress=tell,
        )  # fmt: skip
        wall, cpu = seen[-1][0] - seen[0][0], time.process_time() - cpu
        assert table.lazy().collect()["value"].sum() == sum(x * x for x in range(cells))
    first, last = seen[1][1], seen[-1][1]
    print(
        f"| {label} | {cells} | {milliseconds:g} | {wall:.1f} | {1e3 * wall / cells:.2f} | {1e3 * cpu / cells:.2f} | "
        f"{first:.0f} | {last:.0f} | {os.getloadavg()[0]:.0f} |",
        flush=True,
    )


def run(task: str, cells: int, milliseconds: float, dask: bool) -> None:
    print(
        "| executor | cells | ms of work | wall s | wall ms a cell | driver's CPU ms a cell | RSS MB at 10 % | at the "
        "end | load |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for workers in (1, 2):
        timed(f"local, {workers}", task, cells, milliseconds, None, workers)
    if dask and find_spec("distributed") is not None:
        for workers in (1, 2):
            with executors.dask(workers=workers) as client:
                timed(f"Dask, {workers}", task, cells, milliseconds, client, workers)


def big_store(cells: int) -> None:
    """A store of loose files made directly, then used."""

    def step(what: str, do: object) -> object:
        wall, cpu = time.perf_counter(), time.process_time()
        out = do()  # type: ignore[operator]
        print(f"| {what} | {time.perf_counter() - wall:.1f} | {time.process_time() - cpu:.1f} |", flush=True)
        return out

    grid = Grid(x=range(cells))
    name = f"{HERE}:small"
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        store.prepare()
        print(f"| {cells} cells | wall s | CPU s |\n|---|---|---|")

        def fill() -> None:
            for cell in list(grid)[:-10]:
                key, x = cell.key(name), cell.parameters["x"]
                found = [Record(0, "square", float(x * x))]
                store.write(key, _rows.encode(found, key=key, task=name, parameters=cell.text))

        step("write them, one file each", fill)
        step("list them and look at both ends of each file", lambda: Store(store.where).listing())
        step("resume: 10 are missing, without workers", lambda: resume(grid, name, store.where))
        loose = step("read the table", lambda: Store(store.where).table(list(grid), name).collect())
        step("compact", lambda: Store(store.where).compact())
        step("list the compacted store", lambda: Store(store.where).listing())
        merged = step(
            "read the table of the compacted store", lambda: Store(store.where).table(list(grid), name).collect()
        )
        assert merged.equals(loose)  # type: ignore[attr-defined]
        assert len(merged) == cells  # type: ignore[arg-type]
        print(f"parts: {len(os.listdir(Path(store.where) / 'parts'))}")


def resume(grid: Grid, name: str, where: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from normscope.sweeping import run

    before, run.COMPACT_FROM = run.COMPACT_FROM, 10**9
    with ThreadPoolExecutor(1) as executor:
        sweep(grid, name, where, executor)
    run.COMPACT_FROM = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=0)
    parser.add_argument("--milliseconds", type=float, default=0.0)
    parser.add_argument("--sleep", action="store_true", help="cells that sleep instead of computing")
    parser.add_argument("--no-dask", action="store_true")
    parser.add_argument("--store", type=int, default=0)
    options = parser.parse_args()
    if options.cells:
        run("rest" if options.sleep else "small", options.cells, options.milliseconds, not options.no_dask)
    if options.store:
        big_store(options.store)


if __name__ == "__main__":
    main()
