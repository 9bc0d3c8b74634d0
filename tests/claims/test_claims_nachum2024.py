"""The claims on batch norm decomposed: fast ones hold and their controls fail; no row of the specification is left
out.
"""

import pytest

from normscope.claims import CLAIMS, PAPERS, judge, nachum2024

FAST = [
    "parts", "kernel", "odd-score", "exact-invariance", "infinite-width-shape", "two-clusters",
    "invariant-with-rescaling",
    "rank-grows", "odd-rank", "reduced-map", "spread-grows", "winner-takes-all", "equiangular-rates",
    "odd-state-stable",
    "several-become-one", "rescaling-destabilises", "odd-dissolves", "plain-relu-angle", "linear-rates",
    "equiangular", "rescaling-alone", "one-ray", "odd-activations", "detector-planted", "detector-false-alarms",
    "detector-several",
]  # fmt: skip

#: Rows of section 7, the statements of sections 0, 1, 2, 5 and 6, those of section 3 that have no row, figures in
#: place.
ROWS = (
    [f"D{i}" for i in range(1, 30)]
    + ["S0.1", "S0.2", "S0.3", "S0.4a", "S0.4b", "S0.4c", "S0.5a", "S0.5b", "S0.5c", "S0.6", "S0.7", "S1", "S2.kernel"]
    + ["S2.score", "S2.integral", "S4", "S5.planted", "S5.false", "S5.several", "S5.nets", "S6.law", "S6.cost"]
    + ["3.1.exact", "3.1.shape", "3.1.k", "3.1.rescaled", "3.1.leaky", "3.2.spread", "3.2.table", "3.2.threshold"]
    + ["3.2.slopes", "3.2.asymptotics", "3.3.equiangular", "3.3.odd", "3.3.saddle", "3.3.several", "3.3.growth"]
    + ["3.3.basin", "3.3.cosine", "3.4", "3.5.map", "3.5.depth", "3.5.odd", "3.6.factor", "3.6.root", "3.6.relax"]
    + [
        "3.6.heavy",
        "3.6.samples",
        "3.6.gradient",
        "3.6.equal",
        "3.7.table",
        "3.7.pre",
        "3.7.scale",
        "3.7.law",
        "3.7.ray",
    ]
    + ["3.7.rescaled", "3.7.rate", "3.7.floor", "3.7.abs", "3.7.identity", "3.8.state", "3.8.small", "3.8.which"]
    + ["3.8.permanent", "3.8.stationary", "3.8.depth", "3.8.infinite", "3.8.narrow", "3.8.d10000", "3.9", "3.9.odd"]
    + [f"F{i}" for i in range(1, 7)]
)


@pytest.mark.parametrize("name", FAST)
def test_holds_and_its_control_fails(name):
    verdict = judge(f"nachum2024/{name}")
    assert verdict.status == "holds", (verdict.error, verdict.worst)
    assert verdict.control == "fails"


def test_every_row_is_covered_or_left_out_with_a_reason():
    assert nachum2024.PAPER is PAPERS["nachum2024"]
    covered = {row for name, claim in CLAIMS.items() if name.startswith("nachum2024/") for row in claim.covers}
    assert set(ROWS) <= covered | set(nachum2024.PAPER.left_out)
    assert all(nachum2024.PAPER.left_out.values())
    assert not covered & set(nachum2024.PAPER.left_out)
