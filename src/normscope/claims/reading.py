"""A reading: one measured number, the band it must lie in, and why the band is what it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: What a reading, and the worst of a claim's readings, can say: from the best to the worst.
STATUSES = ("holds", "undecided", "fails", "error")


@dataclass(frozen=True)
class Reading:
    """``value`` +- ``stderr`` (one standard error, 0 where exact up to rounding), and its band [``low``, ``high``].

    ``expected`` is the value that theory or a reference run gives, ``printed`` what the paper prints, where it
    prints a number; ``reason`` says where the band comes from. ``k`` standard errors count as the value's own spread.
    ``exact``: an identity (or an inequality of all such numbers) that is checked to rounding, as the ``reason`` says;
    it holds whatever the claim is about, so that no control can make it fail.
    """

    quantity: str
    value: float
    low: float = -math.inf
    high: float = math.inf
    stderr: float = 0.0
    expected: float | None = None
    printed: float | None = None
    reason: str = ""
    k: float = 2.0
    exact: bool = False

    def __post_init__(self) -> None:
        if self.exact and not self.reason:
            raise ValueError(f"an exact reading needs the reason why it is; {self.quantity!r} has none")

    @property
    def status(self) -> str:
        """``holds`` if value +- k s.e. lies in the band, ``fails`` if it lies outside, else ``undecided``.

        ``error`` where a number is NaN, or the value infinite on the open side of its band: infinity holds nowhere.
        """
        if self.fault:
            return "error"
        below, above = self.value - self.k * self.stderr, self.value + self.k * self.stderr
        if self.low <= below and above <= self.high:
            return "holds"
        return "fails" if above < self.low or below > self.high else "undecided"

    @property
    def fault(self) -> str:
        """Which of its numbers is none to judge by; empty if all are."""
        for name in ("value", "stderr", "low", "high"):
            if math.isnan(getattr(self, name)):
                return f"{self.quantity!r}: {name} is nan"
        if math.isinf(self.value) and self.low <= self.value <= self.high:
            return f"{self.quantity!r}: value is {self.value:g}"
        return ""


def near(
    quantity: str, value: float, expected: float, tolerance: float | None = None, *, relative: float | None = None,
    stderr: float = 0.0, printed: float | None = None, reason: str = "", k: float = 2.0, exact: str = "",
) -> Reading:  # fmt: skip
    """A value that must be ``expected`` to an absolute ``tolerance`` or a ``relative`` one.

    ``exact``, here and below: the reason of an exact reading (see `Reading`).
    """
    if (tolerance is None) == (relative is None):
        raise ValueError("near() needs exactly one of tolerance (absolute) and relative")
    reach = tolerance if tolerance is not None else abs(expected) * float(relative or 0)
    low, high, why = expected - reach, expected + reach, exact or reason
    return Reading(quantity, value, low, high, stderr, expected, printed, why, k, bool(exact))


def at_most(
    quantity: str, value: float, bound: float, *, stderr: float = 0.0, printed: float | None = None, reason: str = "",
    k: float = 2.0, exact: str = "",
) -> Reading:  # fmt: skip
    """A value that must not exceed ``bound``."""
    return Reading(quantity, value, -math.inf, bound, stderr, None, printed, exact or reason, k, bool(exact))


def at_least(
    quantity: str, value: float, bound: float, *, stderr: float = 0.0, printed: float | None = None, reason: str = "",
    k: float = 2.0, exact: str = "",
) -> Reading:  # fmt: skip
    """A value that must reach ``bound``."""
    return Reading(quantity, value, bound, math.inf, stderr, None, printed, exact or reason, k, bool(exact))


def between(
    quantity: str, value: float, low: float, high: float, *, stderr: float = 0.0, expected: float | None = None,
    printed: float | None = None, reason: str = "", k: float = 2.0, exact: str = "",
) -> Reading:  # fmt: skip
    """A value that must lie in [``low``, ``high``]."""
    return Reading(quantity, value, low, high, stderr, expected, printed, exact or reason, k, bool(exact))


def worst(readings: tuple[Reading, ...]) -> str:
    """The status of several readings: that of the worst; ``undecided`` if there are none."""
    return max((r.status for r in readings), key=STATUSES.index, default="undecided")
