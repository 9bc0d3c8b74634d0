"""The results in the repository: all claims at their quick size, and every reading shown to be one that can fail."""

from pathlib import Path

import pytest

from normscope.claims import CLAIMS, Verdicts, load

load()
QUICK = Verdicts.load(Path(__file__).parents[2] / "results" / "verify.jsonl")


def test_the_quick_results_are_those_of_the_claims_there_are():
    assert sorted(v.claim for v in QUICK) == sorted(CLAIMS)  # their order is that in which papers were imported
    assert {v.size for v in QUICK} == {"quick"}


@pytest.mark.parametrize("verdict", QUICK, ids=lambda v: v.claim)
def test_a_claim_says_what_it_should_and_each_of_its_readings_turns_or_is_exact(verdict):
    assert verdict.as_expected, (verdict.status, verdict.error)
    assert [r.quantity for r in verdict.readings if verdict.guard(r) == "none"] == []
