"""Laws of cluster + odd point against each other, and against digits found by hand (docs/odd_point.md)."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import erfcx

from normscope import Spec
from normscope.theory import predicted_grams
from normscope.theory.laws import odd_point


def state(n, t):
    """Centred Gram of one odd sample (variance 1) and n - 1 exchangeable ones (variance t)."""
    tau = (t - 1 / (n - 1) ** 2) * (n - 1) / (n - 2)
    gram = np.full((n, n), 1 / (n - 1) ** 2 - tau / (n - 1))
    gram[0, :] = gram[:, 0] = -1 / (n - 1)
    np.fill_diagonal(gram, [1.0] + [t] * (n - 1))
    return gram


def slope(t, n, a=0.0):
    """Derivative of the reduced map."""
    e = 1e-5 * (t - 1 / (n - 1) ** 2)
    return (odd_point.reduced_map(t + e, n, a) - odd_point.reduced_map(t - e, n, a)) / (2 * e)


@pytest.mark.parametrize("n", [8, 16])
@pytest.mark.parametrize("at", [odd_point.odd_fixed_point, odd_point.odd_saddle])
def test_leaky_slopes_keep_the_fixed_points_and_slow_the_rates(n, at):
    t = at(n)
    after = predicted_grams(Spec(depth=1, width=8, norm="batch_recenter", gain=1.0), state(n, t))[1]
    around = after - after.mean(0) - after.mean(1)[:, None] + after.mean()
    mu, rate = np.trace(around) / np.trace(state(n, t)), slope(t, n)
    for a in (0.2, 0.5, -0.5):
        assert odd_point.reduced_map(t, n, a) == pytest.approx(t, rel=1e-6)
        assert slope(t, n, a) == pytest.approx((a + (1 - a) ** 2 * mu * rate) / (a + (1 - a) ** 2 * mu), abs=1e-4)


@pytest.mark.parametrize("n", [128, 256])
def test_many_samples_have_the_asymptotic_state(n):
    t = odd_point.odd_fixed_point(n)
    gram = predicted_grams(Spec(depth=1, width=8, norm="batch_recenter"), state(n, t))[1]
    lost = 1 - odd_point.odd_share(t, n)
    assert n**2 * (t * (n - 1) ** 2 - 1) == pytest.approx(4.5 * math.pi**2, rel=0.06)  # next order 1/n
    assert n**3 * lost == pytest.approx(44.4, rel=0.06)
    assert n * (1 - slope(t, n)) == pytest.approx(1, rel=0.06)
    assert n**2 * (1 - gram[1, 2] / gram[1, 1]) == pytest.approx(44.4, rel=0.06)


@pytest.mark.parametrize("excess", [0.1, 0.3, 1.0])
def test_a_larger_sample_separates_in_the_estimated_depth(excess):
    n, t, layers = 4096, (1 + excess) ** -2, 0
    while t > 4 / n**2:
        t, layers = odd_point.reduced_map(t, n), layers + 1
    # the estimate takes the depth as continuous
    assert layers == pytest.approx(2 * (math.pi - 1) * (1 / excess + math.log(n / excess)), rel=0.3)


@pytest.mark.parametrize("n", [64, 128])
def test_the_basin_of_the_odd_state_begins_at_an_excess_of_about_2_3_over_n(n):
    assert 2.25 <= n * (1 - odd_point.odd_saddle(n)) <= 2.45
    for excess, odd in ((2.0, False), (2.8, True)):
        t = 1 - excess / n
        for _ in range(3000):
            t = odd_point.reduced_map(t, n)
        assert (odd_point.odd_share(t, n) > 0.95) is odd


def end(n, a=0.0, layers=1500):
    """Share R2 where complete batch norm takes a sample of n times the variance of the others."""
    t = 1 / n
    for _ in range(layers):
        t = odd_point.reduced_map(t, n, a, rescale=True)
    return odd_point.odd_share(t, n)


@pytest.mark.parametrize(
    ("n", "a", "heavy"),
    [(50, 0.0, False), (54, 0.0, True), (16, -1.0, False), (18, -1.0, True), (92, 0.2, False), (98, 0.2, True)],
)
def test_complete_batch_norm_keeps_a_heavy_sample_from_a_threshold_on(n, a, heavy):
    equal = 1 / (n - 1)
    low, high = (1.3 * equal, 0.8) if heavy else (equal - 1e-9, 1.1 * equal)
    assert low <= end(n, a) <= high


@pytest.mark.parametrize(("a", "known"), [(0.0, 0.3831), (-1.0, 2.8933)])
def test_the_heavy_sample_of_a_large_batch_has_the_limiting_share(a, known):
    kappa = 1 - (1 - a) ** 2 / (math.pi * (1 + a**2))
    c = brentq(lambda c: math.sqrt(math.pi / (2 * c)) * erfcx(1 / math.sqrt(2 * c)) * (1 + c * kappa) - 1, 5e-3, 50)
    assert c == pytest.approx(known, abs=2e-4)
    assert end(20_000, a, 300) == pytest.approx(c / (1 + c), abs=0.01)  # next order 1/sqrt n
