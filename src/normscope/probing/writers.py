"""Where a tracker's measurements go while it runs: files that hold what was measured, also after a kill -9."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from normscope.core import files
from normscope.core.errors import MANY, UsageError, gives_items, shown
from normscope.core.records import csv

if TYPE_CHECKING:
    import polars

#: Seconds after which what was written is put to the disk itself; bytes of a file that are looked at at a time.
FLUSH, BLOCK = 5.0, 1 << 16
#: Called with the table of one measured step; may have a ``close()``.
Writer: TypeAlias = Callable[["polars.DataFrame"], object]


class CsvWriter:
    """Appends every measured step to one CSV file, which is there, complete to the last step, at any moment.

    append: go on with the file of an earlier run; without it a file that is there is refused, never overwritten.
    A step is there whole or not at all, on a full disk too; a power cut loses at most the last `FLUSH` seconds.
    """

    def __init__(self, path: str | Path, *, append: bool = False) -> None:
        self.path = files.expanded(path)
        if self.path.exists() and not append:
            raise _taken(self.path, "CsvWriter")
        files.check(self.path)
        self._flushed = 0.0
        if self.path.exists():
            _cut_torn_line(self.path)

    def __call__(self, frame: polars.DataFrame) -> None:
        """Write one measured step."""
        with self.path.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            text = csv(frame, header=before == 0).encode()
            try:
                if file.write(text) != len(text):  # one write: a kill before it leaves the file as it was
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                if time.monotonic() - self._flushed > FLUSH:
                    os.fsync(file.fileno())
                    self._flushed = time.monotonic()
            except OSError:
                file.truncate(before)
                raise


class ParquetWriter:
    """Writes every measured step as one parquet file in a folder; ``polars.read_parquet(folder)`` reads them all.

    A part is written under another name and renamed when it is whole, so a folder never holds half a part.
    append: go on with the folder of an earlier run; without it a folder that holds parts is refused.
    """

    def __init__(self, folder: str | Path, *, append: bool = False) -> None:
        self.folder = files.expanded(folder)
        if self.folder.is_file():
            raise UsageError(f"A ParquetWriter writes parts into a folder; {self.folder} is a file. Name a folder.")
        parts = sorted(self.folder.glob("part-*.parquet"))
        if parts and not append:
            raise _taken(self.folder, "ParquetWriter")
        self.folder.mkdir(parents=True, exist_ok=True)
        for half in self.folder.glob(f".part-*{files.TEMPORARY}"):  # of a run that was killed while it wrote
            half.unlink(missing_ok=True)
        self.next = int(parts[-1].stem.removeprefix("part-")) + 1 if parts else 0

    def __call__(self, frame: polars.DataFrame) -> None:
        """Write one measured step."""
        files.write(frame.write_parquet, self.folder / f"part-{self.next:06}.parquet")
        self.next += 1


def as_writers(targets: str | Path | Writer | Iterable[str | Path | Writer]) -> list[Writer]:
    """Writers from what a user names: a path that ends in .csv, a folder (parquet parts), a callable; or several."""
    many: Any = targets if gives_items(targets) else [targets]
    found: list[Writer] = []
    for target in itertools.islice(many, MANY):
        if isinstance(target, str | Path):
            target = _by_path(Path(target))
        if not callable(target):
            raise UsageError(
                "A writer is a path (.csv, or a folder for parquet) or a callable that takes a table; got "
                f"{shown(target)}."
            )
        found.append(target)
    return found


def _by_path(path: Path) -> Writer:
    kind = path.suffix.lower()
    if kind == ".csv":
        return CsvWriter(path)
    # "lr-0.1" and "net.v2" are names of folders; "run.xlsx" asks for a file that nothing here writes.
    if kind[1:].isalpha() and kind != ".parquet" and not path.is_dir():
        raise UsageError(
            "A writer's path must end in .csv (one file), or name a folder for a parquet part a step (plain, or ending "
            f"in .parquet); got {str(path)!r}. Name one of these, or pass ParquetWriter({str(path)!r})."
        )
    files.check_folder(path.parent)
    return ParquetWriter(path)


def write_whole(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """`normscope.core.files.write` with its arguments in the old order."""
    files.write(write, path)


def _taken(path: Path, writer: str) -> UsageError:
    return UsageError(
        f"{path} holds the measurements of an earlier run, and nothing is overwritten. Choose another place, delete "
        f"it, or go on with it: writers={writer}({str(path)!r}, append=True) (from normscope.probing.writers)."
    )


def _cut_torn_line(path: Path) -> None:
    """Take off what follows the last line end: the row that was being written when a machine went down."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for start in range(max(size - BLOCK, 0), -BLOCK, -BLOCK):  # from the end
            file.seek(max(start, 0))
            if (end := file.read(BLOCK).rfind(b"\n")) >= 0 or start <= 0:
                break
    if (whole := max(start, 0) + end + 1) < size:
        os.truncate(path, whole)
