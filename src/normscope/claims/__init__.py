"""The statements of four papers as claims that run: ``verify`` says holds, fails or undecided, with a control each."""

from normscope.claims.claim import CLAIMS, PAPERS, Axes, Claim, Curve, Evidence, Paper, Run
from normscope.claims.reading import Reading, at_least, at_most, between, near
from normscope.claims.verdict import Verdict, judge

__all__ = [
    "CLAIMS",
    "PAPERS",
    "Axes",
    "Claim",
    "Curve",
    "Evidence",
    "Paper",
    "Reading",
    "Run",
    "Verdict",
    "at_least",
    "at_most",
    "between",
    "judge",
    "near",
]
