"""``normscope rates`` and ``normscope overfit``."""

import json

import pytest

from normscope.cli import main

SMALL = "mlp:depth=2,width=8,norm=batch"


@pytest.fixture
def run(capsys):
    def call(*args):
        with pytest.raises(SystemExit) as stop:
            main([*map(str, args)])
        return stop.value.code, *capsys.readouterr()

    return call


def test_the_range_test_says_its_rates(run):
    code, out, _ = run("rates", SMALL, "-n", 16, "--range", "--steps", 20, "--json")
    said = json.loads(out)
    assert code == 0
    assert len(said["rates"]) == 20
    assert said["suggested"] in said["rates"]


def test_rates_are_those_of_the_library(run):
    code, out, _ = run("rates", SMALL, "-n", 16, "--optimizer", "sgd", "--steps", 5, "--budget", 40, "--json")
    (trial,) = json.loads(out)["trials"]
    assert code == 0
    assert trial["optimizer"] == "sgd"
    assert trial["largest"] > 0


def test_overfit_says_whether_the_batch_was_learnt(run, tmp_path):
    page = tmp_path / "a.html"
    code, out, _ = run("overfit", SMALL, "-n", 16, "--lr", 0.05, "--html", page)
    assert code == 0
    assert "learnt by heart after" in out
    assert page.exists()


@pytest.mark.parametrize(("more", "expected"), [((), 0), (("--fail",), 1)])
def test_a_batch_that_is_not_learnt_fails_on_demand(run, more, expected):
    assert run("overfit", SMALL, "-n", 16, "--lr", 1e-6, "--steps", 10, *more)[0] == expected


@pytest.mark.parametrize(
    "args",
    [("rates", SMALL, "--range", "--horizon", 50), ("rates", SMALL, "--optimizer", "sdg"),
     ("overfit", SMALL, "--steps", 2), ("rates", SMALL, "--range", "--low", 2, "--high", 1)],
)  # fmt: skip
def test_misuse_ends_with_two(run, args):
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert err.startswith("error:")
