"""Order parameters and Fisher statistics against tables, and against exact NTK Grams of explicit nets."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from normscope import Spec, UsageError, build, ntk
from normscope.theory.fisher import fisher_statistics, order_parameters, softmax_outliers, wide_ntk

# name, L, sigma_w^2, sigma_b^2, hidden norm, alpha kappa_1, alpha kappa_2, q_1^L - q_2^L
TABLE = [
    ("relu", 2, 2, 0, "none", 2, 0.31831, 1.36338),
    ("relu", 3, 2, 0, "none", 3, 0.685709, 1.01254),
    ("relu", 3, 2, 0.1, "none", 3.15, 0.80299, 1.04098),
    ("relu", 3, 4, 1, "none", 14.5, 4.66352, 8.93729),
    ("relu", 4, 2, 0, "none", 4, 1.06039, 0.79035),
    ("tanh", 3, 3, 0.64, "none", 1.9110, 0.23723, 1.13398),
    ("identity", 3, 1, 0.1, "none", 3.3, 0.3, 1.0),
    ("erf", 3, 3, 0.64, "none", 2.47864, 0.25142, 1.34777),
    ("relu", 3, 2, 0.1, "batch_recenter", 2.36338, 0.21699, None),
    ("relu", 3, 2, 0.1, "batch", 1.73347, 0.15915, None),
    ("relu", 3, 2, 0.1, "layer", 1.38745, 0.37113, None),
    ("tanh", 3, 3, 0.64, "batch_recenter", 2.1180, 0, None),
    ("tanh", 3, 3, 0.64, "batch", 1.40567, 0, None),
    ("tanh", 3, 3, 0.64, "layer", 0.98818, 0.21061, None),
]


def karakida(activation="relu", layers=3, sw2=2.0, sb2=0.0, norm="none", width=200, outputs=1, bias=True, **kw):
    return Spec(
        depth=layers - 1, width=width, activation=activation, gain=math.sqrt(sw2), norm=norm, outputs=outputs,
        bias=math.sqrt(sb2) if bias else None, **kw,
    )  # fmt: skip


@pytest.mark.parametrize(("activation", "layers", "sw2", "sb2", "norm", "k1", "k2", "spread"), TABLE)
def test_reference_values(activation, layers, sw2, sb2, norm, k1, k2, spread):
    spec = karakida(activation, layers, sw2, sb2, norm)
    order = order_parameters(spec, readout_gain=math.sqrt(sw2))
    assert order.kappa == pytest.approx((k1, k2), abs=1e-4)
    if spread is not None:
        assert order.q1[-1] - order.q2[-1] == pytest.approx(spread, abs=1e-4)


def explicit_gram(rng, m, n, outputs, sw2, layers=3, bias=True):
    """(n c, n c) matrix N G of a ReLU net from explicit forward and backward passes."""
    h = [rng.standard_normal((n, m))]
    weights, masks = [], []
    for layer in range(layers):
        w = rng.standard_normal((outputs if layer == layers - 1 else m, m)) * math.sqrt(sw2 / m)
        weights.append(w)
        u = h[-1] @ w.T
        masks.append(u > 0)
        h.append(np.maximum(u, 0))
    gram = np.zeros((outputs, outputs, n, n))
    deltas = [np.repeat(np.eye(outputs)[:, None], n, 1)]
    for layer in range(layers - 1, 0, -1):
        deltas.insert(0, (deltas[0] @ weights[layer]) * masks[layer - 1])
    for delta, x in zip(deltas, h, strict=False):
        gram += np.einsum("ani,bmi->abnm", delta, delta) * (x @ x.T + bias)
    return gram.transpose(0, 2, 1, 3).reshape(outputs * n, outputs * n)


def test_trace_and_outlier_of_explicit_nets():
    # Claims 7.1 and 7.3: ReLU (2, 0), one output, M = N = 200: lambda 139.5 +- 12 %, M m = 3 +- 6 %.
    rng = np.random.default_rng(0)
    predicted = fisher_statistics(karakida(bias=False), 200, readout_gain=math.sqrt(2))
    assert predicted.lambda_max == pytest.approx(139.5, abs=0.1)
    nets = [explicit_gram(rng, 200, 200, 1, 2.0, bias=False) / 200 for _ in range(8)]
    assert np.mean([np.linalg.eigvalsh(g)[-1] for g in nets]) == pytest.approx(predicted.lambda_max, rel=0.12)
    assert np.mean([np.trace(g) for g in nets]) == pytest.approx(predicted.trace, rel=0.06)
    # Mean subtraction in the last layer, 7.2 and 7.3: inside the bounds, trace within 6 %.
    centred = fisher_statistics(
        dataclasses.replace(karakida(bias=False), output_norm="batch_recenter"), 200, readout_gain=math.sqrt(2)
    )
    p0 = np.eye(200) - 1 / 200
    tops = [np.linalg.eigvalsh(p0 @ g @ p0)[-1] for g in nets]
    assert np.mean([np.trace(p0 @ g) for g in nets]) == pytest.approx(centred.trace, rel=0.06)
    assert centred.lower == pytest.approx(2.31, abs=0.02)
    assert min(tops) > centred.lower
    assert np.mean(tops) < centred.upper


def test_mean_subtraction_takes_one_sample_of_the_trace():
    """Of few samples a sixth of it, which 200 cannot show."""
    rng = np.random.default_rng(3)
    spec = dataclasses.replace(karakida(width=300, bias=False), output_norm="batch_recenter")
    nets = [explicit_gram(rng, 300, 6, 1, 2.0, bias=False) / 6 for _ in range(40)]
    found = np.mean([np.trace((np.eye(6) - 1 / 6) @ g) for g in nets])
    assert found == pytest.approx(fisher_statistics(spec, 6, readout_gain=math.sqrt(2)).trace, rel=0.06)


def test_ntk_of_a_batch_is_the_mean_of_explicit_nets():
    rng = np.random.default_rng(4)
    spec = karakida(width=300, bias=True)
    nets = [explicit_gram(rng, 300, 4, 1, 2.0) for _ in range(60)]
    # Different inputs each time: of unit second moment and no overlap, so the kernel of the identity Gram.
    theory = wide_ntk(spec, np.eye(4), readout_gain=math.sqrt(2))
    assert np.mean([np.trace(g) / 4 for g in nets]) == pytest.approx(theory[0, 0], rel=0.03)
    off = np.mean([(g.sum() - np.trace(g)) / 12 for g in nets])
    assert off == pytest.approx(theory[0, 1], rel=0.05)
    order = order_parameters(spec, readout_gain=math.sqrt(2))
    assert (theory[0, 0], theory[0, 1]) == pytest.approx(order.kernels)


@pytest.mark.parametrize(
    ("norm", "activation", "first"),
    [
        ("batch", "relu", True), ("batch", "identity", True), ("batch_rescale", "tanh", True),
        ("batch_recenter", "relu", True), ("batch_recenter", "relu", False), ("batch", "tanh", False),
        ("layer", "gelu", True),
    ],
)  # fmt: skip
def test_ntk_of_norms_is_the_mean_of_built_nets(norm, activation, first):
    spec = Spec(depth=3, width=256, norm=norm, activation=activation, norm_first=first, bias=0.1, outputs=1)
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3
    nets = []
    for seed in range(16):
        net = build(spec, 64, seed=seed, dtype=torch.float64)
        nets.append((ntk(net, x) @ torch.eye(8, dtype=torch.float64)).numpy())
    mean, theory = np.mean(nets, 0), wide_ntk(spec, inputs=x.numpy(), log2_points=11)
    scatter = np.linalg.norm(np.std(nets, 0, ddof=1)) / math.sqrt(len(nets))
    assert np.linalg.norm(mean - theory) < 3 * scatter + 0.05 * np.linalg.norm(theory)
    # Of the mean: single nets spread eigenvalues that are nearly equal.
    assert np.linalg.eigvalsh(theory)[-1] == pytest.approx(np.linalg.eigvalsh(mean)[-1], rel=0.12)


def test_published_predictions():
    kw = {"readout_gain": math.sqrt(2)}
    relu = karakida(width=1000, outputs=2, bias=False)
    found = fisher_statistics(relu, 1000, **kw)
    assert found.lambda_max == pytest.approx(688.0, abs=0.1)
    assert found.second_moment * found.parameters / found.order.alpha_m2 == pytest.approx(0.479, abs=1e-3)
    hidden = karakida(sb2=0.1, norm="batch", width=400, outputs=2)
    assert fisher_statistics(hidden, 400, **kw).lambda_max == pytest.approx(64.0 + 1, abs=0.05)  # + the bias term
    layer = karakida(sb2=0.1, norm="layer", width=400, outputs=2, bias=True)
    assert fisher_statistics(layer, 400, **kw).lambda_max == pytest.approx(149.5, rel=0.02)
    big = karakida(sw2=4.0, sb2=1.0, width=1000)
    centred = fisher_statistics(dataclasses.replace(big, output_norm="batch_recenter"), 1000, readout_gain=2.0)
    assert centred.max_learning_rate == pytest.approx(0.2033, rel=5e-3)  # the red line of the second map
    assert fisher_statistics(big, 1000, readout_gain=2.0).max_learning_rate == pytest.approx(4.29e-4, rel=5e-3)


def test_unequal_inputs_and_shifted_data():
    # Claim 7.5: widths 200-400-400-2, inputs with mean .5.
    rng = np.random.default_rng(1)
    spec = karakida(width=200, outputs=1, bias=False, layers=3)
    x = rng.standard_normal((4000, 300)) + 0.5
    order = order_parameters(spec, inputs=300, second_moment=1.25, overlap=0.25)
    w = rng.standard_normal((20000, 300)) * math.sqrt(2 / 300)
    u = x[:2] @ w.T
    assert np.square(u).mean() == pytest.approx(order.q1[0], rel=0.15)
    assert order.fan_in.tolist() == [300, 200, 200]
    assert order.q2[0] == pytest.approx(2 * 0.25)


def test_per_layer_sharpness_adds_up():
    found = fisher_statistics(karakida(sb2=0.1, width=300, outputs=2), 300, readout_gain=math.sqrt(2))
    bias = found.order.qtilde2 * 299 / 300 + found.order.qtilde1 / 300  # not among the published numbers
    assert found.per_layer - bias == pytest.approx([1.0, 67.9, 174.4], abs=0.06)
    assert found.per_layer.sum() == pytest.approx(found.lambda_max)


def test_centred_nets_have_no_outlier():
    found = fisher_statistics(karakida("tanh", sw2=3.0, sb2=0.0), 200, readout_gain=math.sqrt(3))
    assert math.isnan(found.lambda_max)
    assert found.outliers == 0


def test_softmax_has_one_outlier_less():
    order = order_parameters(karakida(width=400, outputs=3), readout_gain=math.sqrt(2))
    p = np.random.default_rng(2).dirichlet(np.ones(3), size=200)
    trace, outliers = softmax_outliers(order, p)
    mean_q = np.mean([np.diag(g) - np.outer(g, g) for g in p], 0)
    assert len(outliers) == 2
    assert outliers.sum() == pytest.approx(order.outlier(200).sum() * np.trace(mean_q))
    assert trace == pytest.approx(order.kernels[0] * np.trace(mean_q))


def test_affine_limits_are_refused():
    for spec, message in [
        (Spec(depth=2, width=8), "outputs"),
        (Spec(depth=2, width=8, outputs=2, norm="batch_rescale"), "norms"),
        (Spec(depth=2, width=8, outputs=3, output_norm="layer"), "C >= 5"),
        (Spec(depth=2, width=8, outputs=3, output_norm="group"), "output_norm"),
    ]:
        with pytest.raises(UsageError, match=message):
            fisher_statistics(spec, 10)
    with pytest.raises(UsageError, match="samples"):
        fisher_statistics(Spec(depth=2, width=8, outputs=2), 1)
