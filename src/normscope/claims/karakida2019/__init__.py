"""Normalization against pathological sharpness (2019), and its neighbours of 2019 and 2021, as claims."""

from normscope.claims.karakida2019 import identities, normalizers, outliers, predictions, rates, statistics
from normscope.claims.karakida2019._paper import PAPER

__all__ = ["PAPER", "identities", "normalizers", "outliers", "predictions", "rates", "statistics"]
