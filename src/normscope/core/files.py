"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope.core.errors import UsageError

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


def write(data: str | bytes, path: str | os.PathLike[str]) -> Path:
    """Write text (UTF-8) or bytes to ``path``: a temporary file in the same folder, then a rename.

    A reader sees the old file or the new one, never half of it. Raises ``UsageError`` when the folder is missing or
    not writable, the disk full, or ``path`` no regular file; then nothing is left behind. A link is followed.
    """
    check(path)
    target = Path(path).resolve()
    content = data.encode("utf-8") if isinstance(data, str) else data
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name[:64]}.", suffix=".part", dir=target.parent)
        with open(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UsageError(
                f"The disk must have room for the output; {str(target)!r} did not fit. Free some space, or choose another path."
            ) from error
        reason = error.strerror or str(error)
        raise UsageError(
            f"The output path must be writable; {str(target)!r} is not ({reason}). Choose another path."
        ) from error
    finally:
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    return target


def _mode(target: Path) -> int:
    """Permissions of the file that is replaced; those of a new file, as the umask has it, if there is none."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def check(path: str | os.PathLike[str]) -> None:
    """Raise the ``UsageError`` that `write` would raise, before the work is done; writes nothing."""
    target = Path(path)
    if target.is_dir():
        raise UsageError(f"The output path must be a file; {str(target)!r} is a folder. Give a file name in it.")
    if target.exists() and not target.is_file():
        raise UsageError(f"The output path must be a regular file; {str(target)!r} is not. Choose another path.")
    if not target.parent.is_dir():
        raise UsageError(f"The folder of the output must exist; there is no {str(target.parent)!r}. Create it first.")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"The output path must be writable; the folder {str(target.parent)!r} is not. Choose another.")


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

    def columns(path: Path) -> None:
        buffer = io.BytesIO()
        table.write_parquet(buffer)
        write(buffer.getvalue(), path)

    return {csv: lambda path: write(table.write_csv(), path), parquet: columns}
