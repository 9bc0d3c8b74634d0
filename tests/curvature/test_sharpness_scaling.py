"""The paper's scalings at small size, against the mean-field theory, within the tolerances of its specification.

Nets of three weight layers, equal widths M unless said, standard normal inputs, fixed seeds. The theory is
`fisher_statistics`; what is measured comes from the library's products or, where many nets are needed, from a Gram
matrix without autograd that the first test holds against the library's own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from fisher_nets import data, layer_grams, net
from torch import Tensor

from normscope import Spec, curvature
from normscope.curvature._variants import project
from normscope.linalg import hutchinson, hutchpp, spectrum
from normscope.linalg.maps import from_matrix, gram
from normscope.theory.fisher import fisher_statistics, order_parameters, softmax_outliers

RELU: dict[str, Any] = {"act": "relu", "sw": 2.0, "sb": 0.0}
BIASED: dict[str, Any] = {"act": "relu", "sw": 2.0, "sb": 0.1}
TANH: dict[str, Any] = {"act": "tanh", "sw": 3.0, "sb": 0.64}
NORMS = {"none": "none", "ms": "batch_recenter", "bn": "batch", "ln": "layer"}


def spec(m: int, c: int, kind: dict[str, Any], hidden: str = "none", last: str = "none", depth: int = 2) -> Spec:
    return Spec(
        depth=depth, width=m, activation=kind["act"], gain=math.sqrt(kind["sw"]), bias=math.sqrt(kind["sb"]),
        norm=NORMS[hidden], output_norm=NORMS[last], outputs=c,
    )  # fmt: skip


def theory(m: int, n: int, c: int, kind: dict[str, Any], hidden: str = "none", last: str = "none", **more: Any) -> Any:
    return fisher_statistics(
        spec(m, c, kind, hidden, last, more.pop("depth", 2)), n, readout_gain=math.sqrt(kind["sw"]), **more
    )


def dual(widths: Sequence[int], n: int, seed: int, shift: float = 0.0, **kind: Any) -> tuple[Tensor, Tensor]:
    """J J^T / n (n c, n c), sample-major, of a plain net, and its outputs (n, c)."""
    model, x = net(widths, seed, **kind), data(n, widths[0], seed, shift=shift)
    g = sum(layer_grams(model, x), torch.zeros(()))
    return g.permute(2, 0, 3, 1).reshape(n * widths[-1], -1), model(x).detach()


def eig(g: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(g).flip(0)


def top(g: Tensor) -> float:
    return float(eig(g)[0])


def norm_top(g: Tensor, outputs: Tensor, variant: str) -> float:
    return top(project(g, outputs, variant, 1e-12))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def of_library(m: int, n: int, c: int, seeds: int, tol: float = 3e-3, **more: Any) -> float:
    """Mean lambda_max over nets by the library's products."""
    return mean(
        [
            spectrum(curvature.fisher(net([m, m, m, c], s, **more), data(n, m, s)), tol=tol, method="lanczos").largest
            for s in range(seeds)
        ]
    )


@pytest.mark.parametrize("kind", [RELU, TANH])
def test_the_layer_wise_gram_is_the_librarys_dual(kind: dict[str, Any]) -> None:
    f64 = torch.float64
    model, x = net([6, 9, 7, 3], 0, dtype=f64, **kind), data(8, 6, 0, dtype=f64)
    g = sum(layer_grams(model, x)).permute(2, 0, 3, 1).reshape(24, 24)  # type: ignore[union-attr]
    assert torch.allclose(curvature.ntk(model, x).dense() / 8, g, rtol=0, atol=1e-12 * float(g.norm()))


@pytest.fixture(scope="module")
def relu_nets() -> dict[int, list[tuple[Tensor, Tensor]]]:
    """Eight ReLU nets (2, 0) with one output at three widths, N = M."""
    return {m: [dual([m, m, m, 1], m, s, bias=False, **RELU) for s in range(8)] for m in (100, 200, 400)}


Nets = dict[int, list[tuple[Tensor, Tensor]]]


def test_without_norm_sharpness_grows_as_the_width(relu_nets: Nets) -> None:
    values = {m: mean([top(g) for g, _ in nets]) for m, nets in relu_nets.items()}
    assert values[200] == pytest.approx(139.5, rel=0.12)
    assert 0.9 < math.log(values[400] / values[100]) / math.log(4) < 1.1


def test_last_layer_mean_subtraction_is_flat_and_inside_its_bounds(relu_nets: Nets) -> None:
    values = {m: [norm_top(g, out, "center") for g, out in nets] for m, nets in relu_nets.items()}
    assert mean(values[200]) == pytest.approx(8.3, abs=0.7)
    assert 0.75 < mean(values[400]) / mean(values[100]) < 1.1
    for value, (g, out) in zip(values[200], relu_nets[200], strict=True):
        assert 2.31 <= value <= float(project(g, out, "center").norm())


@pytest.fixture(scope="module")
def two_outputs() -> list[tuple[Tensor, Tensor]]:
    """Eight ReLU nets (2, 0) with two outputs, N = M = 200."""
    return [dual([200, 200, 200, 2], 200, s, bias=False, **RELU) for s in range(8)]


def test_mean_eigenvalue_with_and_without_mean_subtraction(two_outputs: list[tuple[Tensor, Tensor]]) -> None:
    m, size = 200, 2 * 200 * 200  # m = tr F / alpha M^2
    plain = mean([float(g.trace()) for g, _ in two_outputs]) / size
    centred = mean([float(project(g, out, "center").trace()) for g, out in two_outputs]) / size
    assert plain == pytest.approx(0.01500, rel=0.06)
    assert centred == pytest.approx(0.01151, rel=0.06)
    no_bias = dataclasses.replace(spec(m, 2, RELU), bias=None)
    gain = {"readout_gain": math.sqrt(2)}
    assert fisher_statistics(no_bias, m, **gain).trace / size == pytest.approx(0.01500, rel=1e-3)
    centring = dataclasses.replace(no_bias, output_norm="batch_recenter")
    assert fisher_statistics(centring, m, **gain).trace / size == pytest.approx(0.01151, rel=1e-3)


def test_second_moment_of_the_eigenvalues() -> None:
    # One net scatters by 8 %, so eight of them, on fewer samples than units: the law holds at any N.
    m, n, size = 1000, 250, 2 * 1000 * 1000

    def said(samples: int) -> float:
        found = theory(m, samples, 2, RELU)
        return found.second_moment * found.parameters / size

    assert said(m) == pytest.approx(0.479, rel=0.01)  # + 0.6 % of the biases
    measured = [float(dual([m, m, m, 2], n, s, **RELU)[0].square().sum()) / size for s in range(8)]
    assert mean(measured) == pytest.approx(said(n), rel=0.06)


@pytest.mark.parametrize(
    ("kind", "shift", "trace", "largest"),
    [(BIASED, 0.0, 3000, 559.3), (TANH, 0.0, 1671, 172), (BIASED, 0.5, 3700, 807)],
)
def test_unequal_widths_and_shifted_inputs(kind: dict[str, Any], shift: float, trace: float, largest: float) -> None:
    n, widths = 150, (200, 400, 800, 2)
    order = order_parameters(
        spec(400, 2, kind), second_moment=1 + shift**2, overlap=shift**2, readout_gain=math.sqrt(kind["sw"])
    )
    order = dataclasses.replace(order, fan_in=np.array(widths[:3], dtype=float))
    bare = dataclasses.replace(order, bias=False)  # the published numbers leave the biases' gradients out
    assert (2 * bare.kernels[0], float(bare.outlier(n).sum())) == pytest.approx((trace, largest), rel=2e-3)
    nets = [dual(widths, n, s, shift, **kind)[0] for s in range(4)]
    assert mean([float(g.trace()) for g in nets]) == pytest.approx(2 * order.kernels[0], rel=0.04)
    assert mean([top(g) for g in nets]) == pytest.approx(float(order.outlier(n).sum()), rel=0.08)


def test_outliers_are_the_span_of_the_mean_gradients() -> None:
    n, c = 100, 10
    g, _ = dual([400, 400, 400, c], n, 0, **RELU)
    values, vectors = torch.linalg.eigh(g.double())
    assert float(values[-c] / values[-c - 1]) > 5
    ones = torch.eye(c, dtype=torch.float64).repeat(n, 1)  # columns 1 (x) e_k; J^T of them are the mean gradients
    # cos of J^T u_i / sqrt(lambda_i) with an orthonormal basis J^T E R^-1 of them, R^T R = E^T J J^T E.
    r = torch.linalg.cholesky(ones.T @ g.double() @ ones).T
    cos = values[-c:, None].sqrt() * torch.linalg.solve_triangular(r, vectors[:, -c:].T @ ones, upper=True, left=False)
    assert float(cos.square().sum(1).min()) > 0.999


def test_with_samples_fixed_mean_subtraction_still_grows() -> None:
    values = {
        m: mean([norm_top(*dual([m, m, m, 1], 100, s, **BIASED), "center") for s in range(3)]) for m in (500, 2000)
    }
    assert 2.3 < values[2000] / values[500] < 4


def test_last_layer_batch_norm_is_of_the_same_order_and_above_its_bound(
    two_outputs: list[tuple[Tensor, Tensor]],
) -> None:
    values = [norm_top(g, out, "batch") for g, out in two_outputs]
    assert mean(values) == pytest.approx(8.6, abs=0.9)
    assert min(values) >= 2.29
    traces = mean([float(project(g, out, "batch", 1e-12).trace()) for g, out in two_outputs])
    assert traces == pytest.approx(theory(200, 200, 2, RELU, last="bn").trace, rel=0.12)  # 1/sigma_k^2 scatters


@pytest.mark.parametrize("m", [100, 200, 400])
def test_hidden_batch_norm_is_m_over_two_pi_for_relu(m: int) -> None:
    assert 0.5 < of_library(m, m, 2, 2, hidden="bn", **BIASED) - m / (2 * math.pi) < 2.5


def test_hidden_mean_subtraction_grows_with_its_own_constant() -> None:
    value, said = of_library(200, 200, 2, 3, hidden="ms", **BIASED), theory(200, 200, 2, BIASED, "ms").lambda_max
    assert said == pytest.approx(43.9 + 1, abs=0.1)
    assert 0 < value - said < 2.5


def test_batch_norm_at_the_first_layer_only_leaves_the_later_ones_their_outliers() -> None:
    # What stands behind it is a net of one hidden layer on inputs of second moment 1/2 and overlap 1/(2 pi).
    said = theory(200, 200, 2, BIASED, depth=1, second_moment=0.5, overlap=0.5 / math.pi).lambda_max
    assert said == pytest.approx(79.0, rel=0.03)
    assert of_library(200, 200, 2, 4, hidden=("bn", "none"), **BIASED) == pytest.approx(said, rel=0.12)
    assert of_library(200, 200, 2, 2, hidden=("none", "bn"), **BIASED) == pytest.approx(33.7, abs=0.5)


@pytest.mark.parametrize("hidden", ["bn", "ms"])
def test_hidden_batch_statistics_are_flat_for_tanh(hidden: str) -> None:
    small = of_library(100, 100, 2, 4, 0.02, hidden=hidden, **TANH)
    large = of_library(400, 400, 2, 2, 0.02, hidden=hidden, **TANH)
    assert 0.8 < large / small < 1.25


def test_hidden_layer_norm_does_not_help() -> None:
    assert of_library(400, 400, 2, 3, hidden="ln", **BIASED) == pytest.approx(149.5, rel=0.07)
    assert theory(400, 400, 2, BIASED, "ln").lambda_max == pytest.approx(149.5, rel=0.02)


def test_last_layer_norm_leaves_one_outlier_less_of_the_same_size() -> None:
    n, c = 100, 10
    nets = [dual([400, 400, 400, c], n, s, **RELU) for s in range(3)]
    scale = float(order_parameters(spec(400, c, RELU), readout_gain=math.sqrt(2)).outlier(n).sum())
    ratios = []
    for g, out in nets:
        values = eig(project(g, out, "layer", 1e-12))
        u = out - out.mean(1, keepdim=True)
        var = u.square().mean(1)
        u = u / var.sqrt()[:, None]
        q = torch.eye(c) - 1 / c - u[:, :, None] * u[:, None, :] / c
        said = scale * top((q / var[:, None, None]).mean(0))
        ratios.append(float(values[0]) / said)
        assert values[c - 2] > 2 * values[c - 1]
        plain, centred = eig(g), eig(project(g, out, "layer_center"))
        assert float(centred[0]) == pytest.approx(float(plain[0]), rel=0.02)
        assert centred[c - 2] > 5 * centred[c - 1]
    assert mean(ratios) == pytest.approx(1, abs=0.12)


def test_one_outlier_an_output() -> None:
    c, n = 10, 210  # n c above the dense limit: counted by the edge that Lanczos finds
    x = data(n, 400, 0)
    for kind in (RELU, TANH):
        s = curvature.sharpness(net([400, 400, 400, c], 0, **kind), x, compare_modes=False)
        assert s.method == "directions"
        assert s.outliers == c


def test_softmax_has_one_outlier_less_spread_as_the_mean_of_q() -> None:
    m, n, c = 400, 200, 3
    order = order_parameters(spec(m, c, RELU), readout_gain=math.sqrt(2))
    ratios = []
    for seed in range(3):
        model, x = net([m, m, m, c], seed, **RELU), data(n, m, seed)
        found = spectrum(curvature.fisher(model, x, loss="cross_entropy"), k=3, tol=3e-3).eigenvalues
        said = softmax_outliers(order, model(x).detach().double().softmax(1).numpy())[1]
        ratios.append(found[: c - 1].double() / torch.from_numpy(said.copy()))
        assert found[2] < 5
    assert torch.stack(ratios).mean(0).tolist() == pytest.approx([1, 1], rel=0.06)


def test_softmax_trace_and_half_the_squared_losss_sharpness() -> None:
    m, n, c = 200, 100, 5
    order = order_parameters(spec(m, c, RELU), readout_gain=math.sqrt(2))
    ratios = []
    for seed in range(8):
        g, out = dual([m, m, m, c], n, seed, **RELU)
        p = out.double().softmax(1)
        q = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        blocks = torch.einsum("iaib->iab", g.reshape(n, c, n, c)).double()
        ratios.append(float((q * blocks).sum()) / softmax_outliers(order, p.numpy())[0])
        if seed < 2:
            found = spectrum(
                curvature.fisher(net([m, m, m, c], seed, **RELU), data(n, m, seed), loss="cross_entropy"),
                tol=0.01,
                method="lanczos",
            )
            assert found.largest <= top(g) / 2
    assert mean(ratios) == pytest.approx(1, abs=0.06)


def test_softmax_outliers_vanish_under_mean_subtraction() -> None:
    values = [
        spectrum(
            curvature.fisher(net([m, m, m, 5], 0, last="ms", **RELU), data(m, m, 0), loss="cross_entropy"), tol=1e-2
        ).largest
        for m in (100, 200)
    ]
    assert max(values) < 3
    assert values[1] / values[0] < 1.2


def test_frozen_statistics_keep_the_sharpness() -> None:
    for seed in range(3):
        g, out = dual([400, 400, 400, 3], 200, seed, **RELU)
        assert norm_top(g, out, "batch_frozen") / norm_top(g, out, "batch") > 20


@pytest.mark.parametrize("kind", [BIASED, TANH])
def test_the_sharpness_of_the_layers_adds(kind: dict[str, Any]) -> None:
    m, c, parts, total, along = 300, 2, [], [], []
    for seed in range(3):
        grams = layer_grams(net([m, m, m, c], seed, **kind), data(m, m, seed))
        parts.append([top(g.transpose(1, 2).reshape(c * m, c * m)) for g in grams])
        along.append([float(g[k, k].sum()) / m for g in grams for k in range(c)])
        total.append(top(sum(grams).transpose(1, 2).reshape(c * m, c * m)))  # type: ignore[union-attr]
    assert all(sum(p) >= t for p, t in zip(parts, total, strict=True))
    assert sum(map(sum, parts)) == pytest.approx(sum(total), rel=0.03)
    # Along the vector of ones, which they share; at finite width the fluctuations add O(1) there, and more across it.
    assert np.mean(along, 0).reshape(3, c).mean(1) == pytest.approx(theory(m, m, c, kind).per_layer, rel=0.06, abs=2)


@pytest.mark.parametrize("kind", [{"act": "tanh", "sw": 3.0, "sb": 0.0}, {"act": "linear", "sw": 1.0, "sb": 0.0}])
def test_centred_nets_have_nothing_to_remove(kind: dict[str, Any]) -> None:
    plain = {}
    for m, seeds in ((100, 4), (400, 2)):
        nets = [dual([m, m, m, 2], m, s, **kind) for s in range(seeds)]
        plain[m] = mean([top(g) for g, _ in nets])
        assert plain[m] == pytest.approx(mean([norm_top(g, out, "center") for g, out in nets]), rel=0.03)
    assert 0.75 < plain[400] / plain[100] < 1.33


def test_the_deflated_trace_of_a_wide_net_beats_hutchpp() -> None:
    g, _ = dual([150, 150, 150, 4], 150, 0, **BIASED)
    g = g.double()
    values, vectors = torch.linalg.eigh(g)
    root = from_matrix(vectors * values.clamp_min(0).sqrt() @ vectors.T)
    basis = torch.eye(4, dtype=torch.float64).repeat(150, 1) / math.sqrt(150)

    def spread(estimate: Any) -> float:
        return float(np.std([estimate(torch.Generator().manual_seed(s)).value for s in range(60)]))

    deflated = spread(lambda r: hutchinson(root, 20, basis=basis, generator=r))  # 24 forms, as below
    plus, plain = (
        spread(lambda r: hutchpp(gram(root), 24, generator=r)),
        spread(lambda r: hutchinson(root, 24, generator=r)),
    )
    assert plus > 1.5 * deflated
    assert plain > plus


def test_replicas_with_few_samples_are_sharper_behind_batch_norm_but_not_behind_mean_subtraction() -> None:
    x = data(100, 100, 0)

    def largest(last: str, size: int) -> float:
        model = net([100, 100, 100, 2], 0, last=last, **RELU)
        return spectrum(curvature.fisher(model, data=list(x.split(size))), method="dense").largest

    centred = [largest("ms", size) for size in (100, 20, 5)]
    assert centred == sorted(centred, reverse=True)
    assert largest("bn", 5) > 2 * largest("bn", 100)
