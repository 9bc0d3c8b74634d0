"""A race on disk: ``race.json``, and a folder for each variant with its rate and one folder a seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope._errors import UsageError
from normscope.race._rates import Rate
from normscope.race._run import COLUMNS, write_frame
from normscope.training import read, write
from normscope.training._checkpoint import set_aside

if TYPE_CHECKING:
    import polars

_FORMAT = 1
#: What of a variant must agree: exactly, but the norm of the weights to rounding (threads and devices change it a bit).
_NORM = 1e-3


@dataclass
class Folder:
    """Where a race is kept. ``set_aside``: names of torn files that were found and renamed."""

    path: Path
    set_aside: list[str] = field(default_factory=list)

    def open(self, settings: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]]) -> None:
        """Make the folder this race's, or find that it is: other variants and seeds may join, nothing else may differ.

        Raises ``UsageError``: a folder with other things in it, a race with other settings, another file in its place.
        """
        file = self.path / "race.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"out must be a folder that can be made; {self.path}: {error.strerror}.") from None
        found = self._json(file)
        if found is None:
            other = [p.name for p in self.path.iterdir() if not p.name.startswith((".", "race."))]
            if other:
                raise UsageError(
                    f"out must be a new or empty folder, or that of a race; {self.path} has {', '.join(other[:4])} and "
                    "no race.json. Choose another."
                )
            found = {"format": _FORMAT, "settings": dict(settings), "variants": {}}
        if found.get("format") != _FORMAT or not isinstance(found.get("settings"), dict):
            raise UsageError(f"{file} is not of a race of this version. Choose another folder.")
        self._compare(found["settings"], settings, variants, found["variants"])
        for name, about in variants.items():
            found["variants"][name] = found["variants"].get(name, {}) | about
        write(file, json.dumps(found, indent=1).encode())

    def _compare(
        self,
        there: Mapping[str, Any],
        here: Mapping[str, Any],
        variants: Mapping[str, Mapping[str, Any]],
        known: Mapping[str, Mapping[str, Any]],
    ) -> None:
        differing = [
            f"{key} {there.get(key)} there, {value} here" for key, value in here.items() if there.get(key) != value
        ]
        for name in variants.keys() & known.keys():
            for key, value in variants[name].items():
                old = known[name].get(key)
                close = key.startswith("norm") and (old is None or abs(old - value) <= _NORM * abs(value))
                if old != value and not close:
                    differing.append(f"{key} of variant {name!r} {old} there, {value} here")
        if differing:
            raise UsageError(
                f"{self.path} holds a race with other settings: {'; '.join(sorted(differing))}. "
                "Use another folder, or the same settings."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time; the lock ends with the process, however it ends. Not on Windows."""
        try:
            import fcntl
        except ImportError:
            yield
            return
        with (self.path / "race.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(
                    f"Another process is racing in {self.path}. Wait for it, or use another folder."
                ) from None
            yield

    def rate(self, variant: str) -> Rate | None:
        """The learning rate that was chosen for a variant, if one was."""
        found = self._json(self._of(variant) / "rate.json")
        return None if found is None else Rate.from_dict(found)

    def write_rate(self, variant: str, rate: Rate) -> None:
        """Keep it: a resumed race must not choose again."""
        self._of(variant).mkdir(exist_ok=True)
        write(self._of(variant) / "rate.json", json.dumps(rate.to_dict()).encode())

    def state(self, variant: str, seed: int) -> dict[str, Any] | None:
        """Where an unfinished run stopped."""
        path = self._run(variant, seed) / "state.pt"
        state, torn = read(path)
        if torn:
            self.set_aside.append(str(path.with_name(torn).relative_to(self.path)))
        return state

    def write_state(self, variant: str, seed: int, state: dict[str, Any]) -> None:
        """Replace the run's state."""
        path = self._run(variant, seed) / "state.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, state)

    def records(self, variant: str, seed: int) -> polars.DataFrame | None:
        """The table of a finished run."""
        import polars as pl

        path = self._run(variant, seed) / "records.parquet"
        if not path.exists():
            return None
        try:
            frame = pl.read_parquet(path)
            if tuple(frame.columns) != COLUMNS:
                raise ValueError
        except Exception:  # whatever a damaged file makes polars raise
            self.set_aside.append(str(set_aside(path).relative_to(self.path)))
            return None
        return frame

    def finish(self, variant: str, seed: int, frame: polars.DataFrame) -> None:
        """Write the table of a finished run; its state is then of no use."""
        path = self._run(variant, seed) / "records.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_frame(frame, path)
        with suppress(FileNotFoundError):
            path.with_name("state.pt").unlink()

    def _of(self, variant: str) -> Path:
        # Two names may differ in what a file name cannot hold, hence the digest.
        plain = re.sub(r"[^\w.=+-]+", "_", variant)[:48].strip("._") or "variant"
        digest = hashlib.sha256(variant.encode()).hexdigest()[:6]
        return self.path / f"{plain}-{digest}"

    def _run(self, variant: str, seed: int) -> Path:
        return self._of(variant) / f"seed-{seed}"

    def _json(self, path: Path) -> dict[str, Any] | None:
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict):
            self.set_aside.append(str(set_aside(path).relative_to(self.path)))
            return None
        return found
