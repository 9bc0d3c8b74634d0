"""``[tool.normscope]``: where it is found, what it says, and one line for each slip."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normscope.cli._config import OPTIONS, Config, _config, _table, configuration
from normscope.core.errors import UsageError

NET = """
import torch
from torch import nn


def make(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def batch():
    g = torch.Generator().manual_seed(0)
    return torch.randn(12, 64, generator=g), torch.arange(12) % 10


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.003)
"""
QUICK = '[tool.normscope]\ntrial = "none"\nbatch = 8\n'


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a net, and a function that writes its configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)

    def write(text):
        (tmp_path / "pyproject.toml").write_text(text)
        return tmp_path

    return write


@pytest.fixture
def answer(run):
    def answer(*args):
        code, out, err = run("diagnose", *args, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return answer


def test_the_models_of_the_configuration_are_diagnosed(here, answer):
    here(QUICK + 'models = ["net.py:make", "mlp:depth=2,width=8"]')
    assert [m["label"] for m in answer()["models"]] == ["net.py:make", "mlp:depth=2,width=8"]


def test_a_table_says_how_its_model_is_looked_at(here, answer):
    here(QUICK + 'models = ["net.py:make", {model = "net.py:make", name = "own", batch = 6, loss = "mse", seed = 3}]')
    first, second = (m["facts"] for m in answer()["models"])
    assert (first["batch_size"], first["loss"], second["batch_size"], second["loss"]) == (8, "cross_entropy", 6, "mse")


def test_what_is_typed_wins(here, answer):
    here(QUICK + 'models = [{model = "net.py:make", batch = 6}]')
    assert answer("-n", 5)["models"][0]["facts"]["batch_size"] == 5


def test_a_model_that_is_typed_has_what_its_table_says(here, answer):
    here(QUICK + 'models = [{model = "net.py:make", batch = 6}, "mlp:depth=2"]')
    assert [m["facts"]["batch_size"] for m in answer("net.py:make")["models"]] == [6]


@pytest.mark.parametrize("name", ["net.py:adam", "adam,lr=0.003", "torch.optim:Adam,lr=0.003"])
def test_an_optimizer_is_a_name_or_a_function(here, answer, name):
    here(QUICK + f'models = [{{model = "net.py:make", optimizer = "{name}"}}]')
    assert "no optimizer given" not in answer()["models"][0]["verdict"]


def test_it_is_found_from_a_folder_below_and_means_the_same_files(here, answer, monkeypatch):
    root = here(QUICK + 'models = [{model = "net.py:make", data = "net.py:batch"}]')
    above = answer()
    (root / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(root / "a" / "b")
    below = answer()
    assert [m["layers"] for m in below["models"]] == [m["layers"] for m in above["models"]]
    assert Path.cwd() == root / "a" / "b"


def test_files_of_the_command_line_are_those_of_the_working_folder(here, run, monkeypatch):
    root = here(QUICK + 'models = ["net.py:make"]')
    (root / "below").mkdir()
    (root / "below" / "mine.py").write_text(NET)
    monkeypatch.chdir(root / "below")
    assert run("diagnose", "--data", "mine.py:batch", "--csv", "out.csv")[0] == 0
    assert (root / "below" / "out.csv").exists()


def test_a_model_that_is_typed_in_a_folder_below_takes_the_data_of_the_configuration(here, answer, monkeypatch):
    root = here(QUICK + 'data = "net.py:batch"')
    (root / "below").mkdir()
    monkeypatch.chdir(root / "below")
    assert answer("mlp:depth=2,width=8")["models"][0]["facts"]["data"].endswith("net.py:batch")


def test_no_config_and_another_config(here, answer, tmp_path):
    here(QUICK + 'models = ["net.py:make"]')
    (tmp_path / "other.toml").write_text(QUICK + 'models = ["mlp:depth=2"]')
    assert answer("--config", "other.toml")["models"][0]["label"] == "mlp:depth=2"
    assert answer("--no-config", "mlp:depth=2", "--trial", "none")["models"][0]["facts"]["batch_size"] == 128


def test_a_file_without_the_table_is_passed_over(here, tmp_path, monkeypatch):
    here(QUICK)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "pyproject.toml").write_text("another [ project, and broken")
    monkeypatch.chdir(tmp_path / "below")
    assert configuration(None, False).path == tmp_path / "pyproject.toml"


SLIPS = {
    "a key": ('[tool.normscope]\nmodles = ["net.py:make"]', "Did you mean 'models'?"),
    "a key of a model": ('[tool.normscope]\nmodels = [{model = "net.py:make", bach = 3}]', "Did you mean 'batch'?"),
    "a key of an ignore": (
        '[tool.normscope]\n[[tool.normscope.ignore]]\ncode = "NS101"\nmodul = "x"', "Did you mean 'module'?",
    ),
    "an unknown code": ('[tool.normscope]\n[[tool.normscope.ignore]]\ncode = "ns101"', "Did you mean 'NS101'?"),
    "an ignore without a code": ('[tool.normscope]\n[[tool.normscope.ignore]]\nmodel = "x"', 'code = "NS201"'),
    "broken TOML": ('[tool.normscope]\nmodels = ["net.py:make"', "must be TOML"),
    "broken TOML, where": ("[tool.normscope]\nmodels = = 3", "at line 2, column 10"),
    "a number for a text": ("[tool.normscope]\nmodels = [3]", "model 1 must be a text"),
    "a text for a number": ('[tool.normscope]\nbatch = "8"', "batch must be a whole number"),
    "a text for a flag": ('[tool.normscope]\nrates = "yes"', "rates must be true or false"),
    "a text for a list": ('[tool.normscope]\nmodels = "net.py:make"', "models must be a list"),
    "an unknown severity": ('[tool.normscope]\nfail-on = "eror"', "Did you mean 'error'?"),
    "two of a name": ('[tool.normscope]\nmodels = ["net.py:make", "net.py:make"]', "Give each a name"),
    "no models": ("[tool.normscope]\nbatch = 8", "diagnose needs a MODEL"),
    "no table": ("[tool]\nnormscope = 3", "must be a table"),
}  # fmt: skip


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_one_line_and_exit_code_2(here, run, slip):
    text, says = SLIPS[slip]
    root = here(text)
    code, out, err = run("diagnose")
    assert (code, out, len(err.splitlines()), says in err) == (2, "", 1, True), err
    assert str(root / "pyproject.toml") in err or slip == "no table"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--config", "gone.toml"], "gone.toml"), (["--config", "net.py"], "[tool.normscope]"),
        (["--config", "x.toml", "--no-config"], "exclude each other"), (["--no-config"], "diagnose needs a MODEL"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_not_there_is_one_line(here, run, args, says):
    code, out, err = run("diagnose", *args)
    assert (code, out, len(err.splitlines()), says in err) == (2, "", 1, True), err


@pytest.mark.parametrize("name", ["adm", "adam,lr", "adam,rate=3", "net.py:batch", "net.py:gone"])
def test_an_optimizer_that_is_none_is_one_line(here, run, name):
    here(QUICK + 'models = ["net.py:make"]')
    code, out, err = run("diagnose", "--optimizer", name)
    assert (code in (2, 3), out, len(err.splitlines())) == (True, "", 1), err


def test_every_option_of_a_model_is_an_argument_of_diagnose():
    import inspect

    from normscope.cli.diagnose import diagnose

    arguments = set(inspect.signature(diagnose).parameters)
    assert {argument for argument, _ in OPTIONS.values()} <= arguments


def test_every_key_is_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "ci.md").read_text()
    assert [key for key in (*OPTIONS, "models", "fail-on", "baseline", "ignore") if f"`{key}`" not in page] == []


# Whatever stands there is a configuration or one error


def holds(read, kind):
    """What is read is of a kind, or refused in one line."""
    told = None
    try:
        found = read()
    except UsageError as error:
        told = str(error)
    assert isinstance(found, kind) if told is None else len(told.splitlines()) == 1


words = st.sampled_from([
    "models", "ignore", "fail-on", "baseline", *OPTIONS, "model", "name", "code", "NS101", "net.py:make", "error",
])  # fmt: skip
scalars = st.one_of(words, st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.none())
rows = st.dictionaries(words, scalars, max_size=3)
values = scalars | st.lists(scalars | rows, max_size=2) | rows


@settings(max_examples=60, deadline=None)
@given(table=st.dictionaries(words, values, max_size=3))
def test_any_table_is_a_configuration_or_one_error(table):
    holds(lambda: _config(Path("/x/pyproject.toml"), table), Config)


@settings(max_examples=60, deadline=None)
@given(data=st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)))
def test_any_file_is_a_table_or_one_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / f"any{os.getpid()}.toml"
    path.write_bytes(b"[tool.normscope]\n" + data)
    holds(lambda: _table(path), dict)
