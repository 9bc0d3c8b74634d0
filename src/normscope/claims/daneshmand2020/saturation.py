"""What the follow-up paper takes from this one: how many directions a chain with more samples than it can hold
keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from normscope.claims._chains import linear, simulated
from normscope.claims._tables import mean_and_error, series
from normscope.claims.claim import Run
from normscope.claims.daneshmand2020.paper import PAPER
from normscope.claims.reading import Reading, between


@PAPER.claim(
    "saturation", "With more samples than the width can hold the rank saturates at about 0.9 sqrt(d).",
    where="Theorem 2 as 2106.03970 cites it", covers="saturation", quick={"cases": ((64, 48, 600),), "chains": 12},
    full={"cases": ((64, 48, 2000), (64, 64, 2000), (256, 64, 2000)), "chains": 16}, control={"norm": "none"},
    because="without batch norm the rank is 1", seconds=(0.5, 9.6),
)  # fmt: skip
def saturation(
    run: Run, cases: Sequence[tuple[int, int, int]], chains: int, norm: str = "batch_rescale"
) -> Iterable[Reading]:
    """Cases are (d, N, layers), started orthogonal: participation rank over sqrt(d), second half of the layers.

    Listed: 7.05 at d = 64 and 14.9 at d = 256; see few-samples for what happens below that number of samples.
    """
    for d, n, layers in cases:
        found = simulated(run, linear(layers, d, norm), np.eye(n, d), ["participation_rank"], chains=chains, every=5,
                          stream=d)  # fmt: skip
        mean, error = mean_and_error(series(found, "participation_rank", layers // 2).mean(0) / math.sqrt(d))
        yield between(f"r / sqrt(d), d = {d}, N = {n}", mean, 0.85, 0.96, stderr=error,
                      reason="7.05/8 = .88, 14.9/16 = .93")  # fmt: skip
