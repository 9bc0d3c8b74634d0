"""Sweeps from files and from the command line: ranges, plans, what is printed, drawn and refused."""

import json
import math
from pathlib import Path

import polars as pl
import pytest
import sweep_tasks

from normscope import Grid, UsageError
from normscope.sweeping import plan
from normscope.sweeping.ranges import axis

FILE = f"{Path(sweep_tasks.__file__)}:"
EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "sweeps").glob("*.toml"))


@pytest.fixture
def run(run, tmp_path, monkeypatch):
    """`run` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def inline(monkeypatch):
    """Cells run in this process, so that a test of words does not start workers."""
    from concurrent.futures import ThreadPoolExecutor

    from normscope.sweeping import executors

    monkeypatch.setattr(
        executors, "local", lambda workers=None: executors.Pool(None, lambda: ThreadPoolExecutor(1), 1)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kind", "values"),
    [
        ("1:64:log2", "int", [1, 2, 4, 8, 16, 32, 64]),
        ("3:50:log2", "int", [3, 6, 12, 24, 48]),
        ("0.001:1:log10", "float", [0.001, 0.01, 0.1, 1]),
        ("1:30:x3", "int", [1, 3, 9, 27]),
        ("1:4", "int", [1, 2, 3, 4]),
        ("0:1:0.1", "float", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        ("10:30:10,100", "int", [10, 20, 30, 100]),
        ("none,batch,layer", "str", ["none", "batch", "layer"]),
        ("none,0.5", "float | None", [None, 0.5]),
        ("true,false", "bool", [True, False]),
        ("1,a,-2.5,1e-3,inf", "", [1, "a", -2.5, 0.001, math.inf]),
        ("3,4", "str | None", ["3", "4"]),
        ("random:3x8x8", "str | None", ["random:3x8x8"]),
    ],
)
def test_an_axis_as_text(text, kind, values):
    found = axis(text, "x", kind)
    assert found == values
    assert [type(v) for v in found if v != 1 and v != 0] == [type(v) for v in values if v != 1 and v != 0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1,,2",
        "4:1",
        "1:",
        "1:2:3:4",
        "1:8:0",
        "1:8:-1",
        "0:8:log2",
        "1:8:log1",
        "1:8:lgo2",
        "0.5:2",
        "1:inf",
        "1:1e9",
    ],
)
def test_nonsense_is_no_axis(text):
    with pytest.raises(UsageError):
        axis(text, "x", "int")


def written(tmp_path, text):
    path = tmp_path / "plan.toml"
    path.write_text(text)
    return path


def test_a_plan_multiplies_its_cells_its_zip_its_grid_and_its_seeds(tmp_path):
    path = written(
        tmp_path,
        """
        task = "simulate"
        seeds = 2
        [zip]
        width = [8, 16]
        n = [4, 8]
        [grid]
        depth = "1:4:log2"
        norm = ["none", "batch"]
        [[cells]]
        gain = 1.0
        [[cells]]
        gain = 2.0
        """,
    )
    grid = plan.read(path).grid()
    assert len(grid) == 2 * 2 * 3 * 2 * 2
    assert dict(grid[0].parameters) == {"gain": 1.0, "width": 8, "n": 4, "depth": 1, "norm": "none", "seed": 0}
    assert dict(grid[1].parameters)["seed"] == 1
    assert {(c.parameters["width"], c.parameters["n"]) for c in grid} == {(8, 4), (16, 8)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('tusk = "simulate"', "Did you mean 'task'"),
        ("[grid]\ndepth = 1", "must say its task"),
        ('task = "simulate"\n[executor]\nworker = 2', "Did you mean 'workers'"),
        ('task = "simulate"\n[executor]\nworkers = "two"', "must be int"),
        ('task = "simulate"\n[plot]\nkind = "heet"', "Did you mean 'heat'"),
        ('task = "simulate"\n[grid]\ndept = [1]', "Did you mean 'depth'"),
        ('task = "simulate"\n[grid]\ndepth = "1:x"', "depth must be"),
        ('task = "simulate"\nseeds = 0', "whole number >= 1"),
        ('task = "simulate"\ngrid = 3', "must be a table"),
        ('task = "simulate"', "needs a grid"),
        ("task = ", "is not TOML"),
    ],
)
def test_a_plan_is_checked(run, tmp_path, text, words):
    code, out, err = run("sweep", written(tmp_path, text), "--dry-run")
    assert (code, out) == (2, "")
    assert words in " ".join(err.split())


def test_a_task_in_a_file_beside_the_plan(run, tmp_path, inline):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "cells.py").write_text("def twice(x):\n    return {'m': 2 * x}\n")
    path = tmp_path / "sub" / "plan.toml"
    path.write_text('task = "cells.py:twice"\n[grid]\nx = "1:3"')
    code, out, _ = run("sweep", path, "--json")
    assert code == 0
    assert [r["value"] for r in json.loads(out)["records"]] == [2, 4, 6]


def test_a_sweep_from_the_command_line_is_kept_and_resumed(run, inline):
    line = ("sweep", "--task", FILE + "draw", "--x", "1:4", "--y=1,0.5", "--store", "runs")
    code, out, _ = run(*line, "--csv", "a.csv")
    assert code == 0
    assert "8 cells: 8 computed" in out
    assert "wrote" in out
    code, out, _ = run(*line, "--csv", "b.csv")
    assert "0 computed" in out
    assert "8 from the store" in out
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()
    assert pl.read_csv("a.csv").columns[:4] == ["source", "x", "y", "seed"]
    code, out, _ = run(*line, "--x", "1")
    assert code == 2
    code, out, _ = run("sweep", "--task", FILE + "draw", "--x", "1:6", "--y=1,0.5", "--store", "runs", "--dry-run")
    assert "8 done, 0 failed, 4 to do: about" in out


def test_a_store_may_be_any_fsspec_path(run, inline, tmp_path):
    pytest.importorskip("fsspec")
    line = ("sweep", "--task", FILE + "draw", "--x", "1:3", "--store", "memory://of-the-command-line")
    assert "3 computed" in run(*line)[1]
    assert "3 from the store" in run(*line)[1]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_computes_and_writes_nothing(run, tmp_path):
    code, out, _ = run(
        "sweep",
        "--task",
        "simulate",
        "--depth",
        "1:64:log2",
        "--norm",
        "none,batch",
        "--seeds",
        5,
        "--dry-run",
        "--json",
    )
    said = json.loads(out)
    assert code == 0
    assert (said["cells"], said["missing"], said["done"]) == (70, 70, 0)
    assert list(tmp_path.iterdir()) == []


def test_failed_cells_are_told_and_give_exit_code_1(run, inline):
    code, _, err = run("sweep", "--task", FILE + "strange", "--x", "fine,raises", "--html", "a.html", "--png", "a.png")
    assert code == 1
    assert "ValueError: no weights today" in err
    assert "1 cells failed" in Path("a.html").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "Give a file"),
        (("nothing.toml",), "no file 'nothing.toml'"),
        (("--task", "simulat", "--depth", "1"), "Did you mean 'simulate'"),
        (("--task", "simulate", "--dpth", "1"), "Did you mean 'depth'"),
        (("--task", "simulate", "--depth"), "needs values"),
        (("--task", "simulate", "--depth", "1", "--depth", "2"), "twice"),
        (("--task", "simulate", "--depth", "0"), ">= 1"),
        (("--task", "simulate", "--norm", "bacth"), "Did you mean 'batch'"),
        (("--task", "simulate", "--depth", "1", "--memory", "much"), "500MB"),
        (("--task", "simulate", "--depth", "1", "--html", "no/where/a.html"), "must exist"),
        (("--task", "simulate", "--depth", "1", "--kind", "pie"), "kind of plot"),
        (("--task", "simulate", "--depth", "1", "--workers", "0"), "workers must be"),
        (("--task", "simulate", "--depth", "0:8:log2"), "starts above 0"),
        (("--task", "simulate", "--depth", "1", "extra"), "got 'extra'"),
        (("--task", "train", "--depth", "1", "--data", "mnst"), "Did you mean 'mnist'"),
        (("--task", "math:pi", "--x", "1"), "must be a function"),
        (("--task", "simulate", "--depth", "1", "--scheduler", "nonsense"), "Dask"),
    ],
)
def test_misuse_is_one_message_and_exit_code_2(run, args, words):
    code, _, err = run("sweep", *args)
    assert code == 2
    assert words in " ".join(err.split())
    assert "Traceback" not in err


def table(**axes):
    """A table as a sweep makes it, with mean = the sum of the numbers of a point."""
    rows = []
    for cell in Grid(**axes):
        p = cell.parameters
        value = sum(v for v in p.values() if isinstance(v, int | float))
        rows.append(
            {
                "source": "measured",
                **p,
                "signal": "activation",
                "layer": 1,
                "metric": "m",
                "value": float(value),
                "error": None,
            }
        )
    return pl.DataFrame(rows, schema_overrides={"error": pl.String}, infer_schema_length=None)


def test_a_summary_is_over_seeds():
    from normscope.report import sweeps

    found = sweeps.summary(table(depth=[1, 2], seed=[0, 1, 2]), ("depth", "seed"))
    assert found.select("depth", "mean", "sd", "count").rows() == [(1, 2.0, 1.0, 3), (2, 3.0, 1.0, 3)]


def specs(page):
    return json.loads(page.split('id="data">')[1].split("</script>")[0])["charts"].values()


def values(spec):
    return spec["data"]["values"]


def test_two_numeric_axes_make_a_heat_map_and_lines():
    pytest.importorskip("altair")
    from normscope.report import sweeps

    content = sweeps.Sweep(
        table(depth=[1, 2, 4], width=[8, 16], norm=["none", "batch"], seed=[0, 1]), ("depth", "width", "norm", "seed")
    )
    heat, lines = specs(sweeps.render(content))
    assert heat["facet"]["field"] == "facet"
    assert {r["facet"] for r in values(heat)} == {"norm = none", "norm = batch"}
    encoding = heat["spec"]["layer"][0]["encoding"]
    assert (encoding["x"]["field"], encoding["y"]["field"]) == ("depth", "width")
    point = next(r for r in values(heat) if (r["depth"], r["width"], r["norm"]) == (4, 16, "batch"))
    assert point["mean"] == 20.5
    assert point["count"] == 2
    assert (point["low"], point["high"]) == pytest.approx((20.5 - 2 * 0.5, 20.5 + 2 * 0.5))  # sd .707, two seeds
    assert {r["facet"] for r in values(lines)} == {"width = 8", "width = 16"}
    assert lines["spec"]["layer"][1]["encoding"]["color"]["field"] == "norm"


def test_axes_side_by_side_are_one_axis_of_the_picture():
    pytest.importorskip("altair")
    from normscope.report import sweeps

    sides = pl.concat([table(width=[w], n=[2 * w], lr=[0.1, 0.2], norm=["none", "batch"]) for w in (8, 16)])
    asked = {"kind": "heat", "metrics": ("m",)}
    for x, y in (("width", "lr"), ("n", "lr"), (None, None)):
        content = sweeps.Sweep(sides, ("width", "n", "lr", "norm"), x=x, y=y, **asked)
        (heat,) = specs(sweeps.render(content))
        assert {r["facet"] for r in values(heat)} == {"norm = none", "norm = batch"}
    crossed = table(width=[8, 16], n=[8, 16], lr=[0.1, 0.2])
    (heat,) = specs(sweeps.render(sweeps.Sweep(crossed, ("width", "n", "lr"), x="width", y="lr", **asked)))
    assert {r["facet"] for r in values(heat)} == {"n = 8", "n = 16"}


def test_a_parameter_that_some_cells_lack_is_none_in_the_picture():
    pytest.importorskip("altair")
    from normscope.report import sweeps

    frame = table(width=[8, 16, 32], skip=[0, 1]).with_columns(skip=pl.when(pl.col("skip") > 0).then(1.0))
    (lines,) = specs(sweeps.render(sweeps.Sweep(frame, ("width", "skip"), x="width", colour="skip", kind="lines")))
    colour = lines["layer"][1]["encoding"]["color"]
    assert sorted(colour["scale"]["domain"]) == ["1", "none"]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [((0.07, 0.31), [0.07, 0.1, 0.15, 0.2, 0.3]), ((0.4, 60), [1, 3, 10, 30]), ((1e-9, 1e9), None)],
)
def test_ticks_of_a_log_axis_are_round_and_few(ends, expected):
    pytest.importorskip("altair")
    from normscope.report.grammar import ticks

    found = ticks(*ends)
    assert 3 <= len(found) <= 8
    assert expected is None or found == expected


def test_what_is_not_finite_is_grey_and_breaks_no_page():
    pytest.importorskip("altair")
    from normscope.report import sweeps

    frame = table(depth=[1, 2], width=[8, 16]).with_columns(
        value=pl.when(pl.col("depth") == 2).then(math.inf).otherwise(pl.col("value"))
    )
    page = sweeps.render(sweeps.Sweep(frame, ("depth", "width"), kind="heat"))
    (heat,) = specs(page)
    assert [r["mean"] for r in values(heat)] == [9.0, 17.0, None, None]
    assert [r["short"] for r in values(heat)][2:] == ["inf", "inf"]
    assert "grey: not finite" in page


def test_names_cannot_smuggle_scripts_into_the_page():
    pytest.importorskip("altair")
    from normscope.report import sweeps

    evil = "</script><script>alert(1)</script>"
    page = sweeps.render(sweeps.Sweep(table(depth=[1, 2], norm=[evil, "b"]), ("depth", "norm"), title=evil))
    assert evil not in page


def test_a_picture_is_a_png():
    pytest.importorskip("altair")
    from normscope.report import sweeps

    assert sweeps.png(sweeps.Sweep(table(depth=[1, 2], seed=[0, 1]), ("depth", "seed")), scale=1)[:4] == b"\x89PNG"


def test_what_a_picture_is_asked_for_must_be_there():
    from normscope.report import sweeps

    with pytest.raises(UsageError, match="parameter of the sweep"):
        sweeps.Sweep(table(depth=[1, 2]), ("depth",), x="width")
    with pytest.raises(UsageError, match="metric of the sweep"):
        sweeps.Sweep(table(depth=[1, 2]), ("depth",), metrics=("n",))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_every_example_is_a_sweep(run, path):
    code, out, err = run("sweep", path, "--dry-run", "--json")
    assert code == 0, err
    assert 0 < json.loads(out)["cells"] <= 1000


def test_there_are_examples():
    assert len(EXAMPLES) >= 5


def test_what_was_typed_is_printed_as_typed(run):
    code, _, err = run("sweep", "--task", "simulate", "--depth", "1:x:log2")
    assert code == 2
    assert "'1:x:log2'" in err
