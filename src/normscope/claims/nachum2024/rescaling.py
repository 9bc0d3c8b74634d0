"""What rescaling adds: equal angles, the instability of the odd state, heavy samples, rates, gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.stats import ks_2samp

from normscope.claims._chains import gaussian
from normscope.claims._tables import highest, mean_and_error, series
from normscope.claims.claim import Run
from normscope.claims.nachum2024._paper import (
    PAPER,
    activation_of,
    centred,
    cosines,
    follow,
    kernel,
    odd_state,
    representations,  # fmt: skip
    variance_ratio,
)
from normscope.claims.reading import Reading, at_least, at_most, near
from normscope.core.spec import Spec
from normscope.geometry.metrics import measure
from normscope.theory import predict, predicted_grams, simulate
from normscope.theory.laws import odd_point


@PAPER.claim(
    "rescaling-destabilises", "Rescaling turns a blur eps of the perfect odd state into its square root.",
    where="odd_point.md 3.6", covers="D21 3.6.root", quick={"sizes": (16,)}, full={"sizes": (8, 16, 64)},
    control={"rescaled": "batch_recenter", "plain": "batch"},
    because="without rescaling a blur grows linearly, with it not", seconds=(0.1, 0.2),
)  # fmt: skip
def rescaling_destabilises(
    run: Run, sizes: Sequence[int], rescaled: str = "batch", plain: str = "batch_recenter"
) -> Iterator[Reading]:
    """Local exponent of (t/t0 - 1) after one layer against before it, from 1e-8 to 1e-4, by the Gram recursion: 1/2
    with rescaling (neurons that hardly see the contrast divide by almost nothing), 1 without.
    """
    for n in sizes:
        for norm, expected in ((rescaled, 0.5), (plain, 1.0)):
            t0, after = 1 / (n - 1) ** 2, []
            for e in (1e-8, 1e-6, 1e-4):
                g = predicted_grams(Spec(depth=1, width=8, norm=norm), odd_state(n, t0 * (1 + e)))[1]
                after.append(variance_ratio(g) / t0 - 1)
            exponent = math.log(after[2] / after[0]) / math.log(1e4)
            name = "with rescaling" if expected == 0.5 else "without"
            yield near(f"exponent {name}, n = {n}", exponent, expected, 0.02, reason="tolerance set beforehand")


@PAPER.claim(
    "odd-dissolves", "Complete batch norm dissolves a planted odd point within a hundred layers (n = 16).",
    where="odd_point.md 3.6", covers="3.6.relax", quick={"n": 16}, control={"norm": "batch_recenter"},
    because="without rescaling it stays", seconds=(0.12, 1),
)  # fmt: skip
def odd_dissolves(run: Run, n: int, norm: str = "batch") -> Iterator[Reading]:
    """t from 1.5 times that of the perfect cluster, after 1, 2, 5, 20 and 100 layers."""
    g = predicted_grams(Spec(depth=100, width=8, norm=norm), odd_state(n, 1.5 / (n - 1) ** 2))
    for layer, t in ((1, 0.018), (2, 0.042), (5, 0.16), (20, 0.77), (100, 1.0)):
        yield near(f"t after {layer} layers", variance_ratio(g[layer]), t, highest(0.01 * t, 6e-4), reason="two digits")


@PAPER.claim(
    "equal-angles", "With rescaling the batch goes to one angle for all pairs, the kernel at -1/(n-1).",
    where="odd_point.md 3.3 and 3.7; yang2019 Thm 5", covers="3.3.cosine 3.7.rescaled", quick={"layers": 120},
    control={"norm": "none", "alone": "none"}, because="without rescaling a plain net goes to one ray",
    seconds=(0.47, 2),
)  # fmt: skip
def equal_angles(run: Run, layers: int, norm: str = "batch", alone: str = "batch_rescale") -> Iterator[Reading]:
    """Cosine of the fixed point of the Gram recursion from a random batch: with recentring 2 f(-1/(n-1)), which tends
    to 1/pi; with rescaling alone the table of odd_point.md 3.7.
    """
    both = {4: 0.16950, 8: 0.25013, 16: 0.28568}
    single = {4: 0.47967, 8: 0.49839, 16: 0.5084}
    absolute = {8: 0.72202, 16: 0.72492}
    for kind, chosen, activation, table in (
        ("batch", norm, "relu", both), ("batch_rescale", alone, "relu", single),
        ("batch_rescale", alone, "abs", absolute),
    ):  # fmt: skip
        for n, expected in table.items():
            x = gaussian(run, n, 4 * n, stream=n)
            spec = Spec(depth=layers if n < 16 else 2 * layers, width=8, norm=chosen, activation=activation)
            found = cosines(predicted_grams(spec, x @ x.T / (4 * n))[-1])
            yield near(f"cosine, {kind} {activation}, n = {n}", float(found.mean()), expected, 3e-5, reason="digits")
            if kind == "batch":
                formula = 2 * float(kernel(np.array(-1 / (n - 1))))
                yield near(f"formula, n = {n}", odd_point.equiangular_cosine(n), formula, 1e-12, exact="one formula")


@PAPER.claim(
    "plain-relu-angle", "Without batch norm all samples fall on one ray, the angle like 3 pi / depth.",
    where="odd_point.md 3.7", covers="D11 3.7.ray", quick={"layers": 200}, full={"layers": 2000},
    control={"activation": "leaky_relu(0.2)"}, because="a leaky net closes the angle more slowly", seconds=(0.1, 0.3),
)  # fmt: skip
def plain_relu_angle(run: Run, layers: int, activation: str = "relu") -> Iterator[Reading]:
    """Two orthogonal samples through a plain ReLU net of infinite width: theta l/(3 pi), no exponential rate."""
    g = predicted_grams(Spec(depth=layers, width=8, norm="none", activation=activation), np.eye(2))[-1]
    theta, law = math.acos(g[0, 1] / math.sqrt(g[0, 0] * g[1, 1])), math.pi / 2
    for _ in range(layers):
        law = odd_point.relu_angle(law)
    scale = layers / (3 * math.pi)
    yield near("theta l / (3 pi)", theta * scale, law * scale, 1e-3, reason=".9416 at 200 layers, .9922 at 2000")


@PAPER.claim(
    "linear-rates", "Linear batch norm contracts the Gram to isometry by n/(n+2), recentred (n-1)/(n+1), a layer.",
    where="odd_point.md 3.7", covers="D18 3.7.rate", quick={"sizes": (4, 8, 16, 32)},
    control={"activation": "leaky_relu(0.5)"}, because="the rate is that of the identity", seconds=(0.1, 0.2)
)  # fmt: skip
def linear_rates(run: Run, sizes: Sequence[int], activation: str = "identity") -> Iterator[Reading]:
    """One layer at infinite width from a Gram near isometry: the deviation of the traceless part shrinks by this
    factor.
    """
    for n in sizes:
        for norm, expected in (("batch_rescale", n / (n + 2)), ("batch", (n - 1) / (n + 1))):
            p = np.eye(n) - (1 / n if norm == "batch" else 0)
            change = np.diag(np.eye(n)[0] - np.eye(n)[1])
            start = p + 1e-5 * p @ change @ p
            g = predicted_grams(Spec(depth=1, width=8, norm=norm, activation=activation), start)

            def deviation(m: np.ndarray, p: np.ndarray = p) -> float:
                return float(np.linalg.norm(m / np.trace(m) - p / np.trace(p)))

            rate = deviation(g[1]) / deviation(g[0])
            yield near(f"factor, {norm}, n = {n}", rate, expected, 1e-4, reason="tolerance set beforehand")


@PAPER.claim(
    "linear-floor",
    "The starting point: linear nets with rescaling orthogonalise up to a floor proportional to 1/sqrt " "d.",
    where="abstract; odd_point.md 3.7", covers="D19 3.7.floor S0.2",
    quick={"n": 16, "d": 400, "layers": 400, "runs": 8}, full={"n": 32, "d": 1600, "layers": 800, "runs": 8},
    control={"norm": "none"}, because="without rescaling the batch collapses instead", seconds=(0.28, 5)
)  # fmt: skip
def linear_floor(run: Run, n: int, d: int, layers: int, runs: int, norm: str = "batch_rescale") -> Iterator[Reading]:
    """The paper starts from linear nets with rescaling alone (daneshmand2021). sqrt(d) V over the later layers against
    (n+2)/2 sqrt((n-1)/(n(n+1))).
    """
    spec = Spec(depth=layers, width=d, norm=norm, activation="identity")
    found = simulate(spec, inputs=gaussian(run, n, d), seeds=runs, seed=run.seed, metrics=["orthogonality_gap"])
    mean, error = mean_and_error(series(found, "orthogonality_gap", layers // 4).mean(0) * math.sqrt(d))
    expected = (n + 2) / 2 * math.sqrt((n - 1) / (n * (n + 1)))
    yield near("sqrt(d) V", mean, expected, relative=0.08, stderr=error, reason="seen -2 to +2.5 %")


@PAPER.claim(
    "gradient-rates", "Behind batch norm the squared gradient grows by (n-2)/(n-3) a layer, with ReLU towards "
    "pi/(pi-1).",
    where="odd_point.md 3.6; yang2019 Thm 8", covers="D20 3.6.gradient", quick={"sizes": (8, 16)},
    full={"sizes": (8, 16, 64)},
    control={"norm": "layer"}, because="statistics of one sample do not make gradients explode", seconds=(0.3, 120),
)  # fmt: skip
def gradient_rates(run: Run, sizes: Sequence[int], norm: str = "batch") -> Iterator[Reading]:
    """Growth of the squared gradient norm per layer at the equiangular state, by the backward recursion: the rate of
    the identity in closed form, that of ReLU by averages over quasi-random neurons. Heavy-tailed below n = 6.
    """
    for n in sizes:
        p = (np.eye(n) - 1 / n) * n / (n - 1)
        equal = (1 - 1 / math.pi) * np.eye(n) + 1 / math.pi
        for activation, start in (("identity", p), ("relu", equal)):
            expected = odd_point.gradient_explosion(n, activation)
            band = 1e-6 if activation == "identity" else 0.02 * expected
            spec = Spec(depth=14, width=64, norm=norm, activation=activation, gain=1.0)
            profile = predict(spec, start, metrics=["mean_cosine"], seed=run.seed, log2_points=11)
            of = [r for r in profile.records if r.metric == "gradient_growth" and 2 <= r.layer <= 6]
            rate = float(np.mean([r.value**2 for r in of]))
            error = highest(2 * r.value * r.stderr for r in of)
            yield near(f"factor, {activation}, n = {n}", rate, expected, band, stderr=error, reason="2 % for averages")


@PAPER.claim(
    "gram-integral", "The Gram map of batch norm is a one-dimensional integral.",
    where="odd_point.md 2; yang2019 Thm 2", covers="D27 S2.integral", quick={"n": 5, "samples": 600_000},
    full={"n": 5, "samples": 10_000_000}, control={"ddof": 1}, because="it takes the biased variance", seconds=(4.5, 19)
)  # fmt: skip
def gram_integral(run: Run, n: int, samples: int, ddof: int = 0) -> Iterator[Reading]:
    """The integral against a million random neurons and their mirror images (which cancel the noise of the slope), four
    slopes, with and without recentring; largest difference over the largest entry.
    """
    root = gaussian(run, n, n, stream=1) + np.eye(n)
    cov = root @ root.T / n
    z = gaussian(run, samples, n, stream=2) @ np.linalg.cholesky(cov).T
    for norm in ("batch", "batch_rescale"):
        u = z - z.mean(1, keepdims=True) if norm == "batch" else z
        u = u / np.sqrt(np.square(u).sum(1, keepdims=True) / (n - ddof))
        for a in (1.0, 0.0, -1.0, 0.2):
            mean = sum(h.T @ h for h in (np.where(u > 0, u, a * u), np.where(u < 0, -u, -a * u))) / (2 * samples)
            spec = Spec(depth=1, width=8, norm=norm, activation=activation_of(a), gain=1.0)
            worst = float(np.abs(predicted_grams(spec, cov)[1] - mean).max() / mean.max())
            yield at_most(f"difference, {norm}, slope {a:g}", worst, 0.005, reason="Monte Carlo noise is 1e-3")


@PAPER.claim(
    "exact-in-law", "Drawing the rows of W H directly gives the law of explicit weights.", where="odd_point.md 6",
    covers="D26 S6.law", quick={"n": 8, "d": 40, "layers": 15, "runs": 400},
    full={"n": 8, "d": 40, "layers": 15, "runs": 2000},
    control=({"shift": 20}, {"shift": 40}), because="wider chains have other laws", seconds=(7.3, 30),
)  # fmt: skip
def exact_in_law(run: Run, n: int, d: int, layers: int, runs: int, shift: int = 0) -> Iterator[Reading]:
    """Runs of recentring + ReLU by explicit nets and by the fast simulation: Kolmogorov-Smirnov tests of R2 and of the
    mean cosine at the last layer.
    """
    x = gaussian(run, n, d)
    names = ["odd_point_score", "mean_cosine"]
    import torch

    direct: dict[str, list[float]] = {name: [] for name in names}
    for r in range(runs):
        *_, h = representations(Spec(depth=layers, width=d, norm="batch_recenter"), x, run.generator(10 + r))
        for name, value in measure(torch.from_numpy(h), names).items():
            direct[name].append(value)
    spec = Spec(depth=layers, width=d + shift, norm="batch_recenter")
    found = simulate(spec, inputs=x, seeds=runs, seed=run.seed + 7, metrics=names, every=layers)
    for name in names:
        p = float(ks_2samp(direct[name], series(found, name, layers)[0]).pvalue)
        yield at_least(f"p-value of {name}", p, 1e-3, reason="level set beforehand")


@PAPER.claim(
    "abs-oscillates", "With |x| recentring does not settle: an eigenvalue passes -1 and the batch alternates.",
    where="odd_point.md 3.7", covers="3.7.abs", quick={"n": 8, "layers": 600},
    control=({"activation": "relu"}, {"layers": 3}),
    because="ReLU settles; and after a few layers the period is not there yet", seconds=(0.11, 1),
)  # fmt: skip
def abs_oscillates(run: Run, n: int, layers: int, activation: str = "abs") -> Iterator[Reading]:
    """The Gram recursion from a planted odd point with phi = |x|: at n = 8 an exact period of two layers, mean R2
    .8166. So |x| is no test of the fixed points.
    """

    def spec(depth: int) -> Spec:
        return Spec(depth=depth, width=8, norm="batch_recenter", activation=activation)

    g = predicted_grams(spec(2), follow(spec(layers), odd_state(n, 0.04)))
    shapes = [centred(m) / np.trace(centred(m)) for m in g]
    yield at_most("change over two layers", float(np.linalg.norm(shapes[2] - shapes[0])), 1e-6)
    yield at_least("change over one layer", float(np.linalg.norm(shapes[2] - shapes[1])), 1e-3)
