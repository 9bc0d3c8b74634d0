"""A training that was recorded is read from whatever holds it, and what holds none is refused in one line."""

import json
import math
import os

import polars as pl
import pytest
import torch
from torch import nn

import normscope as ns
from normscope.findings.review import review
from normscope.probing.runs import read


def tracked(*writers, steps=12):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with ns.Tracker(model, every=2, writers=writers) as tracker:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(torch.randn(16, 6)), torch.arange(16) % 3)
            loss.backward()
            optimizer.step()
            tracker.log(loss=loss)
    return tracker.frame()


def same(a, b):
    keys = ["step", "layer", "name", "signal", "metric", "value"]
    return a.select(keys).sort(keys).equals(b.select(keys).sort(keys))


def losses(run):
    return {m: p.select("step", "value").rows() for (m,), p in run.table.group_by("metric", maintain_order=True)}


@pytest.mark.parametrize("kind", ["parts", "run.csv"])
def test_a_tracker_s_files_hold_the_run(tmp_path, kind):
    frame = tracked(tmp_path / kind)
    assert same(read(tmp_path / kind).table, frame)


def test_a_table_whose_last_row_was_being_written_is_read(tmp_path):
    frame = tracked(tmp_path / "run.csv")
    with (tmp_path / "run.csv").open("a") as file:
        file.write("measured,12,")
    assert same(read(tmp_path / "run.csv").table, frame)


STATE = [
    {"epoch": 1.0, "loss": 2.0, "grad_norm": 1.5, "learning_rate": 1e-3, "step": 10},
    {"epoch": 1.0, "eval_loss": 2.5, "eval_runtime": 3.0, "step": 10},
    {"epoch": 2.0, "loss": 1.0, "grad_norm": float("nan"), "learning_rate": 0.0, "step": 20},
    {"epoch": 2.0, "train_runtime": 9.0, "train_loss": 1.5, "step": 20},
]


def state(path, log=STATE, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"log_history": log, "max_steps": 20, **more}))


def test_a_trainer_s_state_is_read(tmp_path):
    state(tmp_path / "trainer_state.json")
    found = losses(read(tmp_path / "trainer_state.json"))
    assert found["val_loss"] == [(10, 2.5)]
    assert found["lr"] == [(10, 1e-3), (20, 0.0)]
    assert found["loss"][0] == (10, 2.0)
    assert math.isnan(found["grad_norm"][1][1])


def test_of_a_trainer_s_folder_the_last_checkpoint_and_the_tracker_s_parts_are_one_run(tmp_path):
    state(tmp_path / "checkpoint-2" / "trainer_state.json", STATE[:1])
    state(tmp_path / "checkpoint-10" / "trainer_state.json")
    frame = tracked(tmp_path / "normscope")
    run = read(tmp_path)
    assert run.table.filter(signal="activation").height == frame.filter(signal="activation").height
    assert losses(run)["lr"] == [(10, 1e-3), (20, 0.0)]


@pytest.mark.parametrize(
    ("text", "unit", "found"),
    [
        ("step,loss,val_loss,lr,grad_norm\n1,2.5,,0.1,3\n2,2.0,2.2,0.1,nan\n", "step",
         {"loss": [(1, 2.5), (2, 2.0)], "val_loss": [(2, 2.2)]}),
        ("Epoch;Train Loss;Validation Loss\n0;1.5;1.6\n1;1.2;1.4\n", "epoch", {"loss": [(0, 1.5), (1, 1.2)]}),
        ("epoch,step,train_loss_epoch,train_loss_step\n0,9,,1.5\n0,9,1.4,\n", "step", {"loss": [(9, 1.5)]}),
        ("loss\n3\n2\n", "row", {"loss": [(0, 3.0), (1, 2.0)]}),
        ("batch,loss\n0,3\n1,2\n0,2\n1,1\n0,1\n1,1\n", "row", {"loss": list(enumerate([3.0, 2, 2, 1, 1, 1]))}),
        ("_step\ttrain/loss\n5\tinf\n", "step", {"loss": [(5, math.inf)]}),
    ],
)  # fmt: skip
def test_losses_are_read_by_the_usual_names_of_columns(tmp_path, text, unit, found):
    (tmp_path / "a.csv").write_text(text)
    run = read(tmp_path / "a.csv")
    known = losses(run)
    assert run.unit == unit
    assert {m: known[m] for m in found} == found


def test_columns_that_are_not_read_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("epoch,loss,accuracy\n0,1,0.5\n")
    assert "accuracy" in read(tmp_path / "a.csv").notes[0]


def test_losses_alone_leave_out_the_checks_of_layers_by_name(tmp_path):
    (tmp_path / "a.csv").write_text("step,loss\n" + "".join(f"{s},{2.303 + 0.001 * (s % 3)}\n" for s in range(60)))
    found = review(tmp_path / "a.csv")
    assert [f.code for f in found.findings] == ["NS922"]
    assert "ln 10 = 2.303" in found.findings[0].evidence
    assert {"NS912", "NS913", "NS918"} <= set(found.unseen)


def parquet(path):
    pl.DataFrame({"a": [1], "b": ["x"]}).write_parquet(path)


def torn(path):
    parquet(path)
    os.truncate(path, 60)


BAD = {
    "nothing there": ("gone", None, "no 'gone'"),
    "an empty folder": ("empty/", None, "no record of a training"),
    "somebody else's parquet": ("a.parquet", parquet, "that a Tracker wrote"),
    "a torn part": ("a.parquet", torn, "must be a parquet file"),
    "other columns": ("a.csv", lambda p: p.write_text("x,y\n1,2\n"), "it has x, y"),
    "words": ("a.csv", lambda p: p.write_text("step,loss\na,b\n"), "must hold numbers"),
    "an empty file": ("a.csv", lambda p: p.write_text(""), "cannot be read"),
    "garbage as CSV": ("a.csv", lambda p: p.write_bytes(bytes(range(256)) * 9), "cannot be read|must have a column"),
    "garbage as JSON": ("a.json", lambda p: p.write_bytes(bytes(range(256))), "no JSON"),
    "garbage as parquet": ("a.parquet", lambda p: p.write_bytes(bytes(range(256))), "must be a parquet file"),
    "another JSON": ("a.json", lambda p: p.write_text("[1]"), "log_history"),
    "a log of nothing": ("a.json", lambda p: state(p, []), "must hold losses"),
    "another kind of file": ("a.txt", lambda p: p.write_text("loss 1"), "known kind"),
    "a pipe": ("a.csv", os.mkfifo, "a pipe"),
    "a folder of pipes": ("part-0.parquet", os.mkfifo, "a pipe"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_holds_no_training_is_refused_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path, make, said = BAD[name]
    if make is None and path.endswith("/"):
        (tmp_path / path).mkdir()
    elif make is not None:
        make(tmp_path / path)
    with pytest.raises(ns.UsageError, match=said) as told:
        read("." if name == "a folder of pipes" else path.rstrip("/"))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("value", ["1e300", "1" + "0" * 400, "NaN", "Infinity", "null", '"x"', "true"])
def test_a_number_of_any_size_in_a_state_is_no_crash(tmp_path, value):
    text = '{"log_history": [{"step": %s, "loss": %s}, {"step": 2, "loss": 1.0}]}' % (value, value)  # noqa: UP031
    (tmp_path / "trainer_state.json").write_text(text)
    assert losses(read(tmp_path))["loss"][-1][1] == 1.0 or value != "null"
