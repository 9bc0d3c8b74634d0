"""Does every error bar of the library hold the truth as often as it says?

    python benchmarks/coverage.py            # ten minutes on one core; writes results/coverage.md

Each kind of bar is made 200 times or more, of other random numbers, where the truth is known by another way: dense
matrices, closed forms, or many more runs. "Says" is the share that should lie within: of one and two standard errors
of k probes that of Student's t with k - 1 degrees of freedom.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import nn

import normscope as ns
from normscope.claims._tables import mean_and_error, power_and_error, ratio_and_error, slope_and_error
from normscope.learning_rates._laws import LEVEL, fitted
from normscope.linalg.maps import from_matrix, gram
from normscope.linalg.spectra import slq, spectrum
from normscope.linalg.traces import hutchinson, hutchpp
from normscope.racing._statistics import CONFIDENCE, interval

ROOT = Path(__file__).resolve().parents[1]
#: What was made, what it says, whether each time the truth lay within.
Row = tuple[str, str, float, list[bool]]


def factor(seed: int, outliers: int = 3) -> torch.Tensor:
    """A (60, 40) with a few large singular values, as Jacobians have."""
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(60, 40, generator=g, dtype=torch.float64)
    u, s, v = torch.linalg.svd(a, full_matrices=False)
    s[:outliers] *= torch.tensor([6.0, 4.0, 3.0][:outliers], dtype=torch.float64)
    return u @ torch.diag(s) @ v


def within(found: list[tuple[float, float, float]], times: float) -> list[bool]:
    """Of (value, error, truth): whether the truth is within so many errors; a NaN is not."""
    return [bool(abs(v - t) <= times * e + 1e-12 * abs(t)) for v, e, t in found]


def bars(name: str, found: list[tuple[float, float, float]], probes: int) -> Iterator[Row]:
    for times in (1, 2):
        says = 2 * stats.t.cdf(times, probes - 1) - 1
        yield name, f"{times} standard error{'s' if times > 1 else ''}", float(says), within(found, times)


def traces(seeds: int) -> Iterator[Row]:
    """Of tr A A^T, its square, and what spectrum() tells of them."""
    plain, sketched, first, second = [], [], [], []
    for seed in range(seeds):
        a, g = factor(seed), torch.Generator().manual_seed(seed)
        truth, square = float((a * a).sum()), float((a @ a.T).square().sum())
        e = hutchinson(from_matrix(a), 16, generator=g)
        plain.append((e.value, e.stderr, truth))
        e = hutchpp(from_matrix(a @ a.T), 24, generator=g)
        sketched.append((e.value, e.stderr, truth))
        s = spectrum(gram(from_matrix(a)), method="lanczos", trace=True, probes=8, seed=seed, tol=0.05)
        assert s.trace is not None
        assert s.square is not None
        first.append((s.trace.value, s.trace.stderr, truth))
        second.append((s.square.value, s.square.stderr, square))
    yield from bars("trace, Hutchinson, 16 probes", plain, 16)
    yield from bars("trace, Hutch++, 24 products", sketched, 8)
    yield from bars("Spectrum.trace, 8 probes", first, 8)
    yield from bars("Spectrum.square, 8 probes", second, 8)


def densities(seeds: int) -> Iterator[Row]:
    """Of the share of eigenvalues below the quartiles and a gap, and of the smooth curve."""
    shares, curves = [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        bulk = torch.tensor(np.concatenate([rng.gamma(2.0, 1.0, 150), rng.uniform(12, 14, 10)]))
        q, _ = torch.linalg.qr(torch.tensor(rng.normal(size=(160, 160))))
        d = slq(from_matrix(q @ torch.diag(bulk) @ q.T), 8, 24, generator=torch.Generator().manual_seed(seed))
        at = torch.tensor([float(bulk.quantile(p)) for p in (0.25, 0.5, 0.75)] + [11.5], dtype=torch.float64)
        value, error = d.cumulative(at)
        truth = (bulk[:, None] <= at).double().mean(0)
        shares += list(zip(value.tolist(), error.tolist(), truth.tolist(), strict=True))
        grid = torch.tensor([1.0, 3.0, 6.0], dtype=torch.float64)
        value, error = d.smooth(grid, 0.5)
        bumps = torch.exp(-((grid - bulk[:, None]) ** 2) / (2 * 0.25)) / (0.5 * math.sqrt(2 * math.pi))
        curves += list(zip(value.tolist(), error.tolist(), bumps.mean(0).tolist(), strict=True))
    yield from bars("Density.cumulative, 8 probes, 24 steps", shares, 8)
    yield from bars("Density.smooth, 8 probes, 24 steps", curves, 8)


def eigenvalues(seeds: int) -> Iterator[Row]:
    """Of the largest eigenvalues, and of lambda_max of a net: bounds, which always hold."""
    found, some, sharp, means = [], [], [], []
    for seed in range(seeds):
        a = factor(seed, outliers=seed % 4)
        s = spectrum(gram(from_matrix(a)), 2, method="lanczos", tol=0.02, seed=seed)
        every = torch.linalg.eigvalsh(a @ a.T).flip(0)
        truth = every[:2]
        nearest = [float(every[(every - v).abs().argmin()]) for v in s.eigenvalues]
        some += list(zip(s.eigenvalues.tolist(), s.errors.tolist(), nearest, strict=True))
        found += list(zip(s.eigenvalues.tolist(), s.errors.tolist(), truth.tolist(), strict=True))
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 3)).double()
        x, y = torch.randn(16, 8, dtype=torch.float64), torch.arange(16) % 3
        lam = torch.linalg.eigvalsh(ns.fisher(net, x, y, "cross_entropy").dense())
        h = ns.sharpness(net, x, y, "cross_entropy", tol=0.05, probes=8, seed=seed, compare_modes=False)
        sharp.append((h.lambda_max, h.error, float(lam[-1])))
        means.append((h.mean, h.mean_stderr, float(lam.mean())))
    yield "Spectrum.errors, some eigenvalue, tol .02", "bound", 1.0, within(some, 1)
    yield "Spectrum.errors, the k-th one, a quarter without a gap", "bound", 1.0, within(found, 1)
    yield "Sharpness.error, tol .05", "bound", 1.0, within(sharp, 1)
    if any(e > 0 for _, e, _ in means):
        yield from bars("Sharpness.mean, 8 probes", means, 8)


def simulations(seeds: int) -> Iterator[Row]:
    """Of simulated means over 8 seeds, against those of 1600."""
    spec = ns.Spec(depth=6, width=24, norm="batch")
    x = np.random.default_rng(0).normal(size=(12, 24))
    found = ns.simulate(spec, x, seeds=8 * seeds, metrics=["participation_rank"])
    last = [r.value for r in found.records if r.layer == spec.depth and r.metric == "participation_rank"]
    values = np.array(last[: 8 * seeds]).reshape(seeds, 8)
    made = [(float(v.mean()), float(v.std(ddof=1) / math.sqrt(8)), float(values.mean())) for v in values]
    yield from bars("simulate, mean over 8 seeds", made, 8)


def races(seeds: int) -> Iterator[Row]:
    """The t-interval of a race's final losses over 4 seeds, against the mean of all."""
    rng, losses = np.random.default_rng(0), []
    for seed in range(4 * seeds):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
        x = torch.tensor(rng.normal(size=(32, 6)), dtype=torch.float32)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(12):
            optimizer.zero_grad()
            loss = (net(x) - x[:, :1]).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    truth = float(np.mean(losses))
    made = [interval(losses[i : i + 4]) for i in range(0, 4 * seeds, 4)]
    yield "race, final loss, 4 seeds", "interval", CONFIDENCE, within([(m, h, truth) for m, h in made], 1)


def laws(seeds: int) -> Iterator[Row]:
    """The power laws of transfer: of the exponents, and of one more net at a size of the range."""
    depths, widths, ahead = [], [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)

        def rate(w: float, d: float, rng: np.random.Generator = rng) -> float:
            return math.exp(-1 - 0.5 * math.log(d) - 1.0 * math.log(w) + 0.2 * rng.normal())

        law = fitted((w, d, rate(w, d)) for w in (16, 32, 64) for d in (2, 4, 8) for _ in range(3))
        assert law is not None
        depths.append(law.depth_interval[0] <= -0.5 <= law.depth_interval[1])
        widths.append(law.width_interval[0] <= -1.0 <= law.width_interval[1])
        middle, half = law.at(48, 6)
        ahead.append(abs(math.log(rate(48, 6)) - middle) <= half)
    yield "transfer, exponent of depth", "interval", LEVEL, depths
    yield "transfer, exponent of width", "interval", LEVEL, widths
    yield "transfer, one more net", "interval", LEVEL, ahead


def rates(_: int) -> Iterator[Row]:
    """The largest rates, from results/rates.csv: its intervals against the swept truth."""
    with (ROOT / "results" / "rates.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("sgd", "momentum", "adam"):
        held = []
        for row in rows:
            low, high, true, edge = (float(row[f"{name} {c}"] or "nan") for c in ("low", "high", "true", "edge"))
            if math.isfinite(true):
                held.append(
                    low <= edge and true <= high
                )  # the edge lies between the last that trains and the first not
        yield f"rates, largest, {name}, one run each", "interval", 0.85, held


def readings(seeds: int) -> Iterator[Row]:
    """Of what the claims make their errors with: means, ratios and powers of skew values, slopes from residuals."""
    means, ratios, powers, slopes = [], [], [], []
    widths = np.array([16.0, 32.0, 64.0, 128.0, 256.0])
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        first, second = rng.gamma(4, 0.25, 16), rng.gamma(4, 0.5, 16)  # of mean 1 and 2
        means.append((*mean_and_error(first), 1.0))
        ratios.append((*ratio_and_error(mean_and_error(first), mean_and_error(second)), 0.5))
        chains = widths**-0.5 * rng.gamma(4, 0.25, (16, 5))
        powers.append((*power_and_error(list(widths), [mean_and_error(c) for c in chains.T]), -0.5))
        x = np.arange(8.0)
        slopes.append((*slope_and_error(x, 3 - 0.7 * x + rng.normal(size=8)), -0.7))
    yield from bars("claims, mean of 16", means, 16)
    yield from bars("claims, ratio of means of 16", ratios, 31)
    yield from bars("claims, power over five widths, 16 each", powers, 76)
    yield from bars("claims, slope of 8 points by their residuals", slopes, 7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "coverage.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Error bars: how often the truth lies within", "",
        f"Made by `python benchmarks/coverage.py`, {args.seeds} random nets or matrices each. Low: the share is below "
        "what the bar says by more than three standard errors of so many tries.", "",
        "| bar | of | says | tries | within | |", "|---|---|---:|---:|---:|---|",
    ]  # fmt: skip
    for kind in (traces, densities, eigenvalues, simulations, races, laws, rates, readings):
        for name, of, says, held in kind(args.seeds):
            share = sum(held) / len(held)
            slack = 3 * math.sqrt(max(says * (1 - says), 0.25 / len(held) if says == 1 else 0) / len(held))
            low = "low" if share < says - (0 if says == 1 else slack) else ""
            lines.append(f"| {name} | {of} | {says:.3f} | {len(held)} | {share:.3f} | {low} |")
            print(lines[-1], flush=True)
    args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
