"""Findings: rules over a profile, each with a stable code, evidence, and what to do."""

from normscope.findings import (  # noqa: F401, I001 - as their codes
    geometry, sight, axes, gradients, units, sharpness, updates, trial, outcomes, modes, wiring, steps, objective,
    targets, answers, batches, samples, layouts, limits, over_layers, over_losses,
)  # fmt: skip
from normscope.findings._rules import RULES, Finding, Rule, View, find

__all__ = ["RULES", "Finding", "Rule", "View", "find"]
