"""The recursion, the orthogonality gap, and the sampler that all simulated claims rest on."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch

from normscope.claims._chains import (
    gap_of,
    gaussian,
    linear,
    near_rank_one,
    normal_weights,
    shifted,
    side_by_side,
    simulated,  # fmt: skip
)
from normscope.claims._tables import highest, mean_and_error, series
from normscope.claims.claim import Run
from normscope.claims.daneshmand2021.paper import PAPER
from normscope.claims.reading import Reading, at_most, near
from normscope.geometry.metrics import measure
from normscope.nn import BatchNorm


@PAPER.claim(
    "normalization", "After batch norm every row has norm d^(-1/2) and the batch has Frobenius norm 1.", where="eq. 1",
    covers="C1 eq.1", quick={"sizes": ((2, 8), (4, 32), (16, 100), (64, 300))}, control={"rescale": False},
    because="without rescaling rows keep the size that the weights give them", seconds=(0.1, 0.1),
)  # fmt: skip
def normalization(run: Run, sizes: tuple[tuple[int, int], ...], rescale: bool = True) -> Iterable[Reading]:
    """The paper divides each row (neuron) of W H by its norm over the batch and then by the root of the width.

    Here it is the library's batch norm without recentring, affine part and epsilon, over the root of n d; rows of the
    paper are columns here. The scale of the weights must not matter at all.
    """
    rows, whole, scale = [0.0], [0.0], [0.0]
    for stream, (n, d) in enumerate(sizes):
        h, w = torch.from_numpy(gaussian(run, n, d, stream=stream)), gaussian(run, d, d, stream=100 + stream)
        norm = BatchNorm(d, recenter=False, rescale=rescale, affine=False, eps=0.0)
        out, again = (norm(h @ torch.from_numpy(c * w).T) / math.sqrt(n * d) for c in (1.0, 37.0))
        rows.append(float((out.norm(dim=0) * math.sqrt(d) - 1).abs().max()))
        whole.append(abs(float(out.norm()) - 1))
        scale.append(float((out - again).norm()))
    exact = "an identity: rounding only"
    yield at_most("largest |row norm sqrt(d) - 1|", highest(rows), 1e-12, reason=exact)
    yield at_most("largest |Frobenius norm - 1|", highest(whole), 1e-12, reason=exact)
    yield at_most("largest change when the weights grow 37 times", highest(scale), 1e-12, reason=exact)


@PAPER.claim(
    "gap", "The gap V lies in [0, sqrt(1 - 1/n)], is rho sqrt((n-1)/n) for equicorrelated samples, and at least "
    "sqrt(1/r - 1/n) at rank r.", where="eq. 2, eq. 11", covers="eq.2 eq.11 gap-floor",
    quick={"cases": 100}, full={"cases": 5000}, control={"equal_norms": False},
    because="with samples of unequal length the closed form of equicorrelated samples no longer applies",
    seconds=(3.9, 5.4),
)  # fmt: skip
def gap(run: Run, cases: int, equal_norms: bool = True) -> Iterable[Reading]:
    """V is the distance of the Gram of trace 1 from I/n; rank one gives its largest value, a lost dimension a floor.

    Measured by the library's metrics on batches of known geometry and on random batches of every rank.
    """
    rng = np.random.default_rng([run.seed, 2])
    closed, least, beyond, below, over = [], [], [0.0], [0.0], [0.0]
    for _ in range(cases):
        n = int(rng.integers(2, 12))
        rho = rng.uniform(0, 0.99)
        lengths = np.ones(n) if equal_norms else rng.gamma(1.0, size=n) + 0.1
        root = np.linalg.cholesky((1 - rho) * np.eye(n) + rho) * lengths[:, None]
        turned = root @ np.linalg.qr(rng.standard_normal((20, n)))[0].T
        found = measure(torch.from_numpy(turned), ["orthogonality_gap", "sigma_min"])
        closed.append(abs(found["orthogonality_gap"] - rho * math.sqrt((n - 1) / n)))
        least.append(abs(found["sigma_min"] - math.sqrt(1 - rho)))
        r = int(rng.integers(1, n + 1))
        x = rng.standard_normal((n, r)) @ rng.standard_normal((r, 20)) * rng.gamma(0.5, size=(n, 1))
        m = measure(torch.from_numpy(x), ["orthogonality_gap", "sigma_min"])
        v, hat = m["orthogonality_gap"], 1 / n - m["sigma_min"] ** 2 / np.square(x).sum()
        beyond.append(v - math.sqrt(1 - 1 / n))
        below.append(math.sqrt(1 / r - 1 / n) - v)
        over.append(highest(-hat, hat - 1 / n))
    yield at_most("largest distance from rho sqrt((n-1)/n)", highest(closed), 1e-12,
                  reason="a closed form: rounding only")  # fmt: skip
    yield at_most("largest distance of sigma_n from sqrt(1 - rho)", highest(least), 1e-12, reason="the same batches")
    yield at_most("largest V - sqrt(1 - 1/n)", highest(beyond), 1e-12, exact="an inequality: rounding only")
    yield at_most("largest sqrt(1/r - 1/n) - V", highest(below), 1e-7, exact="an inequality; a root of rounding near 0")
    yield at_most("largest excess of the Lyapunov function over [0, 1/n]", highest(over), 1e-12, exact="an inequality")


@PAPER.claim(
    "sampler", "Chains drawn from their law without weights have the statistics of chains with explicit weights.",
    where="eq. 1", covers="C2", quick={"chains": 4000, "layers": (8, 20)},
    full={"chains": 20000, "layers": (5, 8, 12, 20, 40)}, control={"mean": 0.5, "chains": 500},
    because="with weights of positive mean the explicit chains are other ones", seconds=(5, 60),
)  # fmt: skip
def sampler(run: Run, chains: int, layers: tuple[int, ...], mean: float = 0.0) -> Iterable[Reading]:
    """Every simulated number of this paper rests on drawing W H from its law instead of W: mean V both ways.

    d = 32, n = 4, from the near rank-one start of Fig. 2. The explicit side draws every weight and applies the
    library's batch norm module.
    """
    d, n = 32, 4
    x = near_rank_one(n, d)
    spec = linear(highest(layers), d)
    found = series(simulated(run, spec, x, ["orthogonality_gap"], chains=chains), "orthogonality_gap", 1)
    explicit = np.zeros((highest(layers), chains))
    block = 500
    for start in range(0, chains, block):
        draw = shifted(normal_weights(block, d, run.generator(10 + start)), mean)
        batch = torch.from_numpy(x).expand(block, n, d)
        for layer, u in enumerate(side_by_side(batch, highest(layers), draw)):
            gram = (u @ u.transpose(1, 2)).numpy()
            explicit[layer, start : start + block] = gap_of(gram / (n * d))
    known = {5: 0.8262, 8: 0.5686, 12: 0.3805, 20: 0.2332, 40: 0.2022}
    for layer in layers:
        (a, ea), (b, eb) = mean_and_error(found[layer - 1]), mean_and_error(explicit[layer - 1])
        yield near(f"mean V at layer {layer}, simulated - explicit", a - b, 0, 0.012, stderr=math.hypot(ea, eb),
                   reason="three standard errors of the difference of 1500 runs")  # fmt: skip
        yield near(f"mean V at layer {layer}, explicit", b, known[layer], 0.012, stderr=eb, reason="1500 earlier runs")
