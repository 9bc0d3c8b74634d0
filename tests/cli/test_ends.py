"""How a command line ends: exit codes of what goes wrong outside the commands, each in a process of its own."""

import os
import subprocess
import sys

import pytest

SMALL = "mlp:depth=3,width=16"
QUITS = """
import sys
from torch import nn

class Quits(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.layer = how, nn.Linear(64, 10)

    def forward(self, x):
        if self.how == "exit":
            sys.exit(0)
        if self.how == "ctrl-c":
            raise KeyboardInterrupt
        if self.how == "pipe":
            raise BrokenPipeError("mine")
        raise BaseException("mine")

def make(how):
    return Quits(how)
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def shell(line, folder, **environment):
    """Exit code, standard output and standard error of a line of bash; ``ns`` is the command line."""
    line = line.replace("ns ", f"{sys.executable} -m normscope ")
    ended = subprocess.run(
        ["bash", "-c", line], cwd=folder, env={**os.environ, **environment}, capture_output=True, timeout=120
    )
    return ended.returncode, ended.stdout.decode(), ended.stderr.decode()


@pytest.mark.parametrize("how", ["exit", "ctrl-c", "pipe", "base"])
def test_what_ends_a_model_is_an_error_of_the_model(run, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(QUITS)
    code, out, err = run("diagnose", f"net.py:make,how={how}", "--fail-on", "warning")
    assert (code, out, len(err.splitlines()), "net.py:" in err) == (3, "", 1, True)


def test_a_reader_that_leaves_is_code_141_in_silence(tmp_path):
    assert shell(f"ns diagnose {SMALL} | head -1; exit ${{PIPESTATUS[0]}}", tmp_path)[::2] == (141, "")


def test_a_closed_standard_output_takes_nothing_and_the_code_holds(tmp_path):
    assert shell(f"ns predict {SMALL} --csv out.csv >&-", tmp_path) == (0, "", "")
    assert (tmp_path / "out.csv").read_text().startswith("source,")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")
def test_a_full_standard_output_is_told(tmp_path):
    code, _, err = shell(f"ns predict {SMALL} --json > /dev/full", tmp_path)
    assert (code, len(err.splitlines()), "No space left" in err) == (2, 1, True)
    assert shell(f"ns predict {SMALL} --nope 2> /dev/full", tmp_path)[0] == 2


def test_a_stream_that_cannot_encode_replaces(tmp_path):
    code, out, err = shell(f"ns predict {SMALL}; ns explain NS101", tmp_path, **ASCII)
    assert (code, err, out.isascii()) == (0, "", True)


def test_the_parsers_message_is_one_line(run):
    code, out, err = run("diagnose", SMALL, "-n", "many")
    assert (code, out, len(err.splitlines()), "--batch" in err, "--help" in err) == (2, "", 1, True, True)
