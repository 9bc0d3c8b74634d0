"""A race that is kept: its finished runs are cells of a store; beside them ``race.json`` and the states of others."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, TypeVar

import torch

from normscope.core.errors import UsageError
from normscope.core.files import TEMPORARY
from normscope.racing._rates import Rate
from normscope.racing._run import Row
from normscope.sweeping import Cell, Store

if TYPE_CHECKING:
    import polars

T = TypeVar("T")

#: Settings, variants and their rates; the runs that are not finished.
ABOUT, STATES = "race.json", "states"
_FORMAT = 2
#: What of a variant must agree: exactly, but the norm of the weights to rounding (threads and devices change it a bit).
_NORM = 1e-3


class Folder:
    """Where a race is kept: a folder, or any address of a `Store`. ``set_aside``: what was torn, and is renamed.

    Raises ``UsageError`` for a folder with other things in it, or a file in its place.
    """

    def __init__(self, where: str | os.PathLike[str]) -> None:
        self.store = Store(where)
        self.files, self.where = self.store.files, self.store.where
        self.set_aside: list[str] = []
        self._known: dict[str, Any] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder, made if need be, for one race at a time; the lock ends with the process, however it ends.

        Raises ``UsageError``: it cannot be written to, a race in it that runs now. No lock where it is not on this
        machine.
        """
        with ExitStack() as stack:
            with self._reached():
                self.store.prepare()
                if (path := self.files.local("race.lock")) is not None:
                    self._lock(stack.enter_context(Path(path).open("a")))
                for name in self.files.names(STATES):
                    if name.endswith(TEMPORARY):  # of a race that was killed while it wrote
                        self.files.remove(name)
            yield

    def _lock(self, file: TextIO) -> None:
        try:
            import fcntl
        except ImportError:  # Windows has no such locks
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"Another process is racing in {self.where}. Wait for it, or use another folder."
            ) from None

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """What cannot be read or written is one ``UsageError``."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(
                f"out must be a folder to read and write in; {self.where}: {reason}. What was kept in it stays."
            ) from error

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ``UsageError`` if the race that is kept has other settings; it says which."""
        known = self._read(ABOUT, _mapping)
        if known is None:
            known = {"format": _FORMAT, "settings": dict(settings), "variants": {}}
        if known.get("format") != _FORMAT or not all(isinstance(known.get(k), dict) for k in ("settings", "variants")):
            raise UsageError(f"{self.where}/{ABOUT} is not of a race of this version. Choose another folder.")
        self._refuse(
            f"{key} {known['settings'].get(key)} there, {value} here"
            for key, value in settings.items()
            if known["settings"].get(key) != value
        )
        self._known = known

    def join(self, variants: Mapping[str, Mapping[str, Any]]) -> None:
        """Enter the variants; raise ``UsageError`` if one of them is not what it was in this folder."""
        known, differing = self._known["variants"], []
        for name, about in variants.items():
            before = known.get(name, about)
            for key, value in about.items():
                old = before.get(key)
                close = key.startswith("norm") and (old is None or abs(old - value) <= _NORM * abs(value))
                if old != value and not close:
                    differing.append(f"{key} of variant {name!r} {old} there, {value} here")
            known[name] = {**before, **about}
        self._refuse(differing)
        self._write_about()

    def _refuse(self, differing: Iterable[str]) -> None:
        if said := sorted(differing):
            raise UsageError(
                f"{self.where} holds a race with other settings: {'; '.join(said)}. Use another folder, or the same "
                "settings."
            )

    def _write_about(self) -> None:
        self._write(ABOUT, json.dumps(self._known, indent=1).encode())

    def rate(self, variant: str) -> Rate | None:
        """The learning rate that was chosen for a variant, if one was."""
        found = self._known["variants"][variant].get("rate")
        return None if found is None else Rate.from_dict(found)

    def write_rate(self, variant: str, rate: Rate) -> None:
        """Keep it: a resumed race must not choose again."""
        self._known["variants"][variant]["rate"] = rate.to_dict()
        self._write_about()

    def state(self, run: Cell) -> dict[str, Any] | None:
        """Where an unfinished run stopped."""
        return self._read(_path(run), _state)

    def write_state(self, run: Cell, state: dict[str, Any]) -> None:
        """Replace the run's state."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._write(_path(run), buffer.getvalue())

    def finished(self, runs: Iterable[Cell]) -> dict[Cell, polars.DataFrame]:
        """The numbers of those that are; what cannot be read is set aside."""
        keys = {run.key(TASK): run for run in runs}
        with self._reached():
            self.set_aside += self.store.check()
            rows = self.store.scan(keys).collect().sort("key", "row")
        return {keys[str(key)]: frame for (key,), frame in rows.group_by("key", maintain_order=True)}

    def finish(self, run: Cell, rows: Sequence[Row]) -> None:
        """Keep the numbers of a finished run; its state is then of no use."""
        with self._reached():
            self.store.keep(run, TASK, rows)
            self.files.remove(_path(run))

    def _write(self, path: str, data: bytes) -> None:
        with self._reached():
            self.files.write(path, data, durable=True)

    def _read(self, path: str, parse: Callable[[BinaryIO], T]) -> T | None:
        """What is in a file; ``None`` if there is none, or if it was torn: it is set aside then."""
        with self._reached():
            data = next((data for _, data in self.files.read([path])), None)
        if data is None:
            return None
        try:
            return parse(io.BytesIO(data))
        except Exception as error:  # a damaged archive raises anything
            self.set_aside += self.store.set_aside(path, f"it is torn ({type(error).__name__})")
            return None


#: What a run is a cell of.
TASK = "race"


def run_of(variant: str, seed: int, lr: float) -> Cell:
    """One run as a cell."""
    return Cell({"variant": variant, "seed": seed, "lr": lr})


def _path(run: Cell) -> str:
    return f"{STATES}/{run.key(TASK)}.pt"


def _mapping(file: BinaryIO) -> dict[str, Any]:
    return _a_dict(json.load(file))


def _state(file: BinaryIO) -> dict[str, Any]:
    # Tensors come to the CPU first: random states must stay there.
    return _a_dict(torch.load(file, map_location="cpu", weights_only=True))


def _a_dict(found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError("no dictionary")
    return found
