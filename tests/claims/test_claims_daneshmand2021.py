"""The claims on orthogonality: every row of the specification has one, and the fast ones do what they should."""

import pytest

pytest.importorskip("normscope.init", reason="the training claims use the cures")

from normscope.claims import CLAIMS, PAPERS, judge
from normscope.claims.daneshmand2021 import PAPER

ROWS = [f"C{i}" for i in range(1, 28)] + [
    "eq.1", "eq.2", "eq.6", "eq.11", "eq.13", "eq.15", "A1", "Th.1", "Th.5", "B.1", "L2", "L4", "L6", "L7", "L8", "L9",
    "L10",
    "Cor.3", "Erratum-1", "Erratum-2", "Fig.1", "Fig.2a", "Fig.2b", "Fig.2b-slope", "Fig.3a", "Fig.3b", "Fig.4",
    "Fig.5a",
    "Fig.5b", "Fig.6", "Fig.6-bug", "Fig.7", "Tab.1", "Tab.2", "Tab.3", "F.2", "F.conjecture", "vanilla-law",
    "transient",
    "F-gradients", "F-haar", "F-haar-floor", "F-isometry", "F-nonlinearity", "F-groups", "F-dyt",
    "F-mean-field", "E-slice", "E-identity",
]  # fmt: skip
MINE = [name for name in CLAIMS if name.startswith("daneshmand2021/")]
FAST = [
    "normalization", "gap", "lemma8", "contraction", "theorem1-as-printed", "appendix-constant", "lemma4", "mean-gram",
    "transient",
    "appendix-e", "slice-spectrum", "isometry", "vanilla-relu", "fig2a", "dyt",
]  # fmt: skip


def test_every_row_of_the_specification_is_covered_or_left_out():
    covered = {row for name in MINE for row in CLAIMS[name].covers} | set(PAPERS["daneshmand2021"].left_out)
    assert [row for row in ROWS if row not in covered] == []


def test_what_is_left_out_is_not_covered_as_well():
    covered = {row for name in MINE for row in CLAIMS[name].covers}
    assert covered.isdisjoint(PAPER.left_out)


@pytest.mark.parametrize("name", FAST)
def test_a_fast_claim_says_what_it_should_and_its_control_the_opposite(name):
    verdict = judge(f"daneshmand2021/{name}")
    assert verdict.as_expected, verdict.error or verdict.readings
    assert verdict.control in ("holds", "fails")
