"""A store: one parquet file a finished cell, named by its content; `compact` merges them; one scan reads them all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from normscope.core.errors import UsageError
from normscope.core.files import TEMPORARY
from normscope.core.records import COLUMNS
from normscope.core.words import version
from normscope.sweeping import _rows
from normscope.sweeping._files import Files, Held, files_at
from normscope.sweeping.grid import Cell
from normscope.sweeping.task import Task

if TYPE_CHECKING:
    import polars as pl

MARKER = "normscope-store.json"
_LOOSE = re.compile(r"cells/[0-9a-f]{2}/([0-9a-f]{32})(\.failed)?\.parquet")
_PART = re.compile(r"parts/([0-9a-f]{32})\.parquet")
#: Files that one part is made of, at most, and their bytes.
PART_FILES, PART_BYTES = 20_000, 1 << 28
#: Parts below this size are merged again, bytes.
SMALL_PART = 1 << 25
#: Temporary files older than this are left-overs, seconds.
_STALE = 3600.0


@dataclass(frozen=True)
class Listing:
    """What a store holds: key -> path of finished loose cells and of failures, and part -> keys."""

    loose: Mapping[str, str]
    failed: Mapping[str, str]
    parts: Mapping[str, frozenset[str]]
    set_aside: tuple[str, ...] = ()
    done: frozenset[str] = field(default=frozenset())


class Store:
    """Finished cells at ``where``: a folder, ``file://...``, or any fsspec path (``memory://``, ``s3://`` ...).

    Layout: ``cells/ab/<key>.parquet`` finished, ``cells/ab/<key>.failed.parquet`` failed (its traceback inside),
    ``parts/<hash>.parquet`` many finished cells, ``set-aside/`` what was no cell. A file appears whole or not at all,
    and equal cells have equal names, so any number of runs may write to one store at a time. ``None``: held in memory.
    Raises ``UsageError`` for a folder with other things in it, or a store of another schema.
    """

    def __init__(self, where: str | os.PathLike[str] | None = None) -> None:
        self.files: Files = Held() if where is None else files_at(where)
        self._keys: dict[str, frozenset[str]] = {}
        try:
            self._open()
        except OSError as error:
            raise UsageError(
                f"A store must be readable; {self.where} is not ({error.strerror or error}). Choose another folder."
            ) from error

    @property
    def where(self) -> str:
        """Its address."""
        return self.files.where

    def _open(self) -> None:
        about = next((data for _, data in self.files.read([MARKER])), None)
        others = [] if about is not None else [n for n in self.files.names("") if not n.endswith(TEMPORARY)]
        if MARKER in others:  # another run wrote it in between
            about = next((data for _, data in self.files.read([MARKER])), None)
        if about is None:
            if others and not all(_LOOSE.fullmatch(n) or _PART.fullmatch(n) for n in others):
                raise UsageError(
                    f"A store must be a new folder or one that a sweep or a race made; {self.where} holds "
                    f"{sorted(others)[0]}. Choose another folder."
                )
            return
        try:
            schema = json.loads(about)["schema"]
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{self.where}/{MARKER} is damaged. Delete it: the next run writes it again.") from None
        if schema not in _rows.KNOWN:
            raise UsageError(
                f"The store must have schema {_rows.SCHEMA}; {self.where} has {schema}. Use the version of normscope "
                "that made it, or another folder."
            )

    def prepare(self) -> None:
        """Write the marker: the store exists, and can be written to. Raises ``OSError`` if it cannot."""
        about = next((data for _, data in self.files.read([MARKER])), None)
        if about is None or json.loads(about)["schema"] != _rows.SCHEMA:
            now = {"schema": _rows.SCHEMA, "normscope": version()}
            self.files.write(MARKER, json.dumps(now).encode())
        elif not isinstance(self.files, Held):
            probe = f"write-{os.getpid()}{TEMPORARY}"
            self.files.write(probe, b"")
            self.files.remove(probe)

    def has(self, key: str) -> bool:
        """Whether a finished cell lies there as a file of its own: one look, no listing."""
        return self.files.exists(_path(key))

    def write(self, key: str, data: bytes, *, failed: bool = False, durable: bool = False) -> None:
        """Keep a cell's file, on the disk when this returns if ``durable``; a finished cell takes the place of its
        failure.
        """
        self.files.write(_path(key, failed), data, durable=durable)
        if not failed and self.files.exists(_path(key, failed=True)):
            self.files.remove(_path(key, failed=True))

    def keep(self, cell: Cell, task: str, rows: Sequence[Any]) -> None:
        """A finished cell, on the disk when this returns: rows with ``metric``, ``value`` and any of the other columns
        as attributes.
        """
        key, seed = cell.key(task), cell.parameters.get("seed")
        self.write(key, _rows.encode(rows, key=key, task=task, parameters=cell.text, seed=seed), durable=True)

    def listing(self, *, check: bool = True) -> Listing:
        """What is there. ``check``: look at both ends of every file; what is no cell is moved to ``set-aside/``.

        Loose files are listed before parts, so that a cell that is being compacted is seen in one of them at least.
        """
        loose: dict[str, str] = {}
        failed: dict[str, str] = {}
        aside: list[str] = []
        for name in self.files.names("cells"):
            found = _LOOSE.fullmatch(name)
            if found is not None and name[6:8] == found[1][:2]:
                (failed if found[2] else loose)[found[1]] = name
            elif not name.endswith(TEMPORARY):
                aside += self.set_aside(name, "its name is no cell's")
        if check:
            by_path = {path: key for table in (loose, failed) for key, path in table.items()}
            for path, data in self.files.read(by_path):
                if wrong := _rows.torn(data, by_path[path]):
                    aside += self.set_aside(path, wrong)
                    (failed if path.endswith(".failed.parquet") else loose).pop(by_path[path])
        parts: dict[str, frozenset[str]] = {}
        for name in sorted(self.files.names("parts")):
            if _PART.fullmatch(name):
                try:
                    parts[name] = self._part_keys(name)
                except FileNotFoundError:  # merged into another part meanwhile: list again
                    return self.listing(check=check)
                except ValueError as error:
                    aside += self.set_aside(name, str(error))
            elif not name.endswith(TEMPORARY):
                aside += self.set_aside(name, "its name is no part's")
        merged = frozenset().union(*parts.values())
        loose = {k: p for k, p in loose.items() if k not in merged}
        done = merged | loose.keys()
        return Listing(loose, {k: p for k, p in failed.items() if k not in done}, parts, tuple(aside), done)

    def check(self) -> tuple[str, ...]:
        """Read every file to its last byte; what cannot be read is set aside. What was, with the reason."""
        listing = self.listing()
        aside = list(listing.set_aside)
        for path, data in self.files.read([*listing.loose.values(), *listing.failed.values(), *listing.parts]):
            try:
                self._verified(path, data)
            except ValueError as error:
                aside += self.set_aside(path, str(error))
        return tuple(aside)

    def compact(self) -> int:
        """Merge finished cells into few part files; how many cells moved. Failures stay as they are.

        Safe at any moment, also against kill -9, other runs and other compactions: a part is on the disk before the
        files that it replaces go, readers count a cell that is in two places once, and a part's name is the hash of
        its keys. A lazy table that was made before must be made again.
        """
        listing = self.listing()
        small = [p for p in listing.parts if self._size(p) < SMALL_PART]
        todo = [*(small if len(small) > 1 or listing.loose else []), *sorted(listing.loose.values())]
        moved = 0
        for batch, frame in self._batches(todo):
            keys = sorted(frame["key"].unique().to_list())
            name = f"parts/{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:32]}.parquet"
            self.files.write(name, _rows.to_bytes(frame, keys), durable=True)
            for path in batch:
                if path != name:
                    self.files.remove(path)
                    moved += path.startswith("cells/")
        self._sweep_temporaries()
        return moved

    def scan(self, cells: Iterable[str] | None = None) -> pl.LazyFrame:
        """Every row of the finished and failed cells (of these keys), in the schema of the files; each cell once."""
        return self._scan(self.listing(check=False), cells)

    def table(self, cells: Sequence[Cell] | None = None, task: Task | str | None = None) -> pl.LazyFrame:
        """The tidy table: ``source, <parameters>, seed, layer, ..., metric, value, stderr, error``, lazily.

        cells, task: whose rows, in the order of the cells; default all that the store holds, in the order of their
        parameters. A cell that failed is one row with its traceback in ``error`` and no metric; one that has not run
        is not there.
        """
        import polars as pl

        name = task.name if isinstance(task, Task) else task
        if cells is None:
            about = self.scan().select("key", "task", "parameters").unique("key").collect()
            if name is not None:
                about = about.filter(pl.col("task") == name)
            about = about.sort("task", "parameters")
            texts = dict(zip(about["key"], about["parameters"], strict=True))
        else:
            texts = {cell.key(name or ""): cell.text for cell in cells}
        columns = _rows.parameter_columns(texts).with_row_index("_order")
        names = [c for c in columns.columns if c not in ("key", "seed", "_order")]
        if "seed" in columns.columns:
            columns = columns.drop("seed")  # the rows have it
        rows = self.scan(texts).filter(pl.col("metric").is_not_null() | pl.col("error").is_not_null())
        found = rows.join(columns.lazy(), on="key", how="inner").sort("_order", "row", maintain_order=True)
        rest = [c for c in COLUMNS if c != "source"]
        return found.select("source", *names, *rest, "error")

    def failures(self) -> pl.DataFrame:
        """``task, parameters, attempts, seconds, error`` of the cells that failed."""
        import polars as pl

        wanted = ("task", "parameters", "attempts", "seconds", "error")
        return self.scan().filter(pl.col("error").is_not_null()).select(wanted).sort("parameters").collect()

    def _scan(self, listing: Listing, cells: Iterable[str] | None) -> pl.LazyFrame:
        import polars as pl

        wanted = None if cells is None else set(cells)
        seen: set[str] = set()
        frames: list[pl.LazyFrame] = []
        for part, keys in listing.parts.items():
            keep = keys - seen if wanted is None else (keys & wanted) - seen
            seen |= keep
            if keep:
                frame = self._lazy([part])
                frames.append(frame if keep == keys else frame.filter(pl.col("key").is_in(sorted(keep))))
        single = {**listing.failed, **listing.loose}
        chosen = [p for k, p in single.items() if wanted is None or k in wanted]
        if chosen:
            frames.append(self._lazy(chosen))
        return pl.concat(frames) if frames else pl.LazyFrame(schema=_rows.schema())

    def _lazy(self, paths: Sequence[str]) -> pl.LazyFrame:
        import polars as pl

        local = [self.files.local(p) for p in paths]
        sources: list[Any] = [p for p in local if p is not None]
        if len(sources) < len(paths):
            sources = [io.BytesIO(data) for _, data in self.files.read(paths)]
        return pl.scan_parquet(sources, schema=_rows.schema(), glob=False, cache=False, missing_columns="insert")

    def _batches(self, paths: Sequence[str]) -> Iterator[tuple[list[str], pl.DataFrame]]:
        """Files and their rows, sorted by key, as many as make a part; what cannot be read is set aside."""
        for some in self._groups(paths):
            try:
                found = self._many(some)
            except ValueError:  # one of them is no cell: which?
                found = self._one_by_one(some)
            if found is not None:
                yield found

    def _groups(self, paths: Sequence[str]) -> Iterator[list[str]]:
        """Runs of files that make a part each."""
        group: list[str] = []
        size = 0
        for path in paths:
            local = self.files.local(path)
            with suppress(FileNotFoundError):
                size += os.path.getsize(local) if local else PART_BYTES // 1000
                group.append(path)
            if size >= PART_BYTES or len(group) >= PART_FILES:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _many(self, paths: list[str]) -> tuple[list[str], pl.DataFrame] | None:
        """All at once, which is several times faster; raises ``ValueError`` if any of them cannot be read."""
        import polars as pl

        local = [self.files.local(p) for p in paths]
        if None in local:
            raise ValueError("not on this machine")
        names = pl.DataFrame({"_path": [str(p) for p in local], "_name": [os.path.basename(p)[:32] for p in paths]})
        try:
            scan = pl.scan_parquet(
                names["_path"].to_list(),
                schema=_rows.schema(),
                glob=False,
                cache=False,
                include_file_paths="_path",
                missing_columns="insert",
            )
            frame = scan.collect()
        except Exception as error:
            raise ValueError(str(error)) from error
        loose = frame.join(names, on="_path", how="left").filter(pl.col("_path").str.contains("/cells/", literal=True))
        if not loose.select((pl.col("_name") == pl.col("key")) & pl.col("error").is_null()).to_series().all():
            raise ValueError("a file is not what its name says")
        return paths, _merged([frame.drop("_path")])

    def _one_by_one(self, paths: Sequence[str]) -> tuple[list[str], pl.DataFrame] | None:
        good: list[str] = []
        frames: list[pl.DataFrame] = []
        for path, data in self.files.read(paths):
            try:
                frames.append(self._verified(path, data))
                good.append(path)
            except ValueError as error:
                self.set_aside(path, str(error))
        return (good, _merged(frames)) if good else None

    def _verified(self, path: str, data: bytes) -> pl.DataFrame:
        frame = _rows.read(data)
        if found := _LOOSE.fullmatch(path):
            if frame["key"].unique().to_list() != [found[1]]:
                raise ValueError("it is the file of another cell")
            if frame["error"].is_null().all() == bool(found[2]):
                raise ValueError("its name says failed and its rows do not, or the other way round")
        return frame

    def _part_keys(self, name: str) -> frozenset[str]:
        """Keys of a part, which never changes under its name."""
        import polars as pl

        if name not in self._keys:
            path = self.files.local(name)
            data = None if path else next((d for _, d in self.files.read([name])), None)
            if path is None and data is None:
                raise FileNotFoundError(name)
            try:
                keys = (
                    pl.scan_parquet(path or io.BytesIO(data or b""), glob=False)
                    .select(pl.col("key").unique())
                    .collect()
                )
            except FileNotFoundError:
                raise
            except Exception as error:
                raise ValueError(f"it cannot be read ({str(error).splitlines()[0][:120]})") from error
            self._keys[name] = frozenset(keys["key"].to_list())
        return self._keys[name]

    def _size(self, path: str) -> int:
        local = self.files.local(path)
        if local is not None:
            try:
                return os.path.getsize(local)
            except FileNotFoundError:  # another process has just merged it
                return SMALL_PART
        return sum(len(data) for _, data in self.files.read([path]))

    def set_aside(self, path: str, why: str) -> list[str]:
        """Move a file out of the way; ``path: reason``, as a list. On a store that cannot be written to it stays."""
        name = path.removeprefix("cells/").replace("/", "-")
        target = f"set-aside/{name}"
        number = 1
        while self.files.exists(target):
            target, number = f"set-aside/{name}.{number}", number + 1
        try:
            self.files.move(path, target)
        except OSError:
            target = "left in its place"
        return [f"{path}: {why} ({target})"]

    def _sweep_temporaries(self) -> None:
        for name in self.files.names(""):
            local = self.files.local(name)
            if not (name.endswith(TEMPORARY) and local and os.path.exists(local)):
                continue
            if time.time() - os.path.getmtime(local) > _STALE:
                self.files.remove(name)

    def __repr__(self) -> str:
        return f"Store({self.where!r})"


def as_store(store: Store | str | os.PathLike[str] | None) -> Store:
    """A store, or the one at an address."""
    return store if isinstance(store, Store) else Store(store)


def _path(key: str, failed: bool = False) -> str:
    return f"cells/{key[:2]}/{key}{'.failed' if failed else ''}.parquet"


def _merged(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """One frame, by key; a key in two of them (parts that overlap) comes once."""
    import polars as pl

    return pl.concat(frames).unique(["key", "row"], keep="first").sort("key", "row")
