"""Run the cells that a store lacks, on any executor; lose none, keep few in flight."""

from __future__ import annotations

import os
import random
import shutil
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from normscope.core.errors import UsageError, finite_number, flag, function_of, noted, whole_number
from normscope.core.files import drop_private_folders, private_folder
from normscope.sweeping import _rows, _work
from normscope.sweeping._files import Held
from normscope.sweeping._work import Done, Job
from normscope.sweeping.executors import Pool, cores, pinned, pool_of
from normscope.sweeping.grid import Cell, Grid
from normscope.sweeping.progress import Progress, shown
from normscope.sweeping.store import Store, as_store
from normscope.sweeping.task import Task

if TYPE_CHECKING:
    import polars as pl

#: Workers that a cell may take with it, running alone, before it is the guilty one (Dask's ``allowed-failures`` too).
DEATHS = 3
#: Loose files from which a finished sweep compacts its store.
COMPACT_FROM = 2000


class SweepStopped(RuntimeError):
    """The sweep could not go on: the store cannot be written to, or the executor is gone. What was finished is kept."""


def sweep(
    grid: Grid,
    task: str | Callable[..., Any],
    store: Store | str | os.PathLike[str] | None = None,
    executor: Any = None,
    *,
    workers: int | None = None,
    in_flight: int | None = None,
    retries: int = 0,
    timeout: float | None = None,
    memory: int | None = None,
    retry_failed: bool = False,
    progress: bool | Callable[[Progress], object] = False,
    each: Callable[[pl.DataFrame], object] | None = None,
) -> pl.DataFrame | pl.LazyFrame:
    """Run a task on every cell of a grid, and return the tidy table; a store keeps each cell as it finishes.

    task: a registered name (``normscope.sweeping.TASKS``), ``package.module:function``, ``path/file.py:function``, or a
        function. It is called with the cell's parameters as keywords, and with ``seed=cell.seed`` if it has such a
        parameter and the grid does not; it returns a `Profile`, records, a dict metric -> number, or a number.
    store: a folder or fsspec path (see `Store`): only cells that it lacks are run, so the same call resumes. ``None``:
        nothing is kept.
    executor: any ``concurrent.futures.Executor``, a Dask ``Client``, or a function that returns an executor; default
        local processes, one a core, one thread each. ``workers``: how many processes, or cells at once.
    in_flight: cells handed to the executor at a time; default twice the workers.
    retries: how often a cell that raised is run again. A cell that took its worker with it is run alone up to three
        times, and is then a failure. ``retry_failed``: run failures of former runs again.
    timeout: seconds a cell may take; ``memory``: bytes it may add to its worker (see docs/sweeps.md for the outcomes).
    progress: True for a bar with the time left; or a function of a `Progress`.
    each: is called with the rows of every cell as it ends, its parameters as JSON; not with those the store had.

    Returns ``source, <parameters>, seed, layer, ..., metric, value, stderr, error``: a frame without a store, a lazy
    scan with one; rows in the order of the grid, whatever ran first. A failed cell is one row with its traceback in
    ``error``.

    Raises ``UsageError`` before anything runs: unknown or missing parameters, a task that cannot travel, a folder that
    is no store. `SweepStopped` when the store or the executor is lost; ``KeyboardInterrupt`` passes after the workers
    have been ended. In both cases the same call goes on where it stopped.
    """
    if not isinstance(grid, Grid):
        raise UsageError(
            f"sweep() needs a Grid; got a {type(grid).__name__}. Grid(depth=[1, 2], norm=['none', 'batch'])"
        )
    check_options(retries=retries, timeout=timeout, workers=workers, in_flight=in_flight, memory=memory)
    function_of("each", each)
    retry_failed = flag("retry_failed", retry_failed)
    travelling = Task.of(task)
    travelling.check(grid)
    kept = as_store(store)
    run = _Run(kept, travelling, retries, timeout, memory)
    run.each = each
    todo = run.missing(grid, flag("retry_failed", retry_failed))
    if todo:
        _prepare(kept)
        with shown(progress) as tell:
            run.tell = tell
            run.all(todo, executor, workers, in_flight)
    table = kept.table(list(grid), travelling)
    return table.collect() if store is None else table


def check_options(**options: Any) -> None:
    """``UsageError`` for what is no number of retries, workers, cells in flight, seconds or bytes."""
    for name, value in options.items():
        if name == "retries":
            whole_number(name, value, 0)
        elif name == "timeout" and value is not None:
            finite_number(name, value, above=0, below=1e8, do="It is in seconds; leave it out for no limit.")
        elif value is not None:
            whole_number(name, value, 1, most=max(256, 8 * cores()) if name == "workers" else 2**63 - 1)


def _prepare(store: Store) -> None:
    try:
        store.prepare()
    except OSError as error:
        raise UsageError(
            f"The store must be writable, because cells are missing in it; {store.where} is not "
            f"({error.strerror or error}). Choose another folder."
        ) from error


@dataclass
class _Flight:
    job: Job
    alone: bool
    since: float


class _Run:
    """One sweep in progress: what is to do, what flies, who is suspected."""

    def __init__(self, store: Store, task: Task, retries: int, timeout: float | None, memory: int | None) -> None:
        self.store, self.task, self.retries, self.timeout, self.memory = store, task, retries, timeout, memory
        self.progress = Progress()
        self.tell: Callable[[Progress], object] = lambda _: None
        self.each: Callable[[pl.DataFrame], object] | None = None
        self.queue: deque[Job] = deque()
        self.suspects: deque[Job] = deque()
        self.flying: dict[Future[Done], _Flight] = {}
        self.deaths: dict[str, int] = {}

    def missing(self, grid: Grid, retry_failed: bool) -> list[Job]:
        """The cells that are neither finished nor (unless they are retried) failed."""
        listing = self.store.listing()
        self.progress.set_aside = listing.set_aside
        have = listing.done if retry_failed else listing.done | listing.failed.keys()
        keys = [(cell, cell.key(self.task.name)) for cell in grid]
        todo = [self._job(cell, key) for cell, key in keys if key not in have]
        failed = 0 if retry_failed else sum(key in listing.failed for _, key in keys)
        self.progress = replace(self.progress, total=len(keys), stored=len(keys) - len(todo), failed=failed)
        return todo

    def _job(self, cell: Cell, key: str) -> Job:
        seed = cell.seed if self.task.takes_seed and "seed" not in cell.parameters else None
        return Job(self.task, key, dict(cell.parameters), cell.text, seed, 1, self.timeout, self.memory)

    def all(self, todo: list[Job], executor: Any, workers: int | None, in_flight: int | None) -> None:
        """Run them; on the way out the workers are ended, if they are ours."""
        if not isinstance(self.store.files, Held):
            random.shuffle(todo)  # of two runs on one store, each takes what the other has not: no locks needed
        self.queue.extend(todo)
        self.tell(self.progress)
        with self._private(), pinned():
            pool = pool_of(executor, workers)
            most = in_flight or 2 * pool.workers
            try:
                while self.queue or self.suspects or self.flying:
                    self._fill(pool, most)
                    self._collect(pool)
            except KeyboardInterrupt as stop:
                stop.add_note(self.progress.summary(self.store.where))
                raise
            finally:
                for future in self.flying:
                    future.cancel()
                pool.stop()
        if len(self.store.files.names("cells")) >= COMPACT_FROM and not isinstance(self.store.files, Held):
            self._write(self.store.compact)

    @contextmanager
    def _private(self) -> Iterator[None]:
        """A folder for what cells whose time is up leave, and away with it; those of killed drivers too."""
        if self.timeout is None:
            yield
            return
        drop_private_folders("sweep")
        folder = str(private_folder("sweep"))
        self.queue = deque(replace(job, folder=folder) for job in self.queue)
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _fill(self, pool: Pool, most: int) -> None:
        """Hand out cells: any, up to the bound; or one suspect, when nothing else flies, and nothing beside it."""
        if self.suspects or any(flight.alone for flight in self.flying.values()):
            if not self.flying:
                self._submit(pool, self.suspects.popleft(), alone=True)
            return
        while self.queue and len(self.flying) < most and not self.suspects:
            job = self.queue.popleft()
            if not isinstance(self.store.files, Held) and self.store.has(job.key):  # another run has finished it
                self._count(failed=False, seconds=0.0)
                continue
            self._submit(pool, job)

    def _submit(self, pool: Pool, job: Job, alone: bool = False) -> None:
        try:
            future = pool.executor.submit(_work.work, job)
        except Exception as error:
            if not isinstance(error, BrokenExecutor | RuntimeError) and not pool.lost():
                raise
            (self.suspects if alone else self.queue).appendleft(job)
            self._broken(pool, error)
            return
        self.flying[future] = _Flight(job, alone, time.monotonic())
        self.progress.running = len(self.flying)

    def _collect(self, pool: Pool) -> None:
        """Keep what has finished; look every second whether the executor still is there."""
        if not self.flying:
            return
        finished, _ = wait(self.flying, timeout=1.0, return_when=FIRST_COMPLETED)
        if not finished and (why := pool.lost()):
            raise self._stopped(why)
        broken: BaseException | None = None
        for future in finished:
            flight = self.flying.pop(future)
            try:
                self._finish(flight, future.result())
            except (BrokenExecutor, CancelledError) as error:
                broken = error
                self._died(flight, error)
            except Exception as error:
                if type(error).__name__ == "KilledWorker":  # Dask's word for it
                    self._died(flight, error)
                elif pool.lost():
                    raise self._stopped(str(error)) from error
                else:  # the result could not travel, or the like
                    self._finish(flight, _work.lost(flight.job, "".join(traceback.format_exception(error)).rstrip()))
        if broken is not None:
            self._broken(pool, broken)

    def _finish(self, flight: _Flight, done: Done) -> None:
        if done.failed and flight.job.attempt <= self.retries:
            self.queue.append(replace(flight.job, attempt=flight.job.attempt + 1))
            return
        self._keep(flight.job.key, done)

    def _keep(self, key: str, done: Done) -> None:
        self._write(self.store.write, key, done.data, failed=done.failed)
        self._count(failed=done.failed, seconds=done.seconds, error=done.error)
        if self.each is not None:
            with noted("the function each"):
                self.each(_rows.read(done.data))

    def _died(self, flight: _Flight, error: BaseException) -> None:
        """The worker went. Alone, the cell did it, unless somebody else keeps killing workers; so it has three goes."""
        job, took = flight.job, time.monotonic() - flight.since
        if flight.alone:
            by_dask = type(error).__name__ == "KilledWorker"  # which has tried often enough when it says so
            self.deaths[job.key] = self.deaths.get(job.key, 0) + (DEATHS if by_dask else 1)
            seen = _work.last_seen(job)
            if job.timeout and (seen or (took >= job.timeout and not by_dask)):
                why = (
                    f"CellTimeout: the cell took longer than {job.timeout:g} s, and only ended with its worker process."
                    f"{seen}"
                )
                self._keep(job.key, _work.lost(job, why, took))
                return
            if self.deaths[job.key] >= DEATHS:
                why = (
                    "WorkerDied: the cell took its worker process with it again and again, running alone "
                    f"(out of memory, or a crash in compiled code). {type(error).__name__}: {error}"
                )
                self._keep(job.key, _work.lost(job, why, took))
                return
        self.suspects.append(job)

    def _broken(self, pool: Pool, error: BaseException) -> None:
        """After a break: everything that flew is under suspicion (one of them did it), and a new pool starts."""
        for flight in self.flying.values():
            self._died(flight, error)
        self.flying.clear()
        if not pool.rebuild():
            broken = "the Dask scheduler is lost" if isinstance(error, CancelledError) else "the executor is broken"
            gone = pool.lost() or broken
            raise self._stopped(gone + (f" ({error})" if str(error) else "")) from error

    def _write(self, write: Callable[..., Any], *args: Any, **options: Any) -> None:
        try:
            write(*args, **options)
        except OSError as error:
            raise self._stopped(f"the store cannot be written to ({error.strerror or error})") from error

    def _count(self, *, failed: bool, seconds: float, error: str = "") -> None:
        self.progress.count(failed=failed, seconds=seconds, error=error)
        self.progress.running = len(self.flying)
        self.tell(self.progress)

    def _stopped(self, why: str) -> SweepStopped:
        return SweepStopped(f"The sweep stopped: {why}. {self.progress.summary(self.store.where)}")


Kind = Literal["done", "failed", "missing"]


def state(grid: Grid, task: str | Callable[..., Any], store: Store | str | os.PathLike[str] | None) -> dict[Kind, int]:
    """How many cells of a grid a store has finished, has as failures, and lacks; nothing runs, nothing is moved."""
    travelling = Task.of(task)
    travelling.check(grid)
    kept = as_store(store)
    listing = kept.listing(check=False)
    keys = [cell.key(travelling.name) for cell in grid]
    done, failed = sum(k in listing.done for k in keys), sum(k in listing.failed for k in keys)
    return {"done": done, "failed": failed, "missing": len(keys) - done - failed}
