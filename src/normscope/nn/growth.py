r"""Growth of the gradient behind batch norm, layer by layer (many samples, wide layers), and what keeps it in bounds.

Pre-activations $z \sim N(0, \gamma^2)$ behind a batch norm of gain $\gamma$, weights that keep lengths. A layer passes
$E \varphi'(z)^2$ of a squared gradient on, and the next norm divides by the variance $\mathrm{Var}\,\varphi(z)$ of what
the layer returns: the log of the gradient's norm grows from the last layer to the first by
$\sum_l \frac12 \log\bigl(\gamma_l^2\, E \varphi'(z_l)^2 / \mathrm{Var}\,\varphi(z_l)\bigr)$, never negative (Poincare).
Of activations that are neither odd nor homogeneous (gelu, silu, softplus) it is a lower bound at full gain, since the
samples' lengths spread with depth, which `predict(Spec)` follows (results/growth.md); with the gains below it holds
again (docs/cures.md).
Follows Meterez, Joudaki, Orabona, Immer, Raetsch, Daneshmand 2023, arXiv 2310.02012, who show that it is bounded in
depth where activations are shaped; the formula for many samples is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from normscope.core.errors import UsageError, finite_number, whole_number
from normscope.gaussian import Function, activation, mean, second_moment

#: Gains (l + 1)^-p: the first power of these that keeps the budget is taken. Odd smooth activations are bounded in
#: depth for p > 1/4, others, with a term of second order, for p > 1/2.
POWERS = (0.4, 0.6, 0.8, 1.0, 1.5, 2.0)


def growth(name: str | Function, gain: float = 1.0) -> float:
    """Log of the gradient's growth over one layer: relu 0.192, tanh 0.081, sin 0.131, identity 0."""
    gain = finite_number("gain", gain, above=0, do="1 is that of a fresh batch norm.")
    a = activation(name)
    variance = float(second_moment(a, gain**2)) - float(mean(a, gain**2)) ** 2
    passed = gain**2 * float(second_moment(a, gain**2, derivative=True))
    if not 0 < variance < math.inf:
        raise UsageError(f"{a.name} must vary at gain {gain:g}; its variance is {variance:g}.")
    return max(0.0, 0.5 * math.log(passed / variance))


def total_growth(name: str | Function, gains: Sequence[float]) -> float:
    """The same over as many layers as there are gains."""
    known = {gain: growth(name, gain) for gain in set(gains)}
    return sum(known[gain] for gain in gains)


def shaped_gains(name: str | Function, layers: int, budget: float = 1.0) -> list[float]:
    """Gains (l + 1)^-p of so many layers, p the least of `POWERS` whose total growth is within the budget.

    Raises ``UsageError`` of a homogeneous activation, which no gain changes (see `leaky_slope`), and of one whose slope
    has a step at 0 (selu), which is nearly one at any gain.
    """
    layers = whole_number("layers", layers, 1)
    budget = finite_number("budget", budget, above=0, do="1 lets the gradient grow by a factor e.")
    a = activation(name)
    if a.homogeneous and not a.linear:
        raise UsageError(f"A gain does not shape {a.name}, which is homogeneous. Give it a slope: leaky_slope.")
    for power in POWERS:
        gains = [(layer + 1) ** -power for layer in range(1, layers + 1)]
        total = 0.0
        for gain in gains:
            total += growth(a, gain)
            if total > budget:
                break
        else:
            return gains
    raise UsageError(f"No gain keeps {a.name} within {budget:g} over {layers} layers: its slope has a step at 0.")


def leaky_slope(layers: int, budget: float = 1.0) -> float:
    r"""The slope a of leaky ReLU at which so many layers grow by the budget: $L\,g(a) = b$, 0 where ReLU itself does.

    $g(a) = \frac12 \log\bigl(m / (m - (1 - a)^2 / 2\pi)\bigr)$, $m = (1 + a^2)/2$. For b = 1: .592, .776, .894 at
    L = 50, 200, 1000.
    """
    layers = whole_number("layers", layers, 1)
    budget = finite_number("budget", budget, above=0, do="1 lets the gradient grow by a factor e.")
    # (1 - a)^2 / (pi (1 + a^2)) = 1 - exp(-2 b / L) =: c, a quadratic in a: (1 - k) a^2 - 2 a + 1 - k = 0, k = pi c
    k = -math.pi * math.expm1(-2 * budget / layers)
    return 0.0 if k >= 1 else (1 - math.sqrt(1 - (1 - k) ** 2)) / (1 - k)
