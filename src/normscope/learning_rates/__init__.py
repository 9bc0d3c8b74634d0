"""Learning rates by trying: the largest that trains and the best one, from short runs on copies.

Also a range test, one batch learnt by heart, and how large a batch the gradient asks for.
"""

from normscope.learning_rates._noise import GradientNoise, gradient_noise
from normscope.learning_rates._overfit import Overfit, overfit
from normscope.learning_rates._range import RateRange, rate_range
from normscope.learning_rates._rates import KINDS, Rates, of_kinds, rates

__all__ = [
    "KINDS", "GradientNoise", "Overfit", "RateRange", "Rates", "gradient_noise", "of_kinds", "overfit", "rate_range",
    "rates",
]  # fmt: skip
