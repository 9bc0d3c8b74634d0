"""A task of one's own: a function of a cell's parameters that returns numbers."""

import random


def logistic(growth: float, steps: int = 100, seed: int = 0) -> dict[str, float]:
    """The logistic map from a random start: its last value, and the mean logarithm of its derivative."""
    import math

    x, total = random.Random(seed).uniform(0.1, 0.9), 0.0
    for _ in range(steps):
        total += math.log(abs(growth * (1 - 2 * x)) + 1e-300)
        x = growth * x * (1 - x)
    return {"last": x, "lyapunov_exponent": total / steps}
