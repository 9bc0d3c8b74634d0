"""A reading: one measured number, the band it must lie in, and why the band is what it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: What a reading, and the worst of a claim's readings, can say.
STATUSES = ("holds", "undecided", "fails")


@dataclass(frozen=True)
class Reading:
    """``value`` +- ``stderr`` (one standard error, 0 where exact up to rounding), and its band [``low``, ``high``].

    ``expected`` is the value that theory or the specification gives, ``printed`` what the paper prints, where it
    prints a number; ``reason`` says where the band comes from. ``k`` standard errors count as the value's own spread.
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

    @property
    def status(self) -> str:
        """``holds`` if value +- k s.e. lies in the band, ``fails`` if it lies outside, else (or NaN) ``undecided``."""
        below, above = self.value - self.k * self.stderr, self.value + self.k * self.stderr
        if math.isnan(below) or math.isnan(above):
            return "undecided"
        if self.low <= below and above <= self.high:
            return "holds"
        return "fails" if above < self.low or below > self.high else "undecided"


def near(
    quantity: str, value: float, expected: float, tolerance: float | None = None, *, relative: float | None = None,
    stderr: float = 0.0, printed: float | None = None, reason: str = "", k: float = 2.0,
) -> Reading:  # fmt: skip
    """A value that must be ``expected`` to an absolute ``tolerance`` or a ``relative`` one."""
    if (tolerance is None) == (relative is None):
        raise ValueError("near() needs exactly one of tolerance (absolute) and relative")
    reach = tolerance if tolerance is not None else abs(expected) * float(relative or 0)
    return Reading(quantity, value, expected - reach, expected + reach, stderr, expected, printed, reason, k)


def at_most(
    quantity: str, value: float, bound: float, *, stderr: float = 0.0, printed: float | None = None, reason: str = "",
    k: float = 2.0,
) -> Reading:  # fmt: skip
    """A value that must not exceed ``bound``."""
    return Reading(quantity, value, -math.inf, bound, stderr, None, printed, reason, k)


def at_least(
    quantity: str, value: float, bound: float, *, stderr: float = 0.0, printed: float | None = None, reason: str = "",
    k: float = 2.0,
) -> Reading:  # fmt: skip
    """A value that must reach ``bound``."""
    return Reading(quantity, value, bound, math.inf, stderr, None, printed, reason, k)


def between(
    quantity: str, value: float, low: float, high: float, *, stderr: float = 0.0, expected: float | None = None,
    printed: float | None = None, reason: str = "", k: float = 2.0,
) -> Reading:  # fmt: skip
    """A value that must lie in [``low``, ``high``]."""
    return Reading(quantity, value, low, high, stderr, expected, printed, reason, k)


def worst(readings: tuple[Reading, ...]) -> str:
    """The status of several readings: that of the worst; ``undecided`` if there are none."""
    return max((r.status for r in readings), key=STATUSES.index, default="undecided")
