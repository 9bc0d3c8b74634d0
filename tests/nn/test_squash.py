"""DyT and its erf form: what is one, whatever it is called, and what theory says of nets with it."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from normscope import Spec, build, predict
from normscope.nn.norms import curve_of
from normscope.theory import predicted_grams, spec_of


class DynamicTanh(nn.Module):
    """As published: gain and bias over the last axis, or over the second of images."""

    def __init__(self, features, alpha=0.5, last=True):
        super().__init__()
        self.alpha, self.last = nn.Parameter(torch.ones(1) * alpha), last
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

    def forward(self, x):
        shape = (-1,) if self.last else (-1, 1, 1)
        return torch.tanh(self.alpha * x) * self.weight.view(shape) + self.bias.view(shape)


class Curve(nn.Module):
    """Another name, other names of its parameters, and trained ones."""

    def __init__(self, features):
        super().__init__()
        self.a, self.g, self.b = (nn.Parameter(t) for t in (torch.tensor(0.7), torch.randn(features), torch.ones(5)))

    def forward(self, x):
        return self.g * torch.erf(self.a * x) + self.b


class Scale(nn.Module):
    def __init__(self, alpha):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha))

    def forward(self, x):
        return self.alpha * x


@pytest.mark.parametrize(
    ("module", "found"),
    [
        (DynamicTanh(8), ("tanh", 0.5, True)),
        (DynamicTanh(8, last=False), ("tanh", 0.5, True)),
        (DynamicTanh(8, alpha=0.2), ("tanh", 0.2, True)),
        (Curve(5), ("erf", 0.7, False)),
    ],
)
def test_a_curve_is_known_by_what_it_does(module, found):
    assert curve_of(module) == found


@pytest.mark.parametrize(
    "module",
    [Scale(0.7), Scale(1e-4), Scale(0.0), nn.PReLU(), nn.Linear(1, 1), nn.LayerNorm(8), nn.BatchNorm1d(1), nn.Tanh()],
)
def test_another_module_is_no_curve(module):
    assert curve_of(module) is None


def mlp(alpha, curve=DynamicTanh):
    torch.manual_seed(0)
    layers = [m for _ in range(3) for m in (nn.Linear(256, 256, bias=False), curve(256, alpha), nn.GELU())]
    for m in layers[::3]:
        nn.init.normal_(m.weight, 0, 1 / 16)
    return nn.Sequential(*layers)


def test_a_users_dynamic_tanh_is_the_norm_of_a_spec():
    spec = spec_of(mlp(0.5))
    assert (spec.norm, spec.activation, spec.norm_first, spec.depth) == ("dyt", "gelu", True, 3)


def test_another_alpha_is_predicted_from_the_module_itself():
    x = torch.randn(16, 256, generator=torch.Generator().manual_seed(1))
    assert spec_of(mlp(0.8)) is None
    found = predict(mlp(0.8), x, metrics=["rms"]).series("rms")
    with torch.no_grad():
        measured = float(mlp(0.8)(x).square().mean().sqrt())
    assert found[max(found)] == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(("norm", "f"), [("dyt", math.tanh), ("derf", math.erf)])
@pytest.mark.parametrize("first", [True, False])
def test_the_gram_is_a_mean_over_gaussian_neurons(norm, f, first):
    gram = np.array([[1.0, 0.3], [0.3, 2.0]])
    spec = Spec(depth=1, width=8, norm=norm, activation="relu", norm_first=first, gain=1.0)
    u = np.random.default_rng(0).multivariate_normal(np.zeros(2), gram, 400_000)
    curve, relu = np.vectorize(f), lambda x: np.maximum(x, 0)
    h = relu(curve(u / 2)) if first else curve(relu(u) / 2)
    np.testing.assert_allclose(predicted_grams(spec, gram)[1], h.T @ h / len(h), rtol=0.01)


def test_the_gradient_is_that_of_built_nets():
    x = torch.randn(8, 128, generator=torch.Generator().manual_seed(1))
    spec = Spec(depth=4, width=512, norm="dyt", activation="relu")
    growth = predict(spec, inputs=x, metrics=["rms"]).series("gradient_growth", "gradient")
    ratios = []
    for seed in range(4):
        net, at = build(spec, 128, seed=seed), []
        h = x
        for layer in net.layers:
            h = layer(h)
            h.retain_grad()
            at.append(h)
        h.backward(torch.randn(h.shape, generator=torch.Generator().manual_seed(seed)))
        ratios.append([float(a.grad.norm() / b.grad.norm()) for a, b in pairwise(at)])
    np.testing.assert_allclose(np.mean(ratios, 0), [growth[k] for k in (1, 2, 3)], rtol=0.06)


def test_it_is_no_straight_line_to_theory():
    x = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    specs = (Spec(depth=3, width=64, norm=norm, activation="identity") for norm in ("dyt", "none"))
    one, none = (predict(spec, inputs=x, metrics=["rms"]) for spec in specs)
    assert one.series("rms")[3] < 0.3 * none.series("rms")[3]
