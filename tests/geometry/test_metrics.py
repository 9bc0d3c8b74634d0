"""Every metric against a slow numpy oracle on the data itself, and the promises a registered metric makes."""

import math
from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from normscope import UsageError, diagnose, measure, metrics, probe
from normscope.cli import _index
from normscope.core.records import SIGNALS
from normscope.geometry.metric import METRICS, Needs, evaluate
from normscope.geometry.statistic import Statistic

# The oracle: samples as rows of a float64 numpy array, loops where a loop says it best.


def singular_values(x):
    """All n of them, descending: an (n, d) matrix with d < n has n - d that are zero."""
    found = np.linalg.svd(x, compute_uv=False)
    return np.concatenate([found, np.zeros(len(x) - len(found))])


def spectrum(x):
    return singular_values(x) ** 2


def orthogonality_gap(x):
    n = len(x)
    return np.linalg.norm(x @ x.T / np.sum(x**2) - np.eye(n) / n)


def orthogonality_gap_floor(x):
    rank = np.linalg.matrix_rank(x)
    return math.sqrt(1 / rank - 1 / len(x))


def participation_rank(x):
    return spectrum(x).sum() ** 2 / (spectrum(x) ** 2).sum()


def soft_rank(x, tau=0.5):
    values = spectrum(x)[: min(x.shape)]
    return sum(value / values.mean() >= tau for value in values)


def entropy_rank(x):
    p = singular_values(x) / singular_values(x).sum()
    return math.exp(-sum(q * math.log(q) for q in p if q > 0))


def numerical_rank_float32(x):
    return np.linalg.matrix_rank(x, tol=singular_values(x)[0] * max(x.shape) * np.finfo(np.float32).eps)


def isometry_gap(x):
    values = spectrum(x)
    if values[-1] == 0:
        return math.inf
    return math.log(values.mean()) - np.mean([math.log(value) for value in values])


def cosines(x):
    lengths = [np.linalg.norm(row) for row in x]
    return [
        x[i] @ x[j] / (lengths[i] * lengths[j])
        for i in range(len(x))
        for j in range(i)
        if lengths[i] > 0 and lengths[j] > 0
    ]


def mean_or_nan(values):
    return np.mean(values) if len(values) else math.nan


def norms(x):
    return np.array([np.linalg.norm(row) for row in x])


def mean_shift(x):
    return np.sum(x.mean(0) ** 2) / np.mean(norms(x) ** 2)


def shares(x):
    """Of the centred energy, one number a sample: q_i = n/(n-1) |x_i - mean|^2 / sum_j |x_j - mean|^2."""
    n = len(x)
    energy = np.array([np.sum((row - x.mean(0)) ** 2) for row in x])
    return n / (n - 1) * energy / energy.sum()


def odd_and_others(x):
    """The odd sample, the mean of the others and their mean squared distance from it."""
    odd = int(np.argmax(shares(x)))
    others = np.array([row for i, row in enumerate(x) if i != odd])
    mean = others.mean(0)
    return x[odd], mean, np.mean([np.sum((row - mean) ** 2) for row in others])


def odd_point_coherence(x):
    _, mean, spread = odd_and_others(x)
    return mean @ mean / (mean @ mean + spread)


def odd_point_separation(x):
    odd, mean, spread = odd_and_others(x)
    return np.linalg.norm(odd - mean) / math.sqrt(spread)


def odd_point_margin(x):
    first, second = sorted(shares(x))[::-1][:2]
    return 1 - second / first


def odd_samples(x):
    """Section 5 of the rules: one odd sample, or the most that lie far from a cluster, sorted by their distance from
    the sample with the least median distance.
    """
    if len(x) < 7:
        return 0
    odd, mean, spread = odd_and_others(x)
    apart = np.linalg.norm(odd - mean) >= np.linalg.norm(mean) / 2
    found = int(apart and mean @ mean >= 0.6 * (mean @ mean + spread) and max(shares(x)) >= 0.8)
    away = min((np.linalg.norm(x - row, axis=1) for row in x), key=lambda d: sorted(d)[(len(x) - 1) // 2])
    order = np.argsort(-away)
    for k in range(2, len(x) // 8 + 1):
        odds, others = x[order[:k]], x[order[k:]]
        mean, spread = others.mean(0), others.var(0).sum()
        size = np.linalg.norm(mean)
        fits = [size > 0, away[order[k - 1]] >= 3 * away[order[k]], size**2 >= 0.85 * (size**2 + spread)]
        for o in odds:
            far = np.linalg.norm(o - mean)
            fits += [far >= 10 * math.sqrt(spread), far >= size / 2, o @ mean <= 0.98 * np.linalg.norm(o) * size]
        found = k if all(fits) else found
    return found


def alpha_req(x):
    """A weighted fit by numpy over the variances, singular values of the centred batch squared."""
    values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    values = [v for v in values if v > 1e-10 * values[0]]
    if len(values) < 3:
        return math.nan
    places = np.arange(1, len(values) + 1)
    return -np.polyfit(np.log(places), np.log(values), 1, w=1 / np.sqrt(places))[0]


def stable_rank(x):
    return np.linalg.norm(x) ** 2 / np.linalg.norm(x, 2) ** 2


def edge_ratio(x):
    n, d = x.shape
    return np.linalg.norm(x, 2) ** 2 / (np.mean(x**2) * (math.sqrt(n) + math.sqrt(d)) ** 2)


ORACLE = {
    "orthogonality_gap": orthogonality_gap,
    "orthogonality_gap_floor": orthogonality_gap_floor,
    "sigma_min": lambda x: singular_values(x)[-1],
    "participation_rank": participation_rank,
    "soft_rank": soft_rank,
    "entropy_rank": entropy_rank,
    "numerical_rank": np.linalg.matrix_rank,
    "numerical_rank_float32": numerical_rank_float32,
    "isometry_gap": isometry_gap,
    "mean_cosine": lambda x: mean_or_nan(cosines(x)),
    "mean_abs_cosine": lambda x: mean_or_nan(np.abs(cosines(x))),
    "max_abs_cosine": lambda x: np.max(np.abs(cosines(x))),
    "mean_norm": lambda x: norms(x).mean(),
    "rms": lambda x: math.sqrt(np.mean(x**2)),
    "norm_spread": lambda x: math.sqrt(np.mean((norms(x) - norms(x).mean()) ** 2)) / norms(x).mean(),
    "mean_shift": mean_shift,
    "odd_point_score": lambda x: shares(x).max(),
    "odd_point_index": lambda x: int(np.argmax(shares(x))),
    "odd_point_coherence": odd_point_coherence,
    "odd_point_separation": odd_point_separation,
    "odd_point_margin": odd_point_margin,
    "odd_samples": odd_samples,
    "alpha_req": alpha_req,
    "stable_rank": stable_rank,
    "weight_spectral_norm": lambda x: np.linalg.norm(x, 2),
    "weight_stable_rank": stable_rank,
    "weight_edge_ratio": edge_ratio,
    "gradient_norm": lambda x: math.sqrt(np.sum(x**2)),
    "gradient_collinearity": lambda x: mean_or_nan(np.abs(cosines(x))),
}
ANGLES = {"mean_cosine", "mean_abs_cosine", "max_abs_cosine", "gradient_collinearity"}
ODD = {m for m in ORACLE if m.startswith("odd_point")}
#: These look at entries and tokens, not at samples: their own tests are below, and in test_token_collapse.py.
ENTRYWISE = {"dead_units", "saturated_units", "token_cosine"}


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def near_collinear(n, d):
    return normal(n, 1, seed=1) @ normal(1, d, seed=2) + 1e-6 * normal(n, d, seed=3)


def relu_with_dead_units():
    x = normal(9, 14, seed=4).relu()
    x[:, [2, 7, 8]] = 0
    return x


#: Where a matrix has no small singular value that is not zero, all agree to rounding.
INPUTS = {
    "wide": normal(8, 20),
    "wider than 4n": normal(8, 60),
    "square": normal(9, 9),
    "tall": normal(13, 5),
    "large mean": normal(10, 70) + 30,
    "relu": relu_with_dead_units(),
    "float32": normal(10, 64).float(),
    "float32 copied": normal(10, 16).float(),
    "bfloat16": normal(9, 50).bfloat16(),
    "float16": normal(9, 50).half(),
    "images": normal(6, 3, 5, 4),
    "images copied": normal(16, 3, 3, 4),
    "sequences": normal(5, 7, 11),
    "one feature": normal(7),
    "integers": torch.arange(35).reshape(5, 7) % 6,
    "two samples": normal(2, 5),
    "a zero sample": torch.cat([normal(5, 9), torch.zeros(1, 9, dtype=torch.float64)]),
}
DEFICIENT = {
    "rank 3": normal(10, 3, seed=5) @ normal(3, 20, seed=6),
    "rank 3, wider than 4n": normal(10, 3, seed=5) @ normal(3, 90, seed=6),
    "two far from a cluster": torch.cat([0.05 * normal(22, 30) + 1, 9 * normal(2, 30)]),
    "rank 3, tall": normal(20, 3, seed=5) @ normal(3, 8, seed=6),
    "recentred": normal(10, 90) - normal(10, 90).mean(0),
}
COLLINEAR = {
    "copied": near_collinear(12, 30),
    "wider than 4n": near_collinear(12, 100),
    "float32": near_collinear(12, 100).float(),
    "tall": near_collinear(20, 6),
}


def rows(x):
    return x.to(torch.float64).numpy().reshape(len(x), -1)


@cache
def measured(group, name):
    x = {"input": INPUTS, "deficient": DEFICIENT, "collinear": COLLINEAR}[group][name]
    return measure(x, METRICS)


def assert_close(actual, expected, rtol, atol=0.0):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def test_every_metric_has_an_oracle():
    assert set(ORACLE) | ENTRYWISE == set(METRICS)


#: Two samples have no odd one; a missing dimension has a test of its own below.
PAIRED = [
    (metric, name)
    for metric in ORACLE
    for name in INPUTS
    if not (metric in ODD and name == "two samples") and (metric, name) != ("isometry_gap", "a zero sample")
]


@pytest.mark.parametrize(("metric", "name"), PAIRED)
def test_a_metric_equals_its_oracle(metric, name):
    x = rows(INPUTS[name])
    # atol: what is zero in exact arithmetic, as sigma_min with a zero sample, is 1e-16 of the largest here or there.
    assert_close(measured("input", name)[metric], ORACLE[metric](x), rtol=1e-9, atol=1e-13 * np.abs(x).max())


@pytest.mark.parametrize("name", DEFICIENT)
@pytest.mark.parametrize("metric", sorted(set(ORACLE) - {"isometry_gap"}))
def test_a_metric_equals_its_oracle_on_a_rank_deficient_batch(metric, name):
    x = rows(DEFICIENT[name])
    assert_close(measured("deficient", name)[metric], ORACLE[metric](x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", COLLINEAR)
@pytest.mark.parametrize("metric", ORACLE)
def test_a_metric_equals_its_oracle_on_a_nearly_collinear_batch(metric, name):
    # singular values of 1e-6 of the largest: svd and QR + svd in float64 keep them to about 1e-16 / 1e-6
    x = rows(COLLINEAR[name])
    assert_close(measured("collinear", name)[metric], ORACLE[metric](x), rtol=1e-8, atol=1e-13)


# Hypothesis: small whole numbers, so that equal samples, zero samples, ties and every rank occur.

small_matrices = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-3, 3).map(float)
)
UNTIED = sorted(set(ORACLE) - ANGLES - ODD - {"soft_rank", "isometry_gap"})
few = settings(max_examples=60, deadline=None)


@few
@given(small_matrices)
def test_metrics_equal_their_oracles_on_small_whole_numbers(x):
    assume(x.any())
    for metric, value in measure(torch.from_numpy(x), UNTIED).items():
        assert_close(value, ORACLE[metric](x), rtol=1e-9, atol=1e-12)


@few
@given(small_matrices)
def test_angles_equal_their_oracles_where_two_samples_have_one(x):
    assume(sum(norms(x) > 0) >= 2)
    for metric, value in measure(torch.from_numpy(x), ANGLES).items():
        assert_close(value, ORACLE[metric](x), rtol=1e-9, atol=1e-12)


@few
@given(small_matrices)
def test_angles_are_nan_where_no_two_samples_have_one(x):
    x[1:] = 0
    assert all(math.isnan(value) for value in measure(torch.from_numpy(x), ANGLES).values())


@few
@given(small_matrices)
def test_soft_rank_lies_between_its_values_at_thresholds_a_hair_apart(x):
    assume(x.any())
    assert soft_rank(x, 0.5 + 1e-9) <= measure(torch.from_numpy(x), ["soft_rank"])["soft_rank"]
    assert soft_rank(x, 0.5 - 1e-9) >= measure(torch.from_numpy(x), ["soft_rank"])["soft_rank"]


@few
@given(small_matrices)
def test_the_odd_score_is_the_largest_share_and_its_index_has_it(x):
    assume(len(x) > 1 and np.ptp(x, axis=0).any())
    found = measure(torch.from_numpy(x), ["odd_point_score", "odd_point_index"])
    assert_close(found["odd_point_score"], shares(x).max(), rtol=1e-9)
    assert_close(shares(x)[int(found["odd_point_index"])], shares(x).max(), rtol=1e-9)


@few
@given(small_matrices)
def test_every_value_is_nan_or_in_the_range_its_metric_declares(x):
    for name, value in measure(torch.from_numpy(x), METRICS).items():
        low, high = METRICS[name].low, METRICS[name].high
        assert math.isnan(value) or low - 1e-12 <= value <= high + 1e-12, name  # 1e-12: rounding


@few
@given(small_matrices)
def test_participation_rank_is_at_most_the_rank(x):
    # daneshmand2020, Lemma 1
    assume(x.any())
    assert measure(torch.from_numpy(x))["participation_rank"] <= np.linalg.matrix_rank(x) + 1e-9


@few
@given(small_matrices)
def test_soft_rank_is_at_least_a_quarter_of_the_participation_rank(x):
    # daneshmand2020, Lemma 1: rank_tau >= (1 - tau)^2 r, tau = 1/2
    assume(x.any())
    found = measure(torch.from_numpy(x))
    assert found["soft_rank"] >= 0.25 * found["participation_rank"] - 1e-9


@few
@given(small_matrices)
def test_the_orthogonality_gap_is_not_below_its_floor(x):
    assume(x.any())
    found = measure(torch.from_numpy(x))
    assert found["orthogonality_gap"] >= found["orthogonality_gap_floor"] - 1e-9


# Values known in closed form


def test_the_orthogonality_gap_of_rank_one_is_its_largest_value():
    gap = measure(normal(8, 1) @ normal(1, 30, seed=1))["orthogonality_gap"]
    assert_close(gap, math.sqrt(1 - 1 / 8), rtol=1e-12)


@pytest.mark.parametrize("cosine", [0.0, 0.2, 0.9])
def test_the_orthogonality_gap_of_equal_cosines(cosine):
    # orthogonality.md section 2: V = rho sqrt((n-1)/n) for equal norms and equal cosines rho
    n = 6
    common = np.ones((n, 1)) * math.sqrt(cosine)
    x = np.concatenate([common, np.eye(n) * math.sqrt(1 - cosine)], axis=1)
    gap = measure(torch.from_numpy(x))["orthogonality_gap"]
    assert_close(gap, cosine * math.sqrt((n - 1) / n), rtol=1e-12, atol=1e-15)


def test_the_floor_of_ten_logits_on_500_samples():
    # orthogonality.md section 2: 10 outputs, batch 500: .313
    assert_close(measure(normal(500, 10))["orthogonality_gap_floor"], 0.313, rtol=0, atol=5e-4)


def test_the_floor_is_reached_by_an_isometry_of_fewer_dimensions():
    frame = np.linalg.qr(normal(12, 5).numpy())[0]
    found = measure(torch.from_numpy(frame))
    assert_close(found["orthogonality_gap"], found["orthogonality_gap_floor"], rtol=1e-12)


@pytest.mark.parametrize(
    ("metric", "value"),
    [("isometry_gap", 0.0), ("participation_rank", 7), ("entropy_rank", 7), ("soft_rank", 7), ("sigma_min", 3)],
)
def test_an_isometry_of_seven_samples(metric, value):
    frame = 3 * np.linalg.qr(normal(30, 7).numpy())[0].T
    assert_close(measure(torch.from_numpy(frame))[metric], value, rtol=1e-12, atol=1e-14)


def test_the_odd_score_of_equal_cosines_is_one_over_the_others():
    assert_close(measure(torch.eye(9))["odd_point_score"], 1 / 8, rtol=1e-12)


@pytest.mark.parametrize(("n", "k"), [(8, 1), (16, 3), (20, 10)])
def test_the_odd_score_of_two_clusters(n, k):
    # decomposed.md section 2: (n - k) / (k (n - 1))
    x = torch.zeros(n, 2)
    x[:k, 0] = 1
    x[k:, 1] = 1
    assert_close(measure(x)["odd_point_score"], (n - k) / (k * (n - 1)), rtol=1e-12)


@few
@given(hnp.arrays(np.float64, (9, 4), elements=st.integers(-300, 300).map(lambda k: k / 100)))
def test_odd_score_and_separation_say_the_same(x):
    # decomposed.md section 2: R2 = 1 / (1 + n W^2 / D^2), exactly
    assume(np.ptp(x, axis=0).any() and odd_and_others(x)[2] > 1e-6)
    found = measure(torch.from_numpy(x))
    assert_close(found["odd_point_score"], 1 / (1 + 9 / found["odd_point_separation"] ** 2), rtol=1e-6)


def test_soft_rank_takes_tau():
    x = normal(12, 40)
    assert_close(METRICS["soft_rank"].function(Statistic.of(x), tau=0.8), soft_rank(x.numpy(), 0.8), rtol=0)


def test_soft_rank_of_a_gram_takes_tau():
    x = normal(12, 40)
    assert metrics.soft_rank(x @ x.T, tau=0.8) == soft_rank(x.numpy(), 0.8)


def test_float32_rank_does_not_count_what_float32_cannot_see():
    x = np.diag([1.0, 1e-3, 1e-5, 1e-7, 1e-9, 0])  # the threshold is 6 * 1.19e-7
    assert measure(torch.from_numpy(x))["numerical_rank_float32"] == 3


def test_float64_rank_counts_what_float32_cannot_see():
    x = np.diag([1.0, 1e-3, 1e-5, 1e-7, 1e-9, 0])
    assert measure(torch.from_numpy(x))["numerical_rank"] == 5


@pytest.mark.parametrize(
    "x",
    [normal(9, 4), DEFICIENT["rank 3"], DEFICIENT["recentred"], INPUTS["a zero sample"]],
    ids=["tall", "rank 3", "recentred", "a zero sample"],
)
def test_the_isometry_gap_is_infinite_when_a_dimension_is_missing(x):
    assert measure(x)["isometry_gap"] == math.inf


# Entries


def dead_share(x, axis):
    """Units along ``axis`` that are zero wherever one looks."""
    units = [np.take(x, k, axis) for k in range(x.shape[axis])]
    return sum(not unit.any() for unit in units) / len(units)


@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 10), 1), ((4, 6, 10), 2), ((4, 10, 3, 3), 1), ((4, 10, 2, 3, 3), 1), ((9,), 0)]
)
def test_dead_units_are_counted_along_the_axis_of_the_units(shape, axis):
    x = normal(*shape)
    if len(shape) > 1:
        x.index_fill_(axis, torch.tensor([1, 4, 5]), 0)
    expected = dead_share(x.numpy(), axis) if len(shape) > 1 else 0.0
    assert_close(measure(x)["dead_units"], expected, rtol=1e-12)


def test_a_unit_that_fires_for_one_sample_is_not_dead():
    x = torch.zeros(5, 3)
    x[4, 1] = -1
    assert_close(measure(x)["dead_units"], 2 / 3, rtol=1e-12)


def test_a_bare_representation_has_no_saturation():
    assert math.isnan(measure(normal(5, 6))["saturated_units"])


# What a registered metric promises


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_a_metric_is_registered_under_its_own_name(metric):
    assert METRICS[metric.name] is metric is getattr(metrics, metric.name)


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_a_metric_names_its_unit_and_source(metric):
    assert metric.unit
    assert metric.source


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_a_metric_explains_itself_in_a_first_line_that_ends(metric):
    first = metric.__doc__.strip().splitlines()[0]
    assert first[0].isupper()
    assert first.endswith((".", ":", "$", ")"))


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_a_metric_says_how_it_is_called_and_what_it_needs(metric):
    assert metric.title[0].isupper()
    assert metric.short
    assert metric.needs in get_args(Needs)


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_the_range_of_a_metric_is_not_empty(metric):
    assert metric.low < metric.high


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_a_metric_declares_a_known_signal_and_known_invariances(metric):
    assert metric.signal in SIGNALS
    assert set(metric.invariant) <= {"scale", "rotation", "permutation"}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_the_values_of_a_metric_lie_in_its_range(metric, name):
    value = measured("input", name)[metric.name]
    assert math.isnan(value) or metric.low - 1e-12 <= value <= metric.high + 1e-12  # 1e-12: rounding


def orthogonal(d):
    return torch.from_numpy(np.linalg.qr(normal(d, d, seed=8).numpy())[0])


#: The last sample is the odd one, so that a permutation must move its index.
CHANGES = {
    "scale": lambda x: 0.37 * x,
    "rotation": lambda x: x @ orthogonal(x.shape[1]),
    "permutation": lambda x: x.flip(0),
}


def with_an_odd_sample(n, d):
    x = normal(n, d, seed=9).relu()
    x[:, 1] = 0
    x[-1] *= 5
    return x


BATCHES = {"wide": with_an_odd_sample(8, 50), "square": with_an_odd_sample(8, 8), "tall": with_an_odd_sample(12, 5)}


def value(metric, x):
    tokens = x.unflatten(1, (-1, 2)) if x.shape[1] % 2 == 0 else None
    return metric(Statistic.of(x, exact=True, units=-1, bounds=(-1.0, 1.0), sequences=tokens))


DECLARED = [(m, change) for m in METRICS.values() for change in CHANGES if change in m.invariant]
UNDECLARED = [(m, change) for m in METRICS.values() for change in CHANGES if change not in m.invariant]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("metric", "change"), DECLARED, ids=[f"{m.name}-{c}" for m, c in DECLARED])
def test_a_declared_invariance_holds(metric, change, batch):
    x = BATCHES[batch]
    if metric.name == "isometry_gap" and batch == "square":
        x = normal(8, 8)  # with its dead unit the square batch has rank 7
    assert_close(value(metric, CHANGES[change](x)), value(metric, x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("metric", "change"), UNDECLARED, ids=[f"{m.name}-{c}" for m, c in UNDECLARED])
def test_an_invariance_that_is_not_declared_fails_somewhere(metric, change):
    pairs = [(value(metric, x), value(metric, CHANGES[change](x))) for x in BATCHES.values()]
    assert any(abs(a - b) > 1e-3 * abs(a) for a, b in pairs)


def turned(x):
    """The samples mixed by an orthogonal matrix, and a direction of 1e-12 added."""
    q = torch.linalg.qr(normal(len(x), len(x), seed=3))[0]
    return q @ x + 1e-12 * normal(*x.shape, seed=4)


SPECTRAL = [m for m in METRICS.values() if m.spectral]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("metric", SPECTRAL, ids=[m.name for m in SPECTRAL])
def test_a_spectral_metric_sees_neither_a_rotation_of_the_samples_nor_tiny_directions(metric, batch):
    x = BATCHES[batch]
    assert_close(value(metric, turned(x)), value(metric, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_a_length_grows_with_the_batch(metric):
    x = BATCHES["square"]
    assert (value(metric, 3 * x) == pytest.approx(3 * value(metric, x), rel=1e-9, nan_ok=True)) >= metric.scales


# Layers at once

#: Of one kind: some degenerate, so that each takes its own way to its singular values.
ALIKE = {
    "square": [normal(9, 9), normal(9, 9, seed=1).relu(), relu_with_dead_units()[:, :9], near_collinear(9, 9)],
    "tall": [normal(12, 5), normal(12, 5).relu(), torch.ones(12, 5), torch.zeros(12, 5), normal(12, 1) @ normal(1, 5)],
    "products": [normal(6, 90), normal(6, 90) + 30, normal(6, 90).relu()],
    "float32": [normal(8, 20).float(), near_collinear(8, 20).float()],
    "not finite": [normal(7, 7), normal(7, 7) / 0, normal(7, 7).index_fill(0, torch.tensor([3]), math.nan)],
    "two samples": [normal(2, 3), normal(2, 3, seed=1)],
    "one sample": [normal(1, 3), normal(1, 3, seed=1)],
}


@pytest.mark.parametrize("batch", ALIKE)
@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_a_metric_of_several_layers_is_that_of_each(metric, batch):
    members = [Statistic.of(x, units=-1, bounds=(-1.0, 1.0)) for x in ALIKE[batch]]
    together = [found[metric.name] for found in evaluate(members, [metric])]
    alone = [metric(Statistic.of(x, units=-1, bounds=(-1.0, 1.0))) for x in ALIKE[batch]]
    assert_close(together, alone, rtol=1e-9, atol=1e-13)


# Values without structure


@pytest.mark.parametrize(("n", "d"), [(8, 30), (8, 8), (12, 5), (6, 4000)])
def test_the_participation_rank_without_structure(n, d):
    # E |G|^2 / (tr G)^2 = (n + d + 1) / (n d + 2) for Gaussian entries; the mean of the inverse is above, by its
    # variance
    found = metrics.participation_rank.null(n, d, draws=4000)
    assert_close(found, (n * d + 2) / (n + d + 1), rtol=0.03)


@pytest.mark.parametrize(("name", "oracle"), [("alpha_req", alpha_req), ("stable_rank", stable_rank),
                                              ("weight_edge_ratio", edge_ratio)])  # fmt: skip
def test_a_null_value_is_that_of_drawn_matrices(name, oracle):
    rng = np.random.default_rng(5)
    drawn = [oracle(rng.standard_normal((16, 40))) for _ in range(400)]
    bound = 4 * np.std(drawn) * math.sqrt(1 / 400 + 1 / 400)  # four standard errors of the difference
    assert abs(METRICS[name].null(16, 40, draws=400) - np.mean(drawn)) < bound


def test_weights_without_structure_end_at_the_edge_of_the_bulk():
    assert_close(METRICS["weight_edge_ratio"].null(300, 600, draws=3), 1, atol=0.03, rtol=0)


def test_measure_puts_null_values_behind_the_names():
    found = measure(normal(12, 30), ["entropy_rank", "rms", "stable_rank"], null=True)
    assert list(found) == ["entropy_rank", "rms", "stable_rank", "entropy_rank_null", "stable_rank_null"]
    assert found["stable_rank_null"] == METRICS["stable_rank"].null(12, 30, draws=16)


@pytest.mark.parametrize(("n", "d"), [(60, 12), (20, 50), (50, 50)])
def test_batches_are_measured_as_one_representation(n, d):
    x = normal(n, d, seed=3) @ torch.diag(torch.linspace(0.1, 3, d, dtype=torch.float64)) + 5
    streamed = measure(data=[(part, None) for part in x.split([7, n - 8, 1])])
    for name, value in measure(x, list(streamed)).items():
        assert streamed[name] == pytest.approx(value, rel=1e-8), name
    assert list(streamed) == ["participation_rank", "soft_rank", "entropy_rank", "alpha_req", "stable_rank"]


@pytest.mark.parametrize(
    ("given", "said"),
    [({}, "Pass one"), ({"data": []}, "gave none"), ({"data": [torch.ones(3, 2), torch.ones(3, 4)]}, "same f"),
     ({"data": [torch.ones(3, 2)], "metrics": "mean_cosine"}, "second moments"),
     ({"data": [torch.ones(3, 2)], "null": True}, "no null values")],
)  # fmt: skip
def test_batches_that_are_no_representation_are_refused(given, said):
    with pytest.raises(UsageError, match=said):
        measure(**given)


def lidar(x, delta=1e-4):
    """By loops, whitened by the inverse square root of the whole matrix."""
    q, n, d = x.shape
    means = x.mean(0)
    between, within = np.zeros((d, d)), delta * np.eye(d)
    for i in range(n):
        between += np.outer(means[i] - means.mean(0), means[i] - means.mean(0)) / (n - 1)
        for j in range(q):
            within += np.outer(x[j, i] - means[i], x[j, i] - means[i]) / (n * (q - 1))
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    p = np.clip(np.linalg.eigvalsh(root @ between @ root), 0, None)
    return math.exp(-sum(a * math.log(a) for a in p / p.sum() if a > 0))


def test_lidar_equals_its_oracle_and_its_null_that_of_drawn_views():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, 9, 6)) @ np.diag([5, 3, 1, 0.1, 0.1, 0.1]) + 0.3 * rng.standard_normal((4, 9, 6))
    assert_close(metrics.lidar(torch.from_numpy(x)), lidar(x), rtol=1e-9)
    drawn = [lidar(rng.standard_normal((4, 9, 6))) for _ in range(100)]
    bound = 4 * np.std(drawn) * math.sqrt(1 / 100 + 1 / 100)
    assert abs(metrics.lidar_null(4, 9, 6, draws=100) - np.mean(drawn)) < bound


def test_a_probe_measures_weights_where_they_are_asked_for():
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.Flatten(), torch.nn.Linear(48, 5))
    found = probe(model, normal(9, 2, 6, 6).float(), metrics=["weight_spectral_norm", "weight_edge_ratio"]).records
    assert [(r.name, r.signal) for r in found] == [(n, "weight") for n in ("0", "0", "2", "2")]
    for r in found:
        w = model[int(r.name)].weight.detach().double().flatten(1).numpy()
        assert r.value == pytest.approx(ORACLE[r.metric](w), rel=1e-9)
    assert not [r for r in probe(model, normal(9, 2, 6, 6).float()).records if r.metric.startswith("weight_")]


def test_lidar_refuses_one_view():
    with pytest.raises(UsageError, match="two views"):
        metrics.lidar(normal(1, 5, 4))


def test_the_scale_without_structure_is_one():
    assert_close(metrics.rms.null(20, 300, draws=400), 1, rtol=0.01)


def test_values_without_structure_are_those_of_such_batches():
    # 200 draws each: 5 standard errors of the difference are 0.02
    drawn = [measure(normal(6, 40, seed=k), ["entropy_rank"])["entropy_rank"] for k in range(200)]
    assert_close(metrics.entropy_rank.null(6, 40, draws=200), np.mean(drawn), atol=0.02, rtol=0)


# A metric of a user's own


@pytest.fixture(params=["alone", "gram"])
def own(request):
    """Registered in one place; taken out of the registry at the end."""
    needs = {} if request.param == "alone" else {"needs": "gram"}

    @metrics.register(unit="x", source="a test", reading="Flat is healthy.", **needs)
    def largest_norm(s):
        """Largest norm of a sample."""
        return s.gram.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt() if needs else s.gram.diag().max().sqrt()

    yield largest_norm
    del METRICS._things["largest_norm"]


def test_a_metric_of_ones_own_is_measured(own):
    assert measure([[3.0, 4.0], [0.0, 0.0]])["largest_norm"] == 5


def test_a_metric_of_ones_own_is_probed_in_every_layer(own):
    x = normal(9, 5).float()
    model = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.ReLU(), torch.nn.Linear(5, 5))
    found = [r.value for r in probe(model, x).records if r.metric == "largest_norm"]
    expected = [a.double().norm(dim=1).max().item() for a in (x, *(model[:k](x).detach() for k in (1, 2, 3)))]
    assert_close(found, expected, rtol=1e-12)


def test_a_metric_of_ones_own_is_listed(own):
    assert '"largest_norm": "Largest norm of a sample. [x; a test]"' in _index.text()


def test_a_metric_of_ones_own_that_has_a_reading_is_drawn(own, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Linear(5, 3))
    diagnose(model, normal(9, 5).float(), torch.arange(9) % 3, trial=False).to_html(tmp_path / "page.html")
    assert "Flat is healthy." in (tmp_path / "page.html").read_text()


# Calls on a Gram matrix

WELL_CONDITIONED = 2 * torch.eye(9, dtype=torch.float64) + 0.3 * normal(9, 9)


@pytest.mark.parametrize("name", sorted(set(METRICS) - ENTRYWISE))
def test_a_metric_called_on_a_gram_matrix_equals_measure(name):
    # as many features as samples, so that `rms` knows d too
    x = WELL_CONDITIONED
    assert_close(METRICS[name](x @ x.T), measure(x, [name])[name], rtol=1e-9)


def test_the_orthogonality_gap_of_a_gram_matrix_is_one_call():
    x = normal(6, 90)
    assert_close(metrics.orthogonality_gap(x @ x.T), measure(x)["orthogonality_gap"], rtol=1e-12)


def test_a_float32_gram_is_read_in_float64():
    gram = (WELL_CONDITIONED @ WELL_CONDITIONED.T).float()
    assert metrics.sigma_min(gram) == metrics.sigma_min(gram.double())


def test_rms_of_a_bare_gram_takes_n_for_the_features():
    x = normal(6, 90)
    assert_close(metrics.rms(x @ x.T), math.sqrt(np.sum(x.numpy() ** 2)) / 6, rtol=1e-12)


@pytest.mark.parametrize("name", sorted(ENTRYWISE))
def test_a_bare_gram_has_no_entries_to_count(name):
    assert math.isnan(METRICS[name](torch.eye(4)))


@pytest.mark.parametrize("d", [3, 6, 7])
def test_the_rank_of_a_gram_matrix_is_the_rank_of_its_batch(d):
    # eigenvalues of 1e-16 of the largest are rounding: their roots, 1e-8, must not pass for directions
    x = normal(12, d)
    assert metrics.numerical_rank(x @ x.T) == d


# Input


def test_measure_gives_every_metric_of_activations_when_none_is_named():
    assert list(measure(normal(4, 5))) == [m.name for m in METRICS.values() if m.signal == "activation"]


def test_measure_gives_what_is_named_in_that_order():
    assert list(measure(normal(4, 5), ["rms", "sigma_min"])) == ["rms", "sigma_min"]


def test_measure_reads_lists_of_numbers():
    assert measure([[3.0, 4.0], [0.0, 0.0]], ["mean_norm"]) == {"mean_norm": 2.5}


def test_measure_reads_booleans_as_numbers():
    assert measure(torch.tensor([[True, True], [False, True]]), ["mean_norm"])["mean_norm"] == (math.sqrt(2) + 1) / 2


def test_measure_leaves_its_input_as_it_was():
    x = normal(6, 30).requires_grad_()
    before = x.detach().clone()
    measure(x)
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,)])
def test_an_empty_batch_is_refused_with_its_shape(shape):
    with pytest.raises(UsageError, match="at least one sample"):
        measure(torch.zeros(shape))


def test_a_scalar_is_refused():
    with pytest.raises(UsageError, match="batch first"):
        measure(torch.tensor(1.0))


def test_an_unknown_metric_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="Did you mean 'participation_rank'"):
        measure(normal(3, 4), ["participation_rnk"])


def test_a_gram_matrix_that_is_not_square_is_refused():
    with pytest.raises(UsageError, match=r"square, \(n, n\); got shape \(6, 9\)"):
        metrics.orthogonality_gap(normal(6, 9))


def test_an_empty_gram_matrix_is_refused():
    with pytest.raises(UsageError, match="square"):
        metrics.orthogonality_gap(torch.zeros(0, 0))


@pytest.mark.parametrize("metric", sorted(ANGLES | ODD))
def test_what_needs_two_samples_is_nan_for_one(metric):
    assert math.isnan(measure(normal(1, 5), [metric])[metric])


@pytest.mark.parametrize("metric", sorted(ODD))
def test_equal_samples_have_no_odd_point(metric):
    assert math.isnan(measure(torch.ones(8, 5), [metric])[metric])


@pytest.mark.parametrize("d", [5, 90])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("metric", sorted(set(ORACLE) - {"mean_norm", "rms", "gradient_norm"}))
def test_a_metric_of_a_batch_that_is_not_finite_is_nan(metric, bad, d):
    x = normal(8, d)
    x[3, 2] = bad
    assert math.isnan(measure(x, [metric])[metric])


@pytest.mark.parametrize("metric", ["mean_norm", "rms", "gradient_norm"])
def test_the_size_of_a_batch_with_nan_is_nan(metric):
    x = normal(8, 5)
    x[3, 2] = math.nan
    assert math.isnan(measure(x, [metric])[metric])


@pytest.mark.parametrize("x", [torch.randn(4, 3, dtype=torch.complex64), torch.eye(4).double() * 1e-160])
def test_numbers_that_would_be_measured_wrongly_are_refused(x):
    with pytest.raises(UsageError, match=r"real ones|whose squares float64 can hold"):
        measure(x)


def test_a_sample_of_zeros_among_others_is_measured():
    assert measure(torch.diag(torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)))["rms"] > 0
