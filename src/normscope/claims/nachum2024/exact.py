"""What holds exactly: the parts of a layer, the invariant cluster + odd point, the rank after one layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from normscope.claims._chains import gaussian
from normscope.claims._tables import highest
from normscope.claims.claim import Run
from normscope.claims.nachum2024._paper import (
    PAPER,
    activation_of,
    centred,
    kernel,
    odd_state,
    representations,
    variance_ratio,  # fmt: skip
)
from normscope.claims.reading import Reading, at_most, near
from normscope.core.spec import Spec
from normscope.gaussian import product_moment
from normscope.geometry.metrics import measure
from normscope.nn import BatchNorm, build
from normscope.probing.passes import probe
from normscope.theory import predicted_grams
from normscope.theory.laws import odd_point


@PAPER.claim(
    "parts", "Batch norm is recentring, then rescaling, of each neuron over the batch.",
    where="abstract; odd_point.md 1", covers="S0.1 S1", quick={"n": 32, "d": 20}, control={"recenter": False},
    because="rescaling without recentring divides by the rms and leaves the mean", seconds=(0.1, 0.1)
)  # fmt: skip
def parts(run: Run, n: int, d: int, recenter: bool = True) -> Iterator[Reading]:
    """The paper takes the layer apart into recentring, rescaling and the non-linearity, in this order.

    We compare the complete layer, and its two parts one after the other, with plain arithmetic on a shifted and scaled
    batch (variance with 1/n).
    """
    x = torch.from_numpy(gaussian(run, n, d) * np.linspace(0.1, 9, d) + np.linspace(-5, 5, d))
    z = x.numpy() - x.numpy().mean(0)
    z = z / np.sqrt((z**2).mean(0))
    both = BatchNorm(d, recenter=recenter, affine=False, eps=0.0).double()
    first = BatchNorm(d, recenter=recenter, rescale=False, affine=False).double()
    second = BatchNorm(d, recenter=False, affine=False, eps=0.0).double()
    yield at_most("complete layer", float(np.abs(both(x).numpy() - z).max()), 1e-12, reason="rounding")
    yield at_most("part after part", float(np.abs(second(first(x)).numpy() - z).max()), 1e-12, reason="rounding")


@PAPER.claim(
    "kernel", "The leaky family has the kernel a T + (1-a)^2 sqrt(T T) f(r), f of the arc-cosine.", 
    where="odd_point.md 2", covers="S2.kernel", quick={"slopes": (0.0, 0.2, 0.5, -1.0)}, control={"shift": 0.01},
    because="a slope steeper by .01 has another kernel", seconds=(0.54, 0.2),
)  # fmt: skip
def kernel_formula(run: Run, slopes: Sequence[float], shift: float = 0.0) -> Iterator[Reading]:
    """Moments of two Gaussians through phi(x) = x for x > 0, a x below: the library, and the formula in f.

    The oracle is the mean over directions in the plane of the two Gaussians (their length has mean square 2).
    """
    theta = (np.arange(400_000) + 0.5) * (2 * np.pi / 400_000)
    for a in slopes:
        worst = formula = 0.0
        for c, q in ((-1.0, 1.0), (-0.3, 4.0), (0.0, 1.0), (0.7, 0.5), (1.0, 9.0)):
            u, v = np.cos(theta), np.cos(theta - np.arccos(c))
            phi_u, phi_v = (np.where(w > 0, w, a * w) for w in (u, v))
            mean = 2 * np.sqrt(q) * float((phi_u * phi_v).mean())
            gram = np.array([[1.0, c * np.sqrt(q)], [c * np.sqrt(q), q]])
            worst = highest(worst, abs(product_moment(activation_of(a + shift), gram)[0, 1] - mean))
            formula = highest(formula, abs(np.sqrt(q) * float(kernel(np.array(c), a + shift)) - mean))
        yield at_most(f"library, slope {a:g}", worst, 1e-7, reason="the mean over 400000 directions is good to 1e-9")
        yield at_most(f"formula, slope {a:g}", formula, 1e-7, reason="the mean over 400000 directions is good to 1e-9")


@PAPER.claim(
    "odd-score", "R2 is 1/(1 + n W2/D2): 1 for cluster + odd point, 1/(n-1) for equal angles.", where="odd_point.md 2",
    covers="S2.score", quick={"n": 16}, control={"shift": -1},
    because="with n - 1 in the place of n the identity fails", seconds=(0.1, 0.1)
)  # fmt: skip
def odd_score(run: Run, n: int, shift: int = 0) -> Iterator[Reading]:
    """The share of the centred energy in "one sample against the mean of the others", on batches of known shape."""
    m, d = n + shift, 40
    names = ["odd_point_score", "odd_point_separation"]
    x = torch.from_numpy(gaussian(run, n, d))
    found = measure(x, names)
    yield near("random batch", found["odd_point_score"], 1 / (1 + m / found["odd_point_separation"] ** 2), 1e-10)
    planted = torch.zeros(n, d, dtype=torch.float64)
    planted[0, 0], planted[1:, 1] = n - 1.0, 1.0
    yield near("one odd point", measure(planted, names)["odd_point_score"], 1.0, 1e-12,
               exact="W2 = 0 by its definition: rounding")  # fmt: skip
    yield near("equal angles", measure(torch.eye(n, dtype=torch.float64), names)["odd_point_score"], 1 / (m - 1), 1e-12)
    for k in (2, 4):
        clusters = torch.zeros(n, d, dtype=torch.float64)
        clusters[:k, 0], clusters[k:, 1] = 2.0, 1.0
        value = measure(clusters, names)["odd_point_score"]
        yield near(f"clusters of {k} and {n - k}", value, (m - k) / (k * (m - 1)), 1e-12)


@PAPER.claim(
    "exact-invariance", "Recentring + ReLU keep a perfect cluster + odd point orthogonal, at any width, for any "
    "weights.",
    where="odd_point.md 3.1 (reported theorem b)", covers="D1 3.1.exact S0.5b",
    quick={"n": 16, "d": 50, "layers": 5}, full={"n": 64, "d": 1000, "layers": 50}, control={"norm": "none"},
    because="without recentring odd point and cluster share active neurons", seconds=(0.1, 2.7),
)  # fmt: skip
def exact_invariance(run: Run, n: int, d: int, layers: int, norm: str = "batch_recenter") -> Iterator[Reading]:
    """A batch of n - 1 equal samples and one other: each neuron sees the two groups on opposite sides of zero, so after
    ReLU their supports are disjoint and the cluster stays one point. Explicit weights.
    """
    x = np.repeat(gaussian(run, 2, d), (1, n - 1), axis=0)
    inner = spread = 0.0
    for h in representations(Spec(depth=layers, width=d, norm=norm), x, run.generator(1)):
        size = np.linalg.norm(h, axis=1)
        inner = highest(inner, abs(h[0] @ h[1]) / (size[0] * size[1]))
        spread = highest(spread, float(np.abs(h[1:] - h[1]).max()))
    yield at_most("cosine of odd point and cluster", inner, 1e-12, reason="algebra")
    yield at_most("spread of the cluster", spread, 1e-12, exact="algebra")


@PAPER.claim(
    "infinite-width-shape", "At infinite width |odd|/|cluster| is n-1, the cosine -2a/(1+a^2), D^2 scales by "
    "((n-1)^2+1)/2n^2.",
    where="odd_point.md 3.1", covers="D2 3.1.shape", quick={"sizes": (3, 8, 16, 64), "slopes": (0.0, 0.2, 0.5)},
    control={"norm": "none"}, because="without recentring the shape moves towards one ray", seconds=(0.1, 0.2),
)  # fmt: skip
def infinite_width_shape(
    run: Run, sizes: Sequence[int], slopes: Sequence[float], norm: str = "batch_recenter"
) -> Iterator[Reading]:
    """Norm ratio, angle and growth of the perfect state from the Gram recursion, three layers on, weights of variance
    1/d. Leaky slopes tilt odd point and cluster against each other by -2a/(1+a^2).
    """
    for n in sizes:
        start = np.zeros((n, n))
        start[0, 0], start[1:, 1:] = (n - 1) ** 2, 1
        for a in slopes:
            g = predicted_grams(Spec(depth=3, width=8, norm=norm, activation=activation_of(a), gain=1.0), start)
            odd, one, cross = g[:, 0, 0], g[:, 1, 1], g[:, 0, 1]
            distance = odd + one - 2 * cross
            name = f"n = {n}, slope {a:g}"
            law = odd_point.perfect_odd(n, a)
            yield near(f"norm ratio, {name}", float(np.sqrt(odd[3] / one[3])), law["norm_ratio"], relative=1e-10,
                       exact="the samples sum to 0: rounding")  # fmt: skip
            factor = float(distance[3] / distance[2])
            yield near(f"distance factor, {name}", factor, law["distance_factor"], relative=1e-10)
            cosine = float(cross[3] / np.sqrt(odd[3] * one[3]))
            yield near(f"cosine, {name}", cosine, law["cosine"], 1e-6, reason="arccos near -1")


@PAPER.claim(
    "two-clusters", "Any split k against n-k is invariant too: orthogonal, norm ratio (n-k)/k.",
    where="odd_point.md 3.1", covers="3.1.k", quick={"n": 16, "groups": (2, 3, 8)}, control={"norm": "none"},
    because="without recentring the clusters are not on opposite sides of zero", seconds=(0.1, 0.1)
)  # fmt: skip
def two_clusters(run: Run, n: int, groups: Sequence[int], norm: str = "batch_recenter") -> Iterator[Reading]:
    """The invariance holds for clusters of sizes k and n - k; their distance scales by ((n-k)^2 + k^2)/(2n^2)."""
    for k in groups:
        start = np.zeros((n, n))
        start[:k, :k], start[k:, k:] = ((n - k) / k) ** 2, 1
        g = predicted_grams(Spec(depth=3, width=8, norm=norm, gain=1.0), start)
        distance = g[:, 0, 0] + g[:, -1, -1] - 2 * g[:, 0, -1]
        yield at_most(f"cosine, k = {k}", float(abs(g[3, 0, -1]) / np.sqrt(g[3, 0, 0] * g[3, -1, -1])), 1e-6)
        yield near(f"norm ratio, k = {k}", float(np.sqrt(g[3, 0, 0] / g[3, -1, -1])), (n - k) / k, relative=1e-10,
                   exact="the samples sum to 0: rounding")  # fmt: skip
        expected = ((n - k) ** 2 + k**2) / (2 * n**2)
        yield near(f"distance factor, k = {k}", float(distance[3] / distance[2]), expected, relative=1e-10)


@PAPER.claim(
    "invariant-with-rescaling", "With rescaling too the perfect cluster + odd point maps to itself.",
    where="odd_point.md 3.1", covers="3.1.rescaled", quick={"sizes": (4, 8, 16, 32)}, control={"excess": 0.01},
    because="rescaling blows an imperfect cluster up at once", seconds=(0.1, 0.2)
)  # fmt: skip
def invariant_with_rescaling(run: Run, sizes: Sequence[int], excess: float = 0.0) -> Iterator[Reading]:
    """Each row of the perfect state is a sign times (sqrt(n-1), -1/sqrt(n-1), ...), so complete batch norm keeps it, in
    one layer from exactly there. It is violently unstable (see ``rescaling-destabilises``).
    """
    for n in sizes:
        t0 = 1 / (n - 1) ** 2
        after = predicted_grams(Spec(depth=1, width=8, norm="batch"), odd_state(n, t0 * (1 + excess)))[1]
        yield near(f"t / t0, n = {n}", variance_ratio(after) / t0, 1.0, 1e-4, reason="the root of rounding, 1e-16")


@PAPER.claim(
    "leaky-angle", "A cluster + odd point under leaky ReLU has the cosine -2a/(1+a^2), at finite width too.",
    where="odd_point.md 3.1", covers="D24 3.1.leaky",
    quick={"n": 32, "d": 400, "layers": 70, "burn": 40, "runs": 4, "slopes": (0.1, 0.5)},
    full={"n": 32, "d": 1000, "layers": 400, "burn": 200, "runs": 4, "slopes": (0.01, 0.1, 0.2, 0.5)},
    control={"norm": "batch"}, because="with rescaling the odd point dissolves", seconds=(6, 120),
)  # fmt: skip
def leaky_angle(
    run: Run, n: int, d: int, layers: int, burn: int, runs: int, slopes: Sequence[float], norm: str = "batch_recenter"
) -> Iterator[Reading]:
    """Explicit nets from a planted, slightly blurred cluster + odd point; the cosine of the odd sample and the mean of
    the others, averaged over the later layers. Printed beside it in the reference runs: -.0193, -.1969, -.3837, -.7988.
    """
    measured = {0.01: -0.0193, 0.1: -0.1969, 0.2: -0.3837, 0.5: -0.7988}
    for i, a in enumerate(slopes):
        means = []
        for r in range(runs):
            x = 0.02 * gaussian(run, n, d, stream=100 * i + r) / np.sqrt(d)
            x[0, 0] += n - 1
            x[1:, 1] += 1
            spec, kept = Spec(depth=layers, width=d, norm=norm, activation=activation_of(a)), []
            for layer, h in enumerate(representations(spec, x, run.generator(1000 + 100 * i + r))):
                if layer >= burn:
                    o = int(np.argmax(np.square(h - h.mean(0)).sum(1)))
                    m = np.delete(h, o, 0).mean(0)
                    kept.append(h[o] @ m / np.linalg.norm(h[o]) / np.linalg.norm(m))
            means.append(np.mean(kept))
        error = float(np.std(means, ddof=1) / np.sqrt(runs))
        yield near(f"cosine, slope {a:g}", float(np.mean(means)), -2 * a / (1 + a**2), 0.01, stderr=error,
                   reason=f"tolerance set beforehand; measured there {measured.get(a, 'nothing')}")  # fmt: skip


@PAPER.claim(
    "rank-grows", "One ReLU layer takes a batch of rank 1 to rank 2 and one of rank 2 to full rank.",
    where="odd_point.md 3.9 (reported theorem a)", covers="D29 3.9 S0.5a", quick={"n": 16, "d": 1000},
    full={"n": 64, "d": 1000},
    control={"activation": "identity"}, because="a linear layer cannot raise the rank", seconds=(1, 0.4),
)  # fmt: skip
def rank_grows(run: Run, n: int, d: int, activation: str = "relu") -> Iterator[Reading]:
    """Numerical rank after one and two layers from generic inputs of rank r. A line splits into two half-lines and
    stays there; recentring moves the origin off them, so that the second layer reaches full rank.
    """
    expected = {("none", 1): (2, 2), ("none", 2): (n, n), ("none", 3): (n, n), ("batch_recenter", 1): (2, n),
                ("batch_recenter", 2): (n, n)}  # fmt: skip
    for (norm, r), ranks in expected.items():
        x = torch.from_numpy(gaussian(run, n, r, stream=r) @ gaussian(run, r, 300, stream=10 + r))
        spec = Spec(depth=2, width=d, norm=norm, activation=activation)
        model = build(spec, 300, generator=run.generator(20), dtype=torch.float64)
        profile = probe(model, x, metrics=["numerical_rank"])
        found = {rec.layer: rec.value for rec in profile.records if rec.metric == "numerical_rank"}
        for layer, rank in zip((1, 2), ranks, strict=True):
            yield near(f"{norm}, input rank {r}, layer {layer}", found[layer], rank, 0.1, reason="a whole number")


@PAPER.claim(
    "odd-rank", "The exact odd state has rank 2, and centred rank 1, for ever.", where="odd_point.md 3.9",
    covers="3.9.odd", quick={"n": 16, "layers": 20}, control={"excess": 0.1}, because="a blurred cluster has full rank",
    seconds=(0.1, 0.1)
)  # fmt: skip
def odd_rank(run: Run, n: int, layers: int, excess: float = 0.0) -> Iterator[Reading]:
    """Second and third largest eigenvalue shares of the exact state after twenty layers of recentring and ReLU."""
    g = predicted_grams(Spec(depth=layers, width=8, norm="batch_recenter"), odd_state(n, (1 + excess) / (n - 1) ** 2))
    plain, around = np.linalg.eigvalsh(g[-1])[::-1], np.linalg.eigvalsh(centred(g[-1]))[::-1]
    yield at_most("third eigenvalue", float(plain[2] / plain[0]), 1e-7, reason="rounding grows by 1 + 2/n a layer")
    yield at_most("second centred eigenvalue", float(around[1] / around[0]), 1e-7, reason="rounding grows")
