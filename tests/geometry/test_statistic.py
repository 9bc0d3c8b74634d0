"""What is kept of a representation: how accurate it is, how little it is, and what it says of bad numbers."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normscope import UsageError, statistic
from normscope.geometry.metrics import METRICS
from normscope.geometry.statistic import Statistic


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrix(x):
    """Samples as rows, float64 numpy: what the oracles see."""
    return x.to(torch.float64).numpy().reshape(len(x), -1)


def singular_values(x):
    found = np.linalg.svd(matrix(x), compute_uv=False)
    return np.concatenate([found, np.zeros(len(x) - len(found))])


def kept(s):
    """The tensors of a statistic: what stays in memory after the hook."""
    return [v for f in dataclasses.fields(s) if isinstance(v := getattr(s, f.name), torch.Tensor)]


def eigenvalue_error(x, **options):
    """Largest error of an eigenvalue, as a share of the largest one."""
    expected = singular_values(x) ** 2
    return np.abs(Statistic.of(x, **options).eigenvalues.numpy() - expected).max() / expected[0]


def nearly_collinear(n, d, epsilon):
    return normal(n, 1, seed=1) @ normal(1, d, seed=2) + epsilon * normal(n, d, seed=3)


def small_direction_error(x, **options):
    """Largest relative error of a singular value."""
    return np.abs(Statistic.of(x, **options).singular_values.numpy() / singular_values(x) - 1).max()


# What is kept


@pytest.mark.parametrize("d", [1, 5, 20])
def test_up_to_four_features_a_sample_the_representation_itself_is_kept(d):
    x = normal(5, d).float()
    factor = Statistic.of(x).factor
    assert factor.dtype == torch.float32
    assert torch.equal(factor, x)


def test_what_is_kept_does_not_follow_later_changes_in_place():
    x = normal(5, 6)
    before = x.clone()
    s = Statistic.of(x)
    x.zero_()
    assert torch.equal(s.factor, before)


def test_at_most_four_n_squared_numbers_are_kept_of_a_narrow_representation():
    n = 12
    assert [t.numel() for t in kept(Statistic.of(normal(n, 4 * n)))] == [4 * n * n]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_n_squared_numbers_are_kept_of_a_wide_representation(dtype, exact):
    n = 12
    assert [t.numel() for t in kept(Statistic.of(normal(n, 4 * n + 1).to(dtype), exact=exact))] == [n * n]


@pytest.mark.parametrize("epsilon", [1.0, 1e-8])
@pytest.mark.parametrize("d", [30, 41, 4000])
def test_no_kept_tensor_is_a_view_of_something_larger(d, epsilon):
    n = 10
    held = [t.untyped_storage().nbytes() for t in kept(Statistic.of(nearly_collinear(n, d, epsilon)))]
    assert max(held) <= 8 * 4 * n * n


def test_a_statistic_holds_no_graph():
    assert not any(t.requires_grad for t in kept(Statistic.of(normal(4, 50).requires_grad_())))


# The second moment


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 9), d=st.integers(1, 90), exact=st.booleans(), spectrum=st.booleans())
def test_the_gram_is_the_matrix_of_inner_products(n, d, exact, spectrum):
    x = normal(n, d)
    expected = [[sum(a * b for a, b in zip(p, q, strict=True)) for q in matrix(x)] for p in matrix(x)]
    np.testing.assert_allclose(Statistic.of(x, exact=exact, spectrum=spectrum).gram, expected, rtol=0, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 9), d=st.integers(1, 90), exact=st.booleans())
def test_the_centred_gram_is_that_of_the_centred_samples(n, d, exact):
    x = normal(n, d)
    c = matrix(x) - matrix(x).mean(0)
    np.testing.assert_allclose(Statistic.of(x, exact=exact).centred, c @ c.T, rtol=0, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 9), d=st.integers(1, 90), exact=st.booleans())
def test_there_are_n_singular_values_whatever_the_shape(n, d, exact):
    x = normal(n, d)
    found = Statistic.of(x, exact=exact).singular_values
    # 1e-10 of the largest: a Gram that is not near singular gives small eigenvalues to 1e-15 of the largest
    np.testing.assert_allclose(found, singular_values(x), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("d", [20, 60])
@pytest.mark.parametrize("mean", [1e4, 1e6])
def test_a_large_mean_does_not_hide_the_spread(mean, d):
    # the mean is taken off before squaring: a Gram minus its means would keep 16 - 2 log10(mean) digits
    x = normal(8, d) + mean
    c = matrix(x) - matrix(x).mean(0)
    np.testing.assert_allclose(Statistic.of(x, exact=True).centred.trace(), np.sum(c**2), rtol=1e-14 * mean)


def test_positions_and_channels_are_features_alike():
    x = normal(4, 3, 5, 5)
    assert torch.equal(Statistic.of(x).gram, Statistic.of(x.reshape(4, 75)).gram)


def test_a_batch_of_numbers_has_one_feature():
    s = Statistic.of(normal(6))
    assert (s.samples, s.features) == (6, 1)


def test_integers_are_taken_as_numbers():
    x = torch.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(Statistic.of(x).gram, x.numpy() @ x.numpy().T)


# Wide float32: multiplied in float32, summed in float64


@pytest.mark.parametrize("d", [100, 2000, 50_000])
@pytest.mark.parametrize("mean", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eigenvalues_of_a_wide_narrow_type_are_within_a_millionth_of_the_largest(dtype, mean, d):
    assert eigenvalue_error((normal(16, d) + mean).to(dtype)) <= 1e-6


@pytest.mark.parametrize("n", [2, 4, 8])
def test_eigenvalues_of_few_samples_with_very_many_features_are_as_good(n):
    # one float32 sum over all the features would lose digits: 2e-5 at a million of them
    assert eigenvalue_error(normal(n, 1_000_000).float()) <= 1e-6


def test_eigenvalues_of_a_relu_batch_are_as_good():
    assert eigenvalue_error(normal(64, 3000).relu().float()) <= 1e-6


def test_autocast_around_the_probe_does_not_round_the_products():
    x = normal(16, 2000).float()
    with torch.autocast("cpu", torch.bfloat16):
        error = eigenvalue_error(x)
    assert error <= 1e-6


@pytest.mark.parametrize("scale", [1e-15, 1e-20, 1e-22, 1e-30, 1e15, 1e25, 1e37])
@pytest.mark.parametrize("spectrum", [True, False])
def test_squares_beyond_float32_do_not_change_the_norm(scale, spectrum):
    # the gradients of a net that vanishes or explodes: 1e-22 squared is no float32
    x = (scale * normal(8, 64)).float()
    norm = METRICS["gradient_norm"](Statistic.of(x, spectrum=spectrum))
    np.testing.assert_allclose(norm, np.linalg.norm(matrix(x)), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-15, 1e-20, 1e-22, 1e-30, 1e15, 1e25, 1e37])
def test_squares_beyond_float32_do_not_change_the_angles(scale):
    x = normal(8, 64)
    tiny = METRICS["gradient_collinearity"](Statistic.of((scale * x).float(), spectrum=False))
    np.testing.assert_allclose(tiny, METRICS["gradient_collinearity"](Statistic.of(x)), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-15, 1e-20, 1e-22, 1e-30, 1e15, 1e25, 1e37])
def test_squares_beyond_float32_do_not_change_the_eigenvalues(scale):
    assert eigenvalue_error((scale * normal(8, 64)).float()) <= 1e-6


def test_one_vanishing_sample_beside_others_keeps_its_angles():
    x = normal(4, 64)
    x[0] *= 1e-24
    expected = METRICS["gradient_collinearity"](Statistic.of(x))
    found = METRICS["gradient_collinearity"](Statistic.of(x.float(), spectrum=False))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [1e25, math.inf, math.nan])
def test_numbers_that_overflow_are_no_occasion_to_warn(bad):
    x = normal(8, 64).float()
    x[1, 2] = bad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Statistic.of(x)


# Near-collinear batches keep their small directions


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("d", [40, 400])
def test_small_directions_are_kept_to_a_thousandth(d, epsilon, dtype, exact):
    # the comparison is with the singular values of the rounded numbers themselves
    assert small_direction_error(nearly_collinear(16, d, epsilon).to(dtype), exact=exact) <= 1e-3


@pytest.mark.parametrize("epsilon", [1e-8, 1e-10])
@pytest.mark.parametrize("d", [40, 400])
def test_in_float64_they_are_kept_far_below_the_rounding_of_a_gram(d, epsilon):
    # epsilon^2 = 1e-20 of the largest eigenvalue: a Gram in float64 holds nothing of it
    assert small_direction_error(nearly_collinear(16, d, epsilon)) <= 1e-3


@pytest.mark.parametrize("d", [400, 20])
@pytest.mark.parametrize("factor", [0.5, 2])
@pytest.mark.parametrize("ratio", [statistic.FLOAT32_RATIO, statistic.FLOAT64_RATIO])
def test_directions_on_either_side_of_a_switch_are_kept_to_a_thousandth(ratio, factor, d):
    # one eigenvalue at the ratio below which the statistic is formed anew
    left = np.linalg.qr(normal(16, 16, seed=5).numpy())[0]
    right = np.linalg.qr(normal(d, 16, seed=6).numpy())[0]
    x = torch.from_numpy(left * np.r_[np.ones(15), math.sqrt(factor * ratio)] @ right.T)
    assert small_direction_error(x.float() if ratio == statistic.FLOAT32_RATIO else x) <= 1e-3


def test_the_rank_of_a_wide_batch_that_has_lost_dimensions():
    x = normal(10, 3) @ normal(3, 500, seed=1)
    assert METRICS["numerical_rank"](Statistic.of(x)) == 3


# The QR, streamed over features


@pytest.mark.parametrize("d", [60, 64, 67, 500])
def test_a_streamed_qr_has_the_singular_values_of_a_direct_svd(d, monkeypatch):
    monkeypatch.setattr(statistic, "BLOCK", 8 * 16)  # blocks of 16 features
    x = normal(8, d)
    np.testing.assert_allclose(Statistic.of(x, exact=True).singular_values, singular_values(x), rtol=1e-12)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-10])
def test_a_streamed_qr_keeps_small_directions(epsilon, monkeypatch):
    monkeypatch.setattr(statistic, "BLOCK", 8 * 16)
    assert small_direction_error(nearly_collinear(8, 500, epsilon), exact=True) <= 1e-3


def test_a_streamed_qr_reproduces_the_gram(monkeypatch):
    monkeypatch.setattr(statistic, "BLOCK", 8 * 16)
    x = normal(8, 203)
    np.testing.assert_allclose(Statistic.of(x, exact=True).gram, matrix(x) @ matrix(x).T, rtol=0, atol=1e-11)


def test_a_product_summed_over_blocks_is_the_product(monkeypatch):
    monkeypatch.setattr(statistic, "BLOCK", 8 * 16)
    x = normal(8, 203)
    np.testing.assert_allclose(Statistic.of(x).gram, matrix(x) @ matrix(x).T, rtol=0, atol=1e-11)


def test_blocks_are_never_narrower_than_the_batch(monkeypatch):
    monkeypatch.setattr(statistic, "BLOCK", 1)
    x = normal(6, 100)
    np.testing.assert_allclose(Statistic.of(x, exact=True).singular_values, singular_values(x), rtol=1e-12)


# Numbers that are none


@pytest.mark.parametrize("d", [3, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_flagged(bad, dtype, d):
    x = normal(6, d).to(dtype)
    x[2, 1] = bad
    assert not Statistic.of(x).finite


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("d", [3, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_finite_numbers_are_not_flagged(dtype, d, exact):
    assert Statistic.of(normal(6, d).to(dtype), exact=exact).finite


@pytest.mark.parametrize("d", [3, 200])
def test_squares_beyond_float64_are_flagged(d):
    # "no NaN or infinity among the products"
    assert not Statistic.of(1e200 * normal(6, d)).finite


@pytest.mark.parametrize("d", [3, 200])
def test_singular_values_of_a_batch_with_nan_are_nan(d):
    x = normal(6, d)
    x[2, 1] = math.nan
    assert Statistic.of(x).singular_values.isnan().all()


def test_a_gram_with_nan_is_flagged():
    gram = torch.eye(3)
    gram[0, 1] = math.nan
    assert not Statistic.of_gram(gram).finite


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 3, 8, 8), (0,)])
def test_nothing_to_measure_is_refused(shape):
    with pytest.raises(UsageError, match="at least one sample and one feature"):
        Statistic.of(torch.zeros(shape))


# Units


@pytest.fixture(params=["at once", "streamed"])
def streaming(request, monkeypatch):
    """Large representations are looked through a few samples at a time."""
    if request.param == "streamed":
        monkeypatch.setattr(statistic, "BLOCK", 8)


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize("d", [10, 100])
@pytest.mark.parametrize("n", [1, 2, 6, 30])
def test_the_share_of_dead_units(n, d):
    x = normal(n, d)
    x[:, : d // 5] = 0
    assert Statistic.of(x, units=1).dead == pytest.approx(0.2, rel=1e-12)


@pytest.mark.usefixtures("streaming")
@pytest.mark.parametrize("sample", range(20))
def test_a_unit_that_fires_for_one_sample_is_not_dead(sample):
    x = torch.zeros(20, 4)
    x[sample, 2] = 1
    assert Statistic.of(x, units=1).dead == 0.75


@pytest.mark.usefixtures("streaming")
def test_all_units_can_be_dead():
    assert Statistic.of(torch.zeros(20, 4), units=1).dead == 1


@pytest.mark.usefixtures("streaming")
def test_a_channel_is_dead_when_it_is_zero_at_every_position():
    x = torch.ones(2, 4, 3, 3)
    x[:, 1] = 0  # dead
    x[:, 2, :2] = 0  # fires in one row
    x[0, 3] = 0  # fires for one sample
    assert Statistic.of(x, units=1).dead == 0.25


@pytest.mark.usefixtures("streaming")
def test_units_can_be_the_last_axis():
    x = torch.ones(2, 3, 5)
    x[..., 4] = 0
    x[:, 1] = 0  # a token, not a unit
    assert Statistic.of(x, units=-1).dead == pytest.approx(0.2, rel=1e-12)


@pytest.mark.usefixtures("streaming")
def test_a_unit_of_opposite_signs_is_not_dead():
    assert Statistic.of(torch.tensor([[1.0], [-1.0]]), units=1).dead == 0


def test_nobody_looks_for_dead_units_unless_asked():
    assert math.isnan(Statistic.of(normal(3, 4)).dead)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-2.0, 6.0)])
def test_saturated_entries_are_within_a_fortieth_of_the_range_from_an_end(low, high):
    x = low + (high - low) * torch.rand(20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near = 0.025 * (high - low)
    expected = np.mean([value - low < near or high - value < near for value in x.flatten().tolist()])
    assert Statistic.of(x, bounds=(low, high)).saturated == pytest.approx(expected, rel=1e-12)


def test_nobody_looks_for_saturation_unless_asked():
    assert math.isnan(Statistic.of(normal(3, 4)).saturated)


# A Gram matrix instead


def test_a_gram_gives_the_singular_values_of_its_batch():
    x = normal(6, 30)
    np.testing.assert_allclose(Statistic.of_gram(x @ x.T).singular_values, singular_values(x), rtol=1e-10)


def test_a_gram_is_made_symmetric():
    gram = torch.tensor([[2.0, 1.0], [0.0, 2.0]])
    np.testing.assert_array_equal(Statistic.of_gram(gram).gram, [[2, 0.5], [0.5, 2]])


def test_what_several_metrics_share_is_computed_once():
    calls = []
    s = Statistic.of(normal(3, 4))
    s.cached(calls.append), s.cached(calls.append)
    assert len(calls) == 1
