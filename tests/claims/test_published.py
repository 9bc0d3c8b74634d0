"""Numbers published on these chains, or measured for this project's specification, within their stated tolerances.

Papers: daneshmand2021 (orthogonality), daneshmand2020 (rank), nachum2024 (cluster + odd point). Bounds are the
specification's, or k standard errors of the run.
"""

import math

import numpy as np
import pytest
from scipy.special import digamma, polygamma

from normscope import Spec
from normscope.nn.norms.integrals import batch_norm_gram
from normscope.theory._chain import Group
from normscope.theory._start import read_start
from normscope.theory.laws import odd_point, orthogonality
from normscope.theory.simulated import simulate

LINEAR = {"norm": "batch_rescale", "activation": "identity"}
RNG = np.random.default_rng(2021)


def values(profile, metric, first=0, last=10**9):
    """(layers, seeds)."""
    found = {}
    for r in profile.records:
        if r.metric == metric and first <= r.layer <= last:
            found.setdefault(r.layer, []).append(r.value)
    return np.array([found[layer] for layer in sorted(found)])


def grams(spec, x, seeds, **kw):
    """Normalised Grams (runs, n, n) after every layer."""
    group = Group(spec, read_start(inputs=x), range(seeds), **kw)
    for _ in range(spec.depth):
        group.step()
        yield group.gram / np.einsum("rii->r", group.gram)[:, None, None]


def padded(diagonal, d):
    x = np.zeros((len(diagonal), d))
    x[:, : len(diagonal)] = np.diag(diagonal)
    return x


def gap(g):
    return np.linalg.norm(g - np.eye(g.shape[-1]) / g.shape[-1], axis=(-2, -1))


class TestOrthogonality:
    def test_figure_1_plateau_of_the_cosine(self):
        x = np.zeros((2, 32))
        x[0, 0], x[1, :2] = 1, (1 - 1e-3, 1e-3)
        profile = simulate(Spec(depth=50, width=32, **LINEAR), inputs=x, seeds=200, metrics=["mean_abs_cosine"])
        cosine = values(profile, "mean_abs_cosine")
        assert cosine[21:].mean() == pytest.approx(0.117, abs=0.006)  # 4 sd of 200 runs
        assert cosine[[1, 4, 6, 9]].mean(1) == pytest.approx(
            [0.999, 0.702, 0.275, 0.123], abs=0.08
        )  # figure's layer - 1

    def test_figure_1_vanilla_follows_the_exact_law(self):
        spec = Spec(depth=49, width=32, norm="none", activation="identity")
        profile = simulate(spec, inputs=padded([1, 1], 32), seeds=2000, metrics=["mean_abs_cosine"], every=49)
        cosine = values(profile, "mean_abs_cosine", 49)[0]
        log = np.log1p(-(cosine**2))
        assert "Bartlett" in profile.facts["shortcut"]
        assert abs(log.mean() - orthogonality.vanilla_log_sine(32, 49)) < 4 * log.std() / math.sqrt(2000)
        assert cosine.mean() == pytest.approx(0.718, abs=0.03)

    @pytest.mark.parametrize(("d", "plateau", "tolerance"), [(32, -1.62, 0.08), (512, -3.02, 0.06)])
    def test_figure_2a_plateau(self, d, plateau, tolerance):
        profile = simulate(
            Spec(depth=50, width=d, **LINEAR), inputs=padded([1, 1e-6, 1e-6, 1e-6], d), seeds=20,
            metrics=["orthogonality_gap", "mean_cosine"],
        )  # fmt: skip
        logs = np.log(values(profile, "orthogonality_gap", 1)).mean(1)
        assert logs[25:].mean() == pytest.approx(plateau, abs=tolerance)
        if d == 512:
            assert np.polyfit(np.arange(5, 13), logs[5:13], 1)[0] == pytest.approx(-0.27, abs=0.03)

    def test_figure_2b_slope_with_and_without_the_transient(self):
        widths, with_transient, stationary = [16, 32, 64, 128, 256, 512], [], []
        for d in widths:
            profile = simulate(
                Spec(depth=500, width=d, **LINEAR), inputs=padded([1, 1e-6, 1e-6, 1e-6], d), seeds=20, seed=d,
                metrics=["orthogonality_gap"],
            )  # fmt: skip
            v = values(profile, "orthogonality_gap", 1)
            with_transient.append(v.mean())
            stationary.append(v[60:].mean())
        slope = lambda v: np.polyfit(np.log(widths), np.log(v), 1)[0]  # noqa: E731
        assert slope(with_transient) == pytest.approx(-0.469, abs=0.02)
        assert slope(stationary) == pytest.approx(-0.51, abs=0.02)
        assert stationary == pytest.approx([0.2939, 0.2037, 0.1424, 0.0997, 0.0708, 0.0500], rel=0.03)

    @pytest.mark.parametrize(
        ("n", "d", "measured"),
        [(2, 64, 0.0913), (4, 64, 0.1424), (8, 256, 0.0976), (16, 256, 0.1338), (32, 1024, 0.0919)],
    )
    def test_stationary_gap(self, n, d, measured):
        seeds = 16 if n < 32 else 4
        profile = simulate(
            Spec(depth=160, width=d, **LINEAR), np.eye(n), seeds=seeds, metrics=["orthogonality_gap"], seed=3
        )
        mean = values(profile, "orthogonality_gap", 60).mean()
        assert mean == pytest.approx(measured, rel=0.03)
        assert mean == pytest.approx(orthogonality.stationary_gap(n, d), rel=0.05)

    def test_mean_gram_and_gaussian_distance(self):
        widths, distance = [64, 256, 1024], []
        for d in widths:
            kept = np.concatenate(list(grams(Spec(depth=150, width=d, **LINEAR), np.eye(4), 40))[50:])
            if d == 64:
                assert np.abs(kept.mean(0) - np.eye(4) / 4).max() < 0.004
            sigma = np.sqrt(np.linalg.eigvalsh(kept).clip(0))
            distance.append(np.square(sigma - 0.5).sum(-1).mean())
            assert distance[-1] <= 4 * np.square(gap(kept)).mean()
        assert np.polyfit(np.log(widths), np.log(distance), 1)[0] == pytest.approx(-1, abs=0.05)
        assert distance[-1] <= orthogonality.stationary_wasserstein(4, 1024) ** 2 * 1.1

    def test_rank_is_kept_up_to_one_and_a_half_root_d(self):
        smallest = {}
        for n in (12, 16):
            profile = simulate(
                Spec(depth=600, width=64, **LINEAR), np.eye(n), seeds=8, every=600, metrics=["sigma_min", "mean_cosine"]
            )
            smallest[n] = np.log10(values(profile, "sigma_min", 600) ** 2 / 64).mean()
        assert smallest[12] > -2.5
        assert smallest[16] < -8

    def test_centred_batch_norm_is_uncentred_on_one_sample_less(self):
        profile = simulate(
            Spec(depth=200, width=100, norm="batch", activation="identity"), inputs=RNG.standard_normal((8, 100)),
            seeds=20, metrics=["orthogonality_gap"],
        )  # fmt: skip
        assert values(profile, "orthogonality_gap", 60).mean() == pytest.approx(0.1995, rel=0.02)

    @pytest.mark.parametrize(
        ("activation", "recenter", "plateau"),
        [("relu", True, 0.191), ("relu", False, 0.339), ("tanh", True, 0.207), ("tanh", False, 0.165)],
    )
    def test_figure_5_plateau_behind_the_norm(self, activation, recenter, plateau):
        # The gap is that of the normalised pre-activations: one linear layer after the chain of activations.
        norm = "batch" if recenter else "batch_rescale"
        x, found = RNG.standard_normal((8, 100)), []
        group = Group(Spec(depth=60, width=100, norm=norm, activation=activation), read_start(inputs=x), range(40))
        for layer in range(60):
            group.step()
            if layer >= 30 and layer % 6 == 0:
                for factor in group.factor:
                    one = read_start(factor.T @ factor)
                    last = Group(Spec(depth=1, width=100, norm=norm, activation="identity"), one, [layer])
                    last.step()
                    found.append(gap(last.gram / np.trace(last.gram[0]))[0])
        assert np.mean(found) == pytest.approx(plateau, abs=0.006)

    def test_vanilla_relu_at_width_100(self):
        rho = 0.647 / math.sqrt(7 / 8)
        profile = simulate(
            Spec(depth=30, width=100, norm="none"),
            (1 - rho) * np.eye(8) + rho,
            seeds=100,
            metrics=["orthogonality_gap"],
        )
        found = values(profile, "orthogonality_gap")[[1, 5, 10, 20, 30]].mean(1)
        assert found == pytest.approx([0.698, 0.808, 0.862, 0.901, 0.917], abs=0.02)

    @pytest.mark.parametrize(("n", "d", "plateau"), [(4, 32, 0.113), (8, 64, 0.084)])
    def test_haar_weights_lower_the_floor(self, n, d, plateau):
        profile = simulate(
            Spec(depth=200, width=d, weights="orthogonal", **LINEAR),
            np.eye(n) + 0.1,
            seeds=20,
            metrics=["orthogonality_gap"],
        )
        assert values(profile, "orthogonality_gap", 60).mean() == pytest.approx(plateau, rel=0.05)


class TestRank:
    def test_vanilla_collapses_within_a_few_widths(self):
        d = 32
        profile = simulate(
            Spec(depth=5 * d, width=d, norm="none", activation="identity"), inputs=RNG.standard_normal((d, d)),
            seeds=64,
            metrics=["participation_rank"],
        )  # fmt: skip
        r = values(profile, "participation_rank")
        assert np.median(r[-1]) <= 1.02
        first = np.where((r < 1.01).any(0), np.argmax(r < 1.01, axis=0), np.inf)  # passage of each chain
        assert 2.5 * d <= np.median(first) <= 4.5 * d

    # d, gamma = infinity: r, soft rank.
    @pytest.mark.parametrize(
        ("d", "r", "soft"), [(4, 1.524, 1.74), (8, 2.25, 2.79), (16, 3.31, 4.48), (32, 4.837, 7.03)]
    )
    def test_time_average_of_the_rank(self, d, r, soft):
        profile = simulate(
            Spec(depth=2500, width=d, **LINEAR), inputs=np.eye(d), seeds=32, every=10,
            metrics=["participation_rank", "soft_rank"],
        )  # fmt: skip
        mean = values(profile, "participation_rank", 1000).mean()
        assert mean == pytest.approx(r, rel=0.03)
        assert 0.74 <= mean / math.sqrt(d) <= 0.97
        assert values(profile, "soft_rank", 1000).mean() == pytest.approx(soft, rel=0.03)

    @pytest.mark.parametrize(("d", "r"), [(8, 2.531), (16, 3.596)])
    def test_small_skip_strength(self, d, r):
        # The paper's weights have unit variance: gamma W = (gamma sqrt(d)) W / sqrt(d).
        profile = simulate(
            Spec(depth=4000, width=d, skip=0.1 * math.sqrt(d), **LINEAR), inputs=math.sqrt(d) * np.eye(d), seeds=32,
            every=20, metrics=["participation_rank"],
        )  # fmt: skip
        assert values(profile, "participation_rank", 1500).mean() == pytest.approx(r, rel=0.03)

    def test_figure_3b_repairs_a_collinear_input(self):
        d, top, first = 50, [], []
        for seed in range(20):
            x = np.ones((d, d)) + 1e-5 * np.random.default_rng(seed).standard_normal((d, d))
            spec = Spec(depth=100, width=d, skip=math.sqrt(d), **LINEAR)
            spectra = [np.linalg.eigvalsh(g[0])[::-1] * d for g in grams(spec, x, 1, entropy=seed)]
            top.append(spectra[-1])
            first.append(next(i for i, s in enumerate(spectra, 1) if s[1] > 1))
        median = np.median(top, 0)
        assert 10 <= median[0] <= 16
        assert 0.03 <= median[9] <= 1.2
        assert max(first) <= 12

    def test_start_does_not_matter(self):
        means = []
        for x in (RNG.standard_normal((32, 32)), np.eye(32), np.ones((32, 32)) + 1e-5 * RNG.standard_normal((32, 32))):
            profile = simulate(
                Spec(depth=1500, width=32, **LINEAR), inputs=x, seeds=32, every=10, metrics=["participation_rank"]
            )
            per_chain = values(profile, "participation_rank", 700).mean(0)
            means.append((per_chain.mean(), per_chain.std(ddof=1) / math.sqrt(32)))
        for mean, error in means:
            assert abs(mean - 4.86) < max(3 * error + 3 * 0.012, 0.05)

    def test_few_samples_keep_their_rank(self):
        for n, r in [(2, 1.960), (4, 3.697), (8, 6.093)]:
            profile = simulate(
                Spec(depth=600, width=64, **LINEAR), inputs=RNG.standard_normal((n, 64)), seeds=32, every=5,
                metrics=["participation_rank"],
            )  # fmt: skip
            assert values(profile, "participation_rank", 200).mean() == pytest.approx(r, rel=0.02)

    @pytest.mark.parametrize(("d", "plain", "centred"), [(16, 2.11, 4.04), (32, 2.67, 5.30), (64, 3.05, 6.34)])
    def test_relu_dichotomy(self, d, plain, centred):
        x = RNG.standard_normal((d, d))
        for norm, r in (("batch_rescale", plain), ("batch", centred)):
            profile = simulate(
                Spec(depth=400, width=d, norm=norm), inputs=x, seeds=8, every=10,
                metrics=["participation_rank", "mean_cosine"],
            )  # fmt: skip
            assert values(profile, "participation_rank", 200).mean() == pytest.approx(r, rel=0.08)
        vanilla = simulate(Spec(depth=50, width=d, norm="none"), inputs=x, seeds=21, metrics=["participation_rank"])
        assert np.median(values(vanilla, "participation_rank", 50)) <= 1.05

    def test_float64_rank_after_a_thousand_layers(self):
        names = ["numerical_rank", "mean_cosine"]
        x = RNG.standard_normal((32, 32))
        linear = simulate(
            Spec(depth=3000, width=32, norm="batch", activation="identity"), inputs=x, seeds=1, every=500, metrics=names
        )
        assert set(values(linear, "numerical_rank", 2000).ravel()) <= set(range(8, 13))
        tanh = simulate(
            Spec(depth=1500, width=32, norm="batch", activation="tanh"), inputs=x, seeds=1, every=500, metrics=names
        )
        assert (values(tanh, "numerical_rank", 1000) == 32).all()

    def test_weight_law_hardly_matters(self):
        means = [
            values(
                simulate(
                    Spec(depth=500, width=16, weights=law, **LINEAR), inputs=np.eye(16), seeds=16, every=5,
                    metrics=["participation_rank"],
                ),
                "participation_rank", 150,
            ).mean()
            for law in ("gaussian", "uniform")
        ]  # fmt: skip
        assert means[0] == pytest.approx(means[1], rel=0.05)


class TestClusterAndOddPoint:
    N = 16

    def run(self, norm, depth, n=16, d=300, seeds=10, metrics=("odd_point_score",), **kw):
        x = np.random.default_rng(8).standard_normal((n, d))
        spec = Spec(depth=depth, width=d, norm=norm, **kw)
        return simulate(spec, inputs=x, seeds=seeds, every=10, metrics=list(metrics))

    def test_recentring_and_relu_give_one_odd_point(self):
        profile = self.run("batch_recenter", 300, metrics=("odd_point_score", "odd_point_coherence", "odd_point_index"))
        share = values(profile, "odd_point_score", 300)[0]
        assert (share > 0.8).sum() >= 9
        assert 0.975 <= np.median(share) <= 0.997
        assert np.median(values(profile, "odd_point_coherence", 300)) >= 0.75
        index, score = values(profile, "odd_point_index"), values(profile, "odd_point_score")
        for seed in range(10):
            settled = index[score[:, seed] > 0.9, seed]
            assert len(set(settled)) <= 1  # it never switches

    def test_complete_batch_norm_gives_the_equiangular_state(self):
        profile = self.run("batch", 150, seeds=5, metrics=("odd_point_score", "mean_cosine"))
        assert values(profile, "odd_point_score", 150).max() < 0.25
        assert values(profile, "mean_cosine", 150).mean() == pytest.approx(0.28568, abs=0.015)

    def test_rescaling_alone(self):
        profile = self.run("batch_rescale", 100, seeds=5, metrics=("odd_point_score", "mean_cosine"))
        assert values(profile, "odd_point_score", 100).max() < 0.25
        assert values(profile, "mean_cosine", 100).mean() == pytest.approx(0.5084, abs=0.03)

    def test_no_norm_gives_one_ray(self):
        profile = self.run("none", 300, seeds=4, metrics=("mean_cosine",))
        assert values(profile, "mean_cosine", 300).min() > 0.98

    @pytest.mark.parametrize("n", [4, 5, 6])
    def test_no_odd_point_below_seven_samples(self, n):
        profile = self.run("batch_recenter", 300, n=n, d=1000, seeds=6)
        assert values(profile, "odd_point_score", 300).max() < 0.55

    def test_twelve_samples(self):
        profile = self.run("batch_recenter", 300, n=12, d=1000, seeds=6)
        assert 0.96 <= np.median(values(profile, "odd_point_score", 300)) <= 0.99

    def test_odd_activations_have_no_odd_point(self):
        profile = self.run("batch_recenter", 150, activation="tanh", gain=1.5, seeds=5)
        assert values(profile, "odd_point_score", 150).max() < 0.6

    @pytest.mark.parametrize("slope", [0.1, 0.5])
    def test_angle_of_a_planted_odd_point_under_leaky_relu(self, slope):
        n, d = 32, 500
        x = np.zeros((n, d))
        x[0, 0], x[1:, 1] = n - 1, 1.0
        x[1:] += 0.02 * RNG.standard_normal((n - 1, d)) / math.sqrt(d)
        found = []
        for i, g in enumerate(
            grams(Spec(depth=120, width=d, norm="batch_recenter", activation=f"leaky_relu({slope})"), x, 3)
        ):
            if i >= 60:
                odd = np.einsum("rii->ri", g).argmax(-1)
                for m, o in zip(g, odd, strict=True):
                    rest = np.arange(n) != o
                    found.append(m[o, rest].mean() / math.sqrt(m[o, o] * m[rest][:, rest].mean()))
        assert np.mean(found) == pytest.approx(odd_point.perfect_odd(n, slope)["cosine"], abs=0.01)

    def test_heavy_samples_appear_in_large_batches(self):
        ratio = {}
        for n in (32, 128):
            x = RNG.standard_normal((n, 400))
            kept = []
            for i, g in enumerate(grams(Spec(depth=200, width=400, norm="batch"), x, 1)):
                if i > 150 and i % 10 == 0:
                    centred = g[0] - g[0].mean(0) - g[0].mean(1)[:, None] + g[0].mean()
                    kept.append(np.diag(centred).max() / np.median(np.diag(centred)))
            ratio[n] = np.median(kept)
        assert ratio[32] < 3
        assert ratio[128] > 6

    @pytest.mark.parametrize(("rank", "after"), [(1, 2), (2, 16)])
    def test_one_relu_layer_raises_the_rank(self, rank, after):
        x = RNG.standard_normal((16, rank)) @ RNG.standard_normal((rank, 300))
        spec = Spec(depth=1, width=1000, norm="none")
        group = Group(spec, read_start(inputs=x), [0])
        group.step()
        sigma = np.linalg.svd(group.factor[0], compute_uv=False)
        assert (sigma > 1e-9 * sigma[0]).sum() == after

    @pytest.mark.parametrize("n", [4, 8, 12])
    def test_equiangular_rates_by_finite_differences(self, n):
        p = np.eye(n) - 1 / n
        t = p / np.trace(p)

        def step(s):
            out = p @ batch_norm_gram(s, 0.0) @ p
            return out / np.trace(out)

        norms = np.diag(np.eye(n)[0] - np.eye(n)[1])
        norms = p @ norms @ p
        angles = np.zeros((n, n))
        angles[0, 2] = angles[1, 3] = 1  # rows sum to zero
        angles[0, 3] = angles[1, 2] = -1
        angles = angles + angles.T
        rates = []
        for mode in (norms, angles):
            e = 1e-4 * mode / np.linalg.norm(mode) * np.linalg.norm(t)
            change = (step(t + e) - step(t - e)) / 2
            rates.append(np.sum(change * e) / np.sum(e * e))
        assert rates == pytest.approx(odd_point.equiangular_rates(n), abs=1e-5)


def test_a_vanilla_chain_that_lost_directions_keeps_the_law_of_the_others():
    # One direction left: its squared length is multiplied by chi^2_d / d each layer.
    d, depth, seeds = 8, 900, 200
    spec = Spec(depth=depth, width=d, norm="none", activation="identity")
    profile = simulate(spec, inputs=padded([1, 1e-6, 1e-6, 1e-6], d), seeds=seeds, metrics=["rms"], every=300)
    assert profile.facts["rank_lost"]
    growth = np.log(values(profile, "rms", depth)[0] / values(profile, "rms", 300)[0])
    expected = 600 * 0.5 * (digamma(d / 2) + math.log(2 / d))
    assert abs(growth.mean() - expected) < 4 * growth.std(ddof=1) / math.sqrt(seeds)
    assert growth.var(ddof=1) == pytest.approx(600 * polygamma(1, d / 2) / 4, rel=5 * math.sqrt(2 / seeds))
