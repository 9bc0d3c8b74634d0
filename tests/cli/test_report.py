"""``normscope report``: a recorded training on the terminal, as JSON, as a page, and as an exit code."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("altair")


@pytest.fixture
def losses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{s},{2.3 * 0.99**s},{0.0 if s > 20 else 0.1}\n" for s in range(0, 100, 2))
    (tmp_path / "a.csv").write_text("step,loss,lr\n" + rows)
    return tmp_path


def test_the_terminal_says_what_was_found_and_what_could_not_run(losses, run):
    code, out, _ = run("report", "a.csv")
    assert code == 0
    assert "warning NS924  learning rate is zero" in out
    assert "NS912 representation collapses: it needs" in out


def test_json_holds_the_findings_with_their_step(losses, run):
    code, out, _ = run("report", "a.csv", "--json")
    found = json.loads(out)
    assert (code, [(f["code"], f["step"], f["layer"]) for f in found["findings"]]) == (0, [("NS924", 22, None)])
    assert {"NS912", "NS919"} <= {c["code"] for c in found["not_run"]}


@pytest.mark.parametrize(("wanted", "code"), [("error", 0), ("warning", 1), ("NS924", 1), ("NS912", 0)])
def test_fail_on_makes_an_exit_code(losses, run, wanted, code):
    assert run("report", "a.csv", "--fail-on", wanted)[0] == code


def test_a_page_is_written(losses, run):
    code, _, err = run("report", "a.csv", "--html", "a.html")
    assert (code, err) == (0, "")
    assert "learning rate is zero" in (losses / "a.html").read_text()


@pytest.mark.parametrize("path", ["gone", "."])
def test_misuse_is_one_line_and_code_2(tmp_path, monkeypatch, run, path):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("report", path)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_where_no_check_can_run_nothing_can_be_told(losses, run):
    (losses / "b.csv").write_text("step,val_loss\n0,1\n1,1\n")
    code, out, _ = run("report", "b.csv")
    assert code == 4
    assert "Nothing can be told" in out


def test_a_kill_while_a_page_is_written_leaves_the_old_page_or_the_new_one(losses):
    """The writer is made slow where it writes, and killed there."""
    slow = (
        "import os, time\nfrom normscope.core import files\nfrom normscope.cli import main\n"
        "replace = os.replace\n"
        "def late(*a):\n    open('there', 'w').close(); time.sleep(60); replace(*a)\n"
        "files.os.replace = late\nmain(['report', 'a.csv', '--html', 'a.html'])\n"
    )
    (losses / "a.html").write_text("the old page")
    process = subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.DEVNULL)
    while not (losses / "there").exists() and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (losses / "a.html").read_text() == "the old page"


def test_what_a_killed_writer_left_is_taken_away_by_the_next(losses, run):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    from normscope.core.files import _HOST

    (losses / f".a.html.{_HOST}-{dead.pid}-00.tmp").write_text("half a pa")
    assert run("report", "a.csv", "--html", "a.html")[0] == 0
    assert sorted(p.name for p in losses.iterdir()) == ["a.csv", "a.html"]
