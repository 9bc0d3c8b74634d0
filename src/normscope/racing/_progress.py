"""What a race tells while it runs, and how it is stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from normscope.racing._inputs import Plan


class Interrupted(KeyboardInterrupt):
    """Ctrl-C: the race stopped after a step; its message says what is kept and how to go on."""


class Watcher:
    """Told of a race as it runs; does nothing itself. Override what you need."""

    def plan(self, plan: Plan) -> None:
        """What will run, before it runs."""

    def note(self, text: str) -> None:
        """Something the reader should know: a rate chosen, a run diverged, a file set aside."""

    def stage(self, text: str) -> None:
        """Work that is not training has begun: building, choosing a rate."""

    def step(self, variant: str, seed: int, loss: float, done: int) -> None:
        """``done`` steps of all runs together are behind; called after each step."""

    def close(self) -> None:
        """The race is over, or has stopped."""


class Bar(Watcher):
    """One progress bar for all runs, on standard error: variant, seed, loss, and the time that is left."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.table import Column

        self.console = console or Console(stderr=True)
        what = TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True))
        bar = BarColumn(bar_width=24)
        self._progress = Progress(
            what, bar, TextColumn("{task.percentage:3.0f} %"), TimeElapsedColumn(), TextColumn("left"),
            TimeRemainingColumn(), console=self.console, transient=True, expand=True,
        )  # fmt: skip
        self._task: Any = None

    def _begin(self, text: str) -> None:
        if self._task is None:
            self._task = self._progress.add_task(text, total=None)
            self._progress.start()

    def plan(self, plan: Plan) -> None:
        """Say what will run, and set the length of the bar."""
        self._begin("")
        self.note(str(plan))
        self._progress.update(self._task, total=plan.steps, completed=plan.done)

    def note(self, text: str) -> None:
        """A line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stage(self, text: str) -> None:
        """What is done now, in the place of variant and loss."""
        self._begin(text)
        self._progress.update(self._task, description=text)

    def step(self, variant: str, seed: int, loss: float, done: int) -> None:
        """Move the bar. Rich draws it ten times a second."""
        self._progress.update(self._task, description=f"{variant}, seed {seed}, loss {loss:.4g}", completed=done)

    def close(self) -> None:
        """Take the bar away."""
        if self._task is not None:
            self._progress.stop()


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that no step is cut in two; a second Ctrl-C interrupts at once.

    Only in the main thread, where Python allows it; elsewhere the event stays unset.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)  # None: not set by Python
