"""The paper's scalings at small size: numbers of the mean-field theory, tolerances of about two standard errors.

ReLU nets of three weight layers, weights N(0, 2 / fan_in), biases N(0, 0), equal widths M, standard normal inputs.
alpha kappa_1 = 3 and alpha kappa_2 = 0.685709 (Karakida, Akaho, Amari 2019, recursions of section 2).
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from normscope import curvature
from normscope.linalg import spectrum

A1, A2 = 3.0, 0.685709


class OverBatch(nn.Module):
    def __init__(self, scale: bool) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, u: Tensor) -> Tensor:
        u = u - u.mean(0)
        return u / (u.square().mean(0) + 1e-12).sqrt() if self.scale else u


def net(
    m: int,
    c: int,
    seed: int,
    hidden: str = "none",
    last: str = "none",
    act: type[nn.Module] = nn.ReLU,
    sw: float = 2.0,
    sb: float = 0.0,
) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    kinds = {"none": [], "ln": [], "ms": [False], "bn": [True]}
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate([(m, m), (m, m), (m, c)]):
        lin = nn.Linear(a, b)
        lin.weight.data.normal_(0, math.sqrt(sw / a), generator=g)
        lin.bias.data.normal_(0, math.sqrt(sb), generator=g)
        layers += [lin, *[OverBatch(s) for s in kinds[last if i == 2 else hidden]], *([act()] if i < 2 else [])]
        if i < 2 and hidden == "ln":
            layers.insert(-1, nn.LayerNorm(b, elementwise_affine=False))
    return nn.Sequential(*layers)


def top(m: int, n: int, c: int, seed: int, **more: object) -> float:
    x = torch.randn(n, m, generator=torch.Generator().manual_seed(1000 + seed))
    return spectrum(curvature.fisher(net(m, c, seed, **more), x), tol=3e-3, method="auto").largest


def mean(m: int, n: int, c: int, seeds: int, **more: object) -> float:
    return sum(top(m, n, c, s, **more) for s in range(seeds)) / seeds


def test_without_norm_sharpness_grows_as_the_width() -> None:
    values = {m: mean(m, m, 1, 8) for m in (100, 200, 400)}
    predicted = 200 * ((199 / 200) * A2 + A1 / 200)
    assert values[200] == pytest.approx(predicted, rel=0.12)
    assert 0.85 < math.log(values[400] / values[100]) / math.log(4) < 1.15


def test_last_layer_mean_subtraction_is_flat_when_samples_grow_with_the_width() -> None:
    values = {m: mean(m, m, 1, 6, last="ms") for m in (100, 400)}
    assert values[400] >= A1 - A2
    assert values[400] == pytest.approx(8.3, abs=1.2)
    assert 0.7 < values[400] / values[100] < 1.15


def test_with_samples_fixed_mean_subtraction_still_grows() -> None:
    assert 2.0 < mean(800, 50, 1, 3, last="ms") / mean(200, 50, 1, 3, last="ms") < 4.2


def test_last_layer_batch_norm_is_of_the_same_order() -> None:
    assert mean(200, 200, 2, 4, last="bn") == pytest.approx(8.6, abs=1.3)


def test_hidden_batch_norm_is_m_over_two_pi_for_relu() -> None:
    assert 0.5 < mean(200, 200, 2, 3, hidden="bn", sb=0.1) - 200 / (2 * math.pi) < 2.5


def test_hidden_batch_norm_is_flat_for_tanh() -> None:
    more = {"hidden": "bn", "act": nn.Tanh, "sw": 3.0, "sb": 0.64}
    assert 0.75 < mean(400, 400, 2, 2, **more) / mean(100, 100, 2, 4, **more) < 1.25


def test_hidden_layer_norm_does_not_help() -> None:
    assert mean(400, 400, 2, 2, hidden="ln", sb=0.1) == pytest.approx(155.7, rel=0.1)


def test_one_outlier_an_output() -> None:
    c, n = 10, 120
    x = torch.randn(n, 400, generator=torch.Generator().manual_seed(0))
    for more in ({}, {"act": nn.Tanh, "sw": 3.0, "sb": 0.64}):
        s = curvature.sharpness(net(400, c, 0, **more), x, compare_modes=False)
        assert s.method == "directions"
        assert s.outliers == c


def test_softmax_has_one_outlier_less() -> None:
    x = torch.randn(100, 300, generator=torch.Generator().manual_seed(0))
    s = curvature.sharpness(net(300, 3, 0), x, loss="cross_entropy", compare_modes=False)
    assert s.outliers == 2


def test_frozen_statistics_keep_the_sharpness() -> None:
    x = torch.randn(200, 400, generator=torch.Generator().manual_seed(0))
    model = net(400, 3, 0)
    frozen, train = (spectrum(curvature.last_layer(model, x, v), tol=1e-2).largest for v in ("batch_frozen", "batch"))
    assert frozen / train > 15


def test_centred_nets_have_nothing_to_remove() -> None:
    more = {"act": nn.Tanh, "sw": 3.0, "sb": 0.0}
    assert mean(200, 200, 2, 2, **more) == pytest.approx(mean(200, 200, 2, 2, last="ms", **more), rel=0.05)
