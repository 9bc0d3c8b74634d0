"""Findings: rules over a profile, each with a stable code, evidence, and what to do."""

from normscope.findings import geometry, gradients, units, sharpness, modes, limits  # noqa: F401, I001 - as their codes
from normscope.findings._rules import RULES, Finding, Rule, View, find

__all__ = ["RULES", "Finding", "Rule", "View", "find"]
