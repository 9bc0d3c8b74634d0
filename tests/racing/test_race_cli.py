"""``normscope race``: what it prints and writes, its exit codes, its misuses; the page and the notebook cell."""

import importlib
import json
import math

import numpy as np
import polars as pl
import pytest
import torch

from normscope import race
from normscope.core.errors import unknown
from normscope.data.datasets import load
from normscope.training import permutation

A, B = "mlp:depth=2,width=8", "mlp:depth=2,width=8,norm=batch"
FAST = (
    "--samples",
    128,
    "--test-samples",
    40,
    "--epochs",
    1,
    "--batch",
    32,
    "--seeds",
    3,
    "--geometry",
    2,
    "--lr",
    0.1,
)


@pytest.fixture
def run(run, monkeypatch):
    """``race ...`` on a wide screen."""
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *args: run("race", *args)


@pytest.fixture
def cures(monkeypatch):
    """Stub cures: ``double`` doubles the first weight; they remember what they were given."""
    given = []

    def cure(model, how, inputs, targets, seed):
        given.append((how, inputs, targets, seed))
        with torch.no_grad():
            next(model.parameters()).mul_(2)
        return model

    def parts_of(how):
        if how not in ("double", "orthogonal"):
            raise unknown("cure", how, ("double", "orthogonal"))

    command = importlib.import_module("normscope.cli._entrants")
    monkeypatch.setattr(command, "parts_of", parts_of)
    monkeypatch.setattr(command, "cure", cure)
    return given


def test_models_race_and_the_table_tells(run):
    code, out, err = run(A, B, *FAST)
    assert code == 0
    assert "2 variants x 3 seeds = 6 runs of 4 steps" in err
    assert out.splitlines()[0] == f"#1 {A}" or A in out
    assert "baseline" in out
    assert "0 of 3" in out


def test_json_has_settings_rates_and_lines(run):
    code, out, _ = run(A, B, *FAST, "--json")
    told = json.loads(out)
    assert code == 0
    assert [line["variant"] for line in told["variants"]] == [A, B]
    assert told["settings"]["steps"] == 4
    assert told["settings"]["rates"][B]["lr"] == 0.1
    assert told["variants"][0]["p_loss"] is None
    assert 0 <= told["variants"][1]["p_loss"] <= 1


def test_the_numbers_are_those_of_the_library(run, tmp_path):
    run(A, *FAST, "--parquet", tmp_path / "a.parquet")
    from normscope.data.models import load_model

    train, test = load("digits", n=128), load("digits", split="test", n=40)
    found = race({A: lambda seed: load_model(A, train, seed=seed)}, train, test, epochs=1, batch=32, lr=0.1, geometry=2)
    clock = pl.col("metric").str.starts_with("seconds")
    assert pl.read_parquet(tmp_path / "a.parquet").filter(~clock).equals(found.table.filter(~clock))


def test_a_cure_gets_the_first_batch_of_its_seed(run, cures):
    code, out, _ = run(A, "--cures", "none,double", *FAST, "--json")
    assert code == 0
    assert [line["variant"] for line in json.loads(out)["variants"]] == ["none", "double"]
    assert sorted({seed for *_, seed in cures}) == [0, 1, 2]
    train = load("digits", n=128)
    how, inputs, targets, seed = cures[-1]
    first = permutation(seed, 0, 128)[:32]
    assert how == "double"
    assert torch.equal(inputs, train.inputs[first])
    assert torch.equal(targets, train.targets[first])


def test_several_models_with_cures_are_named_by_both(run, cures):
    _, out, _ = run(A, B, "--cures", "none,double", *FAST, "--json")
    assert [v["variant"] for v in json.loads(out)["variants"]] == [A, f"{A} + double", B, f"{B} + double"]


def test_rates_may_be_named(run):
    _, out, _ = run(A, B, *FAST[:-2], "--lr", 0.2, "--lr", f"{B}=search:0.5,0.6", "--json")
    lines = json.loads(out)["variants"]
    assert lines[0]["lr"] == 0.2
    assert lines[1]["lr"] in (0.5, 0.6)


def test_p_values_are_explained_where_there_are_some(run):
    assert "p: against" in run(A, B, *FAST)[1]
    assert "p: against" not in run(A, *FAST)[1]


def test_all_diverged_is_exit_code_1(run):
    code, out, _ = run(A, *FAST[:-2], "--lr", 1e30)
    assert code == 1
    assert "diverged" in out


def test_a_race_goes_on_in_its_folder(run, tmp_path):
    run(A, *FAST, "--out", tmp_path / "r")
    code, _, err = run(A, *FAST, "--out", tmp_path / "r")
    assert code == 0
    assert "100 % already done" in err
    code, _, err = run(A, *FAST, "--epochs", 2, "--out", tmp_path / "r")
    assert code == 2
    assert "epochs 1 there, 2 here" in err


def test_data_without_a_test_split_has_no_test(run, tmp_path):
    np.savez(tmp_path / "d.npz", x=np.random.default_rng(0).random((64, 6), np.float32), y=np.arange(64) % 3)
    code, out, _ = run(A, "--data", tmp_path / "d.npz", "--epochs", 1, "--batch", 16, "--seeds", 1, "--json")
    assert code == 0
    assert json.loads(out)["variants"][0]["test_accuracy"] is None


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("mpl:depth=2",), "Did you mean 'mlp'"),
        ((A, A), "stands twice"),
        ((A, "--cures", ""), "at least one name"),
        ((A, "--cures", "orthogona"), "Did you mean 'orthogonal'"),
        ((A, "--cures", "double,double"), "stands twice"),
        ((A, "--optimiser", "adm"), "Did you mean 'adam'"),
        ((A, "--lr", "fast"), "There is no rule"),
        ((A, "--lr", "search:"), "A rule is written"),
        ((A, "--lr", "search:0.1,0.1"), "different rates"),
        ((A, "--target-loss", "nan"), "above 0; got nan"),
        ((A, "--target-loss", "-1"), "above 0; got -1"),
        ((A, "--data", "random:1x8x8"), "random:1x8x8 is made up and has none. Give one of digits"),
        ((A, "--lr", "bn=0.1"), "no variant 'bn'"),
        ((A, "--lr", "0.1", "--lr", "0.2"), "one rate for all"),
        ((A, "--seeds", "0"), "seeds"),
        ((A, "--samples", "20"), "at most 20"),
        ((A, "--data", "cifar10"), "--data-dir"),
        ((A, "--html", "/no/such/folder/x.html"), "must exist"),
        ((A, "--device", "abacus"), "--device"),
        ((A, "--baseline", "x"), "no variant 'x'"),
    ],
)
def test_misuse_is_one_message_and_exit_code_2(run, cures, args, says):
    code, out, err = run(*args)
    assert code == 2
    assert out == ""
    assert says in " ".join(err.split())
    assert "Traceback" not in err


# The page


@pytest.fixture(scope="module")
def raced():
    """Two variants that train, one that diverges at once; a name that tries to be markup."""
    data = load("digits", n=256)
    made = {
        name: lambda seed,
        width=width: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.ReLU(),
                                                            torch.nn.Linear(width, 10))
        for name, width in {"small": 8, "<script>alert(1)</script>": 32, "wild": 9}.items()
    }  # fmt: skip
    rates = {"small": 0.1, "<script>alert(1)</script>": "search:0.1,0.3", "wild": 1e30}
    return race(made, data, data, batch=32, epochs=2, seeds=3, lr=rates, geometry=4)


def page_data(page):
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def test_the_page_is_self_contained_and_escapes_names(raced, tmp_path):
    raced.to_html(tmp_path / "a.html")
    page = (tmp_path / "a.html").read_text()
    assert "default-src &#39;none&#39;" in page
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "3 of 3, step" in page
    assert "loss at the end of a pilot: 0.1 " in page


def test_the_drawn_loss_is_the_mean_and_the_range_over_seeds(raced, tmp_path):
    raced.to_html(tmp_path / "a.html")
    spec = page_data((tmp_path / "a.html").read_text())["charts"]["loss"]
    rows = [r for part in spec["layer"] for r in part.get("data", spec.get("data", {})).get("values", [])]
    drawn = next(r for r in rows if r.get("variant") == "small" and r.get("step") == 16)
    last = raced.table.filter(
        (pl.col("variant") == "small") & (pl.col("signal") == "batch") & (pl.col("step") == 15)
    )["value"]  # fmt: skip
    assert drawn["mean"] == pytest.approx(last.mean(), rel=1e-4)  # written with five digits
    assert (drawn["low"], drawn["high"]) == pytest.approx((last.min(), last.max()), rel=1e-4)


def test_every_variant_that_was_followed_has_its_maps(raced, tmp_path):
    raced.to_html(tmp_path / "a.html")
    charts = page_data((tmp_path / "a.html").read_text())["charts"]
    for metric in ("participation_rank", "orthogonality_gap", "gradient_norm"):
        assert {f"{metric}-0", f"{metric}-1"} <= set(charts)


def test_every_chart_is_drawn_without_a_browser(raced, tmp_path):
    import vl_convert

    raced.to_html(tmp_path / "a.html")
    data = page_data((tmp_path / "a.html").read_text())
    for key, spec in data["charts"].items():
        for other in ({}, *([data["logs"][key]] if key in data["logs"] else [])):
            for part in spec["layer"]:
                if "field" in part["encoding"]["y"]:
                    part["encoding"]["y"] |= other
            assert "<svg" in vl_convert.vegalite_to_svg(json.dumps({**spec, "width": 300}))


def test_a_notebook_cell_shows_table_and_curves_without_scripts(raced):
    cell = raced._repr_html_()
    assert "<script" not in cell
    assert cell.count("<img") == 2
    assert "diverged" in cell


def test_a_race_without_tests_and_geometry_has_a_page(tmp_path):
    data = load("digits", n=64)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    found = race({"one": model}, data, batch=32, epochs=1, seeds=1, geometry=0)
    found.to_html(tmp_path / "a.html")
    assert "Layers over time" not in (tmp_path / "a.html").read_text()
    assert math.isnan(found.lines()[0].test_accuracy)
    assert found._repr_html_()
