"""Without any optional package: what needs none works, what needs one says in one line how to install it (exit code
2), and a notebook shows text. One process, in which the packages are not there, runs them all.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
OPTIONAL = (
    "altair", "jinja2", "vl_convert", "lightning", "pytorch_lightning", "transformers", "tensorboard", "dask",
    "distributed", "sklearn", "jaxtyping", "timm", "torchvision",
)  # fmt: skip
NET = "mlp:depth=2,width=8"
PAGE = ("--html", "page.html")
REPORT = "pip install 'normscope[report]' (in a checkout of the source: pip install -e '.[report]')"
#: Command -> what its one line must hold; "" where it must work.
COMMANDS = {
    ("explain", "NS101"): "", ("list", "cures"): "", ("diagnose", NET): "",
    ("diagnose", NET, *PAGE): REPORT, ("diagnose", NET, "--png", "x.png"): REPORT,
    ("sharpness", NET, *PAGE): REPORT,
    ("race", NET, *PAGE): REPORT,
    ("sweep", "--task", "predict", "--depth", "2", *PAGE): REPORT,
    ("transfer", NET, *PAGE): REPORT,
    ("verify", "daneshmand2021/normalization", *PAGE): REPORT,
    ("why", *PAGE, "script.py"): REPORT,
    ("diagnose", "transformers:gpt2"): "pip install 'normscope[transformers]'",
    ("diagnose", "timm:resnet18"): "pip install timm",
    ("sweep", "--task", "predict", "--depth", "2", "--scheduler", "tcp://127.0.0.1:1"):
        "pip install 'normscope[dask]'",
}  # fmt: skip

SCRIPT = """
import contextlib, importlib, io, json, sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in OPTIONAL else self.finder.find_spec(name, *more)

OPTIONAL, COMMANDS = json.loads(sys.stdin.read())
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
open("script.py", "w").write("")
from normscope.cli import main
told = []
for command in COMMANDS:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(command)
        except SystemExit as stop:
            code = stop.code or 0
    told.append([code, err.getvalue()])
import torch
import normscope as ns
found = ns.diagnose(torch.nn.Linear(4, 4), torch.randn(8, 4), trial=False)
missing = []
for what in (found.chart, lambda: found.save("x.svg"), lambda: importlib.import_module(
        "normscope.integrations.transformers"), lambda: importlib.import_module("normscope.integrations.lightning"),
        lambda: importlib.import_module("normscope.integrations.tensorboard")):
    try:
        what()
    except ImportError as error:
        missing.append(str(error))
print(json.dumps([told, found._repr_html_(), repr(found), missing]), file=sys.__stdout__)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    given = json.dumps([OPTIONAL, [list(c) for c in COMMANDS]])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=given, capture_output=True, text=True, check=False,
        cwd=tmp_path_factory.mktemp("bare"), env={**os.environ, "PYTHONPATH": str(SRC), "COLUMNS": "300"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_works_or_says_how_to_install_what_it_lacks(said, command):
    code, told = said[0][list(COMMANDS).index(command)]
    wanted = COMMANDS[command]
    if not wanted:
        assert (code, told) == (0, "")
    else:
        assert code == 2
        assert told.count("\n") == 1
        assert wanted in told


def test_a_notebook_shows_text(said):
    cell, text = said[1:3]
    assert cell is None
    assert text.startswith("Diagnosis(Linear")


def test_every_optional_part_raises_an_import_error_with_both_lines(said):
    assert len(said[3]) == 5
    for extra, told in zip(("report", "report", "transformers", "lightning", "tensorboard"), said[3], strict=True):
        assert f"pip install 'normscope[{extra}]'" in told
        assert f"pip install -e '.[{extra}]'" in told
