"""The output options of a command: ``--html``, ``--csv`` ... checked before the work, written after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope.core.errors import UsageError
from normscope.core.files import check, write

if TYPE_CHECKING:
    import polars as pl

Writer = Callable[[Path], Any]

#: How the files of an option may end; other ends of this list, or of other programs' files, are mistakes.
ENDS = {"html": (".html", ".htm"), "csv": (".csv",), "parquet": (".parquet",), "png": (".png",)}
_FOREIGN = {end for ends in ENDS.values() for end in ends} | {
    ".pdf",
    ".svg",
    ".jpg",
    ".xlsx",
    ".json",
    ".jsonl",
    ".txt",
}


def check_outputs(**paths: Path | None) -> None:
    """`check` for the files of options (``html=...``, ``csv=...``), their ends, and that no two are one file."""
    seen: dict[Path, str] = {}
    for kind, path in paths.items():
        if path is None:
            continue
        check(path)
        end, allowed = path.suffix.lower(), ENDS.get(kind)
        if allowed and end in _FOREIGN - set(allowed):
            raise UsageError(f"--{kind} writes {allowed[0]} files; got {str(path)!r}. Name it {path.stem}{allowed[0]}.")
        if (other := seen.setdefault(path.resolve(), kind)) != kind:
            raise UsageError(f"Each output must be a file of its own; --{other} and --{kind} both name {str(path)!r}.")


def attempt(outputs: Mapping[Path | None, Writer]) -> tuple[list[Path], UsageError | None]:
    """Call the writer of each path that is given: what was written, and the first error, to be raised after the results
    have been shown."""
    written: list[Path] = []
    lost: UsageError | None = None
    for path, writer in outputs.items():
        if path is None:
            continue
        try:
            writer(path)
            written.append(path)
        except UsageError as error:
            lost = lost or error
    return written, lost


def tables(table: pl.DataFrame, csv: Path | None, parquet: Path | None) -> dict[Path | None, Writer]:
    """Writers of a table, for `attempt`."""
    return {csv: lambda path: write(table.write_csv, path), parquet: lambda path: write(table.write_parquet, path)}
