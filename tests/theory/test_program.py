"""`predict` of a model's own program: the layers of a probe, gradients, what has no rule, and nothing left behind."""

import copy
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normscope as ns
from normscope import Spec, UsageError, build, predict, probe, simulate
from normscope.theory import program_overlay


class Block(nn.Module):
    """A pre- or post-LN block of a transformer."""

    def __init__(self, d, post=False, dropout=0.0):
        super().__init__()
        self.attention = nn.MultiheadAttention(d, 8, batch_first=True, dropout=dropout)
        self.one, self.two = nn.LayerNorm(d), nn.LayerNorm(d)
        self.up, self.down, self.post = nn.Linear(d, 2 * d), nn.Linear(2 * d, d), post

    def mlp(self, x):
        return self.down(F.gelu(self.up(x)))

    def forward(self, x):
        if self.post:
            x = self.one(x + self.attention(x, x, x, need_weights=False)[0])
            return self.two(x + self.mlp(x))
        y = self.one(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.two(x))


class Residual(nn.Module):
    """Post-activation: relu(x + norm(conv(relu(norm(conv(x))))))."""

    def __init__(self, a, b, stride):
        super().__init__()
        self.one, self.two = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(b), nn.BatchNorm2d(b)])
        self.skip = nn.Identity() if a == b else nn.Conv2d(a, b, 1, stride, bias=False)

    def forward(self, x):
        y = F.relu(self.norms[0](self.one(x)))
        return F.relu(self.norms[1](self.two(y)) + self.skip(x))


class Mixer(nn.Module):
    """Tokens mixed by a net along their axis, then channels."""

    def __init__(self, t, d):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(d), nn.LayerNorm(d)])
        self.tokens = nn.Sequential(nn.Linear(t, 16), nn.GELU(), nn.Linear(16, t))
        self.channels = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x):
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


IMAGES = F.interpolate(torch.randn(6, 3, 3, 3, generator=torch.Generator().manual_seed(2)), 8, mode="bilinear")
TOKENS = torch.randn(8, 6, 32, generator=torch.Generator().manual_seed(3))
D = 256
NETS = {
    "pre-LN": (lambda: nn.Sequential(nn.Linear(32, D), Block(D), Block(D), nn.LayerNorm(D)), TOKENS),
    "post-LN, dropout": (lambda: nn.Sequential(nn.Linear(32, D), Block(D, True, 0.1), Block(D, True, 0.1)), TOKENS),
    "mixer": (lambda: nn.Sequential(nn.Linear(32, D), Mixer(6, D), Mixer(6, D), nn.LayerNorm(D)), TOKENS),
    "resnet": (lambda: nn.Sequential(nn.Conv2d(3, 128, 3, 1, 1), Residual(128, 128, 1), Residual(128, 256, 2),
                                     nn.AdaptiveAvgPool2d(1), nn.Flatten()), IMAGES),
    "conv": (lambda: nn.Sequential(nn.Conv2d(3, 128, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(128, D, 3, padding=1),
                                   nn.ELU(), nn.Flatten(), nn.Linear(9 * D, D), nn.Tanh()), IMAGES),
}  # fmt: skip
METRICS = ["mean_cosine", "participation_rank", "rms"]


def both(make, x, seeds=3):
    """Predicted and measured, means over nets, by (layer, name, signal, metric)."""
    pairs = {}
    for seed in range(seeds):
        torch.manual_seed(seed)
        net = make()
        measured = {
            (r.layer, r.name, r.signal, r.metric): r.value for r in probe(net, x, backward=True, mode="train").records
        }
        found = predict(net, x, metrics=METRICS)
        for r in found.records:
            key = (r.layer, r.name, r.signal, r.metric)
            if r.layer and key in measured:
                pairs.setdefault(key, []).append((r.value, measured[key]))
    return {key: np.mean(values, 0) for key, values in pairs.items()}, found


@pytest.mark.parametrize("name", NETS)
def test_predicted_layers_are_those_measured(name):
    pairs, found = both(*NETS[name])
    assert found.facts["measured"] == []
    assert found.facts["no_rule"] == {}
    layers = {key[0] for key in pairs}
    assert len(layers) == found.facts["layers"]
    off = {m: [] for m in (*METRICS, "gradient_growth")}
    for (_, _, _, metric), (a, b) in pairs.items():
        if metric in off:
            # Cosines near 0 have no relative error: they are held against 0.2.
            off[metric].append(abs(a - b) / (max(abs(b), 0.2) if metric == "mean_cosine" else b))
    for metric, errors in off.items():
        assert np.median(errors) < 0.05, (metric, np.round(errors, 3))
        assert np.quantile(errors, 0.95) < 0.15, (metric, np.round(errors, 3))


def test_a_plain_net_is_its_spec():
    # Layer norm: what the weights' mean squares happen to be does not matter.
    spec = Spec(depth=4, width=64, norm="layer", activation="relu")
    x = torch.randn(12, 64, dtype=torch.float64)
    net = build(spec, dtype=torch.float64)
    a, b = predict(spec, inputs=x), predict(net, x)
    for metric in ("participation_rank", "mean_abs_cosine", "soft_rank"):
        theirs, ours = a.series(metric), b.series(metric)
        assert all(abs(ours[at] / theirs[at] - 1) < 2e-4 for at in theirs)  # eps of the norm


def test_batch_norm_and_relu_grow_as_published():
    net = build(Spec(depth=6, width=64, norm="batch"))
    growth = predict(net, torch.randn(160, 64)).series("gradient_growth", "gradient")
    assert growth[5] == pytest.approx(math.sqrt(math.pi / (math.pi - 1)), rel=0.02)


def test_the_profile_has_the_coordinates_of_a_probe():
    net, x = NETS["mixer"][0](), TOKENS
    theirs = {(r.layer, r.name, r.call, r.kind) for r in probe(net, x, backward=False).records}
    assert {(r.layer, r.name, r.call, r.kind) for r in predict(net, x).records} == theirs


def test_nothing_is_left_behind():
    net = NETS["resnet"][0]()
    state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    predict(net, IMAGES)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), net.state_dict().values(), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert all(not hasattr(p, "_normscope_law") for p in net.parameters())
    assert predict(net, IMAGES).records == predict(net, IMAGES).records


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(20, 64)

    def forward(self, x):
        self.last = torch.relu(self.linear(x) + getattr(self, "last", 0))
        return self.last


def test_tensors_that_a_model_keeps_have_no_law():
    net, x = Keeps(), torch.randn(8, 20)
    predict(net, x)
    assert isinstance(net.last, torch.Tensor)
    assert not [name for name in vars(net.last) if "normscope" in name]
    assert predict(net, x).facts["no_rule"] == {}


class Sorts(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(20, 64), nn.Linear(64, 64)

    def forward(self, x):
        return self.b(torch.relu(self.a(x).sort(-1).values))


def test_what_has_no_rule_is_named_and_measured():
    found = predict(Sorts(), torch.randn(8, 20))
    assert found.facts["no_rule"] == {"sort": "no rule"}
    assert found.facts["measured"] == ["relu"]
    assert any("sort" in note and "relu" in note for note in found.facts["notes"])
    assert "b" in {r.name for r in found.records if r.signal == "gradient"}  # theory goes on at the next weights


def test_more_sites_than_allowed_are_measured():
    net, x = NETS["conv"][0](), IMAGES
    found = predict(net, x, sites=60)
    assert found.facts["measured"][:2] == ["0", "1"]
    assert "more than 60 samples x positions" in found.facts["no_rule"]["conv2d"]
    assert "7" not in found.facts["measured"]


def test_a_model_without_weights_on_its_inputs_has_no_theory():
    with pytest.raises(UsageError, match="No layer of this model has a theory here"):
        predict(nn.Sequential(nn.ReLU(), nn.Tanh()), torch.randn(4, 8))


def test_batches_of_one_are_refused():
    with pytest.raises(UsageError, match="at least 2"):
        predict(nn.Linear(8, 8), torch.randn(1, 8))


def test_zero_gains_and_identities_count_as_they_are():
    net = nn.Sequential(nn.Linear(20, D), nn.BatchNorm1d(D), nn.Linear(D, D, bias=False), nn.ReLU())
    nn.init.eye_(net[2].weight)
    nn.init.constant_(net[1].weight, 0.5)
    found = predict(net, torch.randn(16, 20), metrics=["rms"]).series("rms")
    assert found[2] == pytest.approx(0.5, rel=1e-3)
    assert found[3] == pytest.approx(0.5, rel=1e-3)
    nn.init.zeros_(net[1].weight)
    assert predict(net, torch.randn(16, 20), metrics=["rms"]).series("rms")[4] == 0


def test_diagnose_draws_it_beside_a_net_that_is_no_plain_one():
    torch.manual_seed(0)
    net = NETS["conv"][0]()
    found = ns.diagnose(net, IMAGES, torch.randint(0, 10, (6,)), "cross_entropy", trial=False)
    predicted = [r for r in found.profile.records if r.source == "predicted"]
    layers = {r.layer: r.name for r in found.profile.records if r.source == "measured"}
    assert predicted
    assert all(layers[r.layer] == r.name for r in predicted)


def test_an_overlay_keeps_its_budget():
    net = NETS["conv"][0]()
    with pytest.raises(UsageError, match="longer than the budget"):
        program_overlay(ns.Step(net, IMAGES), probe(net, IMAGES), metrics=["rms"], budget=1e-6)


def test_the_command_line_predicts_a_model(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef make(d=64):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, d), nn.SiLU(), nn.Linear(d, d))\n"
    )
    command = [sys.executable, "-m", "normscope", "predict", f"{tmp_path / 'net.py'}:make,d=128", "--data", "digits"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    records = json.loads(done.stdout)["records"]
    assert {r["name"] for r in records} == {"", "1", "2", "3"}
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "law for every tensor" in shown
    refused = subprocess.run([*command, "--simulate", "2"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--simulate are for a spec" in refused.stderr


@pytest.mark.parametrize(
    "spec",
    [
        Spec(depth=5, width=400, norm="batch", skip=0.7),
        Spec(depth=5, width=400, norm="layer", activation="gelu", skip=1.0),
        Spec(depth=5, width=400, activation="tanh", skip=0.5, bias=0.1),
        Spec(depth=5, width=400, norm="batch_rescale", activation="silu", skip=0.5, norm_first=False),
    ],
    ids=str,
)
def test_skips_around_any_nonlinearity_are_those_of_simulated_chains(spec):
    x = np.random.default_rng(0).standard_normal((10, 400)) + 0.5
    metrics = ["participation_rank", "rms", "mean_abs_cosine"]
    theory, chains = predict(spec, inputs=x, metrics=metrics), simulate(spec, inputs=x, seeds=10, metrics=metrics)
    for metric in metrics:
        ours, theirs = theory.series(metric), chains.series(metric)
        assert set(ours) == set(theirs)
        assert all(abs(ours[at] / theirs[at] - 1) < 0.06 for at in ours), (metric, ours, theirs)
    assert set(theory.series("gradient_growth", "gradient")) == set(range(1, spec.depth))
    assert theory.parameters == chains.parameters


def test_the_gradient_of_a_skip_is_that_of_nets():
    spec = Spec(depth=5, width=400, norm="batch", skip=0.7)
    x = torch.randn(12, 400, generator=torch.Generator().manual_seed(0))
    found = predict(spec, inputs=x.numpy()).series("gradient_growth", "gradient")
    runs = [probe(build(spec, seed=s), x, backward=True).series("gradient_growth", "gradient") for s in range(4)]
    for at in range(1, spec.depth):
        assert found[at] == pytest.approx(np.mean([r[at] for r in runs]), rel=0.04)


def test_inputs_that_are_no_numbers_are_refused_as_such() -> None:
    x = torch.randn(8, 6)
    x[0, 0] = torch.nan
    with pytest.raises(UsageError, match="inputs must be finite"):
        predict(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)), x)
