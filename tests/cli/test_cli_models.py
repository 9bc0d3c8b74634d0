"""MODEL, --data, --loss and --samples on the command line: what may be named, and that every command reads it alike.

The oracle is the library on the same objects, or the loss in plain torch.
"""

import importlib.util
import json
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import normscope as ns
from normscope.data.models import check_model, load_model, load_step, synthetic

NET = """
import torch
from torch import nn
import torch.nn.functional as F
import normscope as ns

draw = torch.Generator().manual_seed(0)
X, T = torch.randn(12, 6, generator=draw), torch.randn(12, generator=draw)
Y, FLOATS = torch.arange(12) % 3, torch.randn(12, 3, generator=draw)
LONG = torch.randn(7, 12, 6, generator=draw)  # time first
IDS = torch.randint(0, 9, (12, 5), generator=draw)


class Net(nn.Module):
    def __init__(self, depth=1, width=5, norm="none"):
        super().__init__()
        layers = []
        for i in range(depth):
            layers += [nn.Linear(width if i else 6, width), *([nn.BatchNorm1d(width)] if norm == "batch" else []),
            nn.Tanh()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 3))

    def forward(self, x):
        return self.layers(x)


def make(depth=1, width=5, norm="none"):
    return Net(depth, width, norm)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 5), nn.Linear(1, 5), nn.Linear(5, 3)

    def forward(self, x, t):
        return self.head(torch.tanh(self.a(x) + self.b(t[:, None])))


class Ids(nn.Module):
    def __init__(self, vocabulary=9):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocabulary, 4), nn.Linear(4, vocabulary)

    def forward(self, idx):
        return self.head(self.embed(idx))


class TimeFirst(Net):
    def forward(self, x):
        return super().forward(x).mean(0)


class OwnLoss(Ids):
    def forward(self, input_ids, labels=None):
        logits = super().forward(input_ids)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.2), "logits": logits}


def step(depth=1, loss=None, mode="train"):
    return ns.Step(make(depth), X, Y, loss, mode=mode)


def fields(**more):
    return {"model": make(), "inputs": X, "targets": Y, **more}


def loaded():
    return {"model": make(), "data": [(X[:6], Y[:6]), (X[6:], Y[6:])]}


def whole_step():
    return fields(step=lambda model, batch: 3 * F.cross_entropy(model(batch[0]), batch[1]))


def with_loss(loss="l1"):
    return {"model": make(), "loss": loss}


def misspelt():
    return {"model": make(), "inpts": X}


def of_targets():
    return {"model": make(), "targets": Y}


def without_model():
    return {"inputs": X}


def a_pair():
    return make(), X


def pair():
    return X, Y


def regression():
    return X, FLOATS


def only():
    return X


def two():
    return (X, T), Y


def two_by_name():
    return {"t": T, "x": X}, Y


def two_flat():
    return X, T


def time_first():
    return LONG, Y


def square():
    return LONG[[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4]], Y


def labelled():
    return {"input_ids": IDS, "labels": IDS}


def doubled(outputs, targets):
    return 2 * F.cross_entropy(outputs, targets)


class Smoothed(nn.Module):
    def __init__(self, by=0.3):
        super().__init__()
        self.by = by

    def forward(self, outputs, targets):
        return F.cross_entropy(outputs, targets, label_smoothing=self.by)


class Weighted(nn.Module):
    def __init__(self, weight):
        super().__init__()


weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
number, a_net, a_step = 7, make(), step()
"""


@pytest.fixture(autouse=True)
def _short_trials(monkeypatch):
    monkeypatch.setattr("normscope.findings.checkup.trial.SECONDS", 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    (path / "net.py").write_text(NET)
    return path


@pytest.fixture
def user(folder, monkeypatch):
    """The user's file in the current folder, as a module of this test's own."""
    monkeypatch.chdir(folder)
    spec = importlib.util.spec_from_file_location("net_of_this_test", folder / "net.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ask(user, run):
    """``ask("diagnose", ...)``: what the command prints as JSON."""

    def ask(command, *args, code=0):
        got, out, err = run(command, *args, "--json")
        assert (got, err) == (code, "")
        found = json.loads(out)
        return found["models"][0] if command == "diagnose" else found

    return ask


@pytest.fixture
def refused(user, run):
    """The message of a misuse."""

    def refused(*args, code=2):
        got, out, err = run(*args)
        assert (got, out.strip(), err.count("error: "), "Traceback" in err) == (code, "", 1, False)
        return " ".join(err.split())

    return refused


def model_of(name):
    return load_step(name)["model"]


def loss_value(found):
    return found["facts"]["loss_value"]


# What a callable returns


@pytest.mark.parametrize("name", ["net.py:make,depth=3,norm=batch", "net.py:Net,depth=3,norm=batch"])
def test_arguments_reach_the_model(ask, name):
    kinds = [row["kind"] for row in ask("diagnose", name, "--data", "net.py:pair")["layers"]]
    assert kinds.count("BatchNorm1d") == 3


def test_arguments_reach_a_model_of_a_package(ask, folder):
    (folder / "mypackage").mkdir(exist_ok=True)
    (folder / "mypackage" / "__init__.py").write_text(NET)
    assert ask("diagnose", "mypackage:make,depth=2", "--data", "net.py:pair")["facts"]["layers"] == 5


def test_the_weights_are_those_of_the_seed(user):
    first, same, other = (load_step("net.py:step", seed=s)["model"].layers[0].weight for s in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["net.py:step", "net.py:fields", "net.py:a_step", "net.py:step,depth=2"])
def test_a_step_brings_its_batch(ask, name):
    facts = ask("diagnose", name)["facts"]
    assert (facts["data"], facts["batch_size"], facts["loss"]) == ("its own batch", 12, "cross_entropy")


def test_a_step_is_diagnosed_as_by_the_library(ask, user):
    model = model_of("net.py:step")
    assert loss_value(ask("diagnose", "net.py:step")) == ns.diagnose(model, user.X, user.Y).facts["loss_value"]


def test_a_step_keeps_its_loss_and_its_mode(ask):
    facts = ask("diagnose", "net.py:step,loss=mse,mode=eval")["facts"]
    assert (facts["loss"], facts["mode"]) == ("mse", "eval")


def test_options_replace_what_a_step_says(ask):
    facts = ask("diagnose", "net.py:step,loss=mse,mode=eval", "--loss", "squared_error", "--mode", "train")["facts"]
    assert (facts["loss"], facts["mode"]) == ("squared_error", "train")


def test_data_replaces_the_batch_of_a_step(ask, user):
    found = ask("diagnose", "net.py:step", "--data", "net.py:regression")
    assert (found["facts"]["data"], found["facts"]["loss"]) == ("net.py:regression", "mse")
    expected = F.mse_loss(model_of("net.py:step")(user.X), user.FLOATS)
    assert loss_value(found) == pytest.approx(expected.item())


def test_a_dict_of_fields_may_leave_the_batch_to_data(ask):
    assert ask("diagnose", "net.py:with_loss", "--data", "net.py:regression")["facts"]["loss"] == "l1"


def test_all_batches_of_data_make_the_sharpness(ask, user):
    batches = [(user.X[:6], user.Y[:6]), (user.X[6:], user.Y[6:])]
    expected = ns.sharpness(model_of("net.py:loaded"), data=batches, mode="train").lambda_max
    assert ask("sharpness", "net.py:loaded")["lambda_max"] == pytest.approx(expected)


def test_a_step_of_the_users_own_is_taken(ask, user):
    found = ask("diagnose", "net.py:whole_step")
    expected = 3 * F.cross_entropy(model_of("net.py:whole_step")(user.X), user.Y)
    assert loss_value(found) == pytest.approx(expected.item())


def test_named_data_goes_to_a_step_of_the_users_own(ask, user):
    found = ask("diagnose", "net.py:whole_step", "--data", "net.py:pair")
    expected = 3 * F.cross_entropy(model_of("net.py:whole_step")(user.X), user.Y)
    assert loss_value(found) == pytest.approx(expected.item())


def test_sharpness_and_cure_take_a_step(ask, user):
    found = ask("sharpness", "net.py:step")
    expected = ns.sharpness(model_of("net.py:step"), user.X, user.Y, mode="train").lambda_max
    assert (found["lambda_max"], found["data"]) == (pytest.approx(expected), "its own batch")
    cured = ask("cure", "net.py:step", "--how", "he", "--no-sharpness")
    assert (cured["samples"], cured["samples_measured"], cured["loss"]) == (6, 6, "cross_entropy")


def test_the_cured_weights_of_a_step_load_into_its_model(run, user, tmp_path):
    assert (
        run("cure", "net.py:step,depth=3", "--how", "he", "--no-sharpness", "--out", tmp_path / "w.safetensors")[0] == 0
    )
    model = model_of("net.py:step,depth=3")
    before = model.layers[2].weight.clone()
    model.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert not torch.equal(model.layers[2].weight, before)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_step_is_cast(ask, dtype):
    assert ask("diagnose", "net.py:step", "--dtype", dtype)["facts"]["dtype"] == dtype


LIT = """
import lightning
from net import *

class Lit(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.inner = make()

    def forward(self, x):
        return self.inner(x)

    def training_step(self, batch, i):
        return F.cross_entropy(self.inner(batch[0]), batch[1], label_smoothing=0.5)
"""


def test_a_lightning_module_has_the_loss_of_its_training_step(ask, folder, user):
    pytest.importorskip("lightning")
    (folder / "lit.py").write_text(LIT)
    outputs = model_of("lit.py:Lit")(user.X)
    found = ask("diagnose", "lit.py:Lit", "--data", "net.py:pair")
    assert loss_value(found) == pytest.approx(F.cross_entropy(outputs, user.Y, label_smoothing=0.5).item())
    found = ask("diagnose", "lit.py:Lit", "--data", "net.py:pair", "--loss", "cross_entropy")
    assert loss_value(found) == pytest.approx(F.cross_entropy(outputs, user.Y).item())
    assert ask("sharpness", "lit.py:Lit", "--data", "net.py:pair", "--loss", "cross_entropy")["loss"] == "cross_entropy"


def test_numbers_that_a_file_draws_do_not_change_its_models(user, folder):
    (folder / "draws.py").write_text(
        "import torch\nx = torch.randn(99)\ndef make():\n    return torch.nn.Linear(3, 3)\n"
    )
    first, second = (model_of("draws.py:make").weight for _ in range(2))
    assert torch.equal(first, second)


def test_check_model_builds_nothing(user):
    check_model("net.py:make,depth=3")
    with pytest.raises(ns.UsageError, match="unexpected keyword argument 'dept'"):
        check_model("net.py:make,dept=3")


# Losses


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cross_entropy", lambda o, t: F.cross_entropy(o, t)),
        ("squared_error", lambda o, t: (o - F.one_hot(t, 3)).square().sum() / 24),
        ("net.py:doubled", lambda o, t: 2 * F.cross_entropy(o, t)),
        ("net.py:Smoothed", lambda o, t: F.cross_entropy(o, t, label_smoothing=0.3)),
        ("net.py:weighted", lambda o, t: F.cross_entropy(o, t, weight=torch.tensor([1.0, 2.0, 3.0]))),
        ("torch.nn:MultiMarginLoss", lambda o, t: F.multi_margin_loss(o, t)),
        ("torch.nn.functional:cross_entropy", lambda o, t: F.cross_entropy(o, t)),
    ],
)
def test_a_loss_is_named(ask, user, name, value):
    found = ask("diagnose", "net.py:make", "--data", "net.py:pair", "--loss", name)
    assert loss_value(found) == pytest.approx(value(*order(user)).item(), rel=1e-5)


def order(user):
    """Outputs and targets, in the order that ``--data`` keeps: all samples of a small batch, as they are stored."""
    return model_of("net.py:make")(user.X), user.Y


@pytest.mark.parametrize("name", ["l1", "huber", "bce_with_logits", "mse"])
def test_every_loss_of_the_library_is_taken_by_its_name(ask, name):
    assert ask("diagnose", "net.py:make", "--data", "net.py:regression", "--loss", name)["facts"]["loss"] == name


def test_sharpness_is_that_of_the_users_loss(ask):
    plain, twice = (
        ask("sharpness", "net.py:make", "--data", "net.py:pair", "--loss", name)
        for name in ("cross_entropy", "net.py:doubled")
    )
    assert twice["loss"] == "doubled"
    assert twice["lambda_max"] == pytest.approx(2 * plain["lambda_max"], rel=2e-3)


@pytest.mark.parametrize(
    ("data", "loss"), [("net.py:pair", "cross_entropy"), ("net.py:regression", "mse"), ("net.py:only", "squared_error")]
)
def test_without_a_loss_the_targets_decide(ask, data, loss):
    assert ask("sharpness", "net.py:make", "--data", data)["loss"] == loss


def test_the_sharpness_is_the_librarys(ask, user):
    for data, given in (("net.py:pair", (user.X, user.Y)), ("net.py:only", (user.X,))):
        expected = ns.sharpness(model_of("net.py:make"), *given, mode="train").lambda_max
        assert ask("sharpness", "net.py:make", "--data", data)["lambda_max"] == pytest.approx(expected)


def test_cure_and_race_take_the_users_loss(ask):
    found = ask(
        "cure", "net.py:make", "--data", "net.py:pair", "--how", "he", "--no-sharpness", "--loss", "net.py:doubled"
    )
    assert found["loss"] == "doubled"
    race = ("--data", "net.py:pair", "-n", 6, "--epochs", 1, "--seeds", 1, "--loss", "net.py:Smoothed")
    assert ask("race", "net.py:make", *race)["settings"]["loss"] == "Smoothed"


def test_what_is_printed_names_the_loss(run, user):
    assert "loss squared_error" in run("sharpness", "net.py:make", "--data", "net.py:only")[1]
    assert "loss mse" in run("diagnose", "net.py:make", "--data", "net.py:regression")[1]
    assert "loss cross_entropy" in run("cure", "net.py:step", "--how", "he", "--no-sharpness")[1]


def test_the_prediction_belongs_to_the_loss(ask):
    mse, half = (
        ask("sharpness", "mlp:depth=2,width=64", "-n", 16, "--loss", name)["lambda_max_predicted"]
        for name in ("mse", "squared_error")
    )
    assert mse == pytest.approx(2 / 10 * half)


def test_labels_go_to_a_model_that_makes_its_own_loss(ask, user):
    found = ask("diagnose", "net.py:OwnLoss", "--data", "net.py:labelled")
    whole = model_of("net.py:OwnLoss")(user.IDS, user.IDS)
    assert (found["facts"]["loss"], loss_value(found)) == ("the model's own loss", pytest.approx(whole["loss"].item()))
    found = ask("diagnose", "net.py:OwnLoss", "--data", "net.py:labelled", "--loss", "cross_entropy")
    expected = F.cross_entropy(whole["logits"].flatten(0, 1), user.IDS.flatten())
    assert (found["facts"]["loss"], loss_value(found)) == ("cross_entropy", pytest.approx(expected.item()))


# Data


def test_several_arguments_are_a_tuple_or_a_dict_beside_the_targets(ask, user):
    values = [loss_value(ask("diagnose", "net.py:Two", "--data", f"net.py:{d}")) for d in ("two", "two_by_name")]
    expected = F.cross_entropy(model_of("net.py:Two")(user.X, user.T), user.Y).item()
    assert values == [pytest.approx(expected)] * 2


@pytest.mark.parametrize("command", ["diagnose", "sharpness", "cure"])
def test_a_model_of_several_arguments_says_how_they_are_handed_over(refused, command):
    told = refused(command, "net.py:Two", "--data", "net.py:two_flat")
    assert "net.py:Two does not run on net.py:two_flat" in told
    assert "((x, t), targets), or a callable that returns a Step" in told
    assert "random:" not in told


def test_token_ids_are_the_one_argument(ask):
    args = ("net.py:Ids", "--data", "tokens:7x9", "-n", 6)
    assert ask("diagnose", *args)["facts"]["data"] == "tokens:7x9"
    assert ask("sharpness", *args)["data"] == "tokens:7x9"
    assert ask("cure", *args, "--how", "he", "--no-sharpness")["samples"] == 6


def test_made_up_tokens_are_a_tensor_of_ids():
    ids = synthetic("tokens:7x9", n=4).inputs
    assert (ids.shape, ids.dtype, int(ids.max()) < 9) == ((4, 7), torch.int64, True)


# Samples


def test_the_axis_of_the_samples_is_named(ask, user):
    found = ask("diagnose", "net.py:TimeFirst", "--data", "net.py:square", "--samples", 1)
    assert found["facts"]["batch_size"] == 12
    assert not any("samples=" in note for note in found["facts"]["notes"])
    library = ns.diagnose(model_of("net.py:TimeFirst"), *user.square(), samples=1)
    assert [row["participation_rank"] for row in found["layers"]] == library.layers["participation_rank"].to_list()


def test_a_part_of_the_samples_is_taken_along_their_axis(ask):
    facts = ask("diagnose", "net.py:TimeFirst", "--data", "net.py:time_first", "--samples", 1, "-n", 8)["facts"]
    assert facts["batch_size"] == 8


def test_sharpness_and_cure_know_the_axis(ask):
    args = ("net.py:TimeFirst", "--data", "net.py:time_first", "--samples", 1)
    assert ask("sharpness", *args)["facts"]["batch_size"] == 12
    found = ask("cure", *args, "--how", "he", "--no-sharpness")
    assert (found["samples"], found["samples_measured"], found["measured_on"]) == (6, 6, "fresh samples")


def test_a_batch_that_cannot_be_halved_is_measured_whole(ask):
    found = ask("cure", "net.py:whole_step", "--how", "he", "--no-sharpness")
    assert (found["samples"], found["measured_on"]) == (12, "the batch of the cure")


# Refused

REFUSED = {
    "an unknown argument": (["net.py:make,dept=3"], "(depth=1, width=5, norm='none')"),
    "an unknown argument, nearest": (["net.py:make,dept=3"], "Did you mean 'depth'?"),
    "an argument without a value": (["net.py:make,depth"], "key=value; got 'depth'"),
    "arguments of a module": (["net.py:a_net,depth=3"], "net.py:a_net is a Net. Write net.py:a_net."),
    "an unknown field": (["net.py:misspelt"], "Did you mean 'inputs'?"),
    "targets alone": (["net.py:of_targets"], "inputs must be a batch; got None"),
    "no model": (["net.py:without_model"], "must have an nn.Module under 'model'; it has none"),
    "a tuple": (
        ["net.py:a_pair"],
        "must return an nn.Module, a normscope.Step or a dict of its fields; it returned a tuple",
    ),
    "a number": (["net.py:number"], "must be a callable; it is a int"),
    "a wrong field": (["net.py:fields,mode=trian"], "mode must be 'train', 'eval' or None"),
    "a wrong loss of a step": (["net.py:with_loss,loss=l3", "--data", "net.py:pair"], "There is no loss 'l3'"),
    "a batch size beside a batch": (["net.py:step", "-n", "4"], "--batch is for data that is named"),
    "data that does not fit a step": (["net.py:step", "--data", "digits"], "net.py:step does not run on digits"),
    "a loss beside a step": (["net.py:whole_step", "--loss", "mse"], "brings step=, which gives the loss"),
    "a dtype beside data": (["net.py:loaded", "--dtype", "float64"], "brings data=. Make its batches in float64"),
    "an unknown loss": (["net.py:step", "--loss", "crossentropy"], "Did you mean 'cross_entropy'?"),
    "a missing loss": (["net.py:step", "--loss", "net.py:doubbled"], "Did you mean 'doubled'?"),
    "a missing file of a loss": (["net.py:step", "--loss", "nett.py:doubled"], "Did you mean net.py?"),
    "a number for a loss": (["net.py:step", "--loss", "net.py:number"], "--loss must be a callable (outputs, targets)"),
    "a loss that needs arguments": (
        ["net.py:step", "--loss", "net.py:Weighted"],
        "missing a required argument: 'weight'",
    ),
    "a negative axis": (["net.py:step", "--samples", "-1"], "--samples"),
    "an axis that is not there": (
        ["net.py:step", "--samples", "5"],
        "samples must be an axis that the inputs have; got 5",
    ),
    "tokens for a net of numbers": (["net.py:make", "--data", "tokens:7x9"], "does not run on tokens:7x9"),
    "numbers for a net of tokens": (["net.py:Ids", "--data", "random:6"], "does not run on random:6"),
    "tokens beyond the vocabulary": (["net.py:Ids,vocabulary=3", "--data", "tokens:7x9"], "does not run on tokens:7x9"),
    "tokens without a vocabulary": (["net.py:Ids", "--data", "tokens:7"], "tokens:32x50257"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_one_message_and_exit_code_2(run, user, case):
    args, says = REFUSED[case]
    code, out, err = run("diagnose", *args)
    assert (code, out.strip(), "Traceback" in err) == (2, "", False)
    assert says in " ".join(err.replace("│", " ").split())


def test_sharpness_without_outputs_says_what_to_do(refused):
    assert "sharpness needs the outputs of the model; net.py:whole_step gives a loss alone" in refused(
        "sharpness", "net.py:whole_step"
    )


@pytest.mark.parametrize("name", ["net.py:step", "net.py:fields"])
def test_a_race_wants_models_alone(refused, name):
    assert f"{name} must return an nn.Module here" in refused("race", name)


def test_a_sweep_wants_models_alone(user):
    with pytest.raises(ns.UsageError, match=r"net\.py:step must return an nn\.Module here"):
        load_model("net.py:step")


def test_a_dict_of_a_model_alone_is_a_model(user, folder):
    (folder / "alone.py").write_text("from net import *\ndef make():\n    return {'model': Net()}\n")
    assert isinstance(load_model("alone.py:make"), torch.nn.Module)


@pytest.mark.parametrize("command", ["diagnose", "sharpness", "cure"])
def test_a_loss_that_raises_is_a_crash(refused, folder, command):
    (folder / "odd.py").write_text("def loss(outputs, targets):\n    raise KeyError('mine')\n")
    told = refused(command, "net.py:step", "--loss", "odd.py:loss", code=3)
    assert "Running net.py:step on its own batch (float32 (12, 6)) failed at " in told
    assert "odd.py:2 with KeyError: 'mine'" in told
    assert "change the batch that it brings" in told
