"""Batch Normalization Decomposed (2024) as claims: our analysis of the phenomenon that the paper announces.

Of the paper only abstract and introduction could be read, so no claim here is "theorem k": the statements are ours,
for recentring, rescaling and the non-linearity taken apart.
"""

from normscope.claims.nachum2024 import detector, exact, maps, odd_sample, rescaling, simulations, stability, table
from normscope.claims.nachum2024._paper import PAPER

__all__ = ["PAPER", "detector", "exact", "maps", "odd_sample", "rescaling", "simulations", "stability", "table"]
