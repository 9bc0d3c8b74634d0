"""Batch Normalization Provably Avoids Rank Collapse (NeurIPS 2020), as claims."""

from normscope.claims.daneshmand2020 import averages, figures, networks, saturation, theorems, training
from normscope.claims.daneshmand2020.paper import PAPER

__all__ = ["PAPER", "averages", "figures", "networks", "saturation", "theorems", "training"]
