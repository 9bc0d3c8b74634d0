"""Learning rates by trying: the largest that trains and the best one, from short runs on copies."""

from normscope.learning_rates._rates import KINDS, Rates, of_kinds, rates

__all__ = ["KINDS", "Rates", "of_kinds", "rates"]
