"""The contract of a claim, of whatever paper: it says where it stands, what it covers, and why its control fails."""

import pytest

from normscope.claims import CLAIMS, PAPERS, load

load()


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_says_what_a_reader_needs(name):
    claim = CLAIMS[name]
    assert name.partition("/")[0] in PAPERS
    assert all((claim.statement, claim.where, claim.covers, claim.because))


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_has_a_control_that_changes_its_arguments(name):
    claim = CLAIMS[name]
    assert claim.controls
    assert all(claim.arguments("quick", control) != claim.arguments("quick") for control in claim.controls)
