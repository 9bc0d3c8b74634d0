"""Files, whole or not at all: one writer, one reader."""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import secrets
import shutil
import socket
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar

from normscope.core import memory
from normscope.core.errors import UsageError, brief, shown

T = TypeVar("T")
#: Bytes of a file of text (Python, TOML, JSON), at most.
TEXT = 1 << 24
#: Text (written as UTF-8), bytes, or what writes them to a binary file, as ``frame.write_parquet`` does.
Content: TypeAlias = str | bytes | Callable[[BinaryIO], object]

#: End of the names of files that are not whole yet; a writer that is killed leaves one behind.
TEMPORARY = ".tmp"
#: Stands in these names: who lives is known of this machine's processes alone.
_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"


class Damaged(ValueError):
    """A file is there and cannot be read; the text is the reader's reason."""


def write(content: Content, path: str | os.PathLike[str]) -> Path:
    """Write ``content`` to ``path``: a temporary file in the same folder, flushed to the disk, then a rename.

    A reader sees the old file or the new one, never half of it, also after a power cut. A link is followed, and the
    permissions of a file that is replaced are kept. Returns the path of the file itself.
    Raises ``UsageError`` when the folder is missing or not writable, the disk full, or ``path`` no regular file; then
    nothing is left behind.
    """
    check(path)
    target = Path(os.path.realpath(path))
    data = _bytes(content)
    for half in left_overs(target):  # of a writer on this machine that was killed
        host, _, rest = half.name.split(".")[-2].partition("-")
        process = rest.partition("-")[0]
        if host == _HOST and process.isdecimal() and not _lives(int(process)):
            half.unlink(missing_ok=True)
    try:
        put(data, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UsageError(
                f"The disk must have room for the output; {str(target)!r} did not fit. Free some space, or choose "
                "another path."
            ) from error
        reason = error.strerror or str(error)
        raise UsageError(
            f"The output path must be writable; {str(target)!r} is not ({reason}). Choose another path."
        ) from error
    return target


def put(data: bytes | memoryview, target: Path, *, durable: bool = True) -> None:
    """What `write` does, without its checks: raises ``OSError``, and leaves nothing behind then.

    durable: on the disk when this returns; without it a power cut may lose the file, but still not tear it.
    """
    mark = f"{_HOST}-{os.getpid()}-{secrets.token_hex(6)}"
    temporary = target.with_name(f".{target.name[:32]}.{mark}{TEMPORARY}")
    try:
        with open(temporary, "xb") as file:  # a new file: its permissions are the umask's
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, target.stat().st_mode & 0o777)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable and os.name == "posix":
        _flush_folder(target.parent)


def _flush_folder(folder: Path) -> None:
    """The names in a folder, flushed to the disk; a file system that cannot do this is left alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _bytes(content: Content) -> bytes | memoryview:
    # In memory first: torch, zip and parquet writers turn a full disk into errors of their own, by any name.
    if isinstance(content, str):
        return content.encode("utf-8")
    if isinstance(content, bytes):
        return content
    buffer = io.BytesIO()
    content(buffer)
    return buffer.getbuffer()


def check(path: str | os.PathLike[str]) -> None:
    """Raise the ``UsageError`` that `write` would raise, before the work is done; writes nothing."""
    try:
        os.stat(path_text(path))
    except FileNotFoundError:
        pass
    except UsageError:
        raise
    except (OSError, ValueError) as error:  # a loop of links, a name that is too long, a NUL in it
        raise UsageError(
            f"The output path must be one that can be written; {brief(path)!r} is not "
            f"({getattr(error, 'strerror', None) or error}). Choose another path."
        ) from error
    target = Path(os.path.realpath(path) if os.path.islink(path) else path)
    if target.is_dir():
        raise UsageError(f"The output path must be a file; {str(target)!r} is a folder. Give a file name in it.")
    if target.exists() and not target.is_file():
        raise UsageError(f"The output path must be a regular file; {str(target)!r} is not. Choose another path.")
    check_folder(target.parent)
    if not os.access(target.parent, os.W_OK):
        raise UsageError(f"The output path must be writable; the folder {str(target.parent)!r} is not. Choose another.")


def check_folder(folder: Path) -> None:
    """Raise ``UsageError`` unless the folder that an output goes into is there."""
    if not folder.is_dir():
        raise UsageError(f"The folder of the output must exist; there is no {str(folder)!r}. Create it first.")


def path_text(path: Any, name: str = "A path") -> str:
    """A path as text; ``UsageError`` for what is none."""
    try:
        return os.fsdecode(path)
    except TypeError:
        raise UsageError(f"{name} must be a path or a name; got {shown(path)}. Pass a string.") from None


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path of the user's, its ``~`` read; ``UsageError`` for the home of nobody, and for what no path can be."""
    try:
        found = Path(path_text(path)).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            os.lstat(found)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UsageError(f"There must be such a path; {brief(path)!r} is none ({reason}). Name another.") from None
    return found


def check_readable(path: str | os.PathLike[str], most: int | None = None) -> None:
    """``UsageError`` unless a file is a regular one of at most ``most`` bytes (`check_bytes`), before it is opened.

    A pipe would be waited for, a device has no end. Raises the ``OSError`` of a path that is not there.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = "folder" if stat.S_ISDIR(found.st_mode) else "pipe, a socket or a device"
        raise UsageError(f"What is read must be a regular file; {os.fspath(path)} is a {kind}. Name a file.")
    check_bytes(found.st_size, path, most)


def check_bytes(count: int, path: object, most: int | None = None) -> None:
    """``UsageError`` for a file that takes or promises more than ``most`` bytes; default: `memory.largest_file`."""
    if count > (bound := memory.largest_file() if most is None else most):
        cure = "Take a part of it" + ("" if most else f", or set {memory.FILE}=64GB, if there is the memory")
        raise UsageError(
            f"{path} must hold at most {memory.shown(bound)}; it has, or promises, {memory.shown(count)}. {cure}."
        )


def whole(path: str | os.PathLike[str], most: int = TEXT) -> bytes:
    """All of a regular file of at most ``most`` bytes. Raises ``OSError`` where it cannot be read."""
    check_readable(path, most)
    with open(path, "rb") as file:
        return file.read(most + 1)


def read(path: str | os.PathLike[str], parse: Callable[[BinaryIO], T]) -> T | None:
    """What ``parse`` makes of the open file; ``None`` if there is no file.

    Raises `Damaged` if ``parse`` raises anything, and ``UsageError`` if the file cannot be opened.
    """
    try:
        check_readable(path, 1 << 62)  # our own: as large as the state of a model
        file = open(path, "rb")  # noqa: SIM115  (what opening raises and what parsing raises mean different things)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(
            f"A file that is there must be readable; {str(path)!r} is not ({error.strerror or error}). "
            "Change its permissions, or choose another path."
        ) from error
    with file:
        try:
            return parse(file)
        except Exception as error:  # a damaged archive raises anything
            raise Damaged(str(error) or type(error).__name__) from error


def private_folder(kind: str) -> Path:
    """A new folder among the temporary files that no other user can read, write or have put there before."""
    return Path(tempfile.mkdtemp(prefix=f"normscope-{kind}-{os.getpid()}-"))


def drop_private_folders(kind: str) -> None:
    """Remove what processes of this user that live no more left of their private folders of a kind."""
    for folder in Path(tempfile.gettempdir()).glob(f"normscope-{kind}-*-*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            about = folder.lstat()
            if (
                stat.S_ISDIR(about.st_mode)
                and about.st_uid == os.getuid()
                and not _lives(int(folder.name.split("-")[2]))
            ):
                shutil.rmtree(folder)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        pass
    return True


def left_overs(path: Path) -> Iterator[Path]:
    """What writers of ``path`` that were killed left in its folder; for a file that one process at a time writes."""
    return path.parent.glob(f".{glob.escape(path.name[:32])}.*{TEMPORARY}")
