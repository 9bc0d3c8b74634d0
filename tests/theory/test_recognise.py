"""`spec_of` recognises plain MLPs and nothing else; the command line prints what theory says of a spec."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from normscope import Spec, build, probe
from normscope.cli import main
from normscope.theory.beside import overlay
from normscope.theory.predicted import predict
from normscope.theory.recognise import layer_names, spec_of


@pytest.mark.parametrize(
    "spec",
    [
        Spec(depth=5, width=64, norm="batch"),
        Spec(depth=5, width=64, norm="layer", activation="gelu", outputs=10),
        Spec(depth=5, width=64, activation="relu", skip=0.5, outputs=3),
        Spec(depth=3, width=64, norm="batch_rescale", activation="leaky_relu(0.2)", norm_first=False),
        Spec(depth=3, width=64, norm="rms", activation="tanh", bias=0.5, outputs=4, output_norm="batch_recenter"),
        Spec(depth=3, width=64, norm="batch_recenter", activation="sin", weights="orthogonal"),
        Spec(depth=3, width=64, norm="batch", activation="identity", outputs=5),
    ],
    ids=str,
)
def test_built_nets_are_recognised(spec):
    found = spec_of(build(spec, 64))
    assert found.effective_gain == pytest.approx(spec.effective_gain, rel=0.03)
    same = ("depth", "width", "norm", "activation", "norm_first", "skip", "weights", "outputs", "output_norm")
    assert {f: getattr(found, f) for f in same} == {f: getattr(spec, f) for f in same}
    assert (found.bias is None) == (spec.bias is None)


def sequential(*extra):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(30, 50), nn.BatchNorm1d(50), nn.ReLU(),
        nn.Sequential(nn.Linear(50, 50), nn.BatchNorm1d(50), nn.ReLU()), *extra, nn.Linear(50, 10),
    )  # fmt: skip


def test_a_users_sequential_is_recognised():
    found = spec_of(sequential())
    assert (found.depth, found.width, found.norm, found.activation, found.outputs) == (2, 50, "batch", "relu", 10)
    assert found.gain == pytest.approx(1 / np.sqrt(3), rel=0.05)  # PyTorch's default law


def test_a_prediction_knows_its_place_beside_a_probe():
    assert layer_names(sequential()) == ["3", "4.2"]
    assert layer_names(build(Spec(depth=2, width=8, outputs=3), 8)) == ["layers.0", "layers.1"]
    assert layer_names(nn.ReLU()) == []
    x = torch.randn(12, 30)
    probed = {r.name for r in probe(sequential(), x, metrics=["rms"]).records}
    assert set(layer_names(sequential())) <= probed


def test_an_overlay_stands_in_the_layers_that_were_measured():
    torch.manual_seed(1)
    model = nn.Sequential(
        *sequential()[1:4], *(nn.Sequential(nn.Linear(50, 50), nn.BatchNorm1d(50), nn.ReLU()) for _ in "ab")
    )
    x = torch.randn(12, 30)
    measured = probe(model, x)
    beside = overlay(model, x, measured)
    # Layer 0, then the outputs of the three ReLUs: modules 3, 6 and 9 of the probe.
    assert sorted({r.layer for r in beside.records}) == [0, 3, 6, 9]
    theory, probed = beside.series("mean_abs_cosine"), measured.series("mean_abs_cosine")
    assert all(abs(theory[layer] - probed[layer]) < 0.1 for layer in (0, 3, 6, 9))
    assert theory[0] == pytest.approx(probed[0], rel=1e-6)
    assert (beside + measured).frame()["source"].unique().sort().to_list() == ["measured", "predicted"]
    assert overlay(model.eval(), x, measured) is None
    assert overlay(nn.ReLU(), x, measured) is None


def stepped():
    model = sequential()
    with torch.no_grad():
        model[2].weight.mul_(1.5)
    return model


@pytest.mark.parametrize(
    "model",
    [
        sequential().eval(), sequential(nn.Dropout(0.1)), stepped(), nn.Conv2d(3, 3, 3),
        nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2)),
        build(Spec(depth=4, width=64, weights="positive"), 64), build(Spec(depth=4, width=64, weights="identity"), 64),
        build(Spec(depth=4, width=8, family="vgg")), nn.Sequential(), nn.ReLU(),
        nn.TransformerEncoderLayer(8, 2),
    ],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_other_models_are_left_alone(model):
    assert spec_of(model) is None


def test_the_prediction_of_a_recognised_model_fits_its_activations():
    torch.manual_seed(0)
    spec = Spec(depth=8, width=2000, norm="batch", activation="relu")
    model = build(spec, 40)
    x = torch.randn(12, 40)
    h = model(x).detach().double()
    h = h / h.norm(dim=1, keepdim=True)
    cosine = (h @ h.T)[np.triu_indices(12, 1)].abs().mean().item()
    assert predict(spec_of(model), inputs=x).series("mean_abs_cosine")[8] == pytest.approx(cosine, abs=0.01)


def run(*arguments):
    try:
        main(["predict", *arguments])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_the_command_prints_a_recursion(capsys):
    assert run("mlp:depth=6,width=64,norm=batch", "--simulate", "3", "-n", "8") == 0
    out = capsys.readouterr().out
    assert "participation" in out
    assert "simulated chains of width 64" in out


def test_the_command_writes_json_csv_and_html(capsys, tmp_path):
    csv, html = tmp_path / "p.csv", tmp_path / "p.html"
    code = run("mlp:depth=4,width=64,norm=none", "--cosine", "0.5", "--json", "--csv", str(csv), "--html", str(html))
    assert code == 0
    document = json.loads(capsys.readouterr().out)
    assert {r["source"] for r in document["records"]} == {"predicted"}
    assert document["records"][0]["layer"] == 0
    assert "predicted" in csv.read_text()
    assert "<html" in html.read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ("mlp:norm=batchh",),
        ("mlp:depth=3", "-n", "1"),
        ("mlp:depth=3", "--cosine", "2"),
        ("mlp:norm=batch,weights=positive",),
    ],
)
def test_misuse_is_exit_code_two(arguments, capsys):
    assert run(*arguments) == 2
    assert "error:" in capsys.readouterr().err
