"""The terminal report, and files written whole."""

import io
import os
import stat

import pytest
from rich.console import Console
from test_report_content import collapse, content, deep, facts, one, quiet, records, three

from normscope.core.errors import UsageError
from normscope.core.favourites import BRIEF
from normscope.core.files import write
from normscope.report import terminal
from normscope.report._fold import Folded, fold
from normscope.report._labels import label
from normscope.report._layers import layers, measured
from normscope.report._sparks import curve


def printed(what, width: int = 80, **kwargs) -> str:
    console = Console(file=io.StringIO(), width=width, **kwargs)
    terminal.render(what, console)
    return console.file.getvalue()


@pytest.mark.parametrize("make", [one, three, quiet, deep])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_lines_fit_and_are_plain_without_colour(make, width):
    text = printed(make(), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "\x1b" not in text


def test_severity_is_a_word():
    assert "error NS101  Rank collapse  layer 11, net.33" in printed(one())


def test_findings_stand_before_numbers():
    text = printed(three())
    assert text.index("NS201") < text.index("module")


def test_no_findings_is_said():
    assert "No findings: quiet." in printed(quiet())


def test_markup_and_control_characters_in_names_are_shown_not_obeyed():
    name = "[bold]x[/bold][/red]\x1b[31m"
    evil = content(records(name, "plain", 2, names=name), [collapse(name, 1, name)], (facts(name, name),))
    text = printed(evil, 120)
    assert "[bold]x[/bold][/red]\ufffd[31m" in text
    assert "\x1b" not in text


def test_equal_models_stand_side_by_side_where_they_fit():
    both = content(records("a", "plain") + records("b", "plain"), [], ())
    heads = {width: printed(both, width).count("layer module") for width in (80, 120)}
    assert heads == {80: 2, 120: 1}


def test_ends_and_findings_are_never_folded():
    rows = measured(layers(deep()), "other")
    shown = fold(rows, {11, 150}, [(c, label(c).log) for c in BRIEF], 24)
    kept = [at.layer for at in shown if not isinstance(at, Folded)]
    assert {0, 11, 150, 300} <= set(kept)
    assert len(shown) <= 24
    assert len(kept) + sum(at.count for at in shown if isinstance(at, Folded)) == len(rows)


def test_a_straight_run_is_called_alike():
    rows = measured(layers(deep()), "other")[200:]
    shown = fold(rows, set(), [("participation_rank", True)], 5)
    assert [str(at) for at in shown if isinstance(at, Folded)] == ["… 99 layers alike …"]


def test_few_layers_are_not_folded():
    assert "…" not in printed(quiet())


@pytest.mark.parametrize(
    ("values", "bars"), [([1.0, 2.0, 3.0], "▁▅█"), ([], ""), ([1.0, float("nan"), 1.0], "▁!▁"), ([float("inf")], "")]
)
def test_a_spark_is_a_curve(values, bars):
    assert curve(values) == bars


def test_a_file_is_written_with_the_permissions_of_a_new_one(tmp_path):
    path = write("Größe", tmp_path / "a.html")
    (tmp_path / "b").touch()
    assert path.read_text("utf-8") == "Größe"
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


@pytest.mark.parametrize(("path", "message"), [(".", "is a folder"), ("missing/a.html", "there is no")])
def test_a_path_that_cannot_be_written_is_one_message(tmp_path, path, message):
    with pytest.raises(UsageError, match=message):
        write("text", tmp_path / path)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write("old", tmp_path / "a.html")

    def fail(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UsageError, match="Permission denied"):
        write("new", path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]
    assert path.read_text() == "old"
