"""Outputs: whole or not at all, links followed, each a file of its own, the right kind of file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from normscope.core.errors import UsageError
from normscope.core.files import attempt, check_outputs, write


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


def test_a_full_disk_is_told_as_one_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UsageError, match="must have room"):
        write("x", tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_does_not_keep_the_others_from_being_written(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        raise UsageError("no room")

    a, b = tmp_path / "a", tmp_path / "b"
    written, lost = attempt({a: fails, None: fails, b: lambda path: write("x", path)})
    assert written == [b]
    assert str(lost) == "no room"
