"""The statements of four papers as claims that run: `verify` says holds, fails or undecided, with a control each."""

from normscope.claims.claim import CLAIMS, PAPERS, SIZES, Axes, Claim, Curve, Evidence, Paper, Run
from normscope.claims.reading import Reading, at_least, at_most, between, near
from normscope.claims.verdict import Verdict, judge
from normscope.claims.verification import Verdicts, chosen, load, verify

__all__ = ["CLAIMS", "PAPERS", "SIZES", "Axes", "Claim", "Curve", "Evidence", "Paper", "Reading", "Run", "Verdict",
           "Verdicts", "at_least", "at_most", "between", "chosen", "judge", "load", "near", "verify"]  # fmt: skip
