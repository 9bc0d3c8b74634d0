"""Every norm of a `Spec`, at every width, is one norm: built, simulated and predicted alike.

In value: against a norm written out in numpy, with given weights. In law: built nets against simulated chains, and both
against the prediction at infinite width, within K standard errors of the means over the seeds, and for the prediction a
finite-width allowance.
"""

import functools
import math

import numpy as np
import pytest
import torch

from normscope import Spec, build, measure, predict, simulate
from normscope.core.spec import NORMS
from normscope.nn.nets import weight_scale
from normscope.nn.norms import EPS, groups_of, make_norm
from normscope.theory import predicted_grams, simulated_grams

#: Width -> groups of the group norm: at most 32, and four features in each.
GROUPS = {8: 2, 20: 4, 64: 16, 128: 32, 256: 32}
SAMPLES, DEPTH, SEEDS, CHAINS = 4, 2, 80, 400
#: Standard errors. 35 cases of 12 numbers: by chance one of them is beyond with probability 0.003.
K = 4.5
METRICS = ("orthogonality_gap", "participation_rank", "mean_abs_cosine", "rms")

every_norm = pytest.mark.parametrize("norm", NORMS)
every_width = pytest.mark.parametrize("width", GROUPS)
every_order = pytest.mark.parametrize(("activation", "norm_first"), [("relu", True), ("tanh", True), ("tanh", False)])


def batch(features, seed=3):
    return np.random.default_rng(seed).standard_normal((SAMPLES, features)) + 0.5


def written_out(x, norm, eps):
    """(n, d), rows are samples, one statistic at a time."""
    x = x.copy()
    if norm in ("batch", "batch_recenter"):
        x -= x.mean(0)
    if norm in ("batch", "batch_rescale"):
        x /= root((x**2).mean(0) + eps)
    if norm in ("dyt", "derf"):
        return np.vectorize(math.tanh if norm == "dyt" else math.erf)(x / 2)
    for start in range(0, x.shape[1], size := x.shape[1] // (GROUPS[x.shape[1]] if norm == "group" else 1)):
        for row in x[:, start : start + size]:
            if norm in ("layer", "group"):
                row -= row.mean()
            if norm in ("layer", "group", "rms"):
                row /= root((row**2).mean() + eps)
    return x


def root(squares):
    """What is zero is divided by anything: it stays zero."""
    return np.sqrt(np.where(squares > 0, squares, 1))


def chain(x, weights, spec, eps):
    """The batch after each layer of the spec, with these weights."""
    phi = {"relu": lambda u: np.maximum(u, 0), "tanh": np.tanh}[spec.activation]
    out = []
    for w in weights:
        u = x @ w.T
        x = phi(written_out(u, spec.norm, eps)) if spec.norm_first else written_out(phi(u), spec.norm, eps)
        out.append(x)
    return out


def layers_of(net, x):
    """The batch after each layer of a built net."""
    h, out = torch.from_numpy(x), []
    with torch.no_grad():
        for layer in net.layers:
            h = layer(h)
            out.append(h.numpy())
    return out


# The rule


@every_width
def test_the_group_norm_has_its_groups(width):
    assert groups_of(width) == make_norm("group", width).num_groups == GROUPS[width]


@every_norm
@every_width
@pytest.mark.parametrize("eps", [0.0, EPS, 0.1])
def test_the_module_and_the_arrays_are_the_norm(norm, width, eps):
    x = batch(width)
    expected = written_out(x, norm, eps)
    module = make_norm(norm, width, eps=eps).double()(torch.from_numpy(x)).detach().numpy()
    arrays = NORMS[norm].rows(np.stack([x.T, 2 * x.T]), eps)
    np.testing.assert_allclose(module, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(arrays[0].T, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(arrays[1].T, written_out(2 * x, norm, eps), rtol=1e-10, atol=1e-12)


@every_norm
def test_the_module_and_the_arrays_have_one_epsilon(norm):
    x = 1e-2 * batch(20)
    module = make_norm(norm, 20).double()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(NORMS[norm].rows(x.T[None].copy())[0].T, module, rtol=1e-10, atol=1e-12)


# In value


@every_norm
@every_width
@every_order
def test_a_built_net_is_the_chain_of_its_weights(norm, width, activation, norm_first):
    spec = Spec(depth=DEPTH, width=width, norm=norm, activation=activation, norm_first=norm_first)
    net, x = build(spec, dtype=torch.float64), batch(width)
    weights = [layer.linear.weight.detach().numpy() for layer in net.layers]
    for mine, theirs in zip(layers_of(net, x), chain(x, weights, spec, EPS), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-12)


@every_norm
@every_width
@every_order
def test_a_simulated_chain_is_the_chain_of_its_weights(norm, width, activation, norm_first):
    spec = Spec(depth=3, width=width, norm=norm, activation=activation, norm_first=norm_first, weights="identity")
    x = batch(width)
    expected = chain(x, [spec.effective_gain * np.eye(width)] * 3, spec, 0.0)
    for mine, h in zip(list(simulated_grams(spec, inputs=x))[1:], expected, strict=True):
        np.testing.assert_allclose(mine[0], h @ h.T / width, rtol=1e-9, atol=1e-12)


@every_norm
@every_width
def test_a_simulated_chain_and_a_built_net_of_the_same_weights_agree(norm, width):
    spec = Spec(depth=3, width=width, norm=norm, activation="tanh", weights="identity")
    x = 0.01 * batch(width)  # so small that epsilon counts
    profile = simulate(spec, inputs=x, metrics=METRICS, eps=EPS)
    for at, h in enumerate(layers_of(build(spec, dtype=torch.float64), x), 1):
        theirs = measure(torch.from_numpy(h))
        mine = {r.metric: r.value for r in profile.records if r.layer == at}
        assert {m: mine[m] for m in METRICS} == pytest.approx({m: float(theirs[m]) for m in METRICS}, rel=1e-6)


# In law


def grams(layers):
    """(layers, n, n)."""
    return np.stack([h @ h.T / h.shape[1] for h in layers])


@functools.cache
def built(norm, width):
    """Grams after each layer of nets of many seeds, (seeds, layers, n, n)."""
    spec, x = Spec(depth=DEPTH, width=width, norm=norm), batch(width)
    return np.stack([grams(layers_of(build(spec, seed=s, dtype=torch.float64), x)) for s in range(SEEDS)])


@functools.cache
def simulated(norm, width, chains=CHAINS):
    spec = Spec(depth=DEPTH, width=width, norm=norm)
    return np.stack(list(simulated_grams(spec, inputs=batch(width), seeds=chains))[1:], 1)


def numbers(found):
    """What is compared of each seed's last Gram: its entries on and above the diagonal, its gap, its mean |cosine|."""
    last = found[:, -1]
    unit = last / np.einsum("rii->r", last)[:, None, None]
    gap = np.linalg.norm(unit - np.eye(SAMPLES) / SAMPLES, axis=(1, 2))
    size = root(np.einsum("rii->ri", last))
    cosines = np.abs(last / (size[:, :, None] * size[:, None, :]))
    upper, pairs = np.triu_indices(SAMPLES), np.triu_indices(SAMPLES, 1)
    return np.column_stack([last[:, *upper], gap, cosines[:, *pairs].mean(1)])


def error(values):
    return values.std(0, ddof=1) / np.sqrt(len(values))


@every_norm
@every_width
def test_built_nets_and_simulated_chains_have_one_law(norm, width):
    a, b = numbers(built(norm, width)), numbers(simulated(norm, width))
    assert (np.abs(a.mean(0) - b.mean(0)) <= K * np.hypot(error(a), error(b)) + EPS).all()


def allowance(norm, width):
    """How far the mean Gram, whose entries are about 1, may be from its limit because the width is finite.

    Corrections are of order 1/width. The factors are chosen by us: 4000 chains of width 256 are off by up to 1.0/256
    (0.5 the standard error), with the group norm, whose statistics are of 8 features then, by 2.3/256.
    """
    return (4 if norm == "group" else 2) / width


def infinite(norm, width):
    return predicted_grams(Spec(depth=DEPTH, width=width, norm=norm), inputs=batch(256))[1:]


@every_norm
def test_wide_nets_are_as_predicted(norm):
    found = built(norm, 256)
    off = np.abs(found.mean(0) - infinite(norm, 256))
    assert (off <= K * error(found) + allowance(norm, 256)).all()


@every_norm
def test_very_wide_chains_are_as_predicted(norm):
    spec, x = Spec(depth=DEPTH, width=8192, norm=norm), batch(256)
    found = np.stack(list(simulated_grams(spec, inputs=x, seeds=8))[1:], 1)
    off = np.abs(found.mean(0) - infinite(norm, 8192))
    assert (off <= K * error(found) + allowance(norm, 8192)).all()


@every_norm
@every_width
def test_a_prediction_knows_no_width(norm, width):
    np.testing.assert_array_equal(infinite(norm, width), infinite(norm, 1024))
    spec = Spec(depth=DEPTH, width=width, norm=norm)
    found = {
        (r.layer, r.metric): r.value for r in predict(spec, inputs=batch(256), metrics=METRICS, gradients=False).records
    }
    last = infinite(norm, width)[-1]
    assert found[DEPTH, "participation_rank"] == pytest.approx(np.trace(last) ** 2 / np.sum(last**2), rel=1e-9)


# The other rules of a layer that predictions and chains share with the modules: the laws of the weights, and the skip


WIDER, SAME, NARROWER = 784, 64, 16
LAWS = ("gaussian", "uniform", "orthogonal", "xavier", "xavier_normal", "torch")


@pytest.mark.parametrize("features", [WIDER, SAME, NARROWER])
@pytest.mark.parametrize("weights", LAWS)
def test_the_scale_of_a_law_is_that_of_its_weights(weights, features):
    spec = Spec(depth=1, width=64, weights=weights)
    nets = (build(spec, features, seed=s, dtype=torch.float64) for s in range(20))
    drawn = torch.cat([net.layers[0].linear.weight.detach().flatten() for net in nets]).square() * features
    spread = 0 if weights == "orthogonal" else float(drawn.std()) / len(drawn) ** 0.5
    assert abs(float(drawn.mean()) - weight_scale(spec, features, 64) ** 2) <= K * spread + 1e-9


@pytest.mark.parametrize("features", [WIDER, SAME, NARROWER])
@pytest.mark.parametrize("weights", LAWS)
@pytest.mark.parametrize("skip", [None, 0.5])
def test_a_chain_on_inputs_of_another_width_is_as_predicted(weights, features, skip):
    spec = Spec(depth=2, width=64, weights=weights, activation="identity", skip=skip)
    x = batch(features)
    found = np.stack(list(simulated_grams(spec, inputs=x, seeds=400))[1:], 1)
    off = np.abs(found.mean(0) - predicted_grams(spec, inputs=x)[1:])
    assert (off <= K * error(found) + 1e-9).all()  # linear: no correction for the width


def test_a_gram_passes_no_skip_in_the_first_layer():
    spec, gram = Spec(depth=1, width=64, activation="identity", skip=0.5), np.eye(SAMPLES)
    np.testing.assert_allclose(predicted_grams(spec, gram)[1], gram)
