"""``normscope cure``: the table, the file it writes, and what it refuses."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import normscope as ns
from normscope.cli import main
from normscope.data.datasets import load
from normscope.data.models import load_model

NET = "mlp:depth=12,width=32,weights=torch,bias=0"


def run(capsys, *args):
    """(exit code, standard output, standard error) of a command."""
    try:
        main(["cure", *map(str, args)])
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("cure") / "weights.safetensors"
    with pytest.raises(SystemExit):
        main(["cure", NET, "--how", "orthogonal", "--no-sharpness", "-n", "64", "--out", str(path)])
    return path


def test_the_weights_come_back_bit_for_bit(written):
    batch = load("digits", n=128)
    fresh = load_model(NET, batch, seed=1)
    fresh.load_state_dict(load_file(written))
    same = load_model(NET, batch, seed=0)
    ns.cure(same, "orthogonal", batch.inputs[:64])
    assert torch.equal(fresh(batch.inputs), same(batch.inputs))


def test_the_file_says_how_it_came_about(written):
    from safetensors import safe_open

    with safe_open(written, "pt") as file:
        assert file.metadata()["cure"] == "orthogonal"
        assert file.metadata()["model"] == NET


def test_nothing_but_the_file_is_left_in_the_folder(written):
    assert [p.name for p in written.parent.iterdir()] == [written.name]


def test_a_file_that_exists_is_not_replaced(capsys, written):
    before = written.read_bytes()
    code, _, err = run(capsys, NET, "--how", "he", "--no-sharpness", "--out", written)
    assert (code, written.read_bytes()) == (2, before)
    assert "--force" in err


def test_force_replaces_it(capsys, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")
    assert run(capsys, NET, "--how", "he", "--no-sharpness", "--out", path, "--force")[0] == 0
    assert load_file(path)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--how", "ortogonal"), "Did you mean 'orthogonal'"),
        (("--how", "auto+bn"), "auto alone"),
        (("--how", "orthogonal,bn"), "Write orthogonal+bn"),
        (("--how", "he", "-n", "1"), "at least 2"),
        (("--out", "weights.pt"), "must end in .safetensors"),
        (("--out", "no/such/folder/w.safetensors"), "no 'no/such/folder'"),
        (("--data", "no-such-data"), "no-such-data"),
        (("--how", "orthogonal", "--data", "digits", "-n", "0"), "got"),
    ],
    ids=["cure", "auto joined", "comma", "one sample", "suffix", "folder", "data", "batch"],
)
def test_misuse_is_one_line_and_code_2(capsys, args, said):
    code, out, err = run(capsys, NET, "--no-sharpness", *args)
    assert code == 2
    assert said in err
    assert "Traceback" not in err + out


def test_auto_needs_samples_that_differ(capsys, tmp_path):
    import numpy as np

    np.savez(tmp_path / "same.npz", x=np.ones((16, 64), np.float32), y=np.arange(16) % 10)
    code, _, err = run(capsys, NET, "--data", tmp_path / "same.npz", "--no-sharpness")
    assert code == 2
    assert "all 8 are the same" in err


def test_a_model_without_layers_is_told(capsys, tmp_path):
    (tmp_path / "net.py").write_text("import torch\ndef net():\n    return torch.nn.Flatten()\n")
    code, _, err = run(capsys, f"{tmp_path}/net.py:net", "--how", "orthogonal")
    assert code == 2
    assert "There must be" in err or "No observed layer" in err


def test_json_has_both_readings_and_every_layer(capsys):
    code, out, _ = run(capsys, NET, "--how", "orthogonal", "--no-sharpness", "-n", "64", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["before"]["findings"]
    assert found["after"]["deepest"] > 2 > 1.01 > found["before"]["deepest"]
    assert len(found["treated"]) == 11
    assert found["left_alone"] == {
        "layers.0.linear": "the first layer keeps its law, scaled",
        "readout": "the last layer keeps its law",
    }
    assert found["measured_on"] == "fresh samples"
    assert (found["samples"], found["samples_measured"]) == (64, 64)


def test_the_table_shows_findings_that_go_and_what_was_left_alone(capsys):
    _, out, _ = run(capsys, NET, "--how", "identity", "-n", "64")
    assert "NS101" in out
    assert "max stable learning rate" in out
    assert "treated: 11 layers" in out
    assert "left alone: readout: the last layer keeps its law" in out


def test_too_few_samples_for_both_halves_are_told(capsys):
    _, out, _ = run(capsys, "mlp:depth=2,width=8", "--how", "he", "--no-sharpness", "-n", "800")
    assert "cured on 400 samples, measured on 400 others (800 + 800 were asked for" in " ".join(out.split())


def test_a_note_is_said_once(capsys):
    wide = "mlp:depth=3,width=96,weights=torch"  # more units than samples
    found = []
    for how in ("orthogonal", "orthogonal+orthogonal"):
        _, out, _ = run(capsys, wide, "--how", how, "--no-sharpness", "-n", "16", "--json")
        found.append(json.loads(out)["notes"])
    assert found[0]
    assert found[1] == found[0]


def test_auto_shows_every_candidate_and_what_it_is_worth(capsys):
    _, out, _ = run(capsys, "mlp:depth=6,width=16,weights=torch,bias=0", "--no-sharpness", "-n", "32")
    text = " ".join(out.split())
    for name in ns.cure.__globals__["CANDIDATES"]:
        assert name[:8] in text
    assert "not a promise" in text
    assert "Chosen:" in text


def test_a_wrapped_model_says_how_to_load_it(capsys, tmp_path):
    path = tmp_path / "w.safetensors"
    code, out, _ = run(capsys, NET, "--how", "center-outputs", "--no-sharpness", "-n", "64", "--out", path)
    assert code == 0
    assert "CenterOutputs(net" in out
    net = ns.nn.CenterOutputs(load_model(NET, load("digits", n=8), seed=1), 10)
    net.load_state_dict(load_file(path))


def test_a_model_with_tied_weights_comes_back(capsys, tmp_path):
    (tmp_path / "tied.py").write_text(
        "import torch\n"
        "def net():\n"
        "    a, b, c = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)\n"
        "    b.weight = a.weight\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), a, torch.nn.ReLU(), b, torch.nn.ReLU(), c)\n"
    )
    path, name = tmp_path / "w.safetensors", f"{tmp_path}/tied.py:net"
    assert run(capsys, name, "--how", "he", "--no-sharpness", "-n", "32", "--out", path)[0] == 0
    net = load_model(name, None)
    net.load_state_dict(load_file(path))
    assert net[1].weight is net[3].weight


def test_list_names_the_cures():
    found = subprocess.run(
        [sys.executable, "-m", "normscope", "list", "cures"], capture_output=True, text=True, check=True
    )
    assert "orthogonal" in found.stdout
    assert "daneshmand2021" in found.stdout
