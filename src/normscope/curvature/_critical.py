"""The largest learning rate at which the loss does not rise above its first value, found by trying."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from normscope.call.losses import LossLike
from normscope.call.step import Step
from normscope.call.traceless import alone
from normscope.core.errors import UsageError
from normscope.curvature._operators import fisher
from normscope.curvature._rates import Descent, descent_step, trained_batch
from normscope.linalg import spectrum

#: Doublings (or halvings) of 2 / lambda_max that are tried before the search gives up (chosen by us: a factor 10^6).
MOST_DOUBLINGS = 20


@dataclass(frozen=True)
class CriticalRate:
    r"""Where full-batch gradient descent from a model's present parameters first rises above its first loss.

    rate: the largest rate tried whose loss stayed; ``above``: the smallest tried that did not, so that the critical
        rate lies between them. ``inf`` where nothing tried exceeds, 0 where everything does.
    lambda_max: largest eigenvalue of the Fisher at the start; ``steps`` of each run; ``runs``: what was tried, in
        order.
    """

    rate: float
    above: float
    lambda_max: float
    steps: int
    runs: tuple[Descent, ...]

    @property
    def margin(self) -> float:
        r"""rate $\cdot\,\lambda_{max}/2$: 1 where linear stability tells the whole story, more where it is
        conservative.
        """
        return self.rate * self.lambda_max / 2

    def __repr__(self) -> str:
        return (
            f"CriticalRate({self.rate:.4g} .. {self.above:.4g} over {self.steps} steps, "
            f"{self.margin:.3g} x 2 / lambda_max, {len(self.runs)} runs)"
        )


@alone
def critical_rate(
    model: nn.Module | Step,
    inputs: Any = None,
    targets: Any = None,
    loss: LossLike = None,
    *,
    steps: int = 15,
    tol: float = 0.01,
    **options: Any,
) -> CriticalRate:
    r"""The largest learning rate whose loss never exceeds its initial value in ``steps`` steps of gradient descent.

    The criterion of `Descent.exceeded`, "no catapult", on the whole batch, the model untouched. Bisected between rates
    from 2 / lambda_max up or down by doubling, until they are within a factor 1 + ``tol``; so it finds the lowest
    crossing that doubling meets, and a second window of good rates beyond is not looked for.

    Near a minimum, or where the top eigenvector carries the residual, the result is close to $2/\lambda_{max}$ (ratio
    ``margin`` -> 1 with the width for plain nets at initialization); with the outputs' mean subtracted the top of the
    bulk carries little of it, and the margin is 2-3. Another criterion (final loss below the first one after many
    steps) gives much larger rates, as nets catapult to flatter places.

    inputs, targets, options: one batch, as for `fisher` (``mode``, ``dtype``, ``seed``, ``parameters``, ``outputs``).
    Errors: ``UsageError`` for steps < 1, tol not in (0, 1), a first loss that is not finite.
    """
    if not isinstance(steps, int) or steps < 1:
        raise UsageError(f"steps must be a whole number >= 1; got {steps!r}. The usual choice is 15.")
    if not 0 < tol < 1:
        raise UsageError(f"tol, the relative width of the bracket, must lie in (0, 1); got {tol!r}. Try 0.01.")
    f = trained_batch("critical_rate()", model, inputs, targets, loss, dict(options))
    first = float(f.loss_at(f.theta).detach())
    if not math.isfinite(first):
        raise UsageError(f"critical_rate() needs a finite loss to start from; got {first}. Check inputs and targets.")
    top = spectrum(fisher(model, inputs, targets, loss, **options), tol=1e-3, method="lanczos").largest
    runs: list[Descent] = []

    def stays(rate: float) -> bool:
        theta, losses = list(f.theta), []
        for _ in range(steps):
            theta, value = descent_step(f, theta, rate)
            losses.append(value)
            if Descent(rate, tuple(losses)).exceeded:
                break
        else:
            losses.append(float(f.loss_at(theta).detach()))
        runs.append(Descent(rate, tuple(losses)))
        return not runs[-1].exceeded

    low, high = _bracket(stays, 2 / top if top > 0 else 1.0)
    while low > 0 and high < math.inf and high > low * (1 + tol):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if stays(middle) else (low, middle)
    return CriticalRate(low, high, top, steps, tuple(runs))


def _bracket(stays: Callable[[float], bool], start: float) -> tuple[float, float]:
    """Neighbouring doublings of ``start``, the lower one good and the upper one not; (inf, inf) or (0, least) if
    none.
    """
    rate, good = start, stays(start)
    for _ in range(MOST_DOUBLINGS):
        other = rate * 2 if good else rate / 2
        if stays(other) != good:
            return (rate, other) if good else (other, rate)
        rate = other
    return (math.inf, math.inf) if good else (0.0, rate)
