"""The claims on rank: every row of the specification has one, and the fast ones do what they should."""

import pytest

pytest.importorskip("normscope.init", reason="the training claims use the cures")

from normscope.claims import CLAIMS, PAPERS, judge
from normscope.claims.daneshmand2020 import PAPER

ROWS = [f"R{i}" for i in range(1, 20)] + [
    "R14b", "R17s", "R15-training", "L1", "Th.2", "Th.14", "drift", "stationary-identity", "vanilla-collapse", "k-star",
    "gradient-direction", "Fig.1-left", "Fig.1-right", "Fig.2", "Fig.2-right", "Fig.3a", "Fig.3a-code", "Fig.3b",
    "Fig.4", "Fig.5",
    "Fig.6", "break-linear", "saturation",
]  # fmt: skip
MINE = [name for name in CLAIMS if name.startswith("daneshmand2020/")]
FAST = ["lemma1", "fig3b", "gradient-exact", "breaking-linear", "breaking-conv", "fig1-precision"]


def test_every_row_of_the_specification_is_covered_or_left_out():
    covered = {row for name in MINE for row in CLAIMS[name].covers} | set(PAPERS["daneshmand2020"].left_out)
    assert [row for row in ROWS if row not in covered] == []


def test_what_is_left_out_is_not_covered_as_well():
    covered = {row for name in MINE for row in CLAIMS[name].covers}
    assert covered.isdisjoint(PAPER.left_out)


@pytest.mark.parametrize("name", FAST)
def test_a_fast_claim_says_what_it_should_and_its_control_the_opposite(name):
    verdict = judge(f"daneshmand2020/{name}")
    assert verdict.as_expected, verdict.error or verdict.readings
    assert verdict.control in ("holds", "fails")
