"""The store: whole files only, each cell once, whatever happens between two of its steps."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from normscope import Grid, UsageError
from normscope.core.files import TEMPORARY
from normscope.core.records import Record
from normscope.sweeping import Store, _files, _rows
from normscope.sweeping import store as store_module

TASK = "t"


def data_of(cell, value=None, error=None):
    value = cell.parameters["x"] if value is None else value
    found = [Record(i, "m", value + i) for i in range(3)]
    return _rows.encode(found, key=cell.key(TASK), task=TASK, parameters=cell.text, seed=7, error=error)


def filled(where, cells):
    store = Store(where)
    store.prepare()
    for cell in cells:
        store.write(cell.key(TASK), data_of(cell))
    return store


@pytest.fixture(params=["folder", "file", "memory", "held"])
def address(request, tmp_path):
    if request.param == "memory":
        fsspec = pytest.importorskip("fsspec")
        fsspec.filesystem("memory").store.clear()
    return {
        "folder": tmp_path / "s", "file": f"file://{tmp_path}/s", "memory": f"memory://{tmp_path.name}/s", "held": None,
    }[request.param]  # fmt: skip


def test_cells_come_back_as_they_went_in(address):
    grid = Grid(x=[3, 1, 2], y=["a"])
    store = filled(address, grid)
    table = store.table(list(grid), TASK).collect()
    assert table.columns == [
        "source", "x", "y", "seed", "layer", "name", "call", "kind", "signal", "metric", "value", "stderr", "error",
    ]  # fmt: skip
    assert table["x"].to_list() == [3, 3, 3, 1, 1, 1, 2, 2, 2]
    assert table["value"].to_list() == [3, 4, 5, 1, 2, 3, 2, 3, 4]
    assert set(table["seed"]) == {7}
    assert table["error"].is_null().all()


def test_compacting_changes_no_table_and_leaves_one_part(address):
    grid = Grid(x=range(40))
    store = filled(address, grid)
    before = store.table(list(grid), TASK).collect()
    assert store.compact() == 40
    assert store.files.names("cells") == []
    assert len(store.files.names("parts")) == 1
    assert store.table(list(grid), TASK).collect().equals(before)
    more = Grid(x=range(40, 60))
    for cell in more:
        store.write(cell.key(TASK), data_of(cell))
    assert store.compact() == 20
    assert len(store.files.names("parts")) == 1
    assert store.table(list(grid), TASK).collect().equals(before)
    assert len(store.listing().done) == 60
    assert store.compact() == 0


def test_the_whole_store_can_be_read_without_its_grid(tmp_path):
    filled(tmp_path / "s", Grid(x=[2, 1], on=[True]))
    table = Store(tmp_path / "s").table().collect()
    assert table.select("x", "on", "value").row(0) == (1, True, 1.0)


def test_schema_and_version_are_inside_each_file(tmp_path):
    grid = Grid(x=[1])
    store = filled(tmp_path / "s", grid)
    store_path = tmp_path / "s" / store.listing().loose[grid[0].key(TASK)]
    about = pl.read_parquet_metadata(store_path)
    assert about["normscope.schema"] == "2"
    assert about["normscope.version"]
    assert about["normscope.key"] == grid[0].key(TASK)


def one_file(tmp_path):
    grid = Grid(x=[1, 2])
    store = filled(tmp_path / "s", grid)
    key = grid[0].key(TASK)
    return store, key, tmp_path / "s" / store.listing().loose[key]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: b[: len(b) // 2], "torn"),
        (lambda b: b"", "empty or torn"),
        (lambda b: b"\0" * len(b), "empty or torn"),
        (lambda b: b"hello, I am a text file", "no parquet"),
        (lambda b: b[:-5] + b"\xff" + b[-4:], "torn"),
    ],
)
def test_a_torn_file_is_named_and_set_aside(tmp_path, damage, words):
    _, key, path = one_file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    listing = Store(tmp_path / "s").listing()
    assert key not in listing.done
    assert len(listing.done) == 1
    (told,) = listing.set_aside
    assert path.name in told
    assert words in told
    assert not path.exists()
    assert [p.name for p in (tmp_path / "s" / "set-aside").iterdir()] == [f"{key[:2]}-{path.name}"]
    assert Store(tmp_path / "s").listing().set_aside == ()


def test_a_foreign_file_is_set_aside(tmp_path):
    store, key, path = one_file(tmp_path)
    pl.DataFrame({"a": [1]}).write_parquet(path)
    other = path.parent / "notes.txt"
    other.write_text("mine")
    told = "\n".join(store.listing().set_aside)
    assert "normscope did not write" in told
    assert "notes.txt: its name is no cell's" in told
    assert (tmp_path / "s" / "set-aside" / f"{key[:2]}-notes.txt").read_text() == "mine"


def test_the_file_of_another_cell_is_set_aside(tmp_path):
    store, key, path = one_file(tmp_path)
    other = next(k for k in store.listing().loose if k != key)
    path.write_bytes((tmp_path / "s" / store.listing().loose[other]).read_bytes())
    assert "another cell" in store.listing().set_aside[0]


def test_damage_inside_a_file_is_found_by_check(tmp_path):
    store, key, path = one_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[4 : len(data) // 3] = bytes(len(data) // 3 - 4)
    path.write_bytes(bytes(data))
    assert key in store.listing().done
    (told,) = store.check()
    assert path.name in told
    assert key not in store.listing().done


def test_a_finished_cell_takes_the_place_of_its_failure(tmp_path):
    (cell,) = Grid(x=[1])
    store = Store(tmp_path / "s")
    store.write(cell.key(TASK), data_of(cell, error="ValueError: no"), failed=True)
    assert store.listing().failed.keys() == {cell.key(TASK)}
    assert store.failures()["error"].to_list() == ["ValueError: no"]
    assert store.table([cell], TASK).collect().select("x", "metric", "error").rows() == [(1, None, "ValueError: no")]
    store.write(cell.key(TASK), data_of(cell))
    assert store.listing().failed == {}
    assert store.table([cell], TASK).collect()["value"].to_list() == [1, 2, 3]


def test_a_cell_without_numbers_is_finished_and_has_no_rows(tmp_path):
    (cell,) = Grid(x=[1])
    store = Store(tmp_path / "s")
    store.write(cell.key(TASK), _rows.encode([], key=cell.key(TASK), task=TASK, parameters=cell.text))
    for _ in range(2):
        assert store.listing().done == {cell.key(TASK)}
        assert len(store.table([cell], TASK).collect()) == 0
        store.compact()


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    store = filled(tmp_path / "s", Grid(x=[1]))
    before = sorted(store.files.names(""))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        store.write("ab" * 16, b"x")
    assert sorted(store.files.names("")) == before


class Killed(BaseException):
    pass


class Stopping(_files.Folder):
    """A folder whose owner is killed before its n-th change; what was under way stays half done."""

    def __init__(self, root, after):
        super().__init__(root)
        self.left = after

    def _step(self):
        self.left -= 1
        if self.left < 0:
            raise Killed

    def write(self, path, data, *, durable=False):
        if self.left == 0:  # killed inside a write: a temporary file stays
            target = self.root / f"{path}.1-dead{TEMPORARY}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data[: len(data) // 2])
        self._step()
        super().write(path, data, durable=durable)

    def remove(self, path):
        self._step()
        super().remove(path)


@pytest.mark.parametrize("after", range(12))
def test_compaction_may_be_killed_before_any_of_its_steps(tmp_path, after):
    grid, old = Grid(x=range(6)), Grid(x=range(6, 10))
    store = filled(tmp_path / "s", old)
    store.compact()
    for cell in grid:
        store.write(cell.key(TASK), data_of(cell))
    cells = [*old, *grid]
    before = store.table(cells, TASK).collect()
    dying = Store(tmp_path / "s")
    dying.files = Stopping(tmp_path / "s", after)
    try:
        dying.compact()
        finished = True
    except Killed:
        finished = False
    assert finished == (after >= 8)  # one write, six files and one part removed
    again = Store(tmp_path / "s")
    assert again.listing().set_aside == ()
    assert again.table(cells, TASK).collect().equals(before)
    again.compact()
    assert again.table(cells, TASK).collect().equals(before)
    assert len(again.listing().parts) == 1


def test_parts_that_overlap_count_each_cell_once(tmp_path):
    """Two compactions at once may leave parts that share cells."""
    grid = Grid(x=range(4))
    store = filled(tmp_path / "s", grid)
    files = {p: (tmp_path / "s" / p).read_bytes() for p in store.files.names("cells")}
    before = store.table(list(grid), TASK).collect()
    store.compact()
    for path, data in list(files.items())[:3]:
        (tmp_path / "s" / path).write_bytes(data)
    half = pl.concat([_rows.read(d) for d in list(files.values())[:2]]).sort("key", "row")
    keys = half["key"].unique().to_list()
    (tmp_path / "s" / "parts" / f"{'0' * 32}.parquet").write_bytes(_rows.to_bytes(half, keys))
    again = Store(tmp_path / "s")
    assert len(again.listing().parts) == 2
    assert again.table(list(grid), TASK).collect().equals(before)
    again.compact()
    assert len(again.files.names("parts")) == 1
    assert again.table(list(grid), TASK).collect().equals(before)


def test_readers_see_each_cell_once_while_others_write_and_compact(tmp_path):
    grid = Grid(x=range(60))
    store = filled(tmp_path / "s", list(grid)[:20])
    stop = threading.Event()

    def write():
        for cell in list(grid)[20:]:
            store.write(cell.key(TASK), data_of(cell))
        stop.set()

    def compact():
        while not stop.is_set():
            Store(tmp_path / "s").compact()

    seen = []
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(write), pool.submit(compact), pool.submit(compact)]
        while not stop.is_set():
            seen.append(len(Store(tmp_path / "s").listing().done))
        for job in jobs:
            job.result()
    assert seen == sorted(seen), "a finished cell was missing for a moment"
    table = Store(tmp_path / "s").table(list(grid), TASK).collect()
    assert table["x"].to_list() == [c.parameters["x"] for c in grid for _ in range(3)]


def test_a_damaged_part_is_set_aside(tmp_path):
    store = filled(tmp_path / "s", Grid(x=range(4)))
    store.compact()
    (part,) = (tmp_path / "s" / "parts").iterdir()
    part.write_bytes(part.read_bytes()[:-20])
    listing = Store(tmp_path / "s").listing()
    assert listing.done == frozenset()
    assert part.name in listing.set_aside[0]


def test_a_folder_with_other_things_is_no_store(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        Store(tmp_path)


def test_a_store_of_another_schema_is_refused(tmp_path):
    store = filled(tmp_path / "s", Grid(x=[1]))
    marker = Path(store.where) / store_module.MARKER
    marker.write_text(json.dumps({"schema": 99}))
    with pytest.raises(UsageError, match="schema 2"):
        Store(tmp_path / "s")


def test_a_store_of_the_first_schema_is_read_and_goes_on(tmp_path):
    store = filled(tmp_path / "s", Grid(x=[1, 2]))
    whole = store.table().collect()
    for path in (tmp_path / "s").rglob("*.parquet"):
        about = {k: v for k, v in pl.read_parquet_metadata(path).items() if k.startswith("normscope")}
        pl.read_parquet(path).drop("step").write_parquet(path, metadata=about | {"normscope.schema": "1"})
    marker = Path(store.where) / store_module.MARKER
    marker.write_text(json.dumps({"schema": 1}))
    old = Store(tmp_path / "s")
    assert old.check() == ()
    assert old.table().collect().equals(whole)
    filled(tmp_path / "s", Grid(x=[2, 3]))
    assert json.loads(marker.read_text())["schema"] == 2
    new = Store(tmp_path / "s")
    assert len(new.scan().collect()) > len(whole)
    assert new.compact() == 3
    assert new.table().collect().filter(pl.col("x") < 3).equals(whole)


def test_parameters_become_typed_columns():
    cells = list(Grid([{"a": 1, "b": "x", "c": [1], "d": True}, {"a": 0.5, "b": None, "e": 3}]))
    frame = _rows.parameter_columns({c.key(TASK): c.text for c in cells})
    kinds = dict(frame.schema)
    assert kinds["a"] == pl.Float64
    assert (kinds["b"], kinds["c"], kinds["d"], kinds["e"]) == (pl.String, pl.String, pl.Boolean, pl.Int64)
    assert frame["c"].to_list() == ["[1]", None]
    assert frame["e"].to_list() == [None, 3]


def test_a_marker_that_another_run_writes_in_between_is_no_stranger(tmp_path, monkeypatch):
    Store(tmp_path / "s").prepare()
    read, blind = _files.Folder.read, [True]

    def late(files, paths):
        return iter(()) if blind and blind.pop() else read(files, paths)

    monkeypatch.setattr(_files.Folder, "read", late)
    assert Store(tmp_path / "s").files.exists(store_module.MARKER)
