"""The command line: what it prints and writes, its exit codes, and one clear message for each kind of misuse."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest
import torch

import normscope
from normscope.findings import RULES
from normscope.geometry.metrics import METRICS

SMALL, BROKEN = "mlp:depth=3,width=16", "mlp:depth=16,width=32,norm=batch,weights=positive"
NET = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))

def number():
    return 3

def raises():
    raise ValueError("no weights today")

def needs(width):
    return nn.Linear(width, 3)

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 8)

    def forward(self, x):
        self.first(x.flatten(1))
        raise RuntimeError("my own mistake")

def bad_weight():
    model = make()
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    return model

model = make()
constant = 7
"""


@pytest.fixture(autouse=True)
def _short_trials(monkeypatch):
    monkeypatch.setattr("normscope.findings.checkup.trial.SECONDS", 1.0)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with a user's file in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


@pytest.fixture
def answer(run):
    """What ``diagnose ... --json`` says, parsed; no NaN tokens allowed."""

    def answer(*args):
        code, out, err = run("diagnose", *args, "--json")
        assert (code, err) == (0, "")
        return json.loads(out, parse_constant=lambda token: pytest.fail(f"{token} is not JSON"))["models"]

    return answer


# What it says


@pytest.mark.parametrize("name", ["mlp", "mlp:", SMALL, "vgg:depth=4,width=4", "resnet:depth=5,width=4,norm=batch"])
def test_a_built_in_net_is_diagnosed(run, name):
    assert run("diagnose", name, "-n", 16)[0] == 0


def test_the_report_names_the_model(run):
    assert "depth=3" in run("diagnose", SMALL)[1]


def test_the_report_names_a_findings_code(run):
    assert "NS101" in run("diagnose", BROKEN)[1]


def test_nothing_goes_to_standard_error_when_all_is_well(run):
    assert run("diagnose", SMALL)[2] == ""


def test_json_holds_the_verdict_of_each_model(answer):
    assert [m["label"] for m in answer(SMALL, BROKEN)] == [SMALL, BROKEN]


def test_json_tells_equal_models_apart(answer):
    labels = [m["label"] for m in answer(SMALL, SMALL)]
    assert len(set(labels)) == 2


def test_json_has_one_row_a_layer(answer):
    assert [row["layer"] for row in answer(SMALL)[0]["layers"]] == [0, 1, 2, 3, 4]


def test_json_writes_what_is_undefined_as_null(answer):
    layers = answer("mlp:depth=3,width=16,gain=1e30")[0]["layers"]  # overflows
    assert layers[3]["participation_rank"] is None


def test_json_findings_have_codes(answer):
    assert {f["code"] for f in answer(BROKEN)[0]["findings"]} <= set(RULES)


def test_json_is_the_same_twice(answer):
    first, second = answer(SMALL)[0], answer(SMALL)[0]
    assert first["layers"] == second["layers"]


def test_another_seed_gives_other_numbers(answer):
    assert answer(SMALL)[0]["layers"] != answer(SMALL, "--seed", 1)[0]["layers"]


def test_the_batch_is_as_large_as_asked_for(answer):
    assert answer(SMALL, "-n", 24)[0]["facts"]["batch_size"] == 24


def test_the_mode_is_as_asked_for(answer):
    found = answer("mlp:depth=3,width=16,norm=batch", "--mode", "eval")[0]
    assert (found["facts"]["mode"], [f["code"] for f in found["findings"]]) == ("eval", ["NS502"])


def test_the_dtype_is_as_asked_for(answer):
    assert answer(SMALL, "--dtype", "bfloat16")[0]["facts"]["dtype"] == "bfloat16"


def test_layers_are_chosen_by_pattern(answer):
    assert [row["name"] for row in answer(SMALL, "--layers", "layers.1", "--layers", "readout")[0]["layers"]] == [
        "", "layers.1", "readout",
    ]  # fmt: skip


def test_the_loss_is_as_asked_for(answer):
    assert answer(SMALL, "--loss", "mse")[0]["facts"]["loss"] == "mse"


def test_the_facts_name_the_data(answer):
    assert answer(SMALL)[0]["facts"]["data"] == "digits"


def test_the_report_fits_80_columns(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(len(line) for line in run("diagnose", BROKEN)[1].splitlines()) <= 80


def test_the_report_to_a_pipe_has_no_colour(run):
    assert "\x1b[" not in run("diagnose", BROKEN)[1]


# Data


def test_made_up_samples_are_taken(answer):
    assert answer("vgg:depth=4,width=4", "--data", "random:3x9x9", "-n", 8)[0]["facts"]["data"] == "random:3x9x9"


def test_an_npz_file_is_taken(here, answer):
    np.savez(here / "mine.npz", x=np.random.default_rng(0).normal(size=(20, 6)), y=np.arange(20) % 4)
    facts = answer(SMALL, "--data", "mine.npz", "-n", 16)[0]["facts"]
    assert (facts["batch_size"], facts["loss"]) == (16, "cross_entropy")


def test_the_readout_has_as_many_outputs_as_the_data_has_classes(here, answer):
    np.savez(here / "mine.npz", x=np.random.default_rng(0).normal(size=(20, 6)), y=np.arange(20) % 4)
    found = answer("mlp:depth=2,width=8", "--data", "mine.npz", "-n", 16)[0]
    assert found["facts"]["parameters"] == 6 * 8 + 8 * 8 + 8 * 4


# Files


def test_csv_holds_every_number(here, run):
    run("diagnose", SMALL, BROKEN, "--csv", "a.csv")
    table = pl.read_csv(here / "a.csv", infer_schema_length=None)
    assert set(table["model"]) == {SMALL, BROKEN}


def test_parquet_holds_every_number(here, run):
    run("diagnose", SMALL, "--parquet", "a.parquet")
    table = pl.read_parquet(here / "a.parquet")
    assert set(table.filter(pl.col("signal") == "activation")["metric"]) <= set(METRICS) | {
        "running_statistics_distance"
    }


def test_parquet_has_the_columns_of_every_table(here, run):
    run("diagnose", SMALL, "--parquet", "a.parquet")
    columns = ["source", "seed", "layer", "name", "call", "kind", "signal", "metric", "value", "stderr"]
    assert [c for c in pl.read_parquet(here / "a.parquet").columns if c != "model"] == columns


def test_csv_and_parquet_hold_the_same_rows(here, run):
    run("diagnose", SMALL, "--parquet", "a.parquet", "--csv", "a.csv")
    assert pl.read_parquet(here / "a.parquet").height == pl.read_csv(here / "a.csv", infer_schema_length=None).height


def test_html_is_written_whole(here, run):
    run("diagnose", SMALL, BROKEN, "--html", "a.html")
    text = (here / "a.html").read_text()
    assert (text.lstrip()[:15].lower(), text.rstrip()[-7:].lower()) == ("<!doctype html>", "</html>")


def test_html_is_under_two_and_a_half_megabytes(here, run):
    run("diagnose", SMALL, BROKEN, "--html", "a.html")
    assert (here / "a.html").stat().st_size < 2.5e6


def test_what_was_written_is_said(here, run):
    assert str(here / "a.csv") in run("diagnose", SMALL, "--csv", "a.csv")[1]


def test_json_stays_json_when_files_are_written(here, run):
    json.loads(run("diagnose", SMALL, "--csv", "a.csv", "--json")[1])


def test_nothing_but_what_was_asked_for_is_written(here, run):
    run("diagnose", SMALL, "--csv", "a.csv", "--html", "b.html")
    assert sorted(p.name for p in here.iterdir()) == ["a.csv", "b.html", "net.py"]


# Models


@pytest.mark.parametrize("name", ["net.py:make", "./net.py:make", "net.py:model"])
def test_a_users_file_is_diagnosed(here, answer, name):
    assert [row["kind"] for row in answer(name, "-n", 16)[0]["layers"]] == [
        "input", "Linear", "BatchNorm1d", "ReLU", "Linear",
    ]  # fmt: skip


def test_an_absolute_path_is_diagnosed(here, answer):
    assert answer(f"{here / 'net.py'}:make", "-n", 16)[0]["facts"]["layers"] == 4


def test_a_module_of_the_current_folder_is_diagnosed(here, answer):
    (here / "mynets_of_this_test").mkdir()
    (here / "mynets_of_this_test" / "__init__.py").write_text("")
    (here / "mynets_of_this_test" / "deep.py").write_text(NET)
    assert answer("mynets_of_this_test.deep:make", "-n", 16)[0]["facts"]["layers"] == 4


def test_a_users_model_does_not_move_the_random_stream(here, run):
    before = torch.get_rng_state()
    run("diagnose", "net.py:make", "-n", 16)
    assert torch.equal(torch.get_rng_state(), before)


BERT = "transformers:bert,num_hidden_layers=2,hidden_size=32,num_attention_heads=2,intermediate_size=64,vocab_size=99"
GPT = "transformers:gpt2,n_layer=2,n_embd=32,n_head=2,vocab_size=99,bos_token_id=0,eos_token_id=0"


@pytest.mark.parametrize("name", [BERT, GPT], ids=["bert", "gpt2"])
def test_a_language_model_of_transformers_is_diagnosed(answer, name):
    assert answer(name)[0]["facts"]["data"] == "tokens:32x99"


def test_a_causal_model_of_transformers_has_the_loss_of_the_next_token():
    from normscope.cli._shared import Given

    step, _ = Given(n=4).step(GPT)
    ids = step.kwargs["input_ids"]
    loss = step.run(lambda: step.value(step.whole(step.args, step.kwargs), None))
    step.root.eval()
    with torch.no_grad():
        logits = step.root(ids).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert float(loss.detach()) == pytest.approx(float(expected), rel=0.02)  # dropout is on in the first


def test_an_image_model_of_transformers_is_diagnosed(answer):
    name = "transformers:vit,image_size=16,patch_size=8,hidden_size=16,num_hidden_layers=1,num_attention_heads=2"
    assert answer(name, "-n", 8)[0]["facts"]["data"] == "random:3x16x16"


def test_a_folder_with_a_config_is_diagnosed(here, answer):
    config = {
        "model_type": "bert",
        "num_hidden_layers": 1,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    (here / "mine").mkdir()
    (here / "mine" / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    assert answer("transformers:./mine")[0]["facts"]["data"] == "tokens:32x9"


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_package_that_is_missing_is_named(run, package):
    if find_spec(package):
        pytest.skip(f"{package} is installed here")
    code, _, err = run("diagnose", f"{package}:resnet50")
    assert (code, f"pip install {package}" in " ".join(err.split())) == (2, True)


# Exit codes


@pytest.mark.parametrize(
    ("name", "wanted", "code"),
    [
        (BROKEN, ["error"], 1),
        (BROKEN, ["warning"], 1),
        (BROKEN, ["NS101"], 1),
        (BROKEN, ["NS103", "NS101"], 1),
        (BROKEN, ["NS103"], 0),
        (BROKEN, [], 0),
        (SMALL, ["error"], 0),
        (SMALL, ["warning", "NS101"], 0),
    ],
)
def test_fail_on_decides_the_exit_code(run, name, wanted, code):
    assert run("diagnose", name, *(x for w in wanted for x in ("--fail-on", w)))[0] == code


def test_fail_on_looks_at_every_model(run):
    assert run("diagnose", SMALL, BROKEN, SMALL, "--fail-on", "error")[0] == 1


def test_the_report_is_written_though_fail_on_fires(here, run):
    run("diagnose", BROKEN, "--fail-on", "error", "--csv", "a.csv")
    assert (here / "a.csv").exists()


# explain and list


@pytest.mark.parametrize("code", RULES)
def test_a_code_is_explained(run, code):
    status, out, _ = run("explain", code)
    assert (status, code in out, RULES[code].title in out) == (0, True, True)


def test_a_code_may_be_written_small(run):
    assert run("explain", "ns101")[0] == 0


def test_an_explanation_is_json_too(run):
    assert json.loads(run("explain", "NS101", "--json")[1])["code"] == "NS101"


@pytest.mark.parametrize("what", ["findings", "metrics", "models", "datasets", "norms", "activations", "weights"])
def test_a_list_is_json_too(run, what):
    assert json.loads(run("list", what, "--json")[1])[what]


def test_everything_is_listed(run):
    out = run("list")[1]
    assert [name for name in [*RULES, *METRICS] if name not in out] == []


def test_every_entry_of_a_list_has_a_line(run):
    lists = json.loads(run("list", "--json")[1])
    assert [(kind, name) for kind in lists for name, text in lists[kind].items() if not text] == []


# Misuse: exit code 2, one message on standard error, nothing written. A crash of the user's own code: the same with 3


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def misuse(run, here, *args, wanted=2):
    """The message of a misuse (or, with 3, of a crash of the user's); checks the promises of every one of them."""
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    code, out, err = run("diagnose", *args, "--csv", "out.csv", "--html", "out.html")
    after = {p: p.read_bytes() for p in here.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert (code, out.strip(), "Traceback" in err, after) == (wanted, "", False, before)
    assert (err.startswith("error: "), err.count("error: ")) == (True, 1)
    return err


MISUSE = {
    "unknown model": (["nonsense"], "nonsense"),
    "unknown family": (["mpl:depth=3"], "mpl"),
    "unknown field": (["mlp:dept=3"], "'depth'"),
    "bad field": (["mlp:depth=many"], "'many'"),
    "depth zero": (["mlp:depth=0"], "depth"),
    "unknown norm": (["mlp:norm=bacth"], "'batch'"),
    "missing file": (["nett.py:make"], "net.py"),
    "missing module": (["no_such_package_x.y:make"], "no_such_package_x"),
    "missing attribute": (["net.py:mak"], "'make'"),
    "no module returned": (["net.py:number"], "int"),
    "no callable": (["net.py:constant"], "int"),
    "needs arguments": (["net.py:needs"], "width"),
    "wrong shape": (["net.py:make", "--data", "random:3x5x5"], "(128, 3, 5, 5)"),
    "wrong shape, cured": (["net.py:make", "--data", "random:3x5x5"], "--data"),
    "images wanted": (["vgg:depth=4", "--data", "random:64"], "images"),
    "unknown data": ([SMALL, "--data", "digit"], "'digits'"),
    "no folder given": ([SMALL, "--data", "mnist"], "--data-dir"),
    "no such folder": ([SMALL, "--data", "mnist", "--data-dir", "nowhere"], "nowhere"),
    "empty folder": ([SMALL, "--data", "cifar10", "--data-dir", "."], "cifar-10"),
    "missing data file": ([SMALL, "--data", "gone.npz"], "gone.npz"),
    "corrupt npz": ([SMALL, "--data", "corrupt.npz"], "corrupt.npz"),
    "truncated npz": ([SMALL, "--data", "truncated.npz"], "truncated.npz"),
    "corrupt safetensors": ([SMALL, "--data", "corrupt.safetensors"], "corrupt.safetensors"),
    "corrupt pt": ([SMALL, "--data", "corrupt.pt"], "corrupt.pt"),
    "a pickle with code": ([SMALL, "--data", "evil.pt"], "could run code"),
    "a pickle with code in npz": ([SMALL, "--data", "evil.npz"], "evil.npz"),
    "wrong checksum": ([SMALL, "--data", "mnist", "--data-dir", "sums"], "checksum"),
    "NaN in the input": ([SMALL, "--data", "nan.npz", "-n", "16"], "finite"),
    "NaN in a weight": (["net.py:bad_weight"], "1.weight holds 1 NaN"),
    "NaN in a weight, located": (["net.py:bad_weight"], "layer 1 (1)"),
    "batch of one": ([SMALL, "-n", "1"], "at least 2"),
    "empty batch": ([SMALL, "-n", "0"], "got 0"),
    "empty batch of named data": ([SMALL, "--data", "digits", "-n", "0"], "got 0"),
    "empty batch of made-up data": ([SMALL, "--data", "random:4", "-n", "0"], "0"),
    "negative batch": ([SMALL, "-n", "-3"], "-3"),
    "too large a batch": ([SMALL, "-n", "100000"], "100000"),
    "pattern matches nothing": ([SMALL, "--layers", "conv*"], "'conv*'"),
    "unknown mode": ([SMALL, "--mode", "trian"], "'trian'"),
    "unknown loss": ([SMALL, "--loss", "mze"], "'mse'"),
    "loss without targets": ([SMALL, "--data", "random:4", "--loss", "mse"], "targets"),
    "unknown dtype": ([SMALL, "--dtype", "float33"], "'float32'"),
    "unknown device": ([SMALL, "--device", "gpu"], "gpu"),
    "unknown severity": ([SMALL, "--fail-on", "eror"], "'error'"),
    "unknown code": ([SMALL, "--fail-on", "NS100"], "NS100"),
    "too large a batch of a file": ([SMALL, "--data", "nan.npz", "-n", "17"], "at most 16"),
    "bad made-up data": ([SMALL, "--data", "random:axb"], "random:3x32x32"),
    "huge made-up data": ([SMALL, "--data", "random:99999999x99999999"], "random:99999999x99999999"),
    "second model is bad": ([SMALL, "nonsense"], "nonsense"),
    "unknown transformers type": (["transformers:bret"], "'bert'"),
    "unknown transformers field": (["transformers:bert,hiden_size=3"], "'hidden_size'"),
    "transformers change without value": (["transformers:bert,hidden_size"], "key=value"),
    "transformers sizes that do not fit": (["transformers:bert,hidden_size=33,num_attention_heads=2"], "33"),
    "transformers value of the wrong kind": (["transformers:bert,hidden_size=big"], "big"),
    "transformers folder missing": (["transformers:./gone"], "gone"),
    "transformers without a name": (["transformers:"], "transformers"),
}


@pytest.fixture
def bad_files(here):
    rng = np.random.default_rng(0)
    whole = io.BytesIO()
    np.savez(whole, x=rng.normal(size=(20, 6)))
    (here / "corrupt.npz").write_bytes(b"PK\x03\x04 but no more")
    (here / "truncated.npz").write_bytes(whole.getvalue()[:-60])
    (here / "corrupt.safetensors").write_bytes(b"\xff" * 40)
    (here / "corrupt.pt").write_bytes(b"nothing of the kind")
    torch.save({"x": torch.ones(4, 3), "y": Evil()}, here / "evil.pt")
    np.savez(here / "evil.npz", x=np.array([Evil()], dtype=object))
    (here / "plain.pkl").write_bytes(pickle.dumps([1]))
    bad = rng.normal(size=(16, 6))
    bad[4, 2] = np.nan
    np.savez(here / "nan.npz", x=bad)
    (here / "crash.py").write_text("1 / 0\n")
    (here / "sums").mkdir()
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        (here / "sums" / name).write_bytes(b"\x1f\x8b wrong")
    return here


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_one_clear_message(run, bad_files, case):
    args, says = MISUSE[case]
    assert says in misuse(run, bad_files, *args)


CRASHES = {
    "the file": (["crash.py:make"], "crash.py:1 with ZeroDivisionError"),
    "the callable": (["net.py:raises"], "net.py:12 with ValueError: no weights today"),
    "the forward": (
        ["net.py:Broken"],
        "net.py:24 with RuntimeError: my own mistake. The model's forward raised this, in",
    ),
    "the forward, on what": (["net.py:Broken"], "Running net.py:Broken on digits (float32 (128, 1, 8, 8)) failed"),
    "the forward, what to do": (["net.py:Broken"], "--data random:3x32x32, tokens:12x50257, a file, or file.py:fn"),
    "the data": (["net.py:make", "--data", "net.py:raises"], "Calling net.py:raises failed"),
    "the loss": (["net.py:make", "--loss", "crash.py:loss"], "crash.py:1 with ZeroDivisionError"),
    "second of two": ([SMALL, "net.py:raises"], "no weights today"),
}


@pytest.mark.parametrize("case", CRASHES)
def test_a_crash_of_the_users_code_is_one_clear_message_and_exit_code_3(run, bad_files, case):
    args, says = CRASHES[case]
    assert says in misuse(run, bad_files, *args, wanted=3)


def test_a_librarys_model_that_refuses_the_data_is_bad_input(run, here):
    name = "transformers:vit,image_size=16,patch_size=8,hidden_size=16,num_hidden_layers=1,num_attention_heads=2"
    told = misuse(run, here, name, "--data", "random:3x9x9", "-n", "4")
    assert "on random:3x9x9 (float32 (4, 3, 9, 9)) failed" in told
    assert told.rstrip().endswith("file.py:fn that returns (inputs, targets).")


@pytest.mark.parametrize("command", ["sharpness", "cure", "race"])
def test_a_model_that_crashes_is_told_alike_by_every_command(run, here, command):
    code, out, err = run(command, "net.py:Broken")
    assert (code, out.strip(), err.count("error: "), "Traceback" in err) == (3, "", 1, False)
    assert "Running net.py:Broken on digits" in err
    assert "net.py:24 with RuntimeError: my own mistake" in err


@pytest.mark.parametrize("command", ["diagnose", "sharpness", "cure"])
def test_a_model_that_does_not_take_the_data_is_told_alike_by_every_command(run, here, command):
    code, out, err = run(command, "net.py:make", "--data", "random:3x5x5", "-n", 8)
    assert (code, out.strip(), err.count("error: "), "Traceback" in err) == (2, "", 1, False)
    assert err.startswith("error: net.py:make does not run on random:3x5x5. ")
    assert err.rstrip().endswith("a file, or file.py:fn that returns (inputs, targets).")


def test_what_is_unexpected_is_one_message_that_says_where_the_traceback_is(run, monkeypatch, tmp_path):
    import importlib
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(importlib.import_module("normscope.cli._shared"), "check_lr", [].index)
    code, out, err = run("diagnose", SMALL)
    (kept,) = tmp_path.glob("*/traceback.txt")
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert err.startswith("error: Something unexpected happened in normscope: ValueError: ")
    assert str(kept) in err
    assert "Traceback" in kept.read_text()
    assert kept.parent.stat().st_mode & 0o777 == 0o700


def test_a_pickle_with_code_is_not_run(run, bad_files):
    misuse(run, bad_files, SMALL, "--data", "evil.pt")
    assert not (bad_files / "pwned").exists()


@pytest.mark.parametrize("option", ["--html", "--csv", "--parquet"])
@pytest.mark.parametrize("where", ["gone/out", ".", "net.py/out", "/proc/out"])
def test_an_output_that_cannot_be_written_is_misuse(here, run, option, where):
    code, _, err = run("diagnose", SMALL, option, where)
    assert (code, "Traceback" in err, err.count("error: "), sorted(p.name for p in here.iterdir())) == (
        2, False, 1, ["net.py"],
    )  # fmt: skip


def test_an_output_that_cannot_be_written_is_told_before_the_work(here, run):
    assert run("diagnose", SMALL, "--csv", "gone/out.csv")[1] == ""


def test_an_old_report_survives_misuse(here, run):
    (here / "a.csv").write_text("old")
    run("diagnose", "net.py:Broken", "--csv", "a.csv")
    assert (here / "a.csv").read_text() == "old"


@pytest.mark.parametrize("args", [["explain", "NS1O1"], ["explain", ""], ["list", "finding"]])
def test_misuse_of_the_other_commands_is_one_clear_message(run, args):
    code, out, err = run(*args)
    assert (code, out, err.count("error: ")) == (2, "", 1)


@pytest.mark.parametrize(
    "args", [["diagnose"], ["diagnos", SMALL], ["diagnose", SMALL, "--nope"], ["diagnose", SMALL, "-n", "x"]]
)
def test_misuse_that_the_parser_sees_has_the_same_exit_code(run, args):
    code, out, err = run(*args)
    assert (code, out, "Traceback" in err, bool(err)) == (2, "", False, True)


def test_markup_in_a_users_error_is_shown_as_it_is(here, run):
    (here / "odd.py").write_text("def make():\n    raise ValueError('[bold]x[/bold] and [/]')\n")
    assert "[bold]x[/bold] and [/]" in run("diagnose", "odd.py:make")[2]


@pytest.mark.parametrize("command", [[], ["diagnose"], ["explain"], ["list"]])
def test_help_is_given(run, command):
    assert run(*command, "--help")[0] == 0


def test_every_command_prints_json_and_gives_help(run):
    import inspect

    from normscope.cli._app import app

    commands = {c.name or c.callback.__name__: c.callback for c in app.registered_commands}
    assert len(commands) >= 10
    assert [name for name, command in commands.items() if "json" not in inspect.signature(command).parameters] == []
    assert [name for name in commands if run(name, "--help")[0]] == []


# Real processes


def process(*args, cwd=None, code=0):
    done = subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def test_python_m_normscope_runs():
    assert json.loads(process("-m", "normscope", "explain", "NS101", "--json").stdout)["code"] == "NS101"


@pytest.mark.parametrize(
    "args",
    [
        ("list",),
        ("list", "--json"),
        ("explain", "NS101"),
        ("--help",),
        ("diagnose", "--help"),
        ("diagnose", SMALL, "-n", "8"),
    ],
    ids=" ".join,
)
def test_a_broken_pipe_is_quiet_and_exit_code_141(args):
    args = [sys.executable, "-m", "normscope", *args]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as done:
        done.stdout.close()
        assert done.stderr.read() == ""
    assert done.returncode == 141


def test_files_are_written_though_nobody_reads_what_is_printed(tmp_path):
    args = [sys.executable, "-m", "normscope", "diagnose", SMALL, "-n", "8", "--csv", "a.csv"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as done:
        done.stdout.close()
    assert (done.returncode, (tmp_path / "a.csv").exists()) == (141, True)


SLOW = """
import time

def make():
    open("started", "w").close()
    time.sleep(60)
"""


@pytest.mark.parametrize("command", ["diagnose", "sharpness", "cure"])
def test_ctrl_c_is_one_word_and_exit_code_130(tmp_path, command):
    (tmp_path / "slow.py").write_text(SLOW)
    args = [sys.executable, "-m", "normscope", command, "slow.py:make"]
    # A shell's background job ignores the signal, and its children would too.
    default = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(args, cwd=tmp_path, preexec_fn=default, **pipes) as done:
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
            assert done.poll() is None
        done.send_signal(signal.SIGINT)
        out, err = done.communicate(timeout=30)
    assert (done.returncode, out, err) == (130, "", "stopped.\n")


def test_a_process_ends_with_one_line_on_misuse(tmp_path):
    done = process("-m", "normscope", "diagnose", "nonsense", cwd=tmp_path, code=2)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


LIGHT = """
import sys
from normscope.cli import main, _app
sys.argv = ["normscope"]
commands = ["diagnose"]  # enrolled by the first call
for words in [["--version"], ["list"], ["explain", "NS101"], ["explain", "NS1O1"], ["--help"], commands]:
    for word in words if words is commands else [None]:
        try:
            main([word, "--help"] if word else words)
        except SystemExit:
            commands[:] = [c.name or c.callback.__name__ for c in _app.app.registered_commands]
print(*[m for m in ("torch", "numpy", "scipy", "polars", "altair", "sklearn") if m in sys.modules], file=sys.stderr)
"""


def test_what_only_prints_imports_no_torch():
    done = process("-c", LIGHT)
    assert all(f"Usage: normscope {name}" in done.stdout for name in ("cure", "diagnose", "race", "sweep", "why"))
    *_, error, loaded = done.stderr.split("\n")[:-1]
    assert (error.startswith("error: There is no finding code 'NS1O1'. Did you mean"), loaded) == (True, "")


HEAVY = (
    "polars", "altair", "jinja2", "sklearn", "transformers", "pandas", "scipy", "typer", "rich", "torch._dynamo",
    "dask", "cloudpickle", "jaxtyping",
)  # fmt: skip
IMPORT = f"""
import sys
import torch, numpy
from normscope import cure, diagnose, fisher, probe, race, sweep
print(*[m for m in {HEAVY!r} if m in sys.modules])
"""


def test_the_verbs_load_little():
    assert process("-c", IMPORT).stdout.split() == []


def test_a_probe_of_an_eager_model_does_not_load_the_compiler():
    code = "import sys, torch, normscope; normscope.probe(torch.nn.Linear(3, 2), torch.eye(3)); "
    assert process("-c", code + "print('torch._dynamo' in sys.modules)").stdout.strip() == "False"


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert normscope.diagnose(torch.nn.Linear(3, 2), torch.eye(3).repeat(3, 1)).facts["normscope"] == version(
        "normscope"
    )


def test_the_version_is_an_option(run):
    from importlib.metadata import version

    assert run("--version") == (0, f"normscope {version('normscope')}\n", "")


@pytest.mark.parametrize("lr", ["-1", "nan", "0", "inf"])
@pytest.mark.parametrize("command", ["diagnose", "sharpness"])
def test_a_learning_rate_is_a_positive_number(run, command, lr):
    code, out, err = run(command, SMALL, "--lr", lr)
    assert (code, out) == (2, "")
    assert "--lr must be a positive number" in err


def test_the_library_refuses_such_a_rate_too():
    with pytest.raises(normscope.UsageError, match="lr must be a positive number"):
        normscope.diagnose(torch.nn.Linear(3, 2), torch.eye(3), lr=float("nan"))


@pytest.mark.parametrize(
    "last",
    [
        "mlp:dept=4",
        "mpl",
        "mlpp:depth=3",
        "net.py:mkae",
        "no.py:make",
        "net.py:constant",
        "transformers:gpt22",
        "net.py:make,depth=3",
        "net.py:needs",
    ],
)
def test_a_slip_in_the_last_model_is_told_before_the_first_is_measured(run, here, monkeypatch, last):
    import importlib

    if last.startswith("transformers"):
        pytest.importorskip("transformers")
    shared = importlib.import_module("normscope.cli._shared")
    monkeypatch.setattr(shared, "load_step", lambda *_, **__: pytest.fail("a model was loaded"))
    assert run("diagnose", SMALL, last)[0] == 2


def test_a_model_made_at_import_is_the_same_alone_and_beside_another(answer, here):
    (here / "twin.py").write_text(NET)
    alone, beside = answer("net.py:model")[0], answer(SMALL, "twin.py:model")[1]
    assert alone["layers"] == beside["layers"]


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--tol", "5", "tol must"), ("--tol", "0", "tol must"), ("--descent", "-5", "--descent must"),
        ("--weight-decay", "-3", "weight_decay must"), ("--momentum", "1.5", "momentum must"),
    ],
)  # fmt: skip
def test_sharpness_refuses_what_it_cannot_use(run, option, value, says):
    code, out, err = run("sharpness", SMALL, option, value, "--json")
    assert (code, out) == (2, "")
    assert says in err


def test_sharpness_takes_all_of_a_small_file_and_names_the_momentum(run, here):
    np.savez(here / "few.npz", x=np.random.default_rng(0).random((20, 6), np.float32), y=np.arange(20) % 3)
    code, out, _ = run("sharpness", SMALL, "--data", "few.npz", "--momentum", 0.5)
    assert code == 0
    assert "batch 20," in out
    assert "heavy ball (momentum 0.5)" in out
    assert run("sharpness", SMALL, "--data", "few.npz", "-n", 21)[0] == 2
