"""`simulate` against explicit weights in law, and against the published numbers."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from normscope import Spec, UsageError
from normscope.geometry.metrics import METRICS
from normscope.geometry.statistic import Statistic
from normscope.theory._streams import normal_stream
from normscope.theory.simulated import simulate, simulated_grams

N, D, RUNS, LAYERS = 4, 20, 600, (1, 4, 10)
PHI = {
    "identity": lambda x: x, "relu": lambda x: np.maximum(x, 0), "tanh": np.tanh,
    "gelu": lambda x: x * special.ndtr(x), "leaky_relu(0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
}  # fmt: skip
SPECS = [
    Spec(depth=10, width=D, norm="batch_rescale", activation="identity"),
    Spec(depth=10, width=D, norm="batch", activation="identity"),
    Spec(depth=10, width=D, norm="batch", activation="relu"),
    Spec(depth=10, width=D, norm="batch_rescale", activation="tanh", norm_first=False),
    Spec(depth=10, width=D, norm="batch", activation="gelu", norm_first=False),
    Spec(depth=10, width=D, norm="batch_recenter", activation="leaky_relu(0.2)"),
    Spec(depth=10, width=D, norm="none", activation="relu"),
    Spec(depth=10, width=D, norm="none", activation="identity"),
    Spec(depth=10, width=D, norm="none", activation="tanh", gain=1.5, bias=0.3),
    Spec(depth=10, width=D, norm="layer", activation="relu", bias=0.2),
    Spec(depth=10, width=D, norm="rms", activation="gelu"),
    Spec(depth=10, width=D, norm="group", activation="relu"),
    Spec(depth=10, width=D, norm="batch_rescale", activation="identity", skip=0.5),
    Spec(depth=10, width=D, norm="batch", activation="relu", skip=1.0),
    Spec(depth=10, width=D, norm="batch_rescale", activation="identity", weights="orthogonal"),
    Spec(depth=10, width=N, norm="batch_rescale", activation="identity", weights="orthogonal"),
    Spec(depth=10, width=D, norm="batch", activation="relu", weights="uniform"),
    Spec(depth=10, width=D, norm="none", activation="relu", weights="xavier_normal"),
]


def inputs(features=D, n=N, seed=3):
    return np.random.default_rng(seed).standard_normal((n, features)) + 0.5


def oracle_norm(z, norm):
    """(runs, samples, features), in the plainest way."""
    if norm in ("batch", "batch_recenter"):
        z = z - z.mean(1, keepdims=True)
    if norm in ("batch", "batch_rescale"):
        z = z / np.sqrt((z**2).mean(1, keepdims=True))
    if norm in ("layer", "group"):
        groups = 4 if norm == "group" else 1  # 20 = 4 groups of 5
        parts = z.reshape(*z.shape[:2], groups, -1)
        z = ((parts - parts.mean(-1, keepdims=True)) / parts.std(-1, keepdims=True)).reshape(z.shape)
    if norm == "rms":
        z = z / np.sqrt((z**2).mean(2, keepdims=True))
    return z


def oracle_weights(rng, spec, fan_in, runs):
    shape, gain = (runs, spec.width, fan_in), spec.effective_gain
    if spec.weights == "uniform":
        return rng.uniform(-1, 1, shape) * gain * math.sqrt(3 / fan_in)
    if spec.weights == "xavier_normal":
        return rng.standard_normal(shape) * gain * math.sqrt(2 / (fan_in + spec.width))
    if spec.weights == "gaussian":
        return rng.standard_normal(shape) * gain / math.sqrt(fan_in)
    size = max(fan_in, spec.width)
    q, r = np.linalg.qr(rng.standard_normal((runs, size, size)))
    q = q * np.sign(np.einsum("rii->ri", r))[:, None, :]
    return gain * q[:, : spec.width, :fan_in]


def gap(h):
    g = h @ h.transpose(0, 2, 1)
    g = g / np.einsum("rii->r", g)[:, None, None]
    return np.linalg.norm(g - np.eye(h.shape[1]) / h.shape[1], axis=(1, 2))


def oracle(spec, x, runs, seed=11, statistic=None):
    """A statistic (the gap) of explicit d x d weights at the layers, runs of them."""
    rng, h = np.random.default_rng(seed), np.broadcast_to(x, (runs, *x.shape))
    phi, out = PHI[spec.activation], {}
    for layer in range(1, spec.depth + 1):
        w = oracle_weights(rng, spec, h.shape[2], runs)
        u = h @ w.transpose(0, 2, 1)
        if spec.bias:
            u = u + spec.bias * rng.standard_normal((runs, 1, spec.width))
        if spec.skip is not None and h.shape[2] == spec.width:
            u = h + spec.skip * u
        h = phi(oracle_norm(u, spec.norm)) if spec.norm_first else oracle_norm(phi(u), spec.norm)
        if layer in LAYERS:
            out[layer] = (statistic or gap)(h)
    return out


def by_layer(profile, metric="orthogonality_gap"):
    found = {}
    for r in profile.records:
        if r.metric == metric:
            found.setdefault(r.layer, []).append(r.value)
    return {layer: np.array(v) for layer, v in found.items()}


def assert_same_law(mine, theirs, level=1e-3):
    for layer in LAYERS:
        a, b = mine[layer], theirs[layer]
        error = math.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) < 4 * error + 1e-12, f"means differ at layer {layer}"
        p = stats.ks_2samp(a, b).pvalue
        print(f"layer {layer}: {a.mean():.4f} and {b.mean():.4f}, s.e. {error:.4f}, KS p = {p:.3f}")  # pytest -rP
        assert p > level, f"laws differ at layer {layer}: p = {p:.1e}"


def id_of(spec):
    return str(spec).removeprefix("mlp:depth=10,")


@pytest.mark.parametrize("spec", SPECS, ids=id_of)
def test_same_law_as_explicit_weights(spec):
    x = inputs(spec.width)
    runs = 200 if spec.weights == "uniform" else RUNS
    profile = simulate(spec, inputs=x, seeds=runs, metrics=["orthogonality_gap", "mean_abs_cosine"])
    assert_same_law(by_layer(profile), oracle(spec, x, runs))


def test_the_law_test_can_fail():
    x = inputs()
    profile = simulate(SPECS[0], inputs=x, seeds=RUNS, metrics=["orthogonality_gap"])
    with pytest.raises(AssertionError, match="differ"):
        assert_same_law(by_layer(profile), oracle(SPECS[1], x, RUNS))


@pytest.mark.parametrize("normals", ["float64", "float32"])
def test_spectral_route_and_float32_have_the_same_law(normals):
    x = inputs()
    for spec in SPECS[:2]:  # spectral metrics only: rotated coordinates
        profile = simulate(spec, inputs=x, seeds=RUNS, metrics=["orthogonality_gap"], normals=normals)
        assert "spectrum" in profile.facts["shortcut"]
        assert_same_law(by_layer(profile), oracle(spec, x, RUNS))


@pytest.mark.parametrize("features", [7, 45])
def test_inputs_of_another_width(features):
    x = inputs(features)
    for spec in (SPECS[2], SPECS[13], SPECS[14]):
        profile = simulate(spec, inputs=x, seeds=RUNS, metrics=["orthogonality_gap", "mean_abs_cosine"])
        assert_same_law(by_layer(profile), oracle(spec, x, RUNS))


def test_more_samples_than_features():
    spec, x = Spec(depth=10, width=6, norm="batch", activation="relu"), inputs(6, n=9)
    assert_same_law(by_layer(simulate(spec, inputs=x, seeds=RUNS)), oracle(spec, x, RUNS))


def test_a_gram_says_as_much_as_its_inputs():
    x = inputs()
    spec = SPECS[2]
    profile = simulate(spec, x @ x.T / D, seeds=RUNS, metrics=["orthogonality_gap"])
    assert_same_law(by_layer(profile), oracle(spec, x, RUNS))


def test_streamed_rows_have_the_same_law(monkeypatch):
    from normscope.theory import _chain

    monkeypatch.setattr(_chain, "_HELD", 0)
    monkeypatch.setattr(_chain, "_CHUNK", 1)
    x, spec = inputs(100), Spec(depth=10, width=100, norm="batch", activation="relu")
    profile = simulate(spec, inputs=x, seeds=300, metrics=["orthogonality_gap", "mean_abs_cosine"])
    assert_same_law(by_layer(profile), oracle(spec, x, 300))


def test_metrics_are_the_registered_ones():
    x = inputs(30)
    spec = Spec(depth=3, width=30, norm="none", activation="relu")
    names = [m.name for m in METRICS.values() if m.signal == "activation"]
    profile = simulate(spec, inputs=x, seeds=1, metrics=names)
    start = {r.metric: r.value for r in profile.records if r.layer == 0}
    for name in names:
        expected = METRICS[name](Statistic.of(torch.from_numpy(x), exact=True))
        if name not in ("dead_units", "saturated_units", "token_cosine"):
            assert start[name] == pytest.approx(expected, rel=1e-9, nan_ok=True), name


def test_seeds_do_not_depend_on_each_other():
    spec, x = SPECS[2], inputs()
    many = simulate(spec, inputs=x, seeds=[5, 3, 9])
    for seed in (3, 5):
        alone = {(r.layer, r.metric): r.value for r in simulate(spec, inputs=x, seeds=[seed]).records}
        shared = {(r.layer, r.metric): r.value for r in many.records if r.seed == seed}
        assert shared == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_stream_does_not_depend_on_how_it_is_cut(dtype):
    cuts = [(16,), (3, 16), (32, 48), (5, 16), (1000, 32), (7, 16)]
    stream = normal_stream([4, 9], 0, dtype)[0]
    pieces = np.concatenate([stream.take(*c).reshape(2, -1).copy() for c in cuts], 1)
    whole = normal_stream([4, 9], 0, dtype)[0].take(pieces.shape[1])
    assert np.array_equal(pieces, whole)
    assert np.array_equal(whole[1], normal_stream([9], 0, dtype)[0].take(pieces.shape[1])[0])


def test_generator_and_seed_choose_the_numbers():
    spec, x = SPECS[2], inputs()
    runs = [
        simulate(spec, inputs=x, seeds=1, metrics=["orthogonality_gap"], **kw).records
        for kw in ({"seed": 1}, {"seed": 1}, {"seed": 2}, {"generator": torch.Generator().manual_seed(4)})
    ]
    assert runs[0] == runs[1]
    assert len({r[-1].value for r in runs}) == 3


@pytest.mark.parametrize("spec", [SPECS[2], SPECS[7], SPECS[13], SPECS[14]], ids=id_of)
@pytest.mark.parametrize("normals", ["float64", "float32"])
def test_resumed_chains_continue_where_they_stopped(spec, normals, tmp_path):
    import dataclasses

    x, file = inputs(), tmp_path / "chain.npz"
    whole = simulate(spec, inputs=x, seeds=3, normals=normals)
    simulate(dataclasses.replace(spec, depth=4), inputs=x, seeds=3, normals=normals, checkpoint=file)
    resumed = simulate(spec, inputs=x, seeds=3, normals=normals, checkpoint=file)
    key = lambda p: {(r.layer, r.seed, r.metric): r.value for r in p.records}  # noqa: E731
    assert key(resumed) == pytest.approx(key(whole), rel=1e-7, nan_ok=True)
    with pytest.raises(UsageError, match="another simulation"):
        simulate(spec, inputs=x + 1, seeds=3, normals=normals, checkpoint=file)


def test_small_directions_survive():
    x = np.zeros((4, 512))
    x[:, :4] = np.diag([1, 1e-6, 1e-6, 1e-6])
    profile = simulate(
        Spec(depth=50, width=512, norm="batch_rescale", activation="identity"), inputs=x, seeds=40,
        metrics=["orthogonality_gap", "mean_cosine"],
    )  # fmt: skip
    mean_log = {layer: np.log(v).mean() for layer, v in by_layer(profile).items()}
    published = {1: -0.144, 3: -0.153, 5: -0.433, 6: -0.713, 8: -1.261, 11: -2.066, 16: -2.936}
    spread = {layer: np.log(v).std() / math.sqrt(40) for layer, v in by_layer(profile).items()}
    for layer, value in published.items():
        assert abs(mean_log[layer] - value) < 5 * spread[layer] + 0.005
    assert not profile.facts["rank_lost"]


@pytest.mark.parametrize("norm", ["batch_rescale", "none", "batch"])
@pytest.mark.parametrize("normals", ["float64", "float32"])
def test_nearly_parallel_samples_keep_their_small_directions(norm, normals):
    x = np.ones((N, D)) + 1e-7 * inputs()  # the Gram knows nothing below 1e-8 of the largest singular value
    spec = Spec(depth=10, width=D, norm=norm, activation="relu" if norm == "batch" else "identity")
    profile = simulate(spec, inputs=x, seeds=RUNS, metrics=["sigma_min", "rms"], normals=normals)
    smallest, size = by_layer(profile, "sigma_min"), by_layer(profile, "rms")
    mine = {layer: np.log(smallest[layer] / size[layer] / math.sqrt(N * D)) for layer in LAYERS}

    def share(h):
        return np.log(np.linalg.svd(h, compute_uv=False)[:, -1] / np.sqrt((h**2).sum((1, 2))))

    assert_same_law(mine, oracle(spec, x, RUNS, statistic=share))


def test_lost_rank_is_data():
    spec = Spec(depth=400, width=32, norm="batch_rescale", activation="identity")
    profile = simulate(spec, inputs=inputs(32, n=32), seeds=1, every=50, metrics=["sigma_min", "mean_abs_cosine"])
    assert all(math.isfinite(r.value) for r in profile.records)
    assert 0 < profile.facts["rank_lost"][0] < 400
    assert "rank lost at layer" in profile.facts["notes"][0]
    same = np.ones((3, 8))
    profile = simulate(Spec(depth=5, width=8, norm="batch_rescale", activation="relu"), inputs=same, seeds=1)
    assert profile.series("numerical_rank")[5] == 1


def test_equal_samples_under_recentring_are_a_dead_batch_not_nan():
    profile = simulate(Spec(depth=3, width=8, norm="batch"), inputs=np.ones((3, 8)), seeds=1, metrics=["rms"])
    assert profile.series("rms")[3] == pytest.approx(0, abs=1e-6)


def test_plain_chains_neither_overflow_nor_underflow():
    spec = Spec(depth=3000, width=10, norm="none", activation="leaky_relu(0.2)", gain=4.0)
    profile = simulate(spec, inputs=inputs(10), seeds=2, every=500, metrics=["orthogonality_gap", "rms"])
    assert np.isfinite(list(profile.series("orthogonality_gap").values())).all()
    assert math.isinf(profile.series("rms")[3000])


def test_a_net_that_died_says_so():
    profile = simulate(Spec(depth=400, width=4, norm="none", activation="relu"), inputs=inputs(4), seeds=1, every=100)
    assert profile.series("sigma_min")[400] == 0
    assert profile.facts["rank_lost"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one start"),
        ({"gram": np.ones((2, 3, 3))[0][:1]}, "at least 2 samples"),
        ({"gram": -np.eye(3)}, "positive semi-definite"),
        ({"gram": np.triu(np.ones((3, 3)))}, "symmetric"),
        ({"gram": np.zeros((3, 3))}, "zero"),
        ({"gram": np.full((3, 3), np.nan)}, "finite"),
        ({"inputs": np.ones(3)}, "shape"),
        ({"inputs": np.eye(3), "every": 0}, "every"),
        ({"inputs": np.eye(3), "seeds": []}, "seeds"),
        ({"inputs": np.eye(3), "seeds": 0}, "seeds"),
        ({"inputs": np.eye(3), "normals": "float16"}, "float32"),
        ({"inputs": np.eye(3), "metrics": ["orthogonality"]}, "Did you mean"),
        ({"inputs": np.eye(3), "eps": -1.0}, "eps"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        simulate(Spec(depth=2, width=8, norm="batch"), **arguments)


def test_other_families_are_refused():
    with pytest.raises(UsageError, match="mlp"):
        simulate(Spec(depth=2, width=8, family="vgg"), np.eye(3))


def test_progress_reaches_the_end():
    seen = []
    simulate(SPECS[2], inputs=inputs(), seeds=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (10, 10)


@pytest.mark.parametrize(("norm", "start"), [("batch", inputs(n=5)), ("none", inputs(n=5, features=7))])
def test_simulated_grams_are_those_whose_metrics_simulate_gives(norm, start):
    spec = Spec(depth=6, width=D, norm=norm, activation="tanh", gain=1.3)
    grams = np.stack(list(simulated_grams(spec, inputs=start, seeds=3, seed=8)))
    assert grams.shape == (7, 3, 5, 5)
    found = simulate(spec, inputs=start, seeds=3, seed=8, metrics=["participation_rank", "rms"])
    rank = np.square(np.einsum("lrii->lr", grams)) / np.square(grams).sum((-2, -1))
    size = np.sqrt(np.einsum("lrii->lr", grams) / 5)
    for record in found.records:
        mine = {"participation_rank": rank, "rms": size}[record.metric][record.layer, record.seed]
        assert mine == pytest.approx(record.value, rel=1e-9)


def test_simulated_grams_keep_the_scale_that_linear_chains_without_norm_have():
    spec = Spec(depth=30, width=D, norm="none", activation="identity", gain=2.0)
    mean = np.array([np.log(np.einsum("rii->r", g)).mean() for g in simulated_grams(spec, np.eye(N), seeds=50, seed=1)])
    growth = np.diff(mean)[5:]  # of log tr G; a top Lyapunov exponent 2 log 2 + E log chi^2_d / d
    assert growth.mean() == pytest.approx(math.log(4) + special.digamma(D / 2) + math.log(2 / D), abs=0.06)


def test_one_layer_of_gaussian_weights_turns_orthogonal_samples_by_its_width():
    """From the Gram I: E G_ii = 1, and E G_ij^2 = 1 / D, which no common scale gives."""
    grams = list(simulated_grams(Spec(depth=1, width=D, norm="none", activation="identity"), np.eye(N), seeds=3000))[1]
    off = grams[:, ~np.eye(N, dtype=bool)]
    assert np.einsum("rii->r", grams).mean() == pytest.approx(N, rel=0.02)
    assert np.square(off).mean() * D == pytest.approx(1, rel=0.08)


def test_square_orthogonal_weights_leave_the_gram_as_it_is():
    spec = Spec(depth=3, width=D, norm="none", activation="identity", weights="orthogonal")
    first, *others = simulated_grams(spec, inputs(), seeds=2)
    for gram in others:
        np.testing.assert_allclose(gram, first, rtol=1e-9)


@pytest.mark.parametrize("norm", ["batch", "batch_rescale"])
def test_behind_batch_norm_a_linear_chain_has_mean_square_one(norm):
    spec = Spec(depth=3, width=D, norm=norm, activation="identity")
    found = by_layer(simulate(spec, inputs=inputs(), seeds=2, metrics=["rms"]), "rms")
    assert [found[layer] for layer in (1, 2, 3)] == [pytest.approx([1, 1], abs=1e-9)] * 3


def test_simulated_grams_refuse_a_bad_start_before_the_first_layer():
    with pytest.raises(UsageError, match="at least 2 samples"):
        simulated_grams(Spec(depth=2, width=4, norm="batch"), inputs=np.ones((1, 4)))
