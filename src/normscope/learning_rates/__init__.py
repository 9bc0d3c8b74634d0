"""Learning rates by trying: the largest that trains and the best one, from short runs on copies."""

from normscope.learning_rates._rates import Rates, rates

__all__ = ["Rates", "rates"]
