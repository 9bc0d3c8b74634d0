"""Sweeps: the same table everywhere, only what is missing is run, and every way to go wrong has its outcome."""

import math
import os
import signal
import threading
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import sweep_tasks

import normscope
from normscope import Grid, UsageError, sweep
from normscope.sweeping import Store, SweepStopped, executors, run
from normscope.sweeping.run import state

FILE = f"{Path(sweep_tasks.__file__)}:"


@pytest.fixture(scope="module")
def workers():
    """One pool of local workers for this file: starting one takes longer than most tests."""
    pool = executors.local(2)
    yield pool.executor
    executors.kill(pool.executor)


class Inline(Executor):
    """Runs a cell when it is submitted; counts, and knows how many results nobody has looked at."""

    def __init__(self):
        self.submitted, self.waiting, self.most = 0, 0, 0

    def submit(self, function, /, *args, **options):
        self.submitted += 1
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        future = Future()
        future.set_result(function(*args, **options))
        read = future.result

        def result(timeout=None):
            self.waiting -= 1
            return read(timeout)

        future.result = result
        return future


def test_threads_processes_and_one_by_one_give_the_same_table_bit_for_bit(workers):
    grid = Grid(x=[3, 1, 2], y=[0.5, 1])
    with ThreadPoolExecutor(2) as threads:
        tables = [
            sweep(grid, task, executor=executor)
            for task in (sweep_tasks.draw, FILE + "draw")
            for executor in (Inline(), threads, workers)
        ]
    for table in tables[1:]:
        assert table.equals(tables[0])
    assert tables[0]["x"].to_list() == [c.parameters["x"] for c in grid for _ in range(3)]


def test_arithmetic_is_the_same_on_threads_and_processes(workers):
    grid = Grid(x=[1, 2, 3, 4])
    with ThreadPoolExecutor(2) as threads:
        a, b = (sweep(grid, FILE + "tensors", executor=e) for e in (threads, workers))
    assert a.equals(b)
    assert a.filter(pl.col("metric") == "threads")["value"].to_list() == [1] * 4


def test_a_cell_is_the_call_of_its_function():
    table = sweep(Grid(x=[2], seed=[5]), sweep_tasks.draw, executor=Inline())
    assert dict(zip(table["metric"], table["value"], strict=True)) == sweep_tasks.draw(x=2, seed=5)
    assert set(table["seed"]) == {5}
    grid = Grid(x=[2])
    table = sweep(grid, sweep_tasks.draw, executor=Inline())
    assert dict(zip(table["metric"], table["value"], strict=True)) == sweep_tasks.draw(x=2, seed=grid[0].seed)
    assert set(table["seed"]) == {grid[0].seed}


def test_workers_have_one_thread_each_and_the_driver_keeps_its_own(workers, monkeypatch):
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        table = sweep(Grid([{}]), FILE + "threads", executor=workers)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert table["value"].to_list() == [1, 1]
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_a_second_run_computes_only_what_is_missing(tmp_path):
    first, more = Inline(), Inline()
    sweep(Grid(x=range(5)), sweep_tasks.draw, tmp_path / "s", first)
    table = sweep(Grid(x=range(3, 8)), sweep_tasks.draw, tmp_path / "s", more).collect()
    assert (first.submitted, more.submitted) == (5, 3)
    assert table.equals(sweep(Grid(x=range(3, 8)), sweep_tasks.draw, executor=Inline()))


def test_two_tasks_share_a_store(tmp_path):
    grid = Grid(x=[1, 2])
    a = sweep(grid, sweep_tasks.draw, tmp_path / "s", Inline()).collect()
    b = sweep(grid, sweep_tasks.strange, tmp_path / "s", Inline()).collect()
    assert (a["metric"].n_unique(), b["metric"].n_unique()) == (3, 1)


def test_cells_in_flight_are_bounded():
    executor = Inline()
    sweep(Grid(x=range(50)), sweep_tasks.draw, executor=executor, in_flight=4)
    assert executor.most == 4


OUTCOMES = {
    "raises": "ValueError: no weights today",
    "sleeps": "CellTimeout: the cell took longer than 1 s",
    "swallows": "CellTimeout: the cell took longer than 1 s",
    "dies": "WorkerDied: the cell took its worker process with it again and again, running alone",
    "memory": "MemoryError: the cell may take 500000000 bytes",
    "exits": "SystemExit: 3",
    "text": "must return numbers; 'm' is a str",
}


def test_every_way_to_go_wrong_has_its_outcome_and_harms_no_other(tmp_path):
    grid = Grid(x=["fine", "nan", *OUTCOMES, "well"])
    table = sweep(
        grid, FILE + "strange", tmp_path / "s", executor=None, workers=2, timeout=1, memory=500_000_000
    ).collect()  # fmt: skip
    errors = {row["x"]: row["error"] for row in table.iter_rows(named=True)}
    values = {row["x"]: row["value"] for row in table.iter_rows(named=True)}
    assert list(errors) == [c.parameters["x"] for c in grid]
    for x, words in OUTCOMES.items():
        assert words in errors[x], x
        assert values[x] is None
    assert "sweep_tasks.py" in errors["raises"]
    assert "time.sleep(600)" in errors["sleeps"]
    assert errors["fine"] is errors["nan"] is errors["well"] is None
    assert math.isnan(values["nan"])
    assert state(grid, FILE + "strange", tmp_path / "s") == {"done": 3, "failed": 7, "missing": 0}
    assert len(Store(tmp_path / "s").failures()) == 7


class Fragile(Executor):
    """A pool of which every cell is lost when one of them dies, as local processes are; works when it is waited for."""

    def __init__(self):
        self.flying = {}

    def submit(self, function, /, *args, **options):
        future = Future()
        if args:
            self.flying[future] = function, replace(args[0], timeout=None)
        else:  # the pool's first question: is it alive?
            future.set_result(function())
        return future

    def settle(self):
        """Finish what flew, or break it all beside a cell that dies; its names."""
        flew, self.flying = self.flying, {}
        names = [job.parameters["x"] for _, job in flew.values()]
        for future, (function, job) in flew.items():
            if any(x.startswith("dies") for x in names):
                future.set_exception(BrokenExecutor("a worker died"))
            else:
                future.set_result(function(job))
        return names


@pytest.mark.parametrize(("timeout", "why"), [(None, "WorkerDied"), (1e-9, "CellTimeout")])
def test_a_cell_that_flew_beside_a_killer_is_never_blamed(monkeypatch, timeout, why):
    """One death is enough for a verdict here, so that blame for a death in company would show at once; and each second
    look finds nothing finished, as with slow cells, so that a suspect's company would show too.
    """
    made, rounds, looks = [], [], iter([False, True] * 30)

    def make():
        made.append(Fragile())
        return made[-1]

    def wait(flying, **_):
        if next(looks):
            rounds.append(made[-1].settle())
        return {f for f in flying if f.done()}, {f for f in flying if not f.done()}

    monkeypatch.setattr(run, "wait", wait)
    monkeypatch.setattr(run, "DEATHS", 1)
    grid = Grid(x=["a", "dies", "b", "dies too", "c", "d", "e"])
    table = sweep(grid, sweep_tasks.strange, executor=make, in_flight=3, timeout=timeout)
    errors = dict(zip(table["x"], table["error"], strict=True))
    assert {x for x, error in errors.items() if error is None} == {"a", "b", "c", "d", "e"}
    assert why in errors["dies"]
    assert why in errors["dies too"]
    assert [flew for flew in rounds if len(flew) > 1] == [["a", "dies", "b"], ["dies too", "c", "d"]]
    assert sorted(x for flew in rounds if len(flew) == 1 for x in flew) == sorted(errors)


def test_workers_killed_from_outside_lose_nothing():
    made, killed, due = [], [], [3, 6, 9]

    def make():
        made.append(executors.local(2).make())
        return made[-1]

    def kill(progress):
        if due and progress.finished >= due[0] and made[-1] not in killed:  # a pool dies once, and its death is noticed
            due.pop(0)
            killed.append(made[-1])
            os.kill(min(made[-1]._processes), signal.SIGKILL)

    grid = Grid(x=range(20))
    table = sweep(grid, FILE + "draw", executor=make, in_flight=4, progress=kill)
    assert table.equals(sweep(grid, FILE + "draw", executor=Inline()))
    assert len(made) == 4


def test_a_cell_that_never_comes_back_to_python_ends_with_its_worker():
    table = sweep(Grid(x=["deaf", "fine"]), FILE + "strange", workers=1, timeout=0.5)
    assert "only ended with its worker process" in table["error"][0]
    assert "sweep_tasks.py" in table["error"][0]
    assert table["value"].to_list() == [None, 1]


def test_failures_are_kept_and_retried_when_asked(tmp_path):
    (tmp_path / "marks").mkdir()
    grid = Grid(x=[1, 2], folder=str(tmp_path / "marks"))
    for again, executor, expected in (
        (False, Inline(), 2),
        (False, Inline(), 0),
        (True, Inline(), 2),
        (True, Inline(), 0),
    ):
        sweep(grid, sweep_tasks.flaky, tmp_path / "s", executor, retry_failed=again)
        assert executor.submitted == expected
    assert state(grid, sweep_tasks.flaky, tmp_path / "s") == {"done": 2, "failed": 0, "missing": 0}


def test_retries_are_counted(tmp_path):
    (tmp_path / "marks").mkdir()
    grid = Grid(x=[1], folder=str(tmp_path / "marks"))
    sweep(grid, sweep_tasks.flaky, tmp_path / "s", Inline(), retries=2)
    assert Store(tmp_path / "s").scan().collect()["attempts"].to_list() == [2]
    sweep(Grid(x=["raises"]), sweep_tasks.strange, tmp_path / "s", Inline(), retries=2)
    assert Store(tmp_path / "s").failures()["attempts"].to_list() == [3]


def test_two_runs_on_one_store_at_a_time_share_the_work(tmp_path):
    (tmp_path / "marks").mkdir()
    grid = Grid(x=range(200), folder=str(tmp_path / "marks"))
    tables = []

    def run():
        with ThreadPoolExecutor(1) as executor:
            tables.append(sweep(grid, sweep_tasks.counted, tmp_path / "s", executor).collect())

    both = [threading.Thread(target=run) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert tables[0].equals(tables[1])
    assert tables[0]["value"].to_list() == list(range(200))
    ran = len(list((tmp_path / "marks").iterdir()))
    assert ran < 350  # alone each would run 200


def test_a_torn_file_is_told_and_its_cell_computed_again(tmp_path):
    grid = Grid(x=range(4))
    before = sweep(grid, sweep_tasks.draw, tmp_path / "s", Inline()).collect()
    path = tmp_path / "s" / Store(tmp_path / "s").listing().loose[grid[2].key(f"{sweep_tasks.__name__}:draw")]
    path.write_bytes(path.read_bytes()[:100])
    executor, told = Inline(), []
    after = sweep(grid, sweep_tasks.draw, tmp_path / "s", executor, progress=lambda p: told.append(p.set_aside))
    assert executor.submitted == 1
    assert path.name in told[-1][0]
    assert after.collect().equals(before)


class Interrupting(Inline):
    """The user presses Ctrl-C after ten cells."""

    def submit(self, function, /, *args, **options):
        if self.submitted == 10:
            raise KeyboardInterrupt
        return super().submit(function, *args, **options)


def test_an_interrupt_keeps_what_is_finished_and_says_how_to_resume(tmp_path):
    grid = Grid(x=range(30))
    with pytest.raises(KeyboardInterrupt) as stop:
        sweep(grid, sweep_tasks.draw, tmp_path / "s", Interrupting(), in_flight=1)
    assert "10 of 30 cells are finished and kept" in stop.value.__notes__[0]
    rest = Inline()
    table = sweep(grid, sweep_tasks.draw, tmp_path / "s", rest).collect()
    assert rest.submitted == 20
    assert table.equals(sweep(grid, sweep_tasks.draw, executor=Inline()))


def test_a_full_disk_stops_the_sweep_and_loses_nothing(tmp_path, monkeypatch):
    grid, store = Grid(x=range(10)), Store(tmp_path / "s")
    write = store.files.write

    def full(path, data, durable=False):
        if len(store.files.names("cells")) == 4:
            raise OSError(28, "No space left on device")
        write(path, data, durable=durable)

    monkeypatch.setattr(store.files, "write", full)
    with pytest.raises(SweepStopped, match=r"No space left on device.*4 of 10 cells are finished and kept"):
        sweep(grid, sweep_tasks.draw, store, Inline())
    rest = Inline()
    sweep(grid, sweep_tasks.draw, tmp_path / "s", rest)
    assert rest.submitted == 6


def test_a_store_that_cannot_be_written_to_is_told_before_anything_runs(tmp_path, monkeypatch):
    grid = Grid(x=range(3))
    table = sweep(grid, sweep_tasks.draw, tmp_path / "s", Inline()).collect()

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    store, executor = Store(tmp_path / "s"), Inline()
    monkeypatch.setattr(store.files, "write", denied)
    with pytest.raises(UsageError, match=r"must be writable.*Permission denied"):
        sweep(Grid(x=range(5)), sweep_tasks.draw, store, executor)
    assert executor.submitted == 0
    assert sweep(grid, sweep_tasks.draw, store, executor).collect().equals(table), "a finished sweep only reads"


def test_a_broken_executor_of_the_caller_stops_the_sweep(tmp_path):
    import multiprocessing

    executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver"))
    with executor, pytest.raises(SweepStopped, match="executor is broken"):
        sweep(Grid(x=["dies", "fine"]), FILE + "strange", tmp_path / "s", executor)


def test_a_function_that_makes_executors_is_asked_again_when_one_breaks():
    import multiprocessing

    made = []

    def make():
        made.append(ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")))
        return made[-1]

    table = sweep(Grid(x=["dies", "fine"]), FILE + "strange", executor=make)
    assert "WorkerDied" in table["error"][0]
    assert table["value"][1] == 1
    assert len(made) > 1


def test_functions_of_a_session_travel_to_workers(workers):
    scale = 3
    table = sweep(Grid(x=[1, 2]), lambda x: {"m": scale * x}, executor=workers)
    assert table["value"].to_list() == [3, 6]


@pytest.mark.parametrize(
    ("grid", "task", "words"),
    [
        (Grid(z=[1]), sweep_tasks.draw, "no parameter of the task sweep_tasks:draw 'z'"),
        (Grid(y=[1]), sweep_tasks.draw, "needs x"),
        (Grid(dept=[1]), "simulate", "Did you mean 'depth'"),
        (Grid(norm=["bacth"]), "simulate", "Did you mean 'batch'"),
        (Grid(metrics="orthogonality_gp"), "probe", "Did you mean 'orthogonality_gap'"),
        (Grid(x=[1]), "simulat", "Did you mean 'simulate'"),
        (Grid(x=[1]), "sweep_tasks:nothing", "nothing"),
        (Grid(x=[1]), 3, "function or its name"),
        ({"x": 1}, "simulate", "needs a Grid"),
    ],
)
def test_misuse_is_told_before_anything_runs(grid, task, words):
    executor = Inline()
    with pytest.raises(UsageError, match=words):
        sweep(grid, task, executor=executor)
    assert executor.submitted == 0


@pytest.mark.parametrize(
    "options", [{"retries": -1}, {"timeout": 0}, {"workers": 1.5}, {"in_flight": 0}, {"memory": "1G"}]
)
def test_options_are_checked(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        sweep(Grid(x=[1]), sweep_tasks.draw, executor=Inline(), **options)


def test_progress_counts_and_estimates():
    told = []
    sweep(
        Grid(x=range(4)),
        sweep_tasks.draw,
        executor=Inline(),
        progress=lambda p: told.append((p.finished, p.left, p.eta)),
    )
    assert [t[:2] for t in told] == [(0, 4), (1, 3), (2, 2), (3, 1), (4, 0)]
    assert math.isnan(told[0][2])
    assert told[-1][2] == 0


def test_an_empty_grid_gives_an_empty_table():
    assert len(sweep(Grid([]), sweep_tasks.draw)) == 0


def test_importing_normscope_loads_no_tables_and_no_dask():
    import subprocess
    import sys

    code = (
        "import normscope, sys; print([m for m in ('polars', 'dask', 'distributed', 'fsspec.core') if m in "
        "sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() in ("[]", "['fsspec.core']")  # some builds of torch load fsspec themselves
    assert callable(normscope.sweep)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 kB, where one may mount such a thing."""
    import subprocess

    where = tmp_path / "tiny"
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(where)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_disk_that_is_really_full(tiny_disk):
    import subprocess

    grid = Grid(x=range(100))
    with pytest.raises(SweepStopped, match="No space left on device"):
        sweep(grid, sweep_tasks.draw, tiny_disk / "s", Inline())
    kept = Store(tiny_disk / "s").listing()
    assert 10 < len(kept.done) < 100
    assert kept.set_aside == ()
    assert list((tiny_disk / "s").rglob("*.tmp")) == []
    subprocess.run(["mount", "-o", "remount,size=4m", str(tiny_disk)], check=True)
    rest = Inline()
    table = sweep(grid, sweep_tasks.draw, tiny_disk / "s", rest).collect()
    assert rest.submitted == 100 - len(kept.done)
    assert table.equals(sweep(grid, sweep_tasks.draw, executor=Inline()))
