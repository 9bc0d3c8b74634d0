"""What runs in a worker: one cell, on one thread, within its time and memory."""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from normscope.core.errors import UsageError
from normscope.sweeping import _rows
from normscope.sweeping.task import Task

#: Environment of worker processes: with as many workers as cores, a second thread would only wait.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "1")

#: What most cells need: imported before their time and memory are counted, and once for all workers that are forked.
NEEDED = ("torch", "normscope.probing.passes", "normscope.curvature", "normscope.training")


class CellTimeout(BaseException):
    """The cell's time is up. No ``Exception``: a task that catches those does not catch this."""


@dataclass(frozen=True)
class Job:
    """A cell as it travels to a worker."""

    task: Task
    key: str
    parameters: dict[str, Any]
    text: str
    seed: int | None
    attempt: int = 1
    timeout: float | None = None
    memory: int | None = None
    #: The driver's private folder, for what is told of cells that take their process with them.
    folder: str = ""


@dataclass(frozen=True)
class Done:
    """A cell as it comes back: the bytes of its file, and whether it failed."""

    data: bytes
    failed: bool
    seconds: float
    error: str = ""


def work(job: Job) -> Done:
    """Run a cell. Whatever it raises becomes a failure with its traceback; nothing is raised but Ctrl-C of a driver."""
    prepare()
    began = time.perf_counter()
    error: str | None = None
    found: list[Any] = []
    try:
        with limited(job.timeout, seen_in(job)), bounded(job.memory):
            found = _rows.records(job.task(job.parameters, job.seed), f"the task {job.task.name}")
    except CellTimeout:
        error = f"CellTimeout: the cell took longer than {job.timeout:g} s. It was here:\n{_shown()}"
    except MemoryError:
        error = f"MemoryError: {_limit(job)}\n{_shown()}"
    except UsageError as problem:  # its message is the whole story
        error = f"UsageError: {problem}\n{_shown()}"
    except BaseException as problem:
        main = threading.current_thread() is threading.main_thread() and multiprocessing.parent_process() is None
        if isinstance(problem, KeyboardInterrupt) and main:
            raise
        error = _shown()  # SystemExit too: a cell ends nothing but itself
    seconds = time.perf_counter() - began
    seed = job.parameters.get("seed", job.seed)
    data = _rows.encode(
        found, key=job.key, task=job.task.name, parameters=job.text, attempts=job.attempt, seconds=seconds, error=error,
        seed=seed if type(seed) is int else None,
    )  # fmt: skip
    return Done(data, error is not None, seconds, error or "")


def lost(job: Job, why: str, seconds: float = 0.0) -> Done:
    """The failure of a cell that took its worker with it, made by the driver."""
    seed = job.parameters.get("seed", job.seed)
    data = _rows.encode(
        [], key=job.key, task=job.task.name, parameters=job.text, attempts=job.attempt, seconds=seconds, error=why,
        seed=seed if type(seed) is int else None,
    )  # fmt: skip
    return Done(data, True, seconds, why)


def start_worker() -> None:
    """Of a local worker process: Ctrl-C is the driver's, and without the driver there is nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked while it started
    parent = multiprocessing.parent_process()
    if parent is not None:
        from multiprocessing.connection import wait

        def leave() -> None:
            wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=leave, name="driver-watch", daemon=True).start()
    prepare()


def alive() -> int:
    """The first thing asked of a pool: that it starts at all."""
    return os.getpid()


@functools.cache
def prepare() -> None:
    """What cells need, and one thread for torch and BLAS in a process that is a worker; the driver's is left to
    `sweep`.
    """
    for module in NEEDED:
        import_module(module)
    if multiprocessing.parent_process() is None and "distributed.worker" not in sys.modules:
        return
    one_thread()


def one_thread() -> None:
    """Torch and BLAS on one thread in this process."""
    for name, value in ONE_THREAD.items():
        os.environ[name] = value
    try:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]

        threadpool_limits(1)
    except ImportError:
        pass
    import torch

    torch.set_num_threads(1)


@contextmanager
def limited(seconds: float | None, seen_in: str = "") -> Iterator[None]:
    """Raise `CellTimeout` inside when the time is up.

    In the main thread an alarm, which also ends sleeps and locks; in another thread at the next step of Python. Code
    that never comes back to Python ends with its process, ``grace(seconds)`` later, where that is a worker process; the
    file ``seen_in`` tells then where it was.
    """
    if not seconds:
        yield
        return
    doomed = multiprocessing.parent_process() is not None
    seen = None
    if doomed:
        here = bool(seen_in) and os.path.isdir(os.path.dirname(seen_in))  # or the driver is on another machine
        seen = open(seen_in if here else os.devnull, "w")  # noqa: SIM115  (the dump needs it open)
    if seen is not None:
        faulthandler.dump_traceback_later(seconds + grace(seconds), exit=True, file=seen)
    try:
        inner = (
            _alarm if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer") else _timer
        )
        with inner(seconds):
            yield
    finally:
        if seen is not None:
            faulthandler.cancel_dump_traceback_later()
            seen.close()
            if seen.name != os.devnull:
                with suppress(OSError):
                    os.unlink(seen.name)


def seen_in(job: Job) -> str:
    """The file that tells where a cell was when it took its process with it."""
    return os.path.join(job.folder, f"{job.key}.txt") if job.folder else ""


def last_seen(job: Job) -> str:
    """Where a cell was when it took its process with it, if that was on this machine."""
    try:
        with open(seen_in(job)) as file:
            text = file.read()
        os.unlink(seen_in(job))
    except OSError:
        return ""
    threads = [t for t in text.split("\n\n") if __file__ in t and "in work" in t]
    return " It was here, the innermost line first:\n" + threads[0] if threads else ""


def grace(seconds: float) -> float:
    """How long after its time is up a cell that does not listen takes its process with it, seconds."""
    return max(2.0, seconds / 2)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def up(_signal: int, _frame: Any) -> None:
        raise CellTimeout

    before = signal.signal(signal.SIGALRM, up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _timer(seconds: float) -> Iterator[None]:
    thread, over, lock = threading.get_ident(), False, threading.Lock()

    def up() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(CellTimeout))

    timer = threading.Timer(seconds, up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
        timer.cancel()


@contextmanager
def bounded(memory: int | None) -> Iterator[None]:
    """At most ``memory`` bytes more than the process holds now; beyond, allocations fail inside the task.

    Worker processes only, where the system has ``RLIMIT_DATA`` for mappings (Linux).
    """
    if not memory or multiprocessing.parent_process() is None or not sys.platform.startswith("linux"):
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    now = _data_bytes()
    limit = now + memory if hard == resource.RLIM_INFINITY else min(hard, now + memory)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    with open("/proc/self/status") as status:
        found = [line.split()[1] for line in status if line.startswith("VmData:")]
    return int(found[0]) * 1024 if found else 0


def _limit(job: Job) -> str:
    return f"the cell may take {job.memory} bytes." if job.memory else "the machine has no more."


def _shown() -> str:
    """The traceback of what is being handled, from the task's own first line on."""
    kind, error, at = sys.exc_info()
    here = os.path.dirname(__file__)
    while at is not None and at.tb_next is not None and at.tb_frame.f_code.co_filename.startswith(here):
        at = at.tb_next
    return "".join(traceback.format_exception(kind, error, at)).rstrip()
