"""Where cells run: local processes by default, Dask, or any executor one has."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPException
from typing import Any
from urllib.request import ProxyHandler, build_opener

from normscope.core.errors import UsageError, noted
from normscope.core.extra import needs_extra
from normscope.sweeping import _work

#: A cluster of this machine listens here alone: whoever reaches a scheduler can run code on it.
LOOPBACK = "127.0.0.1"


class Pool:
    """An executor, how many cells it works on at once, and how to have another if it breaks.

    make: a function that returns a new executor; ``None`` for one that the caller owns, which is never shut down here.
    """

    def __init__(self, executor: Executor | None, make: Callable[[], Executor] | None, workers: int) -> None:
        self.make, self.workers = make, workers
        self.executor = executor if executor is not None else _started(make)

    def rebuild(self) -> bool:
        """A new executor in the place of a broken one; False where that is the caller's."""
        if self.make is None:
            return False
        self.stop()
        self.executor = _started(self.make)
        return True

    def lost(self) -> str | None:
        """Why no future will ever finish, or ``None``: Dask's client tells when its scheduler is gone."""
        client = getattr(self.executor, "_client", None)
        status = getattr(client, "status", "running")
        return None if status in ("running", "newly-created") else f"the Dask client is {status}"

    def stop(self) -> None:
        """Drop what is queued and end the workers at once, if they are ours."""
        if self.make is None:
            return
        kill(self.executor)


def kill(executor: Executor) -> None:
    """End an executor of processes without waiting for what they do."""
    processes = list((getattr(executor, "_processes", None) or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        with suppress(Exception):
            process.kill()
    for process in processes:
        with suppress(Exception):
            process.join(5)


def local(workers: int | None = None) -> Pool:
    """Worker processes on this machine, as many as its cores, one thread each."""
    count = workers or cores()
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([*_work.NEEDED])
        _start_fork_server()

    def make() -> Executor:
        return ProcessPoolExecutor(count, mp_context=context, initializer=_work.start_worker)

    return Pool(None, make, count)


def _start_fork_server() -> None:
    """Start what the workers are forked from with Ctrl-C blocked, which it and they inherit: it is for the driver, and
    they would tell of it while they import.
    """
    from multiprocessing import forkserver, resource_tracker

    resource_tracker.ensure_running()  # where it does not run yet, it unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def pool_of(executor: Any, workers: int | None = None) -> Pool:
    """A pool from what the caller has: nothing (local processes), an executor, a Dask client, or a function that
    returns an executor (which can then be replaced if it breaks).
    """
    if executor is None:
        return local(workers)
    if hasattr(executor, "get_executor"):  # a Dask client
        made = executor.get_executor(pure=False)
        return Pool(made, None, workers or _threads(made))
    if isinstance(executor, Executor) or (hasattr(executor, "submit") and hasattr(executor, "shutdown")):
        return Pool(executor, None, workers or getattr(executor, "_max_workers", None) or _threads(executor))
    if callable(executor):

        def make() -> Any:
            with noted("the function executor"):
                return executor()

        return Pool(None, make, workers or cores())
    raise UsageError(
        f"executor must be a concurrent.futures.Executor, a Dask client, or a function that returns an executor; "
        f"got a {type(executor).__name__}."
    )


@contextmanager
def dask(scheduler: str | None = None, workers: int | None = None) -> Iterator[Any]:
    """A Dask client: of the running cluster at ``scheduler`` (``tcp://host:port``), or of a new one on this machine."""
    with needs_extra("--scheduler needs" if scheduler else "A Dask cluster needs", "dask"):
        from distributed import Client, LocalCluster  # type: ignore[import-not-found, import-untyped, unused-ignore]
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="10s", set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise UsageError(
                f"There must be a Dask scheduler at {scheduler}; none answers ({type(error).__name__}: {error}). "
                "Start one with: dask scheduler"
            ) from error
        with client:
            yield client
        return
    import dask.config  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with (
        _environment(_work.ONE_THREAD),
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            n_workers=workers or cores(),
            threads_per_worker=1,
            host=LOOPBACK,
            dashboard_address=f"{LOOPBACK}:0",
            worker_dashboard_address=f"{LOOPBACK}:0",
            silence_logs=50,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def dashboard(client: Any) -> str | None:
    """Where a Dask client's dashboard serves pages that this machine can see; ``None`` where none does (no bokeh,
    ``--no-dashboard``, another network).
    """
    try:
        link = str(client.dashboard_link)
        with build_opener(ProxyHandler({})).open(link, timeout=5) as reply:
            page = reply.read()
    except (OSError, KeyError, ValueError, HTTPException):
        return None
    return link if re.search(rb"<script[^>]*bokeh", page) else None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def pinned() -> Iterator[None]:
    """One thread for this process and for the workers that it starts; as before afterwards."""
    import torch

    before = torch.get_num_threads()
    with _environment(_work.ONE_THREAD):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _started(make: Callable[[], Executor] | None) -> Executor:
    """A new executor that has answered once."""
    assert make is not None
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UsageError(
            "sweep() was called while a worker process was importing your script. Put the call under "
            'if __name__ == "__main__":'
        )
    executor = make()
    if not (hasattr(executor, "submit") and hasattr(executor, "shutdown")):
        raise UsageError(f"A function for executor= must return an executor; it returned a {type(executor).__name__}.")
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    try:
        executor.submit(_work.alive).result(timeout=300)
    except BrokenExecutor as error:
        raise UsageError(
            "The worker processes must start; they end at once (their message is above). A script that calls sweep() "
            'needs if __name__ == "__main__": around the call.'
        ) from error
    except BaseException:  # Ctrl-C: the server would fork for a driver that is gone; the next sweep starts another
        if pid := getattr(server, "_forkserver_pid", None):
            os.kill(pid, signal.SIGKILL)
        kill(executor)
        raise
    return executor


def _threads(executor: Any) -> int:
    """Threads of a Dask client's workers; the machine's cores for what does not tell."""
    client = getattr(executor, "_client", None)
    if client is None:
        return cores()
    return max(1, sum(client.nthreads().values()))
