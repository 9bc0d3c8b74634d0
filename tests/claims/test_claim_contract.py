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


def test_a_reduced_size_is_the_papers_but_for_what_it_names_and_takes_half_an_hour_at_most():
    reduced = [c for c in CLAIMS.values() if c.reduced != c.full]
    assert reduced
    for claim in reduced:
        assert set(claim.reduced) == set(claim.full)
        assert claim.cost("reduced") <= 1800 < claim.cost("full")
        assert (claim.needed("full"), claim.needed("reduced")) == (claim.needs, "")
        assert claim.needs


def test_a_claim_without_a_reduced_size_has_there_what_it_has_in_full():
    claim = next(c for c in CLAIMS.values() if c.needs and c.reduced == c.full)
    assert claim.arguments("reduced") == claim.arguments("full")
    assert (claim.needed("reduced"), claim.cost("reduced")) == (claim.needs, claim.cost("full"))
