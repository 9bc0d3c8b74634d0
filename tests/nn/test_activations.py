"""Each registered activation: module, functions of numpy arrays, derivative and Gaussian products say the same."""

import math

import numpy as np
import pytest
import torch

from normscope.nn.activations import ACTIVATIONS, POINTWISE
from normscope.nn.norms.squash import _scaled

X = torch.linspace(-4, 4, 402, dtype=torch.float64)  # no kink at 0 among them
SHAPED = [name for name, found in POINTWISE.items() if found.functions]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_phi_and_its_derivative_are_those_of_the_module(name):
    activation, x = ACTIVATIONS[name], X.clone().requires_grad_()
    y = activation.make()(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    np.testing.assert_allclose(activation.phi(X.numpy()), y.detach().numpy(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(activation.derivative(X.numpy()), slope.numpy(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_it_is_odd_where_it_says_so(name):
    activation, x = ACTIVATIONS[name], X.numpy()
    assert activation.odd == np.allclose(activation.phi(-x), -activation.phi(x), atol=1e-12)


PRODUCTS = {n: a for n, a in ACTIVATIONS.items() if a.products is not None} | {"erf(.6 x)": _scaled("erf", 0.6)}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("derivative", [False, True])
def test_gaussian_products_are_those_of_a_quadrature(name, derivative):
    """E f(u) f(v) for (u, v) ~ N(0, [[.7, .5], [.5, 1.9]]), by 80 x 80 Gauss-Hermite nodes."""
    activation, (qi, qj, g) = PRODUCTS[name], (0.7, 1.9, 0.5)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / math.sqrt(2 * math.pi)
    u = math.sqrt(qi) * nodes[:, None]
    v = g / math.sqrt(qi) * nodes[:, None] + math.sqrt(qj - g**2 / qi) * nodes[None]
    f = activation.derivative if derivative else activation.phi
    expected = (weights[:, None] * weights[None] * f(u) * f(v)).sum()
    found = activation.products(np.array(qi), np.array(qj), np.array(g), derivative)
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", [n for n, p in POINTWISE.items() if p.ends is not None])
def test_the_ends_are_those_of_its_range(name):
    found = POINTWISE[name].kind()(torch.tensor([-1e6, 1e6], dtype=torch.float64))
    assert found.tolist() == pytest.approx(POINTWISE[name].ends, abs=1e-5)


@pytest.mark.parametrize("name", SHAPED)
def test_its_functions_are_the_same_map(name):
    expected = POINTWISE[name].kind()(X)
    for function in POINTWISE[name].functions:
        assert torch.allclose(function(X.clone()), expected, atol=1e-14), function
