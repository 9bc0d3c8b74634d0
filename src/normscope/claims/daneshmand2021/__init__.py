"""Batch Normalization Orthogonalizes Representations in Deep Random Networks (NeurIPS 2021), as claims."""

from normscope.claims.daneshmand2021 import (
    convolutions,
    definitions,
    depth,
    figure5,
    figure6,
    figures,
    followups,
    gaussian,
    groups,
    orthogonalization,  # fmt: skip
    stationary,
    theorems,
    training,
)
from normscope.claims.daneshmand2021.paper import PAPER

__all__ = ["PAPER", "convolutions", "definitions", "depth", "figure5", "figure6", "figures", "followups", "gaussian",
           "groups", "orthogonalization", "stationary", "theorems", "training"]  # fmt: skip
