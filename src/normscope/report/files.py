"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from normscope._errors import UsageError


def write(data: str | bytes, path: str | os.PathLike[str]) -> Path:
    """Write text (UTF-8) or bytes to ``path``: a temporary file in the same folder, then a rename.

    A reader sees the old file or the new one, never half of it. Raises ``UsageError`` when the folder is missing or
    not writable, or ``path`` is a folder; then nothing is left behind.
    """
    target = Path(path)
    check(target)
    content = data.encode("utf-8") if isinstance(data, str) else data
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name[:64]}.", suffix=".part", dir=target.parent)
        with open(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
    except OSError as error:
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
    if not target.parent.is_dir():
        raise UsageError(f"The folder of the output must exist; there is no {str(target.parent)!r}. Create it first.")
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"The output path must be writable; the folder {str(target.parent)!r} is not. Choose another.")
