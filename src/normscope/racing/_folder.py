"""A race on disk: ``race.json``, and a folder for each variant with its rate and one folder a seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import torch

from normscope.core import files
from normscope.core.errors import UsageError
from normscope.racing._rates import Rate
from normscope.racing._run import COLUMNS

if TYPE_CHECKING:
    import polars

T = TypeVar("T")

_FORMAT = 1
#: What of a variant must agree: exactly, but the norm of the weights to rounding (threads and devices change it a bit).
_NORM = 1e-3


@dataclass
class Folder:
    """Where a race is kept. ``set_aside``: names of torn files that were found and renamed."""

    path: Path
    set_aside: list[str] = field(default_factory=list)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder, made if need be, for one process at a time; the lock ends with the process, however it ends.

        Raises ``UsageError``: a folder with other things in it, a file in its place, a race in it that runs now.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"out must be a folder that can be made; {self.path}: {error.strerror}.") from None
        other = [p.name for p in self.path.iterdir() if not p.name.startswith((".", "race."))]
        if other and not any(self.path.glob("race.json*")):
            raise UsageError(
                f"out must be a new or empty folder, or that of a race; {self.path} has {', '.join(sorted(other)[:4])} "
                "and no race.json. Choose another."
            )
        with ExitStack() as stack:
            with suppress(ImportError):  # Windows has no such locks
                import fcntl

                try:
                    file = stack.enter_context((self.path / "race.lock").open("a"))
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UsageError(
                        f"Another process is racing in {self.path}. Wait for it, or use another folder."
                    ) from None
                except OSError as error:
                    raise UsageError(f"out must be a folder to write in; {self.path}: {error.strerror}.") from None
            for half in self.path.rglob(f".*{files.TEMPORARY}"):  # of a race that was killed while it wrote
                half.unlink(missing_ok=True)
            yield

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise ``UsageError`` if the race in the folder has other settings; it says which."""
        known = self._known(settings)
        self._refuse(
            f"{key} {known['settings'].get(key)} there, {value} here"
            for key, value in settings.items()
            if known["settings"].get(key) != value
        )

    def join(self, settings: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]]) -> None:
        """Enter the variants; raise ``UsageError`` if one of them is not what it was in this folder."""
        known = self._known(settings)
        differing = []
        for name, about in variants.items():
            before = known["variants"].get(name, about)
            for key, value in about.items():
                old = before.get(key)
                close = key.startswith("norm") and (old is None or abs(old - value) <= _NORM * abs(value))
                if old != value and not close:
                    differing.append(f"{key} of variant {name!r} {old} there, {value} here")
            known["variants"][name] = {**before, **about}
        self._refuse(differing)
        files.write(json.dumps(known, indent=1), self.path / "race.json")

    def _known(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        found = self._read(self.path / "race.json", _mapping)
        if found is None:
            return {"format": _FORMAT, "settings": dict(settings), "variants": {}}
        if found.get("format") != _FORMAT or not all(isinstance(found.get(k), dict) for k in ("settings", "variants")):
            raise UsageError(f"{self.path / 'race.json'} is not of a race of this version. Choose another folder.")
        return found

    def _refuse(self, differing: Iterable[str]) -> None:
        if said := sorted(differing):
            raise UsageError(
                f"{self.path} holds a race with other settings: {'; '.join(said)}. Use another folder, or the same "
                "settings."
            )

    def rate(self, variant: str) -> Rate | None:
        """The learning rate that was chosen for a variant, if one was."""
        found = self._read(self._of(variant) / "rate.json", _mapping)
        return None if found is None else Rate.from_dict(found)

    def write_rate(self, variant: str, rate: Rate) -> None:
        """Keep it: a resumed race must not choose again."""
        self._of(variant).mkdir(exist_ok=True)
        files.write(json.dumps(rate.to_dict()), self._of(variant) / "rate.json")

    def state(self, variant: str, seed: int) -> dict[str, Any] | None:
        """Where an unfinished run stopped."""
        return self._read(self._run(variant, seed) / "state.pt", _state)

    def write_state(self, variant: str, seed: int, state: dict[str, Any]) -> None:
        """Replace the run's state."""
        path = self._run(variant, seed) / "state.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(lambda file: torch.save(state, file), path)

    def records(self, variant: str, seed: int) -> polars.DataFrame | None:
        """The table of a finished run."""
        return self._read(self._run(variant, seed) / "records.parquet", _records)

    def finish(self, variant: str, seed: int, frame: polars.DataFrame) -> None:
        """Write the table of a finished run; its state is then of no use."""
        path = self._run(variant, seed) / "records.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(frame.write_parquet, path)
        with suppress(FileNotFoundError):
            path.with_name("state.pt").unlink()

    def _of(self, variant: str) -> Path:
        # Two names may differ in what a file name cannot hold, hence the digest.
        plain = re.sub(r"[^\w.=+-]+", "_", variant)[:48].strip("._") or "variant"
        digest = hashlib.sha256(variant.encode()).hexdigest()[:6]
        return self.path / f"{plain}-{digest}"

    def _run(self, variant: str, seed: int) -> Path:
        return self._of(variant) / f"seed-{seed}"

    def _read(self, path: Path, parse: Callable[[BinaryIO], T]) -> T | None:
        """What is in a file; ``None`` if there is none, or if it was torn: it is set aside then."""
        try:
            return files.read(path, parse)
        except files.Damaged:
            self.set_aside.append(str(files.set_aside(path).relative_to(self.path)))
            return None


def _mapping(file: BinaryIO) -> dict[str, Any]:
    return _a_dict(json.load(file))


def _state(file: BinaryIO) -> dict[str, Any]:
    # Tensors come to the CPU first: random states must stay there.
    return _a_dict(torch.load(file, map_location="cpu", weights_only=True))


def _a_dict(found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError("no dictionary")
    return found


def _records(file: BinaryIO) -> polars.DataFrame:
    import polars as pl

    frame = pl.read_parquet(file)
    if tuple(frame.columns) != COLUMNS:
        raise ValueError("other columns")
    return frame
