"""The probe's numbers are those of a slow oracle, for every kind of module; bad input is told in one clear message."""

import dataclasses
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from normscope import Spec, UsageError, build, probe

N, INPUTS, WIDTH, CLASSES = 5, 6, 7, 4


@pytest.fixture(autouse=True)
def _seeded():
    """Nets that a test makes without saying how are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# Slow oracles: numpy, one representation (n, d) at a time


def cosines(x):
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    return np.array([x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for i, j in pairs])


def eigenvalues(x):
    return np.linalg.eigvalsh(x @ x.T)


def others(x):
    """The odd sample (largest distance from the batch mean), the mean of the others, their mean squared distance."""
    odd = int(np.argmax([np.linalg.norm(row - x.mean(0)) for row in x]))
    rest = np.delete(x, odd, axis=0)
    return x[odd], rest.mean(0), np.mean([np.sum((row - rest.mean(0)) ** 2) for row in rest])


def entropy_rank(x):
    p = np.linalg.svd(x, compute_uv=False)
    p = p / p.sum()
    return np.exp(-sum(v * np.log(v) for v in p if v > 0))


def shares(x):
    distances = np.sort([np.sum((row - x.mean(0)) ** 2) for row in x])[::-1]
    return distances / distances.sum() * len(x) / (len(x) - 1)


def coherence(x):
    _, mean, spread = others(x)
    return mean @ mean / (mean @ mean + spread)


def separation(x):
    odd, mean, spread = others(x)
    return np.linalg.norm(odd - mean) / np.sqrt(spread)


ORACLES = {
    "participation_rank": lambda x: np.trace(x @ x.T) ** 2 / np.sum((x @ x.T) ** 2),
    "orthogonality_gap": lambda x: np.linalg.norm(x @ x.T / np.sum(x**2) - np.eye(len(x)) / len(x)),
    "sigma_min": lambda x: np.linalg.svd(x, compute_uv=False)[-1],
    "entropy_rank": entropy_rank,
    "soft_rank": lambda x: np.sum(eigenvalues(x) >= eigenvalues(x).sum() / min(x.shape) / 2),
    "numerical_rank": np.linalg.matrix_rank,
    "isometry_gap": lambda x: np.log(eigenvalues(x).mean()) - np.log(eigenvalues(x)).mean(),
    "mean_cosine": lambda x: cosines(x).mean(),
    "mean_abs_cosine": lambda x: np.abs(cosines(x)).mean(),
    "max_abs_cosine": lambda x: np.abs(cosines(x)).max(),
    "mean_norm": lambda x: np.mean([np.linalg.norm(row) for row in x]),
    "rms": lambda x: np.sqrt(np.mean(x**2)),
    "norm_spread": lambda x: np.std(np.linalg.norm(x, axis=1)) / np.mean(np.linalg.norm(x, axis=1)),
    "mean_shift": lambda x: np.sum(x.mean(0) ** 2) / np.mean(np.sum(x**2, 1)),
    "odd_point_score": lambda x: shares(x)[0],
    "odd_point_margin": lambda x: 1 - shares(x)[1] / shares(x)[0],
    "odd_point_index": lambda x: np.argmax(np.sum((x - x.mean(0)) ** 2, 1)),
    "odd_point_coherence": coherence,
    "odd_point_separation": separation,
}


def by_hand(model, x, targets, norm):
    """Representations 0..depth+1 of the chain and the gradients with respect to each, by adding a zero to each."""
    zeros = []

    def marked(h):
        zeros.append(torch.zeros_like(h, requires_grad=True))
        return h + zeros[-1]

    states = [h := marked(x.clone())]
    for layer in model.layers:
        u = h @ layer.linear.weight.T + layer.linear.bias
        if norm:
            u = (u - u.mean(0)) / (((u - u.mean(0)) ** 2).mean(0) + 1e-5).sqrt()
            u = u * layer.norm.weight + layer.norm.bias
        states.append(h := marked(u.tanh()))
    states.append(h := marked(h @ model.readout.weight.T + model.readout.bias))
    probabilities = h.exp() / h.exp().sum(1, keepdim=True)
    loss = -probabilities[range(len(x)), targets].log().mean()
    parameters = list(model.named_parameters())
    grads = torch.autograd.grad(loss, [*zeros, *(p for _, p in parameters)], allow_unused=True)
    weights = {n: g for (n, _), g in zip(parameters, grads[len(zeros) :], strict=True) if g is not None}
    return [s.detach().numpy() for s in states], [g.numpy() for g in grads[: len(zeros)]], weights, loss.item()


@pytest.fixture(scope="module", params=["none", "batch"])
def chain(request):
    """A tanh MLP in float64, its profile, and what it computes by hand."""
    spec = Spec(depth=3, width=WIDTH, norm=request.param, activation="tanh", outputs=CLASSES, bias=0.1)
    model = build(spec, INPUTS, seed=1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(N, INPUTS, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (N,), generator=generator)
    return model, probe(model, x, y), by_hand(model, x, y, request.param == "batch")


def values(profile, metric, signal="activation"):
    """(layer, call) -> value."""
    return {(r.layer, r.call): r.value for r in profile.records if r.metric == metric and r.signal == signal}


def places(profile):
    """name of the module -> (layer, number of calls recorded)."""
    calls = {(r.name, r.layer, r.call) for r in profile.records if r.layer}
    return {name: (layer, sum(n == name for n, _, _ in calls)) for name, layer, _ in sorted(calls, key=lambda c: c[1])}


def rms_of(profile, name, call=0, signal="activation", metric="rms"):
    found = [r for r in profile.records if (r.name, r.call, r.signal, r.metric) == (name, call, signal, metric)]
    assert len(found) == 1, f"{len(found)} records of {metric} at {name!r}, call {call}"
    return found[0].value


def gradient_of(profile, name, call=0):
    return rms_of(profile, name, call, "gradient", "gradient_norm")


def message(*args, **options):
    with pytest.raises(UsageError) as caught:
        probe(*args, **options)
    return str(caught.value)


def rms(x):
    return x.double().square().mean().sqrt().item()


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make()


# Values


@pytest.mark.parametrize("metric", ORACLES)
def test_a_metric_of_every_layer_is_the_oracles(chain, metric):
    _, profile, (states, _, _, _) = chain
    with np.errstate(divide="ignore"):
        rank_four = {len(states) - 1: 0.0} if metric == "sigma_min" else {}  # (5, 4): the fifth singular value
        if metric == "isometry_gap":
            rank_four = {len(states) - 1: np.inf}
        expected = {(i, 0): rank_four.get(i, ORACLES[metric](x)) for i, x in enumerate(states)}
    assert values(profile, metric) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_gradient_norm_of_every_layer_is_the_oracles(chain):
    _, profile, (_, grads, _, _) = chain
    expected = {(i, 0): np.linalg.norm(g) for i, g in enumerate(grads)}
    assert values(profile, "gradient_norm", "gradient") == pytest.approx(expected, rel=1e-9)


def test_the_gradient_collinearity_of_every_layer_is_the_oracles(chain):
    _, profile, (_, grads, _, _) = chain
    expected = {(i, 0): np.abs(cosines(g)).mean() for i, g in enumerate(grads)}
    assert values(profile, "gradient_collinearity", "gradient") == pytest.approx(expected, rel=1e-9)


def test_gradient_growth_is_a_layers_norm_over_that_of_the_next(chain):
    _, profile, (_, grads, _, _) = chain
    norms = [np.linalg.norm(g) for g in grads]
    expected = {(i, 0): norms[i] / norms[i + 1] for i in range(len(norms) - 1)}
    assert values(profile, "gradient_growth", "gradient") == pytest.approx(expected, rel=1e-9)


def test_the_weight_gradient_of_a_layer_is_over_all_its_parameters(chain):
    model, profile, (_, _, weights, _) = chain
    names = [f"layers.{i}" for i in range(3)] + ["readout"]
    expected = {}
    for layer, name in enumerate(names, 1):
        own = [n for n, _ in model.named_parameters() if n.startswith(f"{name}.")]
        expected[layer, 0] = np.sqrt(sum(weights[n].square().sum().item() for n in own))
    assert values(profile, "gradient_norm", "weight") == pytest.approx(expected, rel=1e-9)


def test_the_weight_gradient_of_one_linear_is_the_closed_form():
    model, x, y = seeded(lambda: nn.Linear(3, 2).double()), gaussian(4, 3, dtype=torch.float64), gaussian(4, 2).double()
    residual = 2 * (x @ model.weight.T + model.bias - y).detach() / y.numel()
    norm = np.hypot((residual.T @ x).norm().item(), residual.sum(0).norm().item())
    assert values(probe(model, x, y), "gradient_norm", "weight") == pytest.approx({(1, 0): norm})


def test_the_relative_gradient_is_the_gradient_over_the_parameters():
    model, x, y = seeded(lambda: nn.Linear(3, 2)), gaussian(4, 3), gaussian(4, 2)
    profile = probe(model, x, y)
    size = np.hypot(model.weight.detach().norm().item(), model.bias.detach().norm().item())
    expected = {(1, 0): values(profile, "gradient_norm", "weight")[1, 0] / size}
    assert values(profile, "relative_gradient", "weight") == pytest.approx(expected)


def test_the_loss_in_the_facts_is_the_oracles(chain):
    _, profile, (_, _, _, loss) = chain
    assert profile.facts["loss_value"] == pytest.approx(loss)


# Coordinates


def test_layers_of_a_spec_run_from_the_input_to_its_depth():
    profile = probe(build(Spec(depth=4, width=5), INPUTS), gaussian(4, INPUTS))
    assert sorted(profile.series("rms")) == [0, 1, 2, 3, 4]


def test_the_readout_comes_after_the_depth():
    profile = probe(build(Spec(depth=4, width=5, outputs=2), INPUTS), gaussian(4, INPUTS))
    assert places(profile)["readout"] == (5, 1)


def test_layers_are_numbered_as_they_run_not_as_they_are_declared():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(4, 2), nn.Linear(3, 4)

        def forward(self, x):
            return self.last(self.first(x))

    assert places(probe(Backwards(), gaussian(4, 3))) == {"first": (1, 1), "last": (2, 1)}


class Shared(nn.Module):
    """One linear map three times, a tanh between."""

    def __init__(self):
        super().__init__()
        self.linear, self.tanh, self.out = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)

    def forward(self, x):
        for _ in range(3):
            x = self.tanh(self.linear(x))
        return self.out(x)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.relu, self.b = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

    def forward(self, x):
        h = self.a(x)
        return h + self.b(self.relu(h))


class Recompute(nn.Module):
    """A middle part whose activations are computed again in the backward pass."""

    def __init__(self, how):
        super().__init__()
        self.first, self.last, self.how = nn.Linear(4, 6), nn.Linear(6, 3), how
        self.middle = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.ReLU())

    def forward(self, x):
        h = self.first(x)
        h = self.middle(h) if self.how is None else checkpoint(self.middle, h, use_reentrant=self.how)
        return self.last(h)


KINDS = {
    "shared": (Shared, (6, 4)),
    "residual": (Residual, (6, 4)),
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2)), (6, 4)),
    "in place": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), (6, 4)),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2)),
        (6, 2, 4, 4),
    ),
    "lstm": (lambda: nn.LSTM(4, 3, batch_first=True), (6, 5, 4)),
    "encoder": (lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (6, 5, 4)),
    "resnet": (
        lambda: build(Spec(family="resnet", depth=5, width=4, norm="batch", outputs=3), (2, 6, 6)),
        (6, 2, 6, 6),
    ),
    "vgg": (lambda: build(Spec(family="vgg", depth=4, width=4, norm="batch", outputs=3), (2, 8, 8)), (6, 2, 8, 8)),
    "checkpoint": (lambda: Recompute(False), (6, 4)),
    "mlp": (lambda: build(Spec(depth=3, width=4, norm="batch", skip=0.5), 4), (6, 4)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_is_the_only_one_with_its_layer_call_signal_and_metric(kind):
    make, shape = KINDS[kind]
    profile = probe(seeded(make), gaussian(*shape), backward=True)
    counts = Counter((r.layer, r.call, r.signal, r.metric) for r in profile.records)
    assert [key for key, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_that_ran_has_a_gradient(kind):
    make, shape = KINDS[kind]
    profile = probe(seeded(make), gaussian(*shape), backward=True)
    assert set(values(profile, "gradient_norm", "gradient")) == set(values(profile, "rms"))


# Structure of models


def test_a_shared_module_is_recorded_at_each_call():
    model, x = seeded(Shared), gaussian(6, 4)
    profile = probe(model, x)
    h, expected = x, []
    for _ in range(3):
        expected.append(rms(u := h @ model.linear.weight.T + model.linear.bias))
        h = u.tanh()
    assert [rms_of(profile, "linear", call) for call in range(3)] == pytest.approx(expected, rel=1e-6)


def test_a_module_under_two_names_is_one_layer_called_twice():
    linear = nn.Linear(4, 4)
    assert places(probe(nn.Sequential(linear, nn.ReLU(), linear), gaussian(6, 4)))["0"] == (1, 2)


class Pair(NamedTuple):
    steps: int
    state: torch.Tensor


@dataclasses.dataclass
class Answer:
    ids: torch.Tensor
    scores: torch.Tensor | None = None


class Wrapped(nn.Module):
    """A model whose parts and whole return what ``wrap`` makes of a tensor."""

    def __init__(self, wrap, unwrap):
        super().__init__()
        self.part, self.unwrap, self.wrap = _Part(wrap), unwrap, wrap

    def forward(self, x):
        return self.wrap(self.unwrap(self.part(x)) * 2)


class _Part(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.weight, self.wrap = nn.Parameter(gaussian(4, 3)), wrap

    def forward(self, x):
        return self.wrap(x @ self.weight)


OUTPUTS = {
    "tuple": (lambda t: (t, None), lambda o: o[0]),
    "tuple with an integer first": (lambda t: (torch.arange(3), t), lambda o: o[1]),
    "list": (lambda t: [t], lambda o: o[0]),
    "dict": (lambda t: {"ids": torch.arange(3), "hidden": t}, lambda o: o["hidden"]),
    "dict with logits": (lambda t: {"attention": t * 0, "logits": t}, lambda o: o["logits"]),
    "named tuple": (lambda t: Pair(1, t), lambda o: o.state),
    "dataclass": (lambda t: Answer(torch.arange(3), t), lambda o: o.scores),
    "nested": (lambda t: ((None, [t]), 1), lambda o: o[0][1][0]),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_tensor_in_a_structured_output_is_measured(kind):
    model, x = Wrapped(*OUTPUTS[kind]), gaussian(6, 4)
    assert rms_of(probe(model, x), "part") == pytest.approx(rms(x @ model.part.weight), rel=1e-6)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_the_tensor_in_a_structured_output_gives_the_loss(kind):
    model, x, y = Wrapped(*OUTPUTS[kind]), gaussian(6, 4), gaussian(6, 3, seed=5)
    expected = (2 * (2 * x @ model.part.weight - y) / y.numel() * 2).norm().item()
    assert gradient_of(probe(model, x, y), "part") == pytest.approx(expected, rel=1e-5)


class Named(nn.Module):
    """Takes keyword arguments, as Hugging Face's models do."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(11, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask=None):
        h = self.mix(self.embed(input_ids))
        return {"logits": (h * attention_mask[..., None]).mean(1)}


def test_a_dict_of_inputs_becomes_keyword_arguments():
    ids, mask = torch.arange(12).reshape(4, 3) % 11, torch.ones(4, 3)
    model = seeded(Named)
    profile = probe(model, {"attention_mask": mask, "input_ids": ids})
    assert rms_of(profile, "embed") == pytest.approx(rms(model.embed.weight[ids]), rel=1e-6)


def test_integer_inputs_still_give_gradients_in_the_layers():
    ids = torch.arange(12).reshape(4, 3) % 11
    profile = probe(seeded(Named), {"input_ids": ids, "attention_mask": torch.ones(4, 3)}, torch.tensor([0, 1, 2, 0]))
    assert gradient_of(profile, "embed") > 0


def test_a_tuple_of_inputs_becomes_positional_arguments():
    x, y = gaussian(6, 3), gaussian(6, 4, seed=1)
    model = seeded(lambda: nn.Bilinear(3, 4, 2, bias=False))
    expected = rms(torch.einsum("ni,oij,nj->no", x, model.weight, y))
    assert values(probe(model, (x, y)), "rms")[1, 0] == pytest.approx(expected, rel=1e-5)


def test_an_image_is_one_row_of_all_its_channels_and_positions():
    model, x = seeded(lambda: nn.Conv2d(2, 3, 3, bias=False)), gaussian(5, 2, 4, 4)
    patches = x.unfold(2, 3, 1).unfold(3, 3, 1)
    rows = torch.einsum("nchwij,ocij->nohw", patches, model.weight).detach().reshape(5, -1).double().numpy()
    expected = ORACLES["participation_rank"](rows)
    assert values(probe(model, x), "participation_rank")[1, 0] == pytest.approx(expected, rel=1e-5)


def test_a_sequence_is_one_row_of_all_its_tokens():
    model, x = seeded(lambda: nn.Linear(4, 3)), gaussian(5, 6, 4)
    rows = (x @ model.weight.T + model.bias).detach().reshape(5, 18).double().numpy()
    expected = ORACLES["participation_rank"](rows)
    assert values(probe(model, x), "participation_rank")[1, 0] == pytest.approx(expected, rel=1e-5)


def test_tokens_makes_each_token_a_row():
    model, x = seeded(lambda: nn.Linear(4, 3)), gaussian(5, 6, 4)
    rows = (x @ model.weight.T + model.bias).detach().reshape(30, 3).double().numpy()
    expected = ORACLES["mean_abs_cosine"](rows)
    assert values(probe(model, x, tokens=True), "mean_abs_cosine")[1, 0] == pytest.approx(expected, rel=1e-5)


def test_tokens_makes_each_tokens_gradient_a_row():
    model, x = seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh())), gaussian(5, 6, 4)
    y = gaussian(5, 6, 3, seed=9)
    u = (x @ model[0].weight.T + model[0].bias).detach()
    grad = (2 * (u.tanh() - y) / y.numel() * (1 - u.tanh() ** 2)).reshape(30, 3).double().numpy()
    found = probe(model, x, y, tokens=True)
    got = rms_of(found, "0", signal="gradient", metric="gradient_collinearity")
    assert got == pytest.approx(np.abs(cosines(grad)).mean(), rel=1e-5)


def test_tokens_makes_each_tokens_gradient_at_the_input_a_row():
    model, x, y = seeded(lambda: nn.Linear(4, 3)), gaussian(5, 6, 4), gaussian(5, 6, 3, seed=9)
    residual = 2 * (x @ model.weight.T + model.bias - y).detach() / y.numel()
    rows = (residual @ model.weight.detach()).reshape(30, 4).double().numpy()
    got = values(probe(model, x, y, tokens=True), "gradient_collinearity", "gradient")[0, 0]
    assert got == pytest.approx(np.abs(cosines(rows)).mean(), rel=1e-5)


def in_place():
    return seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)))


def test_an_in_place_relu_is_a_layer():
    assert places(probe(in_place(), gaussian(6, 4))) == {"0": (1, 1), "1": (2, 1), "2": (3, 1)}


def test_before_an_in_place_relu_stands_what_the_linear_map_gave():
    model, x = in_place(), gaussian(6, 4)
    expected = rms(x @ model[0].weight.T + model[0].bias)
    assert rms_of(probe(model, x), "0") == pytest.approx(expected, rel=1e-6)


def test_an_in_place_relus_output_is_the_rectified_one():
    model, x = in_place(), gaussian(6, 4)
    expected = rms((x @ model[0].weight.T + model[0].bias).clamp_min(0))
    assert rms_of(probe(model, x), "1") == pytest.approx(expected, rel=1e-6)


def in_place_gradients(model, x, y):
    u = (x @ model[0].weight.T + model[0].bias).detach()
    residual = 2 * (u.clamp_min(0) @ model[2].weight.T + model[2].bias - y).detach() / y.numel()
    after = residual @ model[2].weight.detach()
    return (after * (u > 0)).norm().item(), after.norm().item()


@pytest.mark.parametrize("name", ["0", "1"])
def test_gradients_either_side_of_an_in_place_relu_are_told_apart(name):
    model, x, y = in_place(), gaussian(6, 4), gaussian(6, 2, seed=7)
    expected = in_place_gradients(model, x, y)[int(name)]
    assert gradient_of(probe(model, x, y), name) == pytest.approx(expected, rel=1e-5)


def test_an_in_place_relu_is_looked_at_for_dead_units():
    model = in_place()
    with torch.no_grad():
        model[0].weight[2:] = 0
        model[0].bias[2:] = -1
    assert rms_of(probe(model, gaussian(64, 4)), "1", metric="dead_units") == pytest.approx(3 / 5)


def test_the_gradient_at_a_fork_adds_both_branches():
    model, x, y = seeded(Residual), gaussian(6, 4), gaussian(6, 4, seed=7)
    h = (x @ model.a.weight.T + model.a.bias).detach()
    residual = 2 * (h + h.clamp_min(0) @ model.b.weight.T + model.b.bias - y).detach() / y.numel()
    expected = (residual + (residual @ model.b.weight.detach()) * (h > 0)).norm().item()
    assert gradient_of(probe(model, x, y), "a") == pytest.approx(expected, rel=1e-5)


def test_attention_is_one_layer_inside_an_encoder():
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    found = set(places(probe(model, gaussian(6, 5, 4))))
    assert found == {"self_attn", "linear1", "linear2", "norm1", "norm2"}


def test_attention_on_its_own_is_one_layer():
    model, x = seeded(lambda: nn.MultiheadAttention(4, 2, batch_first=True)), gaussian(6, 5, 4)
    expected = rms(model(x, x, x)[0].detach())
    assert values(probe(model, (x, x, x)), "rms") == pytest.approx({(0, 0): rms(x), (1, 0): expected}, rel=1e-5)


def test_an_encoder_in_eval_mode_without_gradients_is_still_seen_layer_by_layer():
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).requires_grad_(False)
    assert len(places(probe(model, gaussian(6, 5, 4), mode="eval", backward=False))) == 5


def test_a_recurrent_net_is_measured_by_its_outputs_over_time():
    model, x = seeded(lambda: nn.LSTM(4, 3, batch_first=True)), gaussian(6, 5, 4)
    h, c, states = torch.zeros(6, 3), torch.zeros(6, 3), []
    for t in range(5):
        gates = x[:, t] @ model.weight_ih_l0.T + model.bias_ih_l0 + h @ model.weight_hh_l0.T + model.bias_hh_l0
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        states.append(h := o.sigmoid() * c.tanh())
    assert values(probe(model, x), "rms")[1, 0] == pytest.approx(rms(torch.stack(states, 1)), rel=1e-5)


PARAMETRIZED = {
    "weight_norm": lambda m: nn.utils.parametrizations.weight_norm(m),
    "spectral_norm": lambda m: nn.utils.parametrizations.spectral_norm(m),
    "orthogonal": lambda m: nn.utils.parametrizations.orthogonal(m),
}


@pytest.mark.parametrize("how", PARAMETRIZED)
def test_a_parametrized_module_is_one_layer(how):
    model = nn.Sequential(PARAMETRIZED[how](nn.Linear(4, 4)), nn.ReLU())
    assert places(probe(model, gaussian(6, 4))) == {"0": (1, 1), "1": (2, 1)}


@pytest.mark.parametrize("how", PARAMETRIZED)
def test_a_parametrized_module_has_a_weight_gradient(how):
    model = nn.Sequential(PARAMETRIZED[how](nn.Linear(4, 4)), nn.ReLU())
    assert rms_of(probe(model, gaussian(6, 4), backward=True), "0", signal="weight", metric="gradient_norm") > 0


@pytest.mark.parametrize("how", PARAMETRIZED)
def test_a_parametrized_model_on_its_own_is_measured_by_its_output(how):
    model, x = seeded(lambda: PARAMETRIZED[how](nn.Linear(4, 3))).eval(), gaussian(6, 4)
    expected = rms(x @ model.weight.T + model.bias)
    assert values(probe(model, x), "rms")[1, 0] == pytest.approx(expected, rel=1e-5)


def plain():
    return seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)))


def records(profile):
    """Records in a form in which equal NaNs are equal."""
    return [(*r[:2], repr(r.value), *r[3:]) for r in profile.records]


def test_a_compiled_model_gives_the_records_of_the_model_inside():
    model, x, y = plain(), gaussian(6, 4), torch.arange(6) % 3
    assert records(probe(torch.compile(model, backend="eager"), x, y)) == records(probe(model, x, y))


def test_a_compiled_model_that_has_run_gives_the_records_of_the_model_inside():
    model, x, y = plain(), gaussian(6, 4), torch.arange(6) % 3
    expected = records(probe(model, x, y))
    compiled = torch.compile(model.eval(), backend="eager")
    compiled(x)
    assert records(probe(compiled, x, y, mode="train")) == expected


def test_a_compiled_part_gives_the_numbers_of_the_part_inside():
    part, x = plain(), gaussian(6, 4)
    series = probe(nn.Sequential(torch.compile(part, backend="eager"), nn.Tanh()), x).series("rms")
    assert [series[layer] for layer in range(5)] == list(probe(part, x).series("rms").values())


def test_a_data_parallel_model_gives_the_records_of_the_model_inside():
    model, x, y = plain(), gaussian(6, 4), torch.arange(6) % 3
    assert records(probe(nn.DataParallel(model), x, y)) == records(probe(model, x, y))


def test_a_model_that_was_looked_through_says_so():
    assert "DataParallel" in probe(nn.DataParallel(plain()), gaussian(6, 4)).facts["notes"][0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_models_activations_are_measured_as_they_are(dtype):
    model, x = nn.Linear(4, 20).to(dtype), gaussian(6, 4).to(dtype)
    rows = model(x).detach().double().numpy()
    expected = ORACLES["sigma_min"](rows)
    assert values(probe(model, x), "sigma_min")[1, 0] == pytest.approx(expected, rel=1e-6)


def test_a_narrow_model_has_gradients():
    profile = probe(plain().bfloat16(), gaussian(6, 4).bfloat16(), torch.arange(6) % 3)
    assert all(np.isfinite(v) and v > 0 for v in values(profile, "gradient_norm", "gradient").values())


def test_frozen_parameters_have_no_weight_signal():
    profile = probe(plain().requires_grad_(False), gaussian(6, 4), torch.arange(6) % 3)
    assert not values(profile, "gradient_norm", "weight")


def test_frozen_parameters_leave_the_gradient_signal_as_it_is():
    model, x, y = plain(), gaussian(6, 4), torch.arange(6) % 3
    expected = values(probe(model, x, y), "gradient_norm", "gradient")
    assert values(probe(model.requires_grad_(False), x, y), "gradient_norm", "gradient") == pytest.approx(expected)


@pytest.mark.parametrize("how", [False, True], ids=["non-reentrant", "reentrant"])
def test_a_checkpointed_model_gives_the_activations_of_the_same_model_without(how):
    without = probe(seeded(lambda: Recompute(None)), gaussian(8, 4))
    found = probe(seeded(lambda: Recompute(how)), gaussian(8, 4))
    assert values(found, "rms") == values(without, "rms")


def test_reentrant_checkpointing_is_refused_where_gradients_are_wanted():
    assert "use_reentrant=False" in message(seeded(lambda: Recompute(True)), gaussian(8, 4), torch.arange(8) % 3)


def test_a_checkpointed_model_gives_the_gradients_of_the_same_model_without():
    x, y = gaussian(8, 4), torch.arange(8) % 3
    without = values(probe(seeded(lambda: Recompute(None)), x, y), "gradient_norm", "gradient")
    assert values(probe(seeded(lambda: Recompute(False)), x, y), "gradient_norm", "gradient") == pytest.approx(without)


def test_a_part_run_in_inference_mode_is_measured():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.back, self.relu, self.head = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)

        def forward(self, x):
            with torch.inference_mode():
                h = self.relu(self.back(x))
            return self.head(h.clone())

    assert set(places(probe(Frozen(), gaussian(6, 4), backward=True))) == {"back", "relu", "head"}


# Losses


def test_mse_is_the_mean_over_all_entries():
    model, x, y = seeded(lambda: nn.Linear(4, 3)), gaussian(6, 4), gaussian(6, 3, seed=1)
    expected = ((x @ model.weight.T + model.bias - y) ** 2).mean().item()
    assert probe(model, x, y, "mse").facts["loss_value"] == pytest.approx(expected, rel=1e-6)


def test_mse_of_classes_is_that_of_one_hot_rows():
    model, x, y = seeded(lambda: nn.Linear(4, 3)), gaussian(6, 4), torch.arange(6) % 3
    expected = ((x @ model.weight.T + model.bias - torch.eye(3)[y]) ** 2).mean().item()
    assert probe(model, x, y, "mse").facts["loss_value"] == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_takes_classes_on_the_last_axis_of_a_sequence():
    model, x, y = seeded(lambda: nn.Linear(4, 3)), gaussian(6, 5, 4), torch.arange(30).reshape(6, 5) % 3
    logits = (x @ model.weight.T + model.bias).detach().reshape(30, 3).double()
    expected = -(logits.exp() / logits.exp().sum(1, keepdim=True))[range(30), y.flatten()].log().mean().item()
    assert probe(model, x, y).facts["loss_value"] == pytest.approx(expected, rel=1e-6)


def test_cross_entropy_takes_classes_on_the_second_axis_of_images():
    model, x = seeded(lambda: nn.Conv2d(2, 3, 1, bias=False)), gaussian(4, 2, 5, 5)
    y = torch.arange(100).reshape(4, 5, 5) % 3
    logits = torch.einsum("nchw,oc->nhwo", x, model.weight[:, :, 0, 0]).detach().reshape(100, 3).double()
    expected = -(logits.exp() / logits.exp().sum(1, keepdim=True))[range(100), y.flatten()].log().mean().item()
    assert probe(model, x, y).facts["loss_value"] == pytest.approx(expected, rel=1e-6)


def test_negative_classes_are_left_out():
    model, x = seeded(lambda: nn.Linear(4, 3)), gaussian(6, 4)
    y = torch.tensor([0, 1, 2, 0, -1, -100])
    expected = probe(model, x[:4], y[:4]).facts["loss_value"]
    assert probe(model, x, y).facts["loss_value"] == pytest.approx(expected, rel=1e-6)


def test_a_callable_gets_the_whole_output():
    def loss(outputs, targets):  # what it keeps in a list would be put back
        assert (type(outputs), targets) == (dict, "mine")
        return outputs["logits"].sum() * 0 + 7

    batch = {"input_ids": torch.ones(4, 3).long(), "attention_mask": torch.ones(4, 3)}
    assert probe(seeded(Named), batch, "mine", loss).facts["loss_value"] == 7


def test_a_callable_is_differentiated():
    model, x = seeded(lambda: nn.Linear(4, 3)), gaussian(6, 4)
    profile = probe(model, x, None, lambda outputs, _targets: (outputs * 3).sum())
    assert values(profile, "gradient_norm", "gradient")[1, 0] == pytest.approx(3 * np.sqrt(18))


def test_a_callables_name_is_in_the_facts():
    def smooth(outputs, _targets):
        return outputs.sum()

    assert probe(nn.Linear(4, 3), gaussian(6, 4), None, smooth).facts["loss"] == "smooth"


def test_without_targets_and_loss_there_is_no_gradient():
    assert {r.signal for r in probe(plain(), gaussian(6, 4)).records} == {"activation"}


def test_a_random_cotangent_has_the_scale_of_a_mean_over_samples():
    profile = probe(nn.Linear(4, 1000), gaussian(64, 4), backward=True)
    # ||eps / n||_F with 64 000 standard normal entries: relative standard error 1 / sqrt(2 * 64000).
    expected, error = np.sqrt(1000 / 64), 1 / np.sqrt(2 * 64000)
    assert values(profile, "gradient_norm", "gradient")[1, 0] == pytest.approx(expected, rel=4 * error)


def test_a_random_cotangent_depends_on_the_seed_alone():
    norms = [probe(plain(), gaussian(6, 4), backward=True, seed=s).facts["loss_value"] for s in (1, 1, 2)]
    assert norms[0] == norms[1] != norms[2]


def test_targets_alone_choose_the_loss_by_their_kind():
    kinds = [probe(nn.Linear(4, 3), gaussian(6, 4), y).facts["loss"] for y in (torch.zeros(6).long(), gaussian(6, 3))]
    assert kinds == ["cross_entropy", "mse"]


# Choice of layers and metrics


def test_a_pattern_chooses_the_modules_it_matches():
    model = build(Spec(depth=3, width=4, norm="batch"), 4)
    assert list(places(probe(model, gaussian(6, 4), layers="layers.*.norm"))) == [f"layers.{i}.norm" for i in range(3)]


def test_several_patterns_add_up():
    model = build(Spec(depth=3, width=4, outputs=2), 4)
    assert set(places(probe(model, gaussian(6, 4), layers=["readout", "layers.1"]))) == {"readout", "layers.1"}


def test_chosen_layers_have_the_values_they_have_among_all():
    model, x = plain(), gaussian(6, 4)
    assert rms_of(probe(model, x, layers="2"), "2") == rms_of(probe(model, x), "2")


def test_a_module_that_a_pattern_names_and_never_runs_is_noted():
    model = Residual()
    model.idle = nn.Linear(2, 2)
    notes = probe(model, gaussian(6, 4), layers=["a", "idle"]).facts["notes"]
    assert [n for n in notes if "idle" in n] != []


def test_only_the_metrics_asked_for_are_computed():
    assert {r.metric for r in probe(plain(), gaussian(6, 4), metrics=["rms"]).records} == {"rms"}


def test_only_the_metrics_asked_for_are_computed_with_a_loss_too():
    profile = probe(plain(), gaussian(6, 4), torch.arange(6) % 3, metrics=["rms", "gradient_norm"])
    assert {r.metric for r in profile.records} == {"rms", "gradient_norm"}


def test_dropout_and_flatten_are_not_layers():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Dropout(0.5), nn.Identity(), nn.ReLU())
    assert list(places(probe(model, gaussian(6, 4)))) == ["1", "4"]


def test_training_mode_is_used_where_asked():
    model, x = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))).eval(), gaussian(6, 4)
    assert rms_of(probe(model, x, mode="train"), "1") == pytest.approx(1.0, abs=1e-3)


def test_eval_mode_is_used_where_asked():
    model, x = seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))), gaussian(6, 4)
    profile = probe(model, x, mode="eval")
    assert rms_of(profile, "1") == pytest.approx(rms_of(profile, "0"), rel=1e-4)


def test_without_a_mode_each_module_is_as_it_is_set():
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 2))
    model[1].eval()
    assert probe(model, gaussian(6, 4)).facts["mode"] == "mixed"


# Bad input, told in one message


def test_a_batch_of_one_is_refused():
    assert "at least 2; got 1" in message(plain(), gaussian(1, 4))


def test_an_empty_batch_is_refused():
    assert "at least 2; got 0" in message(plain(), gaussian(0, 4))


@pytest.mark.parametrize("inputs", [5, None, "words", (), {}, torch.tensor(1.0), {"a": 1}, np.zeros((6, 4))], ids=repr)
def test_inputs_without_a_batch_are_refused(inputs):
    assert "inputs" in message(plain(), inputs)


@pytest.mark.parametrize("model", [None, "plain", lambda x: x, nn.Linear], ids=["None", "text", "function", "class"])
def test_something_that_is_no_module_is_refused(model):
    assert "nn.Module" in message(model, gaussian(6, 4))


def test_a_pattern_that_matches_nothing_is_refused():
    assert "'layer.*'" in message(build(Spec(depth=2, width=4), 4), gaussian(6, 4), layers="layer.*")


def test_a_pattern_that_matches_nothing_beside_one_that_does_is_refused():
    assert "'nope'" in message(plain(), gaussian(6, 4), layers=["0", "nope"])


def test_a_pattern_that_matches_nothing_offers_the_nearest_module():
    assert "Did you mean 'readout'?" in message(
        build(Spec(depth=2, width=4, outputs=2), 4), gaussian(6, 4), layers="readouts"
    )


def test_a_lazy_parameter_is_refused():
    assert "'1.weight'" in message(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)), gaussian(6, 4))


def test_a_lazy_buffer_is_refused():
    assert "lazy" in message(nn.Sequential(nn.Linear(4, 3), nn.LazyBatchNorm1d(affine=False)), gaussian(6, 4))


def test_eval_mode_over_untrained_batch_norm_is_refused():
    assert "mode='eval' to insist" in message(plain().eval(), gaussian(6, 4))


def test_one_untrained_batch_norm_in_eval_mode_is_refused():
    model = plain()
    model[1].eval()
    assert "eval mode" in message(model, gaussian(6, 4))


def test_eval_mode_over_trained_batch_norm_is_accepted():
    model = plain()
    model(gaussian(6, 4))
    assert probe(model.eval(), gaussian(6, 4)).facts["mode"] == "eval"


def test_an_unknown_mode_is_refused():
    assert "'trian'" in message(plain(), gaussian(6, 4), mode="trian")


def test_an_unknown_metric_is_refused_with_the_nearest():
    assert "'gradient_norm'?" in message(plain(), gaussian(6, 4), metrics=["gradient_nrm"])


def test_an_unknown_loss_is_refused_with_the_nearest():
    assert "'mse'?" in message(plain(), gaussian(6, 4), gaussian(6, 3), "mze")


WRONG = {
    "too few": (torch.zeros(5).long(), None),
    "class too large": (torch.full((6,), 3), None),
    "no class counts": (torch.full((6,), -100), None),
    "a list": ([0, 1, 2, 0, 1, 2], None),
    "a list for mse": ([0, 1, 2, 0, 1, 2], "mse"),
    "floats for cross_entropy": (torch.zeros(6), "cross_entropy"),
    "one column for mse": (torch.zeros(6, 1), "mse"),
    "class too large for mse": (torch.full((6,), 3), "mse"),
    "negative class for mse": (torch.full((6,), -1), "mse"),
    "none for mse": (None, "mse"),
    "none for cross_entropy": (None, "cross_entropy"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_targets_are_refused(case):
    targets, loss = WRONG[case]
    assert "arget" in message(plain(), gaussian(6, 4), targets, loss)


@pytest.mark.parametrize("value", [1.0, torch.ones(3), None, torch.ones(0)], ids=repr)
def test_a_loss_that_is_no_scalar_tensor_is_refused(value):
    assert "scalar tensor" in message(plain(), gaussian(6, 4), None, lambda _o, _t: value)


def test_a_loss_that_depends_on_nothing_is_refused():
    assert "no gradient" in message(plain(), gaussian(6, 4), None, lambda _o, _t: torch.tensor(1.0))


def test_a_layer_that_refuses_its_input_is_named_in_an_error_that_is_a_runtime_error_still():
    said = r"layer '1' \(Linear\) got float32 \(6, 5\); refuses .*shapes cannot be multiplied"
    with pytest.raises(RuntimeError, match=said) as caught:
        probe(nn.Sequential(nn.Linear(4, 5), nn.Linear(7, 2)), gaussian(6, 4))
    assert isinstance(caught.value, UsageError)


class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 5)

    def forward(self, x):
        raise LookupError("my own")


def test_an_error_of_the_models_own_passes_through_with_a_note():
    with pytest.raises(LookupError, match="my own") as caught:
        probe(nn.Sequential(nn.Linear(4, 4), Raises()), gaussian(6, 4))
    assert caught.value.__notes__ == ["normscope: the model's forward raised this, in layer '1' (Raises)."]


def test_frozen_batch_norms_measured_in_training_mode_are_named():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model[1].eval()
    x = torch.randn(20, 6)
    assert any("mode=None" in note for note in probe(model, x, mode="train").facts["notes"])
    model.train()
    assert not any("mode=None" in note for note in probe(model, x, mode="train").facts["notes"])
