"""The action, the workflow and the hooks: their shell lines run as CI would run them, without the installation."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "ci"
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
WORKFLOW = yaml.safe_load((EXAMPLES / "github.yml").read_text())
BROKEN = "\n\ndef broken():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(0), nn.Softmax(0))\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project with the example's configuration."""
    for name in ("nets.py", "pyproject.toml"):
        shutil.copy(EXAMPLES / name, tmp_path / name)
    table = tmp_path / "pyproject.toml"
    table.write_text(table.read_text().replace("trial = 20 ", 'trial = "none" '))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    return tmp_path


def shell(folder, line, command, **environment):
    """Run a line as a runner would, ``normscope`` being a script of this text."""
    (folder / "bin").mkdir(exist_ok=True)
    script = folder / "bin" / "normscope"
    script.write_text(f"#!/bin/sh\n{command}\n")
    script.chmod(0o755)
    mine = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **environment}
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", line]
    return subprocess.run(words, capture_output=True, text=True, cwd=folder, env={**os.environ, **mine}, timeout=120)


@pytest.fixture
def ran(folder, run):
    """Run a line whose ``normscope`` notes its words, which then run here: a process with torch takes seconds."""

    def ran(line, **environment):
        done = shell(folder, line, r"""printf '%s\0' "$@" > words""", **environment)
        assert done.returncode == 0, done.stderr
        return run(*(folder / "words").read_text().split("\0")[:-1])

    return ran


def step(steps, name):
    (found,) = [s for s in steps if s.get("name") == name]
    return found


def action(**given):
    """The action's line, and its inputs as GitHub hands them over."""
    inputs = {name: text["default"] for name, text in ACTION["inputs"].items()} | given
    diagnose = step(ACTION["runs"]["steps"], "Diagnose")
    values = {k: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda m: inputs[m[1]], v) for k, v in diagnose["env"].items()}
    return diagnose["run"], values


def test_the_action_annotates_and_fails(folder):
    nets = folder / "nets.py"
    nets.write_text(nets.read_text() + BROKEN)
    line, given = action(models="nets.py:small nets.py:broken", **{"fail-on": "error"})
    done = shell(folder, line, f'exec {sys.executable} -m normscope "$@"', **given)
    assert (done.returncode, "::error file=nets.py,line=" in done.stdout) == (1, True), done.stderr
    assert "nets.py:small: Nothing found" in done.stdout


def test_the_action_takes_the_configuration_and_writes_sarif(folder, ran):
    line, given = action(sarif="out of it.sarif", baseline="")
    code, out, _ = ran(line, **given)
    assert (code, "wrote " in out, (folder / "out of it.sarif").exists()) == (0, True, True)


def test_what_an_action_is_given_reaches_no_shell():
    assert [s["run"] for s in ACTION["runs"]["steps"] if "${{" in s["run"]] == []
    assert all(s["shell"] == "bash" for s in ACTION["runs"]["steps"])


def test_the_lines_of_the_workflow_run(folder, ran):
    steps = WORKFLOW["jobs"]["normscope"]["steps"]
    lines = [s["run"] for s in steps if "run" in s and s["name"] != "Install"]
    assert [ran(line)[0] for line in lines] == [0, 0]
    (upload,) = [s for s in steps if "upload" in s.get("uses", "")]
    assert (folder / upload["with"]["path"]).exists()


def test_the_hook_of_the_example_runs(ran):
    config = yaml.safe_load((EXAMPLES / "pre-commit-config.yaml").read_text())
    (hook,) = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert (hook["pass_filenames"], hook["language"]) == (False, "system")
    assert ran(" ".join([hook["entry"], *hook["args"]]))[0] == 0


def test_the_hook_of_this_repository_is_the_same_command():
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert (hook["entry"], hook["pass_filenames"]) == ("normscope diagnose", False)


def test_the_page_shows_the_configuration_of_the_example():
    page = (ROOT / "docs" / "ci.md").read_text()
    assert re.search(r"```toml[^\n]*\n(.*?)```", page, re.S)[1] in (EXAMPLES / "pyproject.toml").read_text()
