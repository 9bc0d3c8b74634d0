"""Where a store's files lie: a local folder, any fsspec path, or memory. Each writes a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from normscope.core.errors import UsageError
from normscope.core.extra import needs_extra
from normscope.core.files import expanded, path_text, put


class Files(Protocol):
    """Relative paths with forward slashes."""

    where: str

    def names(self, folder: str) -> list[str]:
        """All files below a folder; none where there is no folder."""

    def read(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Their bytes, without those that have gone meanwhile."""

    def write(self, path: str, data: bytes, *, durable: bool = False) -> None:
        """The whole file, in the place of an older one; ``durable``: on the disk when this returns."""

    def exists(self, path: str) -> bool:
        """Whether it is there."""

    def remove(self, path: str) -> None:
        """Nothing happens if it is not there."""

    def move(self, path: str, to: str) -> None:
        """Nothing happens if it is not there."""

    def local(self, path: str) -> str | None:
        """Its path on this machine, if it has one."""


class Folder:
    """A folder on a local disk: a file is written under a temporary name beside its own and renamed."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = expanded(root).absolute()
        self.where = str(self.root)
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"A store must be a folder; {self.where!r} is a file. Choose another path.")

    def names(self, folder: str) -> list[str]:
        """All files below a folder, by a walk over its directories."""
        found: list[str] = []
        stack = [folder]
        while stack:
            here = stack.pop()
            try:
                entries = list(os.scandir(self.root / here))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                path = f"{here}/{entry.name}" if here else entry.name
                if entry.is_dir(follow_symlinks=False):
                    stack.append(path)
                else:
                    with contextlib.suppress(OSError):  # a loop of links
                        if entry.is_file():  # a pipe would be waited for
                            found.append(path)
        return found

    def read(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """One after another."""
        for path in paths:
            try:
                with open(self.root / path, "rb", buffering=0) as file:
                    data = file.read()
            except FileNotFoundError:
                continue
            yield path, data

    def write(self, path: str, data: bytes, *, durable: bool = False) -> None:
        """Through a temporary file and a rename."""
        target = self.root / path
        try:
            put(data, target, durable=durable)
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            put(data, target, durable=durable)

    def exists(self, path: str) -> bool:
        """One stat."""
        return os.path.exists(self.root / path)

    def remove(self, path: str) -> None:
        """Also when it is gone already."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.root / path)

    def move(self, path: str, to: str) -> None:
        """A rename."""
        target = self.root / to
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.root / path, target)

    def local(self, path: str) -> str | None:
        """Its absolute path."""
        return str(self.root / path)


class Remote:
    """Any fsspec file system: whole objects are put, which object stores do atomically; nothing is renamed."""

    def __init__(self, url: str) -> None:
        with needs_extra(f"A store at {url} needs", package="fsspec"):
            from fsspec.core import url_to_fs  # type: ignore[import-untyped, unused-ignore]
        try:
            self.fs, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"The store must be a folder or an fsspec path; {url!r} is not: {error}") from error
        self.root, self.where = root.rstrip("/"), url.rstrip("/")

    def names(self, folder: str) -> list[str]:
        """One recursive listing, never from a cache."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(f"{self.root}/{folder}" if folder else self.root)
        except FileNotFoundError:
            return []
        return [str(path)[len(self.root) :].lstrip("/") for path in found]

    def read(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Some hundred at a time, concurrently where the file system can."""
        listed = list(paths)
        for start in range(0, len(listed), 256):
            full = {f"{self.root}/{p}": p for p in listed[start : start + 256]}
            found = self.fs.cat(list(full), on_error="omit")
            found = found if isinstance(found, dict) else {next(iter(full)): found}
            by_name = {str(k).lstrip("/"): v for k, v in found.items()}
            for path, own in full.items():
                data: Any = by_name.get(path.lstrip("/"))
                if isinstance(data, bytes):
                    yield own, data

    def write(self, path: str, data: bytes, *, durable: bool = False) -> None:
        """One put."""
        full = f"{self.root}/{path}"
        self.fs.makedirs(full.rpartition("/")[0], exist_ok=True)
        self.fs.pipe_file(full, data)

    def exists(self, path: str) -> bool:
        """One request."""
        return bool(self.fs.exists(f"{self.root}/{path}"))

    def remove(self, path: str) -> None:
        """Also when it is gone already."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.root}/{path}")

    def move(self, path: str, to: str) -> None:
        """A copy, then a removal."""
        for _, data in self.read([path]):
            self.write(to, data)
        self.remove(path)

    def local(self, path: str) -> str | None:
        """None: it is read through fsspec."""
        return None


class Held:
    """Files in this process's memory, for a sweep without a store."""

    where = "memory"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def names(self, folder: str) -> list[str]:
        """All below the folder."""
        return [p for p in self.files if p.startswith(folder and folder + "/")]

    def read(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Those that are there."""
        return ((p, self.files[p]) for p in paths if p in self.files)

    def write(self, path: str, data: bytes, *, durable: bool = False) -> None:
        """Held."""
        self.files[path] = data

    def exists(self, path: str) -> bool:
        """Whether it is held."""
        return path in self.files

    def remove(self, path: str) -> None:
        """Dropped."""
        self.files.pop(path, None)

    def move(self, path: str, to: str) -> None:
        """Under another name."""
        if path in self.files:
            self.files[to] = self.files.pop(path)

    def local(self, path: str) -> str | None:
        """None."""
        return None


def files_at(where: str | os.PathLike[str]) -> Files:
    """The files of a store's address: a path, ``file://...``, or any other ``protocol://...`` of fsspec."""
    text = path_text(where, "A store")
    if text.startswith("file://"):
        return Folder(text.removeprefix("file://"))
    return Remote(text) if "://" in text else Folder(text)
