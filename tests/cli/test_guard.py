"""``diagnose`` as a guard of a repository: ignores, baselines, formats, and what is said of them."""

import json
import os
import re
from xml.etree import ElementTree

import pytest

from normscope.cli._places import place_of, shown

NETS = """
from torch import nn

WIDTH = 32


def good():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def bad(depth=8):
    blocks = [layer for _ in range(depth) for layer in (nn.ReLU(), nn.Linear(32, 32))]
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), *blocks, nn.ReLU(), nn.Linear(32, 10))
"""
TRAIN = """import torch
from torch import nn
model = nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x, y = torch.randn(32, 4), torch.randn(32)
for _ in range(3):
    optimizer.zero_grad()
    ((model(x) - y) ** 2).mean().backward()
    optimizer.step()
"""
TABLE = """
[tool.normscope]
models = ["nets.py:good", "nets.py:bad"]
trial = "none"
theory = false
batch = 16
fail-on = "warning"
"""
IGNORE = '\n[[tool.normscope.ignore]]\ncode = "{}"\nmodel = "{}"\nreason = "it is meant"\n'


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Two nets, one of them bad, and what their repository says of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    (tmp_path / ".git").mkdir()
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "pyproject.toml").write_text(TABLE)
    return tmp_path


def found(run, *args):
    code, out, _ = run("diagnose", *args, "--json")
    told = json.loads(out)
    return code, told, {f["code"]: f for m in told["models"] for f in m["findings"]}


# The life of a guard


def test_it_fails_then_accepts_then_fails_for_what_is_new(repository, run):
    assert run("diagnose")[0] == 1
    assert run("diagnose", "--write-baseline", "b.json")[0] == 0
    code, out, _ = run("diagnose", "--baseline", "b.json")
    assert (code, "0 new, 0 worse" in out) == (0, True)
    worse = NETS.replace("nn.Linear(32, 10))", "nn.Linear(32, 10), nn.Softmax(1))", 1)
    (repository / "nets.py").write_text(worse)
    code, out, _ = run("diagnose", "--baseline", "b.json", "--output-format", "github")
    assert (code, "::warning file=nets.py,line=7,title=" in out) == (1, True)


def test_a_known_finding_that_is_worse_fails(repository, run):
    run("diagnose", "--write-baseline", "b.json")
    file = repository / "b.json"
    file.write_text(re.sub('"severity": "(error|warning)"', '"severity": "info"', file.read_text()))
    code, told, _ = found(run, "--baseline", "b.json", "--fail-on", "NS101")
    assert (code, told["baseline"]["new"], told["baseline"]["worse"] > 0) == (1, 0, True)


def test_a_new_info_does_not_fail_a_baseline_alone(repository, run):
    (repository / "empty.json").write_text('{"schema": "normscope.baseline/1", "findings": []}')
    (repository / "pyproject.toml").write_text(TABLE.replace('fail-on = "warning"', ""))
    (repository / "nets.py").write_text(
        NETS.replace("nn.Linear(64, 32), nn.ReLU()", "nn.Linear(64, 48), nn.Linear(48, 32), nn.ReLU()")
    )
    code, told, codes = found(run, "nets.py:good", "--baseline", "empty.json")
    assert (code, {f["severity"] for f in codes.values()}, told["baseline"]["new"]) == (0, {"info"}, len(codes))
    assert run("diagnose", "nets.py:good", "--baseline", "empty.json", "--fail-on", "info")[0] == 1


def test_what_is_gone_is_said(repository, run):
    run("diagnose", "--write-baseline", "b.json")
    (repository / "nets.py").write_text(NETS.replace("depth=8", "depth=0"))
    code, out, _ = run("diagnose", "--baseline", "b.json")
    assert code == 0
    assert re.search(r"gone: NS101 in \d+ of nets.py:bad", out)


def test_the_configuration_names_the_baseline_from_any_folder(repository, run, monkeypatch):
    run("diagnose", "--write-baseline", "b.json")
    (repository / "pyproject.toml").write_text(TABLE + 'baseline = "b.json"\n')
    (repository / "below").mkdir()
    monkeypatch.chdir(repository / "below")
    assert run("diagnose")[0] == 0


def test_writing_for_one_model_keeps_the_others(repository, run):
    run("diagnose", "--write-baseline", "b.json")
    before = (repository / "b.json").read_text()
    run("diagnose", "nets.py:good", "--write-baseline", "b.json")
    assert (repository / "b.json").read_text() == before


def test_a_baseline_is_written_though_files_of_the_run_are_lost(repository, run):
    assert run("diagnose", "--write-baseline", "gone/b.json")[:2] == (2, "")
    assert run("diagnose", "--baseline", "gone.json")[0] == 2


def test_a_folder_that_takes_no_files_is_told_before_the_work(repository, run, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    code, out, err = run("diagnose", "--write-baseline", "b.json")
    assert (code, out, "must be writable" in err, (repository / "b.json").exists()) == (2, "", True, False)


# Ignores


def test_what_is_ignored_is_counted_flagged_and_does_not_fail(repository, run):
    codes = found(run)[2]
    text = "".join(IGNORE.format(code, "*:bad") for code in codes)
    (repository / "pyproject.toml").write_text(TABLE + text)
    code, told, again = found(run)
    assert (code, told["ignored"], set(again)) == (0, len(codes), set(codes))
    assert all(f["ignored"] and f["reason"] == "it is meant" for f in again.values())
    out = run("diagnose")[1]
    assert f"{len(codes)} ignored by the configuration" in " ".join(out.split())
    assert "NS101 rank collapse in" in out


def test_what_is_ignored_in_one_module_is_not_in_another(repository, run):
    module = found(run)[2]["NS101"]["name"]
    for pattern, ignored in ((module, True), ("head.*", False)):
        (repository / "pyproject.toml").write_text(TABLE + IGNORE.format("NS101", "*") + f'module = "{pattern}"')
        assert found(run)[2]["NS101"]["ignored"] is ignored


def test_a_pattern_that_names_no_model_is_a_warning(repository, run):
    (repository / "pyproject.toml").write_text(TABLE + IGNORE.format("NS101", "nets.py:old"))
    code, _, err = run("diagnose")
    assert (code, err.startswith("warning: "), "'nets.py:old' fits none of" in err) == (1, True, True)


def test_a_pattern_of_a_model_that_is_left_out_is_none(repository, run):
    (repository / "pyproject.toml").write_text(TABLE + IGNORE.format("NS101", "nets.py:bad"))
    assert run("diagnose", "nets.py:good")[2] == ""


# Formats


def test_the_schema_stands_first(repository, run):
    assert run("diagnose", "nets.py:good", "--json")[1].startswith('{\n  "schema": "normscope.diagnosis/1"')
    assert set(json.loads(run("diagnose", "nets.py:good", "--output-format", "json")[1])) == set(found(run)[1])


def test_a_format_goes_into_a_file_and_the_text_to_the_terminal(repository, run):
    code, out, _ = run("diagnose", "--output-format", "junit", "--output-file", "out.xml")
    assert (code, "rank collapse" in out, str(repository / "out.xml") in out) == (1, True, True)
    suites = ElementTree.parse(repository / "out.xml").getroot()
    assert [s.get("name") for s in suites] == ["nets.py:good", "nets.py:bad"]
    assert [bool(s.findall("testcase/failure")) for s in suites] == [False, True]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--output-format", "junt"], "'junit'?"), (["--output-format", "sarif", "--json"], "--json is"),
        (["--output-file", "x"], "Name it"), (["--output-format", "sarif", "--output-file", "gone/x"], "gone"),
        (["--output-format", "sarif", "--output-file", "x", "--write-baseline", "x"], "file of its own"),
    ],
)  # fmt: skip
def test_a_format_that_cannot_be_is_one_line(repository, run, args, says):
    code, out, err = run("diagnose", *args)
    assert (code, out, len(err.splitlines()), says in err) == (2, "", 1, True), err


# Places


@pytest.mark.parametrize(
    ("model", "line"),
    [("nets.py:good", 7), ("nets.py:bad,depth=3", 11), ("nets.py:WIDTH", 4), ("nets.py:nn", 2), ("nets.py:gone", 1)],
)
def test_a_model_stands_where_its_name_is_bound(repository, model, line):
    assert place_of(model) == ("nets.py", line)


@pytest.mark.parametrize(
    "model", ["mlp:depth=3", "transformers:gpt2", "json:loads", "gone.py:make", "no.such.module:make", "torch.nn:ReLU"]
)
def test_a_model_of_no_file_has_no_place(repository, model):
    assert place_of(model) == ("", 0)


def test_a_path_starts_at_the_root_of_the_repository(repository, monkeypatch):
    (repository / "a").mkdir()
    monkeypatch.chdir(repository / "a")
    assert shown("../nets.py".replace("..", str(repository))) == "nets.py"
    monkeypatch.setenv("GITHUB_WORKSPACE", str(repository.parent))
    assert shown(str(repository / "nets.py")) == f"{repository.name}/nets.py"


# why


def test_why_takes_a_baseline_and_names_the_line(repository, run):
    (repository / "train.py").write_text(TRAIN)
    args = ["why", "--trial", "none", "--steps", "3"]
    assert run(*args, "--write-baseline", "b.json", "train.py")[0] == 0
    assert run(*args, "--fail-on", "error", "train.py")[0] == 1
    assert run(*args, "--baseline", "b.json", "train.py")[0] == 0
    code, out, _ = run(*args, "--fail-on", "error", "--output-format", "github", "train.py")
    assert (code, "::error file=train.py,line=8,title=NS703 targets broadcast::" in out) == (1, True)
    told = json.loads(run(*args, "--json", "train.py")[1])
    assert (told["schema"], told["script"]) == ("normscope.why/1", "train.py")


def test_a_script_without_a_step_leaves_a_baseline_alone(repository, run):
    (repository / "b.json").write_text("old")
    (repository / "train.py").write_text("1 / 0\n")
    assert run("why", "--write-baseline", "b.json", "train.py")[0] == 3
    assert (repository / "b.json").read_text() == "old"
