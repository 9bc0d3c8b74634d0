"""The shape of a batch: planted states, simulated nets, and a second detector written from the formulas alone."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normscope import Spec, build, configuration


def rng(seed=0):
    return np.random.default_rng(seed)


def of(x):
    return configuration(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64)))


# The oracle: section 5 of the rules (labels in this order), distances and cosines by loops over samples.


def shares(x):
    n = len(x)
    energy = np.array([np.sum((row - x.mean(0)) ** 2) for row in x])
    return n / (n - 1) * energy / energy.sum()


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def pairs(x):
    return np.array([cosine(x[i], x[j]) for i in range(len(x)) for j in range(i)])


def far_samples(x):
    """Number of samples of the smaller of two clusters, 0 if it is not that shape."""
    n, q = len(x), shares(x)
    far = [row - x.mean(0) for row, share in zip(x, q, strict=True) if share >= q.max() / 2]
    k = len(far)
    if not 2 <= k <= n / 4 or min(pairs(np.array(far))) <= 0.5:
        return 0
    return k if abs(q.max() * k * (n - 1) / (n - k) - 1) <= 0.2 else 0


def detect(x):
    """The label of a batch of three samples or more."""
    n, d = x.shape
    if np.sum((x - x.mean(0)) ** 2) <= 1e-24 * np.sum(x**2):
        return "point"
    q = np.sort(shares(x))[::-1]
    odd = int(np.argmax(shares(x)))
    others = np.delete(x, odd, axis=0)
    mean = others.mean(0)
    spread = np.mean([np.sum((row - mean) ** 2) for row in others])
    coherence = mean @ mean / (mean @ mean + spread)
    apart = np.sum((x[odd] - mean) ** 2) >= 100 * spread
    off_the_ray = np.linalg.norm(x[odd] - mean) >= np.linalg.norm(mean) / 2
    if n >= 7 and coherence >= 0.6 and off_the_ray and (q[0] >= 0.8 or (n > 50 and q[1] <= 0.1 * q[0] and apart)):
        return "odd"
    if min(pairs(x)) >= 0.98:
        return "ray"
    if min(abs(pairs(x))) >= 0.98:
        return "line"
    if far_samples(x):
        return "clusters"
    energy = np.array([np.sum((row - x.mean(0)) ** 2) for row in x])
    if energy.max() > 3 * np.median(energy) and coherence < 0.6:
        return "heavy"
    narrow = min(0.4, max(0.03, 2.5 / math.sqrt(d), 0.75 * math.sqrt(n / d)))
    return "equiangular" if q[0] <= 3 / (n - 1) and pairs(x).std() <= narrow else "mixed"


# Planted states


def planted_odd(n, d, odd, noise, seed):
    """n - 1 samples at one point, one orthogonal to it and n - 1 times as long; noise as a share of each."""
    g = rng(seed)
    axes = np.linalg.qr(g.standard_normal((d, 2)))[0].T
    x = np.tile(axes[0], (n, 1))
    x[odd] = (n - 1) * axes[1]
    return x + noise * np.linalg.norm(x, axis=1, keepdims=True) * g.standard_normal((n, d)) / math.sqrt(d)


def planted_clusters(n, k, d=100, noise=0.05, seed=0):
    """n - k samples at one point, k at another in an orthogonal direction."""
    g = rng(seed)
    axes = np.linalg.qr(g.standard_normal((d, 2)))[0].T
    return np.array([axes[int(i < k)] for i in range(n)]) + noise * g.standard_normal((n, d)) / math.sqrt(d)


def planted_equiangular(n, cosine, d=400, seed=0):
    axes = np.linalg.qr(rng(seed).standard_normal((d, n + 1)))[0].T
    return math.sqrt(cosine) * axes[0] + math.sqrt(1 - cosine) * axes[1:]


def planted_ray(n, d=50, signs=False, noise=0.01, seed=0):
    g = rng(seed)
    length = g.uniform(1, 3, (n, 1)) * (np.where(np.arange(n) % 2, -1, 1)[:, None] if signs else 1)
    direction = g.standard_normal(d) / math.sqrt(d)
    return length * (direction + noise * g.standard_normal((n, d)) / math.sqrt(d))


def planted_heavy(n, heavy, d=400, seed=0):
    x = planted_equiangular(n, 0.3, d, seed)
    x[:heavy] *= 4
    return x


@settings(max_examples=40, deadline=None)
@given(n=st.integers(7, 64), place=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 99))
def test_an_exact_odd_point_is_found_wherever_it_stands(n, place, seed):
    odd = int(place * n)
    found = of(planted_odd(n, 30, odd, 0.0, seed))
    assert (found.label, found.index, found.orthogonal) == ("odd", odd, True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [8, 12, 16, 32, 64])
def test_an_odd_point_is_found_under_ten_percent_of_noise(n, seed):
    found = of(planted_odd(n, 100, n // 3, 0.1, seed))
    assert (found.label, found.index) == ("odd", n // 3)


def test_above_50_samples_a_far_sample_is_odd_though_its_share_is_small():
    # R2 = 1 / (1 + n W^2 / D^2) mixes n with the spread: 64 samples, D = 14 W, R2 = .75
    g = rng(1)
    x = np.tile(np.eye(200)[0] * 3, (64, 1)) + g.standard_normal((64, 200)) / math.sqrt(200)
    x[40] = 14.2 * np.eye(200)[1]
    found = of(x)
    assert found.odd.score < 0.8
    assert (found.label, found.index) == ("odd", 40)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_six_samples_or_fewer_are_never_odd(n, seed):
    assert of(planted_odd(n, 50, 1, 0.0, seed)).label != "odd"


def test_an_odd_point_on_the_line_of_the_cluster_is_not_orthogonal():
    x = planted_odd(16, 30, 4, 0.0, 0)
    x[4] = 15 * x[0]
    found = of(x)
    assert (found.label, found.orthogonal) == ("odd", False)
    assert found.odd.cosine == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("n", "k"), [(8, 2), (16, 2), (64, 2), (16, 4), (64, 16)])
def test_the_samples_of_the_smaller_cluster_are_counted(n, k):
    found = of(planted_clusters(n, k))
    assert (found.label, found.clusters, found.index) == ("clusters", k, -1)


@pytest.mark.parametrize("n", [4, 8, 16, 64])
def test_two_equal_halves_are_not_odd(n):
    assert of(planted_clusters(n, n // 2, d=600)).label == "mixed"


@pytest.mark.parametrize("n", [4, 16, 64])
def test_samples_along_one_direction_are_a_ray(n):
    assert of(planted_ray(n)).label == "ray"


@pytest.mark.parametrize("n", [4, 16, 64])
def test_samples_of_both_signs_along_one_direction_are_a_line(n):
    assert of(planted_ray(n, signs=True)).label == "line"


@pytest.mark.parametrize("d", [3, 500])
def test_equal_samples_are_a_point(d):
    assert of(np.tile(rng().standard_normal(d), (9, 1))).label == "point"


@pytest.mark.parametrize("angle", [0.0, 0.286, 0.508, 0.9])
@pytest.mark.parametrize("n", [8, 32])
def test_equal_cosines_are_equiangular(n, angle):
    found = of(planted_equiangular(n, angle))
    assert found.label == "equiangular"
    assert found.cosine == pytest.approx(angle, abs=1e-12)


@pytest.mark.parametrize("heavy", [3, 6])
def test_a_few_long_samples_over_an_equiangular_bulk_are_heavy(heavy):
    assert of(planted_heavy(32, heavy)).label == "heavy"


@pytest.mark.parametrize("n", [4, 8, 16, 32, 64])
def test_wide_gaussian_samples_are_equiangular(n):
    assert of(rng(n).standard_normal((n, 1000))).label == "equiangular"


@pytest.mark.parametrize("d", [10, 1000])
@pytest.mark.parametrize("n", [7, 8, 16, 64])
def test_gaussian_samples_are_never_odd(n, d):
    assert "odd" not in {of(rng(seed).standard_normal((n, d))).label for seed in range(10)}


@pytest.mark.parametrize("x", [[[1.0, 2.0]], [[1.0, 2.0], [2.0, 4.0]], [[1.0, 2.0], [1.0, 2.0]]])
def test_two_samples_have_no_shape(x):
    assert of(x).label == "mixed"


def test_a_batch_with_nan_has_no_shape():
    x = rng().standard_normal((9, 5))
    x[1, 1] = math.nan
    assert of(x).label == "mixed"


def test_only_an_odd_batch_has_an_index():
    assert of(rng().standard_normal((9, 50))).index == -1


def test_confidence_compares_the_first_share_with_the_second():
    x = planted_odd(12, 40, 5, 0.1, 0)
    second, first = np.sort(shares(x))[-2:]
    assert of(x).confidence == pytest.approx(1 - second / first, rel=1e-9)


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_the_odd_point_is_measured_against_the_mean_of_the_others(noise):
    x = planted_odd(12, 40, 5, noise, 0)
    others = np.delete(x, 5, axis=0)
    mean, spread = others.mean(0), others.var(0).sum()
    odd = of(x).odd
    found = [odd.coherence, odd.cosine, odd.separation, odd.norm_ratio]
    far = np.linalg.norm(x[5] - mean) / math.sqrt(spread)
    expected = [mean @ mean / (mean @ mean + spread), cosine(x[5], mean), far]
    np.testing.assert_allclose(found, [*expected, np.linalg.norm(x[5]) / np.linalg.norm(mean)], rtol=1e-9, atol=1e-12)


# Against the second detector


def states(seed):
    """Batches of every shape, from clean to drowned in noise; continuous, so that no threshold is hit exactly."""
    g = rng(seed)
    n, d = int(g.integers(4, 70)), int(g.integers(8, 300))
    noise = 10 ** g.uniform(-3, 0.3)
    k = int(g.integers(1, max(2, n // 3)))
    kinds = [
        lambda: planted_odd(n, d, k, noise, seed),
        lambda: planted_clusters(n, k, d, noise, seed),
        lambda: planted_ray(n, d, bool(g.integers(2)), noise, seed),
        lambda: planted_equiangular(n, g.uniform(0, 0.9), n + d, seed) + noise * g.standard_normal((n, n + d)) / 20,
        lambda: planted_heavy(n, k, n + d, seed),
        lambda: g.standard_normal((n, d)) * np.exp(noise * g.standard_normal((n, 1))),
        lambda: np.maximum(g.standard_normal((n, d)) + g.uniform(-1, 2), 0),
    ]
    return kinds[seed % len(kinds)]()


SEEDS = range(210)


@cache
def labels():
    return [(of(states(seed)), detect(states(seed))) for seed in SEEDS]


def test_both_detectors_give_the_same_label():
    differ = {seed: (a.label, b) for seed, (a, b) in zip(SEEDS, labels(), strict=True) if a.label != b}
    assert differ == {}


def test_the_comparison_of_detectors_has_seen_every_label():
    assert {b for _, b in labels()} == {"odd", "ray", "line", "clusters", "heavy", "equiangular", "mixed"}


def test_both_detectors_count_the_same_clusters():
    found = [(seed, a.clusters) for seed, (a, _) in zip(SEEDS, labels(), strict=True) if a.label == "clusters"]
    assert found == [(seed, far_samples(states(seed))) for seed, _ in found]


# What leaves a shape as it is

SHAPES = {
    "odd": planted_odd(16, 40, 3, 0.05, 0),
    "clusters": planted_clusters(16, 3),
    "ray": planted_ray(9),
    "line": planted_ray(9, signs=True),
    "equiangular": planted_equiangular(16, 0.3),
    "heavy": planted_heavy(32, 5),
}


@pytest.mark.parametrize("label", SHAPES)
def test_a_shape_does_not_depend_on_the_scale(label):
    assert of(1e-5 * SHAPES[label]).label == label


@pytest.mark.parametrize("label", SHAPES)
def test_a_shape_does_not_depend_on_the_basis(label):
    x = SHAPES[label]
    basis = np.linalg.qr(rng(7).standard_normal((x.shape[1], x.shape[1])))[0]
    assert of(x @ basis).label == label


@pytest.mark.parametrize("label", SHAPES)
def test_a_shape_does_not_depend_on_the_order_of_the_samples(label):
    assert of(SHAPES[label][::-1]).label == label


def test_the_index_follows_the_odd_sample():
    assert (of(SHAPES["odd"]).index, of(SHAPES["odd"][::-1]).index) == (3, 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_odd_point_is_found_in_a_narrow_type(dtype):
    found = configuration(torch.from_numpy(SHAPES["odd"]).to(dtype))
    assert (found.label, found.index) == ("odd", 3)


def test_images_have_a_shape_too():
    x = torch.from_numpy(SHAPES["odd"]).reshape(16, 10, 2, 2)
    assert configuration(x).label == "odd"


# Simulated nets, float64. The labels are those of decomposed.md 3.7, with its numbers in brackets.

WIDTH, DEPTH = 200, 200


def inputs(n, seed):
    return torch.randn(n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1000 + seed))


def net(norm, activation, seed, depth=DEPTH):
    return build(Spec(depth=depth, width=WIDTH, norm=norm, activation=activation), seed=seed, dtype=torch.float64)


@cache
def representation(norm, activation, n, seed, depth=DEPTH):
    with torch.no_grad():
        return net(norm, activation, seed, depth)(inputs(n, seed))


def simulated(*args, **kwargs):
    return configuration(representation(*args, **kwargs))


def apart_from_all_others(x):
    """The sample farthest from the mean of the rest, for each of them in turn."""
    return int(np.argmax([np.linalg.norm(x[i] - np.delete(x, i, axis=0).mean(0)) for i in range(len(x))]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [16, 32])
def test_recentring_and_relu_without_rescaling_leave_one_odd_point(n, seed):
    assert simulated("batch_recenter", "relu", n, seed).label == "odd"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [16, 32])
def test_the_odd_sample_of_a_net_is_the_one_apart_from_all_others(n, seed):
    x = representation("batch_recenter", "relu", n, seed)
    assert configuration(x).index == apart_from_all_others(x.numpy())


@pytest.mark.parametrize("seed", range(3))
def test_the_odd_point_of_a_relu_net_is_orthogonal_to_the_cluster(seed):
    assert simulated("batch_recenter", "relu", 16, seed).orthogonal


def test_the_odd_score_at_sixteen_samples():
    # decomposed.md claim 7: the median over seeds lies in [.975, .997]
    scores = [simulated("batch_recenter", "relu", 16, seed).odd.score for seed in range(3)]
    assert 0.975 <= np.median(scores) <= 0.997


def test_the_odd_sample_moves_with_its_row():
    x = inputs(16, 0)
    with torch.no_grad():
        turned = net("batch_recenter", "relu", 0)(x.roll(5, 0))
    assert configuration(turned).index == (simulated("batch_recenter", "relu", 16, 0).index + 5) % 16


def test_a_leaky_slope_turns_the_odd_point_from_the_right_angle():
    # decomposed.md 3.1: cos = -2a / (1 + a^2) = -.198 at a = .1 (infinite width; here within .05 of it)
    found = simulated("batch_recenter", "leaky_relu(0.1)", 16, 1)
    assert found.label == "odd"
    assert found.odd.cosine == pytest.approx(-0.198, abs=0.05)


def test_an_exact_odd_batch_stays_exact_through_recentring_and_relu():
    # decomposed.md 3.1: disjoint supports, for every W and every width
    x = torch.from_numpy(planted_odd(16, 50, 9, 0.0, 0))
    model = build(Spec(depth=5, width=50, norm="batch_recenter"), inputs=50, seed=3, dtype=torch.float64)
    with torch.no_grad():
        found = configuration(model(x))
    assert (found.label, found.index) == ("odd", 9)
    assert abs(found.odd.cosine) < 1e-12
    assert found.odd.coherence == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [4, 5, 6])
def test_no_net_makes_six_samples_odd(n, seed):
    assert simulated("batch_recenter", "relu", n, seed).label != "odd"


@pytest.mark.parametrize("seed", range(2))
def test_recentring_without_a_rectifier_makes_no_odd_point(seed):
    found = simulated("batch_recenter", "identity", 16, seed)
    assert found.label != "odd"
    assert found.odd.score < 0.6  # decomposed.md claim 23


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("norm", "activation", "angle", "tolerance"),
    [
        ("batch", "relu", 0.28568, 0.03),  # claim 8: seen .282 to .289 at width 300
        ("batch_rescale", "relu", 0.5084, 0.045),  # claim 9: seen .504 to .518 on five seeds
        ("batch_rescale", "identity", 0.0, 0.065),  # orthogonal: cos 0 +- .065
        ("batch", "identity", -1 / 15, 0.01),  # a simplex: -1 / (n - 1), on average exact up to norms
    ],
)
def test_rescaling_makes_sixteen_samples_equiangular(norm, activation, angle, tolerance, seed):
    found = simulated(norm, activation, 16, seed)
    assert found.label == "equiangular"
    assert found.cosine == pytest.approx(angle, abs=tolerance)


@pytest.mark.parametrize("seed", range(2))
def test_complete_batch_norm_makes_no_odd_point(seed):
    assert simulated("batch", "relu", 16, seed).odd.score < 0.25  # decomposed.md claim 8


@pytest.mark.parametrize("seed", range(2))
def test_without_normalization_a_deep_relu_net_is_one_ray(seed):
    assert simulated("none", "relu", 16, seed, depth=300).label == "ray"


# Several odd samples


def several(n, k, together, noise=0.05, seed=0, length=None):
    """n - k samples at one point and k orthogonal to it, together or each in a direction of its own, (n - k) / k times
    as long; and which these are.
    """
    g = rng(seed)
    axes = np.linalg.qr(g.standard_normal((200, k + 1)))[0].T
    which = np.sort(g.choice(n, k, replace=False))
    x = np.tile(axes[0], (n, 1))
    x[which] = ((n - k) / k if length is None else length) * axes[1 : 2 if together else None]
    return tuple(which), x + noise * np.linalg.norm(x, axis=1, keepdims=True) * g.standard_normal(x.shape) / 200**0.5


@pytest.mark.parametrize("length", [None, 1.0])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(("n", "k"), [(64, 1), (64, 2), (64, 3), (64, 8), (16, 2), (128, 16)])
def test_several_odd_samples_are_named(n, k, together, length):
    for seed in range(3):
        which, x = several(n, k, together, seed=seed, length=length)
        assert of(x).odds == which


def test_odd_samples_without_noise_are_named():
    which, x = several(64, 3, True, noise=0.0)
    assert of(x).odds == which


def test_odd_samples_in_several_places_are_an_odd_shape_without_one_index():
    assert (of(several(64, 3, False)[1]).label, of(several(64, 3, False)[1]).index) == ("odd", -1)


def test_more_than_an_eighth_of_the_batch_is_not_odd():
    assert of(several(64, 9, True)[1]).odds == ()


def classes(g, n, count):
    return g.standard_normal((count, 40))[g.integers(0, count, n)] + 0.02 * g.standard_normal((n, 40)) + 2


#: Batches of n samples without odd ones.
QUIET = {
    "independent": lambda g, n: g.standard_normal((n, 50)),
    "independent, off the origin": lambda g, n: g.standard_normal((n, 50)) + 5,
    "heavy tails": lambda g, n: g.standard_t(3, (n, 50)) + 5,
    "ten classes": lambda g, n: classes(g, n, 10),
    "four classes": lambda g, n: classes(g, n, 4),
    "one ray": lambda g, n: np.exp(0.5 * g.standard_normal((n, 1))) + 1e-3 * g.standard_normal((n, 30)),
    "one point, some farther from it": lambda g, n: 1 + 1e-6 * g.standard_t(1, (n, 1)) * g.standard_normal((1, 30)),
    "three far from a cloud around the origin": lambda g, n: (
        g.standard_normal((n, 50)) + np.where(np.arange(n)[:, None] < 3, 40, 0)
    ),
    "one ray, two lengths": lambda g, n: np.where(np.arange(n) < 4, 9, 1)[:, None] + 1e-6 * g.standard_normal((n, 30)),
}


@pytest.mark.parametrize("name", QUIET)
def test_other_batches_have_no_several_odd_samples(name):
    assert [seed for seed in range(40) if len(of(QUIET[name](rng(seed), 64)).odds) > 1] == []


def test_the_sample_that_differs_most_of_a_collapsed_batch_is_not_odd():
    x = np.ones((64, 30))
    x[5] += 1e-2 * rng(0).standard_normal(30)
    assert of(x).label == "ray"
