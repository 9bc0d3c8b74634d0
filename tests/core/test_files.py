"""Files: whole or not at all, links followed, permissions kept; outputs each a file of its own, of the right kind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import normscope
from normscope.cli._outputs import attempt, check_outputs
from normscope.core import memory
from normscope.core.errors import UsageError
from normscope.core.files import (
    Damaged,
    check_bytes,
    drop_private_folders,
    expanded,
    left_overs,
    private_folder,
    put,
    read,
    whole,
    write,
)  # fmt: skip


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    real.write_text("old")
    link.symlink_to(real)
    write("new", link)
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="regular file"):
        write("x", pipe)
    assert pipe.is_fifo()


def test_two_options_with_one_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(UsageError, match="--html and --csv both name"):
        check_outputs(html=path, csv=tmp_path / "." / "a")
    check_outputs(html=path, csv=None, out=tmp_path / "b.jsonl")


@pytest.mark.parametrize(("kind", "name"), [("html", "a.pdf"), ("csv", "a.html"), ("png", "a.csv")])
def test_another_kind_of_file_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--{kind} writes .{kind} files; got .*{name}"):
        check_outputs(**{kind: tmp_path / name})


@pytest.mark.parametrize("content", ["Zürich", "Zürich".encode(), lambda file: file.write("Zürich".encode())])
def test_text_bytes_and_what_writes_them_are_written_alike(content: Any, tmp_path: Path) -> None:
    assert write(content, tmp_path / "a") == tmp_path / "a"
    assert (tmp_path / "a").read_text("utf-8") == "Zürich"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_permissions_are_kept(mode: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(mode)
    write("new", tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write("x", tmp_path / "a")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_link_to_nothing_makes_the_file_it_names(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write("new", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_link_into_a_missing_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "real")
    with pytest.raises(UsageError, match=r"there is no .*gone"):
        write("new", tmp_path / "link")


def test_a_long_name_has_room_for_the_temporary_one(tmp_path: Path) -> None:
    name = "\U0001f98b" * 63  # 252 bytes of the 255 that a name may have
    assert write("x", tmp_path / name).read_text() == "x"


@pytest.mark.parametrize("fails", ["os.replace", "os.fsync", "os.chmod"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_as_one_and_the_old_file_stays(
    fails: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(number, "No space left on device")

    (tmp_path / "a.csv").write_text("old")
    monkeypatch.setattr(fails, full)
    with pytest.raises(UsageError, match="must have room"):
        write("x", tmp_path / "a.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "old"


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        state = {"weight": torch.zeros(100_000)}
        with pytest.raises(UsageError, match="must have room"):
            write(lambda file: torch.save(state, file), tmp_path / "state.pt")
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("no"), MemoryError])
@pytest.mark.parametrize("where", ["content", "os.fsync"])
def test_whatever_interrupts_a_writer_passes_and_leaves_the_old_file(
    error: Any, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise error

    (tmp_path / "a").write_text("old")
    if where == "os.fsync":
        monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(error if isinstance(error, type) else RuntimeError):
        write(interrupt if where == "content" else "new", tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize(("durable", "calls"), [(True, ["fsync", "replace", "fsync"]), (False, ["replace"])])
def test_what_is_durable_is_on_the_disk_before_its_name_and_after(
    durable: bool, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def told(name: str) -> Callable[..., None]:
        real = getattr(os, name)
        return lambda *args: (seen.append(name), real(*args))[1]

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, told(name))
    put(b"x", tmp_path / "a", durable=durable)
    assert seen == calls


def test_threads_may_write_to_one_path_and_one_of_them_wins(tmp_path: Path) -> None:
    texts = [str(i) * 100_000 for i in range(8)]
    before = os.umask(0o022)
    os.umask(before)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            list(pool.map(lambda text: write(text, tmp_path / "a"), texts))
            assert (tmp_path / "a").read_text() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert os.umask(before) == before  # the mask of the process is nobody's to play with


def test_a_file_that_is_not_there_reads_as_none(tmp_path: Path) -> None:
    assert read(tmp_path / "a", json.load) is None


def test_what_cannot_be_read_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write(lambda file: torch.save({"step": 3}, file), path)
    assert read(path, torch.load) == {"step": 3}
    path.write_bytes(b"PK torn")
    with pytest.raises(Damaged):
        read(path, torch.load)


def test_what_cannot_be_opened_is_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"regular file.*is a folder"):
        read(tmp_path, json.load)


def test_what_a_killed_writer_left_is_found_by_its_name(tmp_path: Path) -> None:
    code = (
        "import os, sys; from normscope.core import files\n"
        "os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "files.write('half', sys.argv[1])"
    )
    for name in ("a[1].npz", "b.npz"):
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path / name)]).returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    (found,) = left_overs(tmp_path / "a[1].npz")
    assert found.name.startswith(".a[1].npz.")
    write("whole", tmp_path / "a[1].npz")
    assert list(left_overs(tmp_path / "a[1].npz")) == []
    assert len(list(left_overs(tmp_path / "b.npz"))) == 1


def test_what_lives_writers_write_is_left_alone(tmp_path: Path) -> None:
    half = tmp_path / ".a.csv.0-1-2.tmp"
    half.touch()
    write("whole", tmp_path / "a.csv")
    assert half.exists()


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A folder with what must not be opened."""
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "loop.py").symlink_to("loop.py")
    (tmp_path / "zero.py").symlink_to("/dev/zero")
    with open(tmp_path / "large.py", "wb") as file:
        file.truncate(1 << 33)  # sparse: it takes no room
    return tmp_path


@pytest.mark.parametrize("name", ["pipe.py", "zero.py", "large.py", "."])
def test_what_must_not_be_read_is_refused_before_it_is_opened(odd: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"regular file|at most"):
        whole(odd / name)


@pytest.mark.parametrize("path", ["loop.py", "x" * 5000, "a\0b", "~nobody_of_this_name/a.csv"])
def test_no_path_is_told_as_such(odd: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(odd)
    with pytest.raises(UsageError):
        write("x", path)
    if path != "loop.py":
        with pytest.raises(UsageError, match="such a path"):
            expanded(path)


def test_what_does_not_fit_is_refused_and_the_bound_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMSCOPE_MEMORY", "1GB")
    with pytest.raises(UsageError, match=r"A Gram must fit in memory; it takes about 2 GB, and 1 GB are free\. Cut it"):
        memory.check_room(2e9, "A Gram", "Cut it.")
    monkeypatch.setenv("NORMSCOPE_MEMORY", "3GB")
    memory.check_room(2e9, "A Gram", "Cut it.")
    monkeypatch.setenv("NORMSCOPE_MAX_FILE", "1kB")
    with pytest.raises(UsageError, match="at most 1 kB; it has, or promises, 2 kB"):
        check_bytes(2000, "a.npz")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no users")
def test_a_private_folder_is_its_users_and_goes_with_its_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = private_folder("test")
    assert mine.stat().st_mode & 0o777 == 0o700
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / f"normscope-test-{ended.pid}-x").mkdir()
    (tmp_path / f"normscope-test-{ended.pid}-y").symlink_to(mine)
    drop_private_folders("test")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([mine.name, f"normscope-test-{ended.pid}-y"])


ROOT = Path(normscope.__file__).parent


@pytest.mark.parametrize("sign", ["mkstemp", "NamedTemporaryFile", ".write_text(", ".write_bytes(", '.part"'])
def test_there_is_one_writer(sign: str) -> None:
    assert [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if sign in p.read_text()] == []


def test_a_file_is_renamed_in_one_place_and_moved_in_another() -> None:
    found = {str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if "os.replace(" in p.read_text()}
    assert found == {"core/files.py", "sweeping/_files.py"}


def test_a_file_that_fails_does_not_keep_the_others_from_being_written(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        raise UsageError("no room")

    a, b = tmp_path / "a", tmp_path / "b"
    written, lost = attempt({a: fails, None: fails, b: lambda path: write("x", path)})
    assert written == [b]
    assert str(lost) == "no room"
