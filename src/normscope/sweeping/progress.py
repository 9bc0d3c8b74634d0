"""How far a sweep is: counts, the time left, and a bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from normscope.core.errors import flag, noted
from normscope.core.words import duration


@dataclass
class Progress:
    """total: cells of the grid; stored: in the store before this run; finished: by this run (failures among them)."""

    total: int = 0
    stored: int = 0
    finished: int = 0
    failed: int = 0
    running: int = 0
    seconds: float = 0.0
    last_error: str = ""
    set_aside: tuple[str, ...] = ()
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> int:
        """Cells to do."""
        return self.total - self.stored - self.finished

    @property
    def eta(self) -> float:
        """Seconds left, from the cells that this run has finished; NaN before the first."""
        if not self.finished:
            return float("nan")
        return (time.monotonic() - self.began) / self.finished * self.left

    def count(self, *, failed: bool, seconds: float, error: str = "") -> None:
        """One more cell."""
        self.finished += 1
        self.failed += failed
        self.seconds += seconds
        self.last_error = error or self.last_error

    def summary(self, where: str) -> str:
        """Where it stands, and how to go on."""
        kept = f"{self.stored + self.finished} of {self.total} cells are finished"
        if where == "memory":
            return f"{kept}, and lost, because there is no store. Give one, and the same call resumes."
        return f"{kept} and kept in {where}. The same call goes on from there."


@contextmanager
def shown(progress: bool | Callable[[Progress], object]) -> Iterator[Callable[[Progress], object]]:
    """What is called after every cell: a function of the caller's, or rich's bar on standard error."""
    if callable(progress):
        given = progress

        def told(p: Progress) -> None:
            with noted("the function progress"):
                given(p)

        yield told
        return
    if not flag("progress, where it is no function,", progress):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, note="")

        def tell(p: Progress) -> None:
            eta = "" if p.eta != p.eta else f"about {duration(p.eta)} left"
            failed = f"{p.failed} failed" if p.failed else ""
            note = ", ".join(filter(None, [failed, eta]))
            bar.update(task, total=p.total, completed=p.stored + p.finished, note=note)

        yield tell
