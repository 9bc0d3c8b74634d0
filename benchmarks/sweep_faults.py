"""Kill -9 workers, scheduler and driver of a sweep at random moments; compare its table with an undisturbed run's.

    python benchmarks/sweep_faults.py --kills 24            # local processes, then Dask, where it is installed

Prints one line a round. Exit code 1 if a finished cell was lost, one came twice, the tables differ, or a worker
outlived its driver.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

TASK = """
import time
import numpy as np

def cell(x, seed):
    time.sleep({seconds})
    values = np.random.default_rng(seed).standard_normal(50)
    return {{"sum": values.sum(), "largest": values.max(), "x": x}}
"""
HERE = Path(__file__).resolve().parent


class Lost(AssertionError):
    """What must not happen."""


def task_file(folder: Path, seconds: float) -> Path:
    path = folder / "cells.py"
    path.write_text(TASK.format(seconds=seconds))
    return path


def start(folder: Path, store: str, cells: int, *extra: str) -> subprocess.Popen[bytes]:
    """The driver, as a user starts it."""
    command = [
        sys.executable, "-m", "normscope", "sweep", "--task", f"{folder / 'cells.py'}:cell", "--x", f"1:{cells}",
        "--store", str(folder / store), "--csv", str(folder / f"{store}.csv"), *extra,
    ]  # fmt: skip
    with open(folder / f"{store}-driver.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)


def done(folder: Path, store: str) -> set[str]:
    """Keys of the finished cells, read from the names of the files: no code of the library."""
    return {
        p.name.removesuffix(".parquet")
        for p in (folder / store / "cells").glob("*/????????????????????????????????.parquet")
    }


def parents() -> dict[int, int]:
    """pid -> parent, of all processes that live (zombies do not)."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                found[int(entry)] = int(parent)
    return found


def workers(driver: int) -> list[int]:
    """The driver's grandchildren: its children are the server that forks them, and multiprocessing's tracker."""
    table = parents()
    children = {p for p, parent in table.items() if parent == driver}
    return [p for p, parent in table.items() if parent in children]


def killed(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def wait_for(folder: Path, store: str, more_than: int, driver: subprocess.Popen[bytes], limit: float = 120) -> None:
    """Until the store holds more finished cells, or the driver has ended."""
    end = time.monotonic() + limit
    while len(done(folder, store)) <= more_than and driver.poll() is None:
        if time.monotonic() > end:
            raise Lost(f"no cell finished for {limit} s; see {folder / store}-driver.log")
        time.sleep(0.02)


def kill_workers(folder: Path, cells: int, kills: int, rng: random.Random, *extra: str) -> int:
    """One run, a random worker killed again and again; how many were."""
    driver, count = start(folder, "workers", cells, "--workers", "2", *extra), 0
    while count < kills and driver.poll() is None:
        before = done(folder, "workers")
        wait_for(folder, "workers", len(before), driver)
        time.sleep(rng.uniform(0, 0.3))
        alive = workers(driver.pid)
        count += bool(alive) and killed(rng.choice(alive))
        if not before <= done(folder, "workers"):
            raise Lost("a finished cell is gone after a worker was killed")
    if driver.wait(600) != 0:
        raise Lost(f"the driver ended with {driver.returncode} after its workers were killed")
    return count


def kill_drivers(folder: Path, cells: int, kills: int, rng: random.Random, *extra: str) -> int:
    """Start it, kill it, start it again ...; then let it finish."""
    count = 0
    for _ in range(kills):
        before = done(folder, "drivers")
        driver = start(folder, "drivers", cells, "--workers", "2", *extra)
        wait_for(folder, "drivers", len(before), driver)
        time.sleep(rng.uniform(0, 0.3))
        family = [*workers(driver.pid), *(c for c, p in parents().items() if p == driver.pid)]
        count += driver.poll() is None and killed(driver.pid)
        driver.wait()
        if not before <= done(folder, "drivers"):
            raise Lost("a finished cell is gone after the driver was killed")
        end = time.monotonic() + 20
        while any(p in parents() for p in family):
            if time.monotonic() > end:
                raise Lost("a worker outlived its driver")
            time.sleep(0.05)
    if start(folder, "drivers", cells, "--workers", "2", *extra).wait(600) != 0:
        raise Lost("the last run did not finish")
    return count


@contextmanager
def cluster(folder: Path, port: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A scheduler and two workers, each with its nanny, as one starts them by hand."""
    log = open(folder / "dask.log", "ab")  # noqa: SIM115
    address = f"tcp://127.0.0.1:{port}"
    common = {"stdout": log, "stderr": log, "cwd": folder}
    scheduler = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "distributed.cli.dask_scheduler",
            "--port",
            str(port),
            "--no-dashboard",
            "--host",
            "127.0.0.1",
        ],
        **common,
    )
    options = ["--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
    nannies = [
        subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_worker", address, *options], **common)
        for _ in range(2)
    ]
    try:
        yield [scheduler, *nannies]
    finally:
        for nanny in nannies:
            for child in [c for c, p in parents().items() if p == nanny.pid]:
                killed(child)
        for process in (scheduler, *nannies):
            process.kill()
            process.wait()
        log.close()


def kill_dask(folder: Path, cells: int, kills: int, rng: random.Random) -> dict[str, int]:
    """Workers and the scheduler of a cluster, in turns; after the scheduler's death the sweep is started again."""
    died = {"worker": 0, "scheduler": 0}
    while sum(died.values()) < kills and len(done(folder, "dask")) < cells:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        with cluster(folder, port) as (scheduler, *nannies):
            time.sleep(2)
            driver = start(folder, "dask", cells, "--scheduler", f"tcp://127.0.0.1:{port}")
            for victim in ("worker", "worker", "scheduler"):
                before = done(folder, "dask")
                wait_for(folder, "dask", len(before), driver)
                time.sleep(rng.uniform(0, 0.3))
                if driver.poll() is not None or sum(died.values()) == kills:
                    break
                children = {n.pid for n in nannies}
                at = [c for c, p in parents().items() if p in children and b"spawn_main" in cmdline(c)]
                pid = scheduler.pid if victim == "scheduler" else rng.choice(at) if at else 0
                died[victim] += bool(pid) and killed(pid)
                if not before <= done(folder, "dask"):
                    raise Lost(f"a finished cell is gone after the {victim} was killed")
            if scheduler.poll() is not None or sum(died.values()) == kills:
                code = driver.wait(180)
                if code not in (0, 1):
                    raise Lost(f"the driver ended with {code} after the scheduler was killed")
            else:
                driver.wait(600)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with cluster(folder, port):
        if start(folder, "dask", cells, "--scheduler", f"tcp://127.0.0.1:{port}").wait(600) != 0:
            raise Lost("the last run did not finish")
    return died


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def compare(folder: Path, store: str, cells: int) -> None:
    """Every cell once, and the table equal to the undisturbed one, byte for byte."""
    if len(done(folder, store)) != cells:
        raise Lost(f"{store}: {len(done(folder, store))} of {cells} cells are in the store")
    rows = (folder / f"{store}.csv").read_text().splitlines()
    if len(rows) != 3 * cells + 1 or len(set(rows)) != len(rows):
        raise Lost(f"{store}: {len(rows) - 1} rows, {len(set(rows)) - 1} of them different; wanted {3 * cells}")
    if rows != (folder / "undisturbed.csv").read_text().splitlines():
        raise Lost(f"{store}: the table differs from the undisturbed one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24, help="in all; a third each of workers, drivers, Dask")
    parser.add_argument("--cells", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=0.05, help="a cell's own work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["workers", "drivers", "dask"], help="one of the three, with all the kills")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    each = options.kills if options.only else max(1, options.kills // 3)
    rounds = {"workers": kill_workers, "drivers": kill_drivers, "dask": kill_dask}
    if find_spec("distributed") is None:
        del rounds["dask"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task_file(folder, options.seconds)
        if start(folder, "undisturbed", options.cells, "--workers", "2").wait(900) != 0:
            raise SystemExit((folder / "undisturbed-driver.log").read_text())
        try:
            for victim, kill in rounds.items():
                if options.only in (None, victim):
                    began = time.monotonic()
                    count = kill(folder, options.cells, each, rng)
                    compare(folder, victim, options.cells)
                    print(f"{victim}: {count} killed, table equal ({time.monotonic() - began:.0f} s)", flush=True)
        except Lost as problem:
            for log in folder.glob("*.log"):
                print(f"--- {log.name}\n{log.read_text()[-3000:]}", file=sys.stderr)
            raise SystemExit(f"FAILED: {problem}") from problem


if __name__ == "__main__":
    main()
