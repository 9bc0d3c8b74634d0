"""The claims on Fisher sharpness: fast ones hold and their controls fail; no row of the specification is left out."""

import pytest

from normscope.claims import CLAIMS, PAPERS, judge, karakida2019

FAST = [
    "order-parameters", "gaussian-moments", "fisher-prediction", "projector", "exact-spectra", "null-directions",
    "softmax-exact", "library-batch-norm", "dense-is-matrix-free",
]  # fmt: skip

#: Rows of section 7, theorems with their exact parts, figures A to H, and the checkable statements of sections 0 to 8.
ROWS = (
    [f"7.{i}" for i in range(1, 22)]
    + ["T1.lambda", "T1.mean", "T1.second", "T1.outliers", "T1.layers", "T1.centred"]
    + ["T2.bounds", "T2.mean", "T2.condition", "T2.trace", "T2.interlacing", "T2.projector"]
    + ["T3.order", "T3.projector", "T3.affine", "T3.bound", "T3.null", "T3.frozen", "T4.relu", "T4.tanh", "T4.partial"]
    + ["T5", "T6", "T6.exact", "T6.erratum", "S0.benefit", "S1", "S2.recursions", "S2.table", "S2.closed", "S2.inputs"]
    + ["S3.predicted", "S3.lazy", "S4.strict", "S4.init", "S6.semantics", "S6.shortcuts", "S8.rates", "S9"]
    + [
        "Fig.A",
        "Fig.A.lower",
        "Fig.B",
        "Fig.B.lines",
        "Fig.C",
        "Fig.C.line",
        "Fig.D",
        "Fig.E",
        "Fig.F",
        "Fig.G",
        "Fig.H",
    ]
)


@pytest.mark.parametrize("name", FAST)
def test_holds_and_its_control_fails(name):
    verdict = judge(f"karakida2019/{name}")
    assert verdict.status == "holds", (verdict.error, verdict.worst)
    assert verdict.control == "fails"


def test_the_erratum_is_declared_as_one():
    assert CLAIMS["karakida2019/softmax-outliers-as-printed"].should == "fail"


def test_every_row_is_covered_or_left_out_with_a_reason():
    assert karakida2019.PAPER is PAPERS["karakida2019"]
    covered = {row for name, claim in CLAIMS.items() if name.startswith("karakida2019/") for row in claim.covers}
    assert set(ROWS) <= covered | set(karakida2019.PAPER.left_out)
    assert all(karakida2019.PAPER.left_out.values())
    assert not covered & set(karakida2019.PAPER.left_out)
