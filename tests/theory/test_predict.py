"""`predict` against Monte Carlo over single neurons, wide simulation, and closed forms from the literature."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from normscope import Spec, UsageError
from normscope.nn.norms import integrals
from normscope.nn.norms.integrals import batch_norm_gram, batch_norm_pull, batch_norm_push, rescaled_spectrum
from normscope.theory.predicted import predict, predicted_grams
from normscope.theory.simulated import simulate

RNG = np.random.default_rng(5)
N = 5
X = RNG.standard_normal((N, 12)) * RNG.gamma(2, size=(N, 1)) + 0.3
PHI = {
    "identity": lambda u: u, "relu": torch.relu, "tanh": torch.tanh, "gelu": torch.nn.functional.gelu, "abs": torch.abs,
    "leaky_relu(0.2)": lambda u: torch.where(u > 0, u, 0.2 * u),
}  # fmt: skip
SPECS = [
    Spec(depth=1, norm=norm, activation=activation, norm_first=first, bias=bias)
    for norm in ("none", "batch", "batch_rescale", "batch_recenter", "layer", "rms")
    for activation, first, bias in (
        ("relu", True, None), ("identity", True, None), ("abs", True, 0.4), ("leaky_relu(0.2)", True, None),
        ("tanh", True, None), ("gelu", False, 0.2), ("relu", False, None),
    )
]  # fmt: skip


def neuron(u, spec, wide):
    """h (m, n) of m neurons from their pre-activations; ``wide``: second moments per sample for layer norms."""
    phi = PHI[spec.activation]

    def norm(z):
        if spec.norm in ("batch", "batch_recenter"):
            z = z - z.mean(1, keepdim=True)
        if spec.norm in ("batch", "batch_rescale"):
            root = z.square().mean(1, keepdim=True).sqrt()
            z = z / torch.where(root > 0, root, 1)
        if spec.norm == "layer":
            z = (z - wide[0]) / wide[1]
        if spec.norm == "rms":
            z = z / (wide[0] ** 2 + wide[1] ** 2).sqrt()
        return z

    return phi(norm(u)) if spec.norm_first else norm(phi(u))


def monte_carlo(spec, gram, m=200_000):
    """Mean and standard error of h h^T, and of the backward map of the identity, by autograd on m neurons."""
    c = spec.effective_gain**2 * gram + (spec.bias or 0) ** 2
    u = torch.from_numpy(RNG.standard_normal((m, N)) @ np.linalg.cholesky(c + 1e-14 * np.eye(N)).T).requires_grad_()
    seen = u if spec.norm_first else PHI[spec.activation](u)
    wide = (seen.mean(0).detach(), seen.std(0, correction=0).detach())
    h = neuron(u, spec, wide)
    products = (h[:, :, None] * h[:, None, :]).detach().numpy()
    columns = [torch.autograd.grad(h[:, k].sum(), u, retain_graph=True)[0].numpy() for k in range(N)]
    squares = spec.effective_gain**2 * sum(np.square(g).sum(1) for g in columns)
    return products.mean(0), products.std(0) / math.sqrt(m), squares.mean(), squares.std() / math.sqrt(m)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: str(s).removeprefix("mlp:depth=1,width=256"))
def test_one_layer_against_single_neurons(spec):
    gram = X @ X.T / 12
    forward = predicted_grams(spec, inputs=X, log2_points=12)[1]
    mean, error, squares, spread = monte_carlo(spec, gram)
    # Layer norm divides by sample moments of the same draws, which adds errors of the same size.
    assert (np.abs(forward - mean) < 6 * error + 2e-4 * np.abs(mean).max()).all()
    if (
        spec.norm.startswith("batch")
        and spec.norm != "batch_recenter"
        and spec.activation == "relu"
        and not spec.norm_first
    ):
        return  # the mean squared gradient is infinite there; predict() says so
    profile = predict(spec, inputs=X, log2_points=12)
    growth = next(r for r in profile.records if r.metric == "gradient_growth")
    predicted = growth.value**2 * N  # trace of the backward map at the identity
    tolerance = (
        5 * spread
        + 10 * growth.value * growth.stderr * N
        + (1e-2 if spec.norm in ("layer", "rms") else 3e-3) * predicted
    )
    assert abs(predicted - squares) < tolerance


@pytest.mark.parametrize("slope", [1.0, 0.0, -1.0, 0.2])
@pytest.mark.parametrize("recenter", [True, False])
def test_batch_norm_integral_against_a_million_draws(slope, recenter):
    c = X @ X.T / 12
    u = RNG.standard_normal((1_000_000, N)) @ np.linalg.cholesky(c).T
    u = u - u.mean(1, keepdims=True) if recenter else u
    u /= np.sqrt(np.square(u).mean(1, keepdims=True))
    h = np.where(u > 0, u, slope * u)
    mean = h.T @ h / len(h)
    assert np.abs(batch_norm_gram(c, slope, recenter) - mean).max() < 5e-3 * np.abs(mean).max()


def test_linear_batch_norm_by_two_routes():
    c = X @ X.T / 12
    values, vectors = np.linalg.eigh(c)
    assert np.abs(batch_norm_gram(c, 1.0, False) - (vectors * rescaled_spectrum(values)) @ vectors.T).max() < 1e-12


def test_rescaled_spectrum_of_two_samples_in_closed_form():
    # E[a w1^2/(a w1^2 + b w2^2)] = sqrt(a) / (sqrt(a) + sqrt(b)).
    assert rescaled_spectrum([9.0, 1.0]) == pytest.approx([1.5, 0.5], rel=1e-12)
    assert rescaled_spectrum([1.0, 1e-12])[1] == pytest.approx(2e-6 / (1 + 1e-6), rel=1e-10)


@pytest.mark.parametrize("n", [4, 8, 16])
def test_complete_batch_norm_with_relu_becomes_equiangular(n):
    known = {4: 0.1695, 8: 0.25013, 16: 0.28568}
    profile = predict(Spec(depth=150, norm="batch"), inputs=RNG.standard_normal((n, 30)), gradients=False)
    assert profile.series("mean_abs_cosine")[150] == pytest.approx(known[n], abs=1e-4)


@pytest.mark.parametrize(("n", "cosine"), [(4, 0.47967), (8, 0.49839), (16, 0.5084)])
def test_rescaling_alone_with_relu_becomes_equiangular(n, cosine):
    profile = predict(Spec(depth=80, norm="batch_rescale"), inputs=RNG.standard_normal((n, 60)), gradients=False)
    assert profile.series("mean_abs_cosine")[80] == pytest.approx(cosine, abs=1e-5)


def test_recentring_alone_finds_the_odd_point_and_two_odds_become_one():
    n = 16
    x = np.zeros((n, n))
    x[0, 0], x[1, 1], x[2:, 2] = 4.0, 4.2, 1.0
    x += 1e-3 * RNG.standard_normal(x.shape)
    profile = predict(Spec(depth=400, norm="batch_recenter"), inputs=x, gradients=False)
    assert profile.series("odd_point_score")[400] == pytest.approx(0.9898, abs=1e-3)


def test_plain_relu_angle():
    profile = predict(Spec(depth=200, norm="none"), np.eye(2), metrics=["mean_cosine"])
    theta = math.acos(profile.series("mean_cosine")[200])
    assert theta * 200 / (3 * math.pi) == pytest.approx(0.9416, abs=1e-3)
    assert profile.series("gradient_growth", "gradient")[50] == pytest.approx(1.0)  # He weights keep the gradient


def test_plain_relu_gap_map():
    # n = 8 from V = .70: .736, .819, .865, .901, .915 after 1, 5, 10, 20, 30 layers.
    rho = 0.70 / math.sqrt(7 / 8)
    gaps = predict(Spec(depth=30, norm="none"), (1 - rho) * np.eye(8) + rho).series("orthogonality_gap")
    assert [gaps[i] for i in (1, 5, 10, 20, 30)] == pytest.approx([0.736, 0.819, 0.865, 0.901, 0.915], abs=1e-3)


@pytest.mark.parametrize("n", [5, 8, 16])
def test_gradient_explosion_of_linear_batch_norm(n):
    for norm, rate in (("batch_rescale", (n - 1) / (n - 2)), ("batch", (n - 2) / (n - 3))):
        growth = predict(Spec(depth=6, norm=norm, activation="identity"), np.eye(n)).series(
            "gradient_growth", "gradient"
        )
        assert growth[2] ** 2 == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize(("n", "rate"), [(8, 1.7882), (16, 1.59), (64, 1.4931)])
def test_gradient_explosion_of_relu_batch_norm(n, rate):
    profile = predict(Spec(depth=12, norm="batch"), np.eye(n), log2_points=11)
    growth = next(r for r in profile.records if r.metric == "gradient_growth" and r.layer == 6)
    assert growth.value**2 == pytest.approx(rate, abs=max(4 * 2 * growth.value * growth.stderr, 4e-3))


def test_three_samples_explode_at_once():
    profile = predict(Spec(depth=3, norm="batch", activation="identity"), np.eye(3))
    assert math.isinf(profile.series("gradient_norm", "gradient")[0])


def test_sampled_recursion_states_its_error():
    spec = Spec(depth=5, norm="batch", activation="tanh")
    profiles = [predict(spec, inputs=X, seed=s, log2_points=9, gradients=False) for s in range(6)]
    values = [next(r for r in p.records if r.layer == 5 and r.metric == "orthogonality_gap") for p in profiles]
    spread, stated = np.std([r.value for r in values], ddof=1), np.mean([r.stderr for r in values])
    assert stated > 0
    assert spread < 3 * stated
    reference = simulate(
        Spec(depth=5, width=40_000, norm="batch", activation="tanh"), inputs=X, metrics=["orthogonality_gap"], seeds=4
    ).series("orthogonality_gap")[5]
    assert abs(values[0].value - reference) < 4 * stated + 5e-3


@pytest.mark.parametrize("spec", [s for s in SPECS if s.norm_first and not s.bias], ids=str)
def test_wide_simulation_follows_the_recursion(spec):
    import dataclasses

    spec = dataclasses.replace(spec, depth=6, width=5000)
    names = ["orthogonality_gap", "mean_abs_cosine", "norm_spread"]
    theory = predict(spec, inputs=X, metrics=names, gradients=False)
    chains = simulate(spec, inputs=X, metrics=names, seeds=8)
    for name in names:
        finite = np.array([r.value for r in chains.records if r.metric == name and r.layer == 6])
        assert abs(finite.mean() - theory.series(name)[6]) < 5 * finite.std(ddof=1) / math.sqrt(8) + 0.02


def test_tiny_directions_are_followed_in_full_precision():
    x = np.diag([1.0, 1e-6, 1e-6, 1e-6])
    sigma = predict(Spec(depth=5, width=1, norm="batch_rescale", activation="identity"), inputs=x).series("sigma_min")
    # Published for unit trace (here: 4), infinite width: 7e-7, 5e-4, .015, .070, .136.
    published = {1: 7e-7, 2: 5e-4, 3: 0.015, 4: 0.070, 5: 0.136}
    for layer, value in published.items():
        assert sigma[layer] ** 2 / 4 == pytest.approx(value, rel=0.1)


def test_centred_linear_batch_norm_keeps_its_lost_direction_lost():
    profile = predict(Spec(depth=60, norm="batch", activation="identity"), inputs=X)
    assert profile.series("numerical_rank")[60] == N - 1
    assert profile.series("orthogonality_gap")[60] == pytest.approx(math.sqrt(1 / (N - 1) - 1 / N), rel=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec(weights="positive"), "mean zero"),
        (Spec(family="resnet", depth=3), "mlp"),
        (Spec(depth=2000, activation="softplus", gain=4.0), "overflows"),
    ],
)
def test_specs_without_a_recursion_are_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        predict(spec, np.eye(4))


def test_equal_samples_cannot_be_rescaled():
    with pytest.raises(UsageError, match="equal"):
        predict(Spec(norm="batch"), np.ones((4, 4)))


def batch_of(kind, n):
    """Gram matrices (n, n) of batches that strain an integral over scales."""
    x = RNG.standard_normal((n, 40))
    if kind == "odd":
        x = 1e-3 * x
        x[0, 0], x[1, 1] = 3, 2
    elif kind == "pairs":
        x[n // 2 :] = x[: n - n // 2] + 1e-6 * x[n // 2 :]
    elif kind == "plane":
        x = x[:, :2]
    elif kind == "scales":
        x = x * 0.3 ** np.arange(40)
    return x @ x.T / x.shape[1]


@pytest.mark.parametrize("kind", ["wide", "odd", "pairs", "plane", "scales"])
@pytest.mark.parametrize("slope", [0.0, -1.0, 0.2])
@pytest.mark.parametrize("recenter", [True, False])
def test_the_few_nodes_of_batch_norm_against_all(monkeypatch, kind, slope, recenter):
    c = batch_of(kind, 60)
    few = batch_norm_gram(c, slope, recenter)
    monkeypatch.setattr(integrals, "_FEW", 60)
    every = batch_norm_gram(c, slope, recenter)
    assert 0 < np.abs(few - every).max() < 1e-11 * np.abs(every).max()


@pytest.mark.parametrize("way", [batch_norm_pull, batch_norm_push])
@pytest.mark.parametrize("recenter", [True, False])
@pytest.mark.parametrize("slope", [0.0, 0.3, -1.0])
def test_the_jacobian_of_batch_norm_and_leaky_family_against_draws(way, recenter, slope):
    n, draws = 7, 40_000
    random = np.random.default_rng(0)
    c, outer = (x @ x.T / 9 for x in random.standard_normal((2, n, 9)))
    u = torch.from_numpy(random.multivariate_normal(np.zeros(n), c, draws))

    def layer(row):
        y = row - row.mean() if recenter else row
        y = y / y.square().mean().sqrt()
        return torch.where(y > 0, y, slope * y)

    j = torch.vmap(torch.func.jacrev(layer))(u).numpy()
    left = j if way is batch_norm_push else j.transpose(0, 2, 1)
    found = left @ outer @ left.transpose(0, 2, 1)
    error = found.std(0) / np.sqrt(draws)
    assert (np.abs(way(c, outer, slope, recenter) - found.mean(0)) < 5 * error + 1e-12).all()


@pytest.mark.parametrize("way", [batch_norm_pull, batch_norm_push])
def test_the_few_nodes_of_the_jacobian_against_all(monkeypatch, way):
    x, y = np.random.default_rng(0).standard_normal((2, 60, 80))
    c, outer = (x + x[:1]) @ (x + x[:1]).T / 80, y @ y.T / 80
    few = way(c, outer, 0.0, True)
    monkeypatch.setattr(integrals, "_FEW", 60)
    every = way(c, outer, 0.0, True)
    assert 0 < np.abs(few - every).max() < 1e-11 * np.abs(every).max()


MEMORY = """
import numpy as np
from pathlib import Path
from normscope.nn.norms.integrals import batch_norm_gram
def peak():
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM")).split()[1])
x = np.random.default_rng(0).standard_normal((512, 64))
batch_norm_gram(x[:60] @ x[:60].T)
before = peak()
batch_norm_gram(x @ x.T)
print((peak() - before) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_the_gram_of_batch_norm_holds_a_few_matrices_not_one_a_node():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30 * 512**2 * 8  # one a node of the grid would be 160, several times over
