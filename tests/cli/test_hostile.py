"""Bad input in small: benchmarks/robustness.py makes hundreds of lines and calls of it, and kills and forks besides."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "robustness.py"
SMALL = "mlp:depth=3,width=16"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and limits addresses")
def test_bad_lines_and_bad_calls_are_refused_in_one_line(tmp_path):
    words = ["--only", "lines,calls", "--lines", "22", "--calls", "32", "--out", str(tmp_path / "out.md")]
    ended = subprocess.run([sys.executable, str(BENCHMARK), *words], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]
    assert "Everything held." in (tmp_path / "out.md").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.npz")
    torch.save({"x": torch.ones(1).expand(10**10, 4)}, "expanded.pt")
    torch.save({"x": torch.empty(10, 4, device="meta")}, "meta.pt")
    nested = torch.ones(2)
    for _ in range(60):
        nested = [nested, nested]
    torch.save(nested, "nested.pt")
    np.savez_compressed("packed.npz", x=np.zeros((500_000, 2)))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("pipe.npz", "regular file"),
        ("expanded.pt", "it has, or promises, 160 GB"),
        ("meta.pt", "meta tensor"),
        ("nested.pt", "at most 100000 things"),
        ("packed.npz", "it has, or promises, 8 MB"),
    ],
)
def test_data_is_looked_at_before_it_is_read(run, folder, monkeypatch, name, says):
    monkeypatch.setenv("NORMSCOPE_MAX_FILE", "1MB")
    code, out, err = run("diagnose", SMALL, "--data", name, "-n", 8)
    assert (code, out, len(err.splitlines()), says in err) == (2, "", 1, True), err


def test_the_bound_of_a_file_can_be_raised(run, folder, monkeypatch):
    monkeypatch.setenv("NORMSCOPE_MAX_FILE", "1GB")
    assert run("diagnose", SMALL, "--data", "packed.npz", "-n", 8, "--trial", "none")[0] == 0
    monkeypatch.setenv("NORMSCOPE_MAX_FILE", "many")
    assert "NORMSCOPE_MAX_FILE is written" in run("diagnose", SMALL, "--data", "packed.npz", "-n", 8)[2]


@pytest.mark.parametrize(
    "args",
    [
        ["predict", SMALL, "--every", "0"],
        ["predict", "mlp:depth=10000000000"],
        ["predict", SMALL, "-n", "1000000"],
        ["diagnose", "mlp:depth=2,width=1000000"],
        ["diagnose", SMALL, "--seed", "99999999999999999999999"],
        ["sweep", "--task", "predict", "--depth", "2", "--seeds", "1000000000"],
        ["sweep", "--task", "predict", "--depth", "1:9999", "--width", "1:9999"],
        ["sweep", "--task", "predict", "--depth", "2", "--workers", "100000"],
        ["sweep", "/dev/zero"],
    ],
)
def test_what_is_counted_has_a_bound(run, args):
    code, out, err = run(*args)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err


def test_options_are_checked_before_the_users_file_runs(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("open('ran', 'w').close()\n")
    for wrong in (["-n", "0"], ["--mode", "nope"], ["--seed", "-1"], ["--device", "x"], ["--data", "random:0"]):
        assert run("diagnose", "net.py:make", *wrong)[0] == 2
    for wrong in (["--kind", "nope"], ["--timeout", "-1"], ["--memory", "x"], ["--retries", "-1"]):
        assert run("sweep", "--task", "net.py:cell", "--x", "1", *wrong)[0] == 2
    assert not (tmp_path / "ran").exists()


def test_a_metric_to_draw_that_no_cell_has_is_told(run):
    code, _, err = run("sweep", "--task", "predict", "--depth", "2", "--width", "4", "--plot", "nope", "--workers", "1")
    assert (code, err.count("error: "), "'nope'" in err) == (2, 1, True)
