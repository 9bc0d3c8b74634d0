"""Laws against tables, quadrature and one-step Monte Carlo that share no code with them."""

import math

import numpy as np
import pytest

from normscope import UsageError
from normscope.theory.laws import isometry, odd_point, orthogonality, rank

RNG = np.random.default_rng(7)

# n, t*, slope, saddle, from the table of the fuzzy odd fixed points.
ODD = [(7, 0.0674905, 0.4642), (8, 0.0383755, 0.5721), (16, 0.0051786, 0.8297), (32, 0.00108314, 0.9223)]


def haar(d):
    return np.linalg.qr(RNG.standard_normal((d, d)))[0]


def one_layer_spectra(values, d, draws):
    """Grams of H' from explicit Gaussian directions, the slow obvious way."""
    w = RNG.standard_normal((draws, d, len(values))) * np.sqrt(values)
    u = w / np.linalg.norm(w, axis=-1, keepdims=True)
    return np.einsum("sdi,sdj->sij", u, u) / d


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_contraction_at_isometry_is_n_over_n_plus_2(n):
    e = 1e-4 * (np.arange(n) - (n - 1) / 2)
    change = orthogonality.mean_spectrum(1 / n + e) - orthogonality.mean_spectrum(1 / n - e)
    assert change @ e / (2 * e @ e) == pytest.approx(orthogonality.contraction(n), rel=1e-5)


def test_mean_spectrum_is_the_mean_of_draws():
    values = np.array([0.7, 0.2, 0.09, 0.01])
    grams = one_layer_spectra(values, 50, 4000)
    diagonal = np.einsum("sii->si", grams)
    error = diagonal.std(0) / math.sqrt(len(grams))
    assert (np.abs(diagonal.mean(0) - orthogonality.mean_spectrum(values)) < 4 * error).all()


def test_fluctuation_is_exact_within_monte_carlo():
    values = np.array([0.6, 0.3, 0.1])
    grams = one_layer_spectra(values, 20, 20000)
    squares = np.square(grams - np.diag(orthogonality.mean_spectrum(values))).sum((1, 2))
    assert abs(squares.mean() - orthogonality.fluctuation(values, 20)) < 4 * squares.std() / math.sqrt(len(squares))
    assert orthogonality.fluctuation(values, 20) < orthogonality.fluctuation(values, 20, exact=False)


def test_contraction_bound_holds_on_random_spectra_and_the_sharp_one_is_sharper():
    for _ in range(200):
        n = int(RNG.integers(2, 17))
        v = RNG.gamma(0.3, size=n) + 1e-9
        v /= v.sum()
        left = 1 / n - orthogonality.mean_spectrum(v)[v.argmin()]
        sharp = orthogonality.contraction_bound(v.min(), n)
        assert left <= sharp + 1e-9
        assert sharp <= orthogonality.contraction_bound(v.min(), n, sharp=False) + 1e-15


@pytest.mark.parametrize(("n", "d"), [(2, 32), (4, 32), (8, 64)])
def test_lyapunov_drift_is_below_the_bound(n, d):
    v = RNG.dirichlet(np.ones(n))
    values = np.linalg.eigvalsh(one_layer_spectra(v, d, 2000))
    drift = (1 / n - values[:, 0]).mean()
    assert drift < orthogonality.lyapunov_bound(orthogonality.lyapunov(v), n, d)


def test_gap_is_bounded_by_the_lyapunov_function():
    for _ in range(2000):
        v = RNG.dirichlet(np.full(int(RNG.integers(2, 10)), 0.3))
        gap = float(np.linalg.norm(v - 1 / len(v)))
        hat = orthogonality.lyapunov(v)
        assert gap <= orthogonality.gap_from_lyapunov(hat, len(v)) + 1e-12
        assert orthogonality.gap_from_lyapunov(hat, len(v)) <= orthogonality.gap_from_lyapunov(hat, len(v), sharp=False)


def test_the_bound_of_theorem_5_by_hand():
    """n = 4, d = 100, V = 0.1: (1 - 2/3 (1/4 - 0.1)) 0.1 + 1/10."""
    assert orthogonality.lyapunov_bound(0.1, 4, 100) == pytest.approx(0.19, abs=1e-12)


def test_the_bound_of_the_average_by_hand():
    """V(H_0) = 0.2, 30 layers of width 100: 0.3 / 30 + 1.5 / 10."""
    assert orthogonality.average_bound(0.2, 30, 100) == pytest.approx(0.16, abs=1e-12)


def test_what_a_long_chain_settles_at_by_hand():
    """Of two samples in width 100; of four; of d = 2, where the exponents differ by psi(1)/2 - psi(1/2)/2 = ln 2."""
    assert orthogonality.stationary_cosine(100) == pytest.approx(0.0651470, abs=1e-7)
    assert orthogonality.wasserstein_bound(0.08, 4) == pytest.approx(0.8, abs=1e-12)
    assert orthogonality.stationary_wasserstein(4, 100) == pytest.approx(math.sqrt(0.0135), abs=1e-12)
    assert rank.collapse_depth(2) == pytest.approx(1 / math.log(2), abs=1e-12)


def test_gap_bound_wants_the_squared_singular_value():
    assert orthogonality.gap_bound(2, 4096, 10**4, 0.476) == pytest.approx(0.197, abs=1e-3)
    with pytest.raises(UsageError, match="squared"):
        orthogonality.gap_bound(16, 1024, 10, 0.9 / 4)


def test_stationary_gap_reproduces_the_table():
    for n, d, formula in [(2, 64, 0.0905), (4, 64, 0.1413), (8, 256, 0.0967), (32, 1024, 0.0910)]:
        assert orthogonality.stationary_gap(n, d) == pytest.approx(formula, abs=1e-4)
    ratio = orthogonality.stationary_gap(4, 64) / orthogonality.stationary_gap(4, 64, root_mean_square=True)
    assert ratio == pytest.approx(0.9727, abs=1e-4)


def test_vanilla_laws():
    assert orthogonality.vanilla_log_sine(32, 49) == pytest.approx(-1.606, abs=1e-3)
    one = np.linalg.slogdet(np.einsum("sdi,sdj->sij", *[RNG.standard_normal((40000, 8, 3)) / math.sqrt(8)] * 2))[1]
    assert abs(one.mean() - orthogonality.vanilla_log_det(3, 8, 1)) < 4 * one.std() / 200


def test_keeps_rank_names_the_transition():
    assert [orthogonality.keeps_rank(n, 64) for n in (12, 14, 16)] == [True, None, False]


def test_rank_bound_is_never_violated():
    for _ in range(500):
        d, n = RNG.integers(2, 20, size=2)
        h = RNG.standard_normal((d, n)) * RNG.gamma(0.3, size=n)
        h /= np.sqrt(np.square(h).mean(1, keepdims=True))
        values = np.linalg.eigvalsh(h @ h.T / n)
        for tau in np.linspace(0, 0.95, 9):
            assert (values >= tau - 1e-12).sum() >= rank.rank_bound(h @ h.T, tau) - 1e-9


def test_lyapunov_exponents_of_gaussian_products():
    d, layers = 4, 4000
    q, sums = np.eye(d), np.zeros(d)
    for _ in range(layers):
        q, r = np.linalg.qr(RNG.standard_normal((d, d)) @ q)
        sums += np.log(np.abs(np.diag(r)))
    assert np.abs(sums / layers - rank.lyapunov_exponents(d)).max() < 0.06
    gaps = [-np.diff(rank.lyapunov_exponents(k))[0] for k in (4, 8, 32)]
    assert gaps == pytest.approx([0.1932, 0.0765, 0.0164], abs=1e-4)


def test_drift_formula_against_antithetic_draws():
    d, gamma, draws = 6, 0.01, 60000
    h = RNG.standard_normal((d, 8))
    h /= np.sqrt(np.square(h).mean(1, keepdims=True))
    m = h @ h.T / 8
    w = RNG.standard_normal((draws, d, d))
    changes = []
    for sign in (1, -1):
        a = np.eye(d) + sign * gamma * w
        out = a @ m @ a.transpose(0, 2, 1)
        scale = 1 / np.sqrt(np.einsum("sii->si", out))
        out = out * scale[:, :, None] * scale[:, None, :]
        changes.append(np.square(out).sum((1, 2)) - np.square(m).sum())
    change = (changes[0] + changes[1]) / 2
    assert abs(change.mean() - rank.drift(m, gamma)) < 4 * change.std() / math.sqrt(draws) + 3e-3 * abs(change.mean())


def test_transverse_growth_changes_sign_at_the_asymptotic_rank():
    low, error = rank.transverse_growth(8, 3, layers=2500)
    high, _ = rank.transverse_growth(8, 4, layers=2500)
    assert low == pytest.approx(0.081, abs=max(0.02, 4 * error))
    assert high == pytest.approx(-0.150, abs=0.03)


@pytest.mark.parametrize("n", [3, 16, 64])
@pytest.mark.parametrize("slope", [0.0, 0.2, 0.5])
def test_perfect_odd_state_by_explicit_half_lines(n, slope):
    g = RNG.standard_normal(400000)
    phi = lambda x: np.where(x > 0, x, slope * x)  # noqa: E731
    odd, cluster = phi(g * (n - 1) / n), phi(-g / n)
    law = odd_point.perfect_odd(n, slope)
    cosine = (odd * cluster).mean() / math.sqrt((odd**2).mean() * (cluster**2).mean())
    assert cosine == pytest.approx(law["cosine"], abs=5e-3)
    assert math.sqrt((odd**2).mean() / (cluster**2).mean()) == pytest.approx(law["norm_ratio"], rel=1e-2)
    assert ((odd - cluster) ** 2).mean() == pytest.approx(law["distance_factor"], rel=2e-2)


@pytest.mark.parametrize("n", [3, 8, 16, 64])
def test_spread_factor_is_the_slope_of_the_reduced_map(n):
    t0 = 1 / (n - 1) ** 2
    change = (odd_point.reduced_map(t0 * (1 + 1e-6), n) - t0) / (t0 * 1e-6)
    assert change == pytest.approx(odd_point.perfect_odd(n)["spread_factor"], rel=2e-3)


@pytest.mark.parametrize(("n", "fixed", "saddle"), ODD)
def test_odd_fixed_points(n, fixed, saddle):
    assert odd_point.odd_fixed_point(n) == pytest.approx(fixed, rel=1e-4)
    assert odd_point.odd_saddle(n) == pytest.approx(saddle, abs=1e-4)


#: decomposed, section 3.3: (n, largest eigenvalues with their multiplicities at the fuzzy odd state, largest at the
#: saddle)
SPECTRA = [
    (7, [(0.9448, 1), (0.8785, 5), (0.8065, 9), (0.3411, 5)], 1.0304),
    (8, [(0.9308, 1), (0.8914, 6), (0.8424, 14), (0.2587, 6)], 1.0312),
    (16, [(0.94285, 1), (0.93996, 14), (0.93213, 90), (0.0840, 14)], 1.01726),
]


@pytest.mark.parametrize(("n", "modes", "saddle"), SPECTRA)
def test_the_fuzzy_odd_state_is_stable_against_every_deviation(n, modes, saddle):
    found = odd_point.stability(n, odd_point.odd_fixed_point(n))
    expected = [value for value, count in modes for _ in range(count)] + [0.0]
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("n", "modes", "saddle"), SPECTRA)
def test_the_saddle_has_exactly_one_growing_deviation(n, modes, saddle):
    found = odd_point.stability(n, odd_point.odd_saddle(n))
    assert (found > 1).sum() == 1
    assert found[0] == pytest.approx(saddle, abs=1e-4)


def test_the_equiangular_state_has_the_rates_of_its_closed_form():
    norms, angles = odd_point.equiangular_rates(8, rescale=False)
    assert odd_point.stability(8, 1.0) == pytest.approx([norms] * 7 + [angles] * 20 + [0.0], abs=1e-5)


def test_odd_state_needs_seven_samples():
    assert odd_point.odd_fixed_point(6) is None
    assert odd_point.odd_fixed_point(6.09) is None
    assert odd_point.odd_fixed_point(6.127) is not None


def test_odd_fixed_point_does_not_depend_on_the_slope():
    for n in (8, 16):
        points = [odd_point.odd_fixed_point(n, a) for a in (0.0, 0.2, 0.5)]
        assert points == pytest.approx([points[0]] * 3, rel=1e-6)


def test_rescaling_turns_the_excess_into_its_square_root():
    n, t0 = 16, 1 / 15**2
    out = [odd_point.reduced_map(t0 * (1 + e), n, rescale=True) / t0 - 1 for e in (1e-8, 1e-4)]
    assert math.log(out[1] / out[0]) / math.log(1e4) == pytest.approx(0.5, abs=0.02)


def test_equiangular_state_and_rates():
    for n, cosine, norms, angles in [(4, 0.1695, 0.52581, 0.37744), (16, 0.28568, 0.86558, 0.63081)]:
        assert odd_point.equiangular_cosine(n) == pytest.approx(cosine, abs=1e-5)
        assert odd_point.equiangular_rates(n) == pytest.approx((norms, angles), abs=1e-5)
    assert odd_point.equiangular_rates(16, rescale=False) == pytest.approx((0.98099, 0.71492), abs=1e-5)


def test_gradient_explosion_rates():
    known = {4: 3.0841, 6: 2.0038, 8: 1.7882, 16: 1.59, 64: 1.4931, 256: 1.4732}
    assert [odd_point.gradient_explosion(n, "relu") for n in known] == pytest.approx(list(known.values()), abs=1e-4)
    assert odd_point.gradient_explosion(10**6, "relu") == pytest.approx(math.pi / (math.pi - 1), rel=1e-4)
    assert odd_point.gradient_explosion(16) == pytest.approx(14 / 13)
    assert odd_point.gradient_explosion(16, recenter=False) == pytest.approx(15 / 14)
    assert math.isinf(odd_point.gradient_explosion(3))


def test_large_batch_map():
    n, u = 4096, 4.0
    assert 1 / odd_point.reduced_map(1 / u, n) == pytest.approx(odd_point.winner_takes_all(u), rel=1e-3)


def test_relu_angle_decays_like_three_pi_over_depth():
    theta = math.pi / 2
    for _ in range(200):
        theta = odd_point.relu_angle(theta)
    assert theta * 200 / (3 * math.pi) == pytest.approx(0.9416, abs=1e-3)


def test_isometry_gain_of_normalization():
    for _ in range(200):
        x = RNG.standard_normal((5, 7)) * RNG.gamma(1, size=(5, 1))
        gram = x @ x.T
        a = np.sqrt(np.diag(gram))
        exact, bound = isometry.normalization_gain(gram)
        assert math.log(isometry.isometry(gram / np.outer(a, a)) / isometry.isometry(gram)) == pytest.approx(exact)
        assert exact >= bound - 1e-12


def test_nonlinearity_strength_by_a_plain_sum():
    z = np.linspace(-10, 10, 200001)
    w = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    functions = {
        "relu": np.maximum(z, 0), "tanh": np.tanh(z), "sin": np.sin(z), "sigmoid": 1 / (1 + np.exp(-z)), "identity": z,
    }  # fmt: skip
    published = {"relu": 1.265, "tanh": 1.069, "sin": 1.149, "sigmoid": 1.012, "identity": 1.0}
    for name, f in functions.items():
        c0, c1, square = (w * f).sum(), (w * z * f).sum(), (w * f * f).sum()
        assert isometry.nonlinearity_strength(name) == pytest.approx(2 - c1**2 / (square - c0**2), abs=1e-6)
        assert isometry.nonlinearity_strength(name) == pytest.approx(published[name], abs=5e-3)


def test_haar_weights_contract_the_isometry_gap():
    d, ratios = 16, []
    for _ in range(400):
        h = haar(d) * (1 + 1e-3 * RNG.standard_normal(d))
        out = haar(d) @ h
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        ratios.append([-math.log(isometry.isometry(x.T @ x)) for x in (h, out)])
    before, after = np.mean(ratios, 0)
    assert after / before == pytest.approx(isometry.haar_contraction(d), abs=0.01)


@pytest.mark.parametrize(("recenter", "factor"), [(False, 5 / 7), (True, 4 / 6)])
def test_the_contraction_of_five_samples_by_hand(recenter, factor):
    assert orthogonality.contraction(5, recenter) == pytest.approx(factor, rel=1e-15)


def test_the_gap_from_the_lyapunov_function_is_sharp_unless_asked_otherwise():
    """n = 5: sqrt(20) V^ sharp, 10 V^ as stated."""
    assert orthogonality.gap_from_lyapunov(0.1, 5) == pytest.approx(math.sqrt(20) * 0.1, rel=1e-15)
    assert orthogonality.gap_from_lyapunov(0.1, 5, sharp=False) == pytest.approx(1.0, rel=1e-15)


def test_the_stationary_gap_of_recentred_samples_by_hand():
    """n = 5, d = 100: the law of four samples, 3 * 36 / (16 * 5 * 100), and the floor 1/4 - 1/5."""
    found = orthogonality.stationary_gap(5, 100, recenter=True, root_mean_square=True)
    assert found == pytest.approx(math.sqrt(0.0135 + 0.05), rel=1e-12)
