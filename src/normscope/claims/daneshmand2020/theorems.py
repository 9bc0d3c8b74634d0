"""Lemma 1, the drift behind the square root of d, collapse without norm, and which ranks persist."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from normscope.claims._chains import gaussian, grams, linear, normal_weights, side_by_side, simulated
from normscope.claims._tables import highest, indicator, lowest, mean_and_error, series
from normscope.claims.claim import Run
from normscope.claims.daneshmand2020.paper import PAPER
from normscope.claims.reading import Reading, at_least, at_most, between, near
from normscope.geometry.metrics import METRICS
from normscope.geometry.statistic import Statistic
from normscope.theory.laws import rank

TAUS = np.linspace(0, 0.95, 20)


@PAPER.claim(
    "lemma1", "rank >= r, and behind batch norm rank_tau >= (1 - tau)^2 r, for every batch.", where="Lemma 1",
    covers="R1 L1", quick={"cases": 20000, "measured": 300}, full={"cases": 10**6, "measured": 5000},
    control={"relative_to": "largest"},
    because="counted against the largest eigenvalue instead of their mean the bound is false", seconds=(0.6, 22),
)  # fmt: skip
def lemma1(run: Run, cases: int, measured: int, relative_to: str = "mean") -> Iterable[Reading]:
    """Deterministic: random batches of every shape, some of them very skewed, rows scaled as batch norm does, 20 taus.

    The eigenvalues below tau sum to at most tau d, and Cauchy-Schwarz on the others gives the bound. Counted by hand
    for all cases and by the library's metrics for some.
    """
    rng = np.random.default_rng([run.seed, 1])
    missing, below, apart = [-math.inf], [-math.inf], [0.0]
    for case in range(highest(1, cases // 200)):
        d, n = int(rng.integers(2, 20)), int(rng.integers(1, 25))
        h = rng.standard_normal((200, d, n)) * rng.gamma(0.3,
                                size=(200, 1, n)) + rng.standard_normal((200, d, 1)) * (case % 2)  # fmt: skip
        h /= np.sqrt(np.square(h).mean(2, keepdims=True))
        values = np.linalg.eigvalsh(h @ h.transpose(0, 2, 1) / n).clip(0)
        r = d**2 / np.square(values).sum(1)
        level = values.max(1) if relative_to == "largest" else np.ones(200)
        count = indicator(values[:, :, None] >= TAUS * level[:, None, None] - 1e-9, values[:, :, None]).sum(1)
        missing.append(float(((1 - TAUS) ** 2 * r[:, None] - count).max()))
        numerical = indicator(values > 1e-13 * values.max(1, keepdims=True), values).sum(1)
        below.append(float((r - numerical).max()))
    worst = [-math.inf]
    for _ in range(measured):
        n, d = (int(v) for v in rng.integers(2, 20, size=2))
        h = rng.standard_normal((n, d)) * rng.gamma(0.3, size=(n, 1))
        h /= np.sqrt(np.square(h).mean(0))
        s = Statistic.of(torch.from_numpy(h), exact=True)
        r = METRICS["participation_rank"](s)
        values = np.linalg.eigvalsh(h.T @ h / n).clip(0)
        level = values.max() if relative_to == "largest" else values.sum() / lowest(n, d)
        apart.append(abs(r - d**2 / np.square(values).sum()))
        for tau in (0.05, 0.3, 0.5, 0.8):
            soft = METRICS["soft_rank"](s, tau=tau - 1e-9)
            worst.append((1 - tau) ** 2 * r - soft)
            apart.append(abs(soft - float(indicator(values >= (tau - 1e-9) * level, values).sum())))
        worst.append(rank.rank_bound(h @ h.T, 0.3) - METRICS["soft_rank"](s, tau=0.3 - 1e-9))
    yield at_most("largest (1 - tau)^2 r - rank_tau", highest(missing), 1e-9,
                  reason="an inequality: no violation at all")  # fmt: skip
    yield at_most("largest r - rank", highest(below), 1e-9, exact="an inequality of all spectra")
    yield at_most("largest excess by the library's metrics", highest(worst), 1e-9, exact="the same inequality")
    yield at_most("largest difference of the library's r and rank_tau from these", highest(apart), 1e-9,
                  reason="counted by hand from the eigenvalues")  # fmt: skip


@PAPER.claim(
    "collapse", "Without norm every batch collapses to one line within a few widths, at the gap of two Lyapunov "
    "exponents.",
    where="vanilla nets; derived", covers="R2 vanilla-collapse",
    quick={"exponents": (4, 8), "widths": (16, 32), "layers": 1000},
    full={"exponents": (4, 8, 32), "widths": (16, 32, 128), "layers": 10000},
    control={"norm": "batch_rescale", "skip": 8.0, "layers": 1000},
    because="with batch norm the rank does not collapse; and a product of W + 8 has other exponents", seconds=(1.3, 90),
)  # fmt: skip
def collapse(
    run: Run, exponents: Sequence[int], widths: Sequence[int], layers: int, norm: str = "none", skip: float = 0.0
) -> Iterable[Reading]:
    """The paper cites the theory of random matrix products; the exponents are mu_i = (ln 2 + psi((d - i + 1)/2))/2.

    (a) QR iteration on explicit products of N(0, 1) matrices against them; (b) the median participation rank of
    simulated chains at 5 d layers, and the first layer at which it is below 1.01, in widths.
    """
    rng = np.random.default_rng([run.seed, 2])
    for d in exponents:
        q, logs = np.broadcast_to(np.eye(d), (64, d, d)), []
        for _ in range(layers):
            q, r = np.linalg.qr((rng.standard_normal((64, d, d)) + skip * np.eye(d)) @ q)
            logs.append(np.log(np.abs(np.einsum("cii->ci", r))))
        found = np.mean(logs, 0)
        law = rank.lyapunov_exponents(d)
        error = found.std(0, ddof=1) / 8
        apart = np.abs(found.mean(0) - law)
        yield at_most(f"largest |mu_i - law| in s.e., d = {d}", float((apart / error).max()), 4, reason="4 s.e.")
        yield at_most(f"largest |mu_i - law|, d = {d}", float(apart.max()), 0.012, reason="four standard errors")
        gap = found[:, 0] - found[:, 1]
        mean, spread = mean_and_error(gap)
        yield near(f"mu_1 - mu_2, d = {d}", mean, 1 / rank.collapse_depth(d), 0.02, stderr=spread,
                   reason="the library's law")  # fmt: skip
    for d in widths:
        spec = linear(5 * d, d, norm)
        found = series(simulated(run, spec, gaussian(run, d, d, stream=d), ["participation_rank"], chains=64, stream=d),
                       "participation_rank")  # fmt: skip
        median = np.median(found, 1)
        yield at_most(f"median r at 5 d layers, d = {d}", float(median[-1]), 1.02, reason="1.001 to 1.003 measured")
        below = found < 1.01
        first = np.where(below.any(0), below.argmax(0), math.inf)
        yield between(f"first layer with r < 1.01, in widths, median, d = {d}", float(np.median(first)) / d, 2.5, 4.5,
                      reason="3.2 to 3.7 measured")  # fmt: skip


@PAPER.claim(
    "drift", "One layer BN(H + gamma W H) moves the squared norm of M by gamma^2 (2d^2 - 2F - 8 tr M^3 + 8 sum s_i^2).",
    where="why the square root of d; derived", covers="R7 drift", quick={"draws": 160000, "widths": (3, 6, 12)},
    full={"draws": 1000000, "widths": (3, 6, 12, 24)}, control={"normalize": False},
    because="without dividing by the rows' norms the drift is another one", seconds=(2.1, 118),
)  # fmt: skip
def drift(run: Run, draws: int, widths: Sequence[int], normalize: bool = True) -> Iterable[Reading]:
    """Derived by us, to see where the square root of d in Theorem 2 comes from: antithetic explicit draws of W against
    it.

    gamma = 0.01, random M of batch-normalised Gaussian batches. Only second moments of W enter.
    """
    gamma = 0.01
    for d in widths:
        h = gaussian(run, d, d + 2, stream=d)
        h[: d // 2] += 1.5 * h[-1]
        h /= np.sqrt(np.square(h).mean(1, keepdims=True))
        m = h @ h.T / h.shape[1]
        s = np.diag(m @ m)
        law = 2 * d**2 - 2 * np.square(m).sum() - 8 * np.trace(m @ m @ m) + 8 * np.square(s).sum()
        change = np.zeros(draws)
        for start in range(0, draws, 10000):
            w = gaussian(run, lowest(10000, draws - start), d, d, stream=1000 * d + start)
            for sign in (1, -1):
                a = np.eye(d) + sign * gamma * w
                out = a @ m @ a.transpose(0, 2, 1)
                if normalize:
                    scale = 1 / np.sqrt(np.einsum("sii->si", out))
                    out = out * scale[:, :, None] * scale[:, None, :]
                change[start : start + len(w)] += np.square(out).sum((1, 2)) / 2
        mean, error = mean_and_error((change - np.square(m).sum()) / gamma**2)
        beyond = highest(0.0, abs(mean - law) - 0.003 * abs(law)) / error
        yield at_most(f"|drift - law| beyond 0.3 % of it, in s.e., d = {d}", beyond, 4, reason="4 s.e. and 0.3 %")
        yield near(f"the library's drift, d = {d}", rank.drift(m, gamma), gamma**2 * law, 1e-12 * d**4,
                   exact="one formula")  # fmt: skip


@PAPER.claim(
    "stationary-identity", "In the settled chain, gamma small, 4 E[tr M^3 - sum s_i^2] = d^2 - E|M|^2.",
    where="why the square root of d; derived", covers="stationary-identity",
    quick={"widths": (4, 8, 16), "gamma": 0.1, "layers": 3000, "samples": 640},
    full={"widths": (4, 8, 16, 32), "gamma": 0.05, "layers": 30000, "samples": 1600}, control={"gamma": 5.0},
    because="the identity is that of small gamma", seconds=(6, 300),
)  # fmt: skip
def stationary_identity(run: Run, widths: Sequence[int], gamma: float, layers: int, samples: int) -> Iterable[Reading]:
    """The drift vanishes in the mean; with F^2 <= d tr M^3 any bound tr M^3 = O(d^2) gives r of the order of sqrt(d).

    ``samples``/d chains of explicit weights; M (d, d) has a unit diagonal. Reference runs at gamma = 0.01
    agree within 4 %; ours at 0.1 mix a hundred times faster and carry a bias of order gamma^2.
    """
    for d in widths:
        chains = samples // d
        start = math.sqrt(d) * torch.eye(d, dtype=torch.float64).expand(chains, d, d)
        draw = normal_weights(chains, d, run.generator(d))
        sides = []
        for layer, u in enumerate(side_by_side(start, layers, draw, skip=gamma * math.sqrt(d))):
            if layer < layers // 3 or layer % 10:
                continue
            m = (u.transpose(1, 2) @ u / d).numpy()
            square = m @ m
            cubes = np.einsum("cij,cji->c", square, m)
            own = np.square(np.einsum("cii->ci", square)).sum(1)
            sides.append((4 * (cubes - own), d**2 - np.square(m).sum((1, 2)), cubes / d**2))
        left, right, cubes = np.mean(sides, 0)  # over layers: (chains,)
        ratio, error = mean_and_error(left / right.mean())
        yield near(f"left over right, d = {d}", ratio, 1, 0.05, stderr=error, reason="5 %")
        mean, error = mean_and_error(cubes)
        yield between(f"E tr M^3 / d^2, d = {d}", mean, 1.38, 1.65, stderr=error, reason="1.47 to 1.54 measured")
        mine, law = (rank.stationary_sides(m[0]),
                     (4 * np.trace(m[0] @ m[0] @ m[0] - np.diag(np.diag(m[0] @ m[0]) ** 2)), 0))  # fmt: skip
        yield near(f"the library's left side, d = {d}", mine[0], float(law[0]), relative=1e-9,
                   exact="one formula, twice")  # fmt: skip


@PAPER.claim(
    "transverse", "Rank k is left by a growing further direction below k*(d) and kept above: k* = 3-4, 5-6, 8-9 "
    "directions.",
    where="structure found here", covers="R11 k-star", quick={"widths": (8, 16), "layers": 4000},
    full={"widths": (8, 16, 32, 64), "layers": 20000}, control={"swap": True, "norm": "none", "layers": 2000},
    because="above k* a further direction decays, below it grows; without batch norm one direction is left",
    seconds=(2.9, 300),
)  # fmt: skip
def transverse(
    run: Run, widths: Sequence[int], layers: int, swap: bool = False, norm: str = "batch_rescale"
) -> Iterable[Reading]:
    """Growth rate per layer of an infinitesimal (k+1)-th direction on a settled rank-k chain, gamma = infinity.

    Positive just below k* and negative just above; it is what "numerical rank" in Figs. 2 and 3 converges to. The
    growth is measured here on explicit weights; the library's estimator must agree with it.
    """
    listed = {8: (3, 0.081, 4, -0.150), 16: (5, 0.045, 6, -0.038), 32: (8, 0.025, 9, -0.008),
              64: (13, 0.006, 14, -0.009)}  # fmt: skip
    for d in widths:
        low, grows, high, decays = listed[d]
        for k, other, expected in ((low, high, grows), (high, low, decays)):
            value, error = rank.transverse_growth(d, other if swap else k, layers=layers, chains=12, seed=run.seed)
            side = at_least if expected > 0 else at_most
            yield side(f"growth of direction {k + 1}, d = {d}", value, 0, stderr=error, reason="its sign")
            yield near(f"the same by value, d = {d}, near k = {k}", value, expected, 0.02,
                       stderr=error, reason="reference runs, s.e. .002 each")  # fmt: skip
    for d, directions in ((4, 2), (8, 4), (16, 6)):
        steps = grams(run, linear(1200, d, norm), gaussian(run, d, d, stream=d), 16, stream=d, first=1000, every=10)
        values = np.stack([np.linalg.eigvalsh(c) for c in steps]) * d
        count, error = mean_and_error(indicator(values > 1e-9, values).sum(-1).mean(0))
        yield near(f"eigenvalues above 1e-9, d = {d}", count, directions, 0.4, stderr=error, reason="after 1000 layers")
    value, error = _direct_growth(run, 8, 4 if swap else 3, layers // 2)
    yield near("explicit weights, d = 8, k = 3", value, 0.081, 0.03, stderr=error, reason="reference runs")


def _direct_growth(run: Run, d: int, k: int, layers: int) -> tuple[float, float]:
    """The same rate with whole weight matrices and a further direction that is carried along, and its error."""
    rng = np.random.default_rng([run.seed, d, k])
    h, delta = rng.standard_normal((12, d, k)), rng.standard_normal((12, d, 1))
    logs = []
    for _ in range(layers):
        w = rng.standard_normal((12, d, d))
        z = w @ h
        scale = 1 / np.sqrt(np.square(z).mean(2, keepdims=True))
        h, delta = z * scale, (w @ delta) * scale
        q, _ = np.linalg.qr(h)
        delta = delta - q @ (q.transpose(0, 2, 1) @ delta)
        size = np.sqrt(np.square(delta).sum((1, 2)))
        logs.append(np.log(size))
        delta = delta / size[:, None, None]
    return mean_and_error(np.mean(logs[layers // 5 :], 0))
