"""Gaussian moments: closed form, quadrature and Monte Carlo, three routes that share no code."""

import math

import numpy as np
import pytest
import torch

from normscope import UsageError, gaussian
from normscope.core.spec import ACTIVATIONS
from normscope.nn import make_activation

NAMES = [*ACTIVATIONS, "leaky_relu(0.2)", "leaky_relu(-0.5)"]
CLOSED = ["identity", "relu", "abs", "leaky_relu", "leaky_relu(0.2)", "erf", "sin"]
SMOOTH = ["tanh", "sigmoid", "gelu", "silu", "softplus", "sin", "erf"]


def gram(n=5, seed=0):
    x = np.random.default_rng(seed).standard_normal((n, n + 2))
    x[1] = -2 * x[0]  # one pair exactly opposite, one exactly alike
    x[2] = x[0]
    return x @ x.T / (n + 2)


def trapezoid(f, q):
    z = np.arange(-12, 12.0001, 0.05)
    return np.sum(f(math.sqrt(q) * z) * np.exp(-(z**2) / 2)) * 0.05 / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("name", NAMES)
def test_activation_is_the_module_and_its_derivative(name):
    x = torch.linspace(-4, 4, 81, dtype=torch.float64) + 0.013
    x.requires_grad_()
    y = make_activation(name)(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    a = gaussian.activation(name)
    points = x.detach().numpy()
    assert np.abs(a.phi(points) - y.detach().numpy()).max() < 1e-12
    assert np.abs(a.derivative(points) - slope.numpy()).max() < 1e-12


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("derivative", [False, True])
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_closed_form_is_the_quadrature(name, derivative, scale):
    closed = gaussian.product_moment(name, scale * gram(), "closed", derivative)
    rule = gaussian.product_moment(name, scale * gram(), "quadrature", derivative)
    assert np.abs(closed - rule).max() < 1e-9 * max(1, np.abs(closed).max())


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "silu", "softplus", "elu", "selu"])
@pytest.mark.parametrize("derivative", [False, True])
@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_series_is_the_quadrature(name, derivative, scale):
    g = scale * gram(9, seed=4)
    rule = gaussian.product_moment(name, g, "quadrature", derivative)
    assert np.abs(gaussian.product_moment(name, g, "auto", derivative) - rule).max() < 2e-9 * np.abs(rule).max()


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("q", [0.1, 1.0, 3.0])
def test_one_dimensional_rule_is_the_trapezoid_rule(name, q):
    a = gaussian.activation(name)
    assert gaussian.mean(name, q) == pytest.approx(trapezoid(a.phi, q), abs=1e-11)
    assert gaussian.second_moment(name, q) == pytest.approx(trapezoid(lambda x: a.phi(x) ** 2, q), abs=1e-11)
    expected = trapezoid(lambda x: a.derivative(x) ** 2, q)
    assert gaussian.second_moment(name, q, derivative=True) == pytest.approx(expected, abs=1e-11)


def test_tanh_at_large_variance():
    assert gaussian.second_moment("tanh", 3.0, derivative=True) == pytest.approx(0.29202, abs=5e-6)
    assert gaussian.second_moment("tanh", 30.0, derivative=True) == pytest.approx(0.0965985, abs=5e-8)


@pytest.mark.parametrize("name", NAMES)
def test_products_against_monte_carlo(name):
    rng = np.random.default_rng(1)
    g = np.cov(rng.standard_normal((4, 9)))
    u = rng.standard_normal((300_000, 4)) @ np.linalg.cholesky(g).T
    a = gaussian.activation(name)
    for f, derivative in ((a.phi, False), (a.derivative, True)):
        h = f(u)
        products = h[:, :, None] * h[:, None, :]
        error = products.std(0) / math.sqrt(len(u))
        off = np.abs(products.mean(0) - gaussian.product_moment(name, g, derivative=derivative))
        assert (off <= 4.5 * error + 1e-12).all()  # 32 comparisons an activation


def test_grams_are_vectorised():
    many = np.stack([gram(seed=s) for s in range(3)])
    for name in ("relu", "tanh"):
        one_by_one = np.stack([gaussian.product_moment(name, g) for g in many])
        assert np.abs(gaussian.product_moment(name, many) - one_by_one).max() < 1e-14


def test_a_dead_sample_has_zero_covariance():
    g = np.diag([1.0, 0.0])
    assert gaussian.product_moment("relu", g)[0, 1] == 0
    assert gaussian.product_moment("tanh", g)[0, 1] == pytest.approx(0, abs=1e-14)


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="no closed"):
        gaussian.product_moment("tanh", np.eye(2), "closed")
    with pytest.raises(UsageError, match="method"):
        gaussian.mean("relu", 1.0, "exact")
    with pytest.raises(UsageError, match="Did you mean 'relu'"):
        gaussian.mean("rellu", 1.0)
    with pytest.raises(UsageError, match="negative"):
        gaussian.mean("relu", -1.0)
