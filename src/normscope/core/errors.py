"""The one error that means: what was asked for cannot be done as asked."""

from __future__ import annotations

import difflib
import itertools
import math
import numbers
import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class UsageError(ValueError):
    """Bad input. The message says what must hold, what came, and what to do.

    The command line prints it as one line and exits with code 2; in Python it is a ``ValueError``.
    """


class DoesNotRun(UsageError, RuntimeError):
    """The model refuses the batch: a layer of torch's raised. A ``UsageError`` that is a ``RuntimeError`` still."""


class TrainingStopped(RuntimeError):
    """A tracker found what it was told to stop on (``Tracker(stop_on=...)``); ``finding`` is what it found."""

    def __init__(self, message: str, finding: Any = None) -> None:
        super().__init__(message)
        self.finding = finding


#: Names that a message lists.
MOST = 40
#: Seeds, and values of one axis, at most: more are a slip of the pen.
MANY = 100_000
_HOLDS = {">=": operator.ge, ">": operator.gt, "<": operator.lt}


def unknown(kind: str, name: object, known: Iterable[str]) -> UsageError:
    """``UsageError`` for a name that is not registered, with the nearest known name."""
    names, name = sorted(map(str, known)), brief(name, 80)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    more = f", and {len(names) - MOST} more" if len(names) > MOST else ""
    return UsageError(f"There is no {kind} {name!r}.{hint} Known: {', '.join(names[:MOST])}{more}.")


def whole_number(
    name: str, value: Any, least: int = 0, do: str = "Leave it out for the default.", *, most: int = 2**63 - 1
) -> int:
    """``value`` as an ``int``, numpy's too; ``UsageError`` for what is no whole number (``True``, 2.0), below
    ``least`` or above ``most``.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    number = operator.index(value) if whole else least
    if not whole or not least <= number <= most:
        bound = f"from {least} to {most}" if number > most else f">= {least}"
        raise UsageError(f"{name} must be a whole number {bound}; got {shown(value)}. {do}")
    return number


def seed_of(value: Any, name: str = "seed") -> int:
    """A seed as an ``int``: of those that torch's and numpy's generators both take."""
    return whole_number(name, value, do="A generator takes no other; leave it out for 0.", most=2**64 - 1)


def gives_items(value: Any) -> bool:
    """Whether a value is several things: no text, and no tensor without axes."""
    try:
        return not isinstance(value, str | bytes) and iter(value) is not None
    except TypeError:
        return False


def seeds_of(value: Any) -> tuple[int, ...]:
    """Which seeds: so many from 0, or those given, all different."""
    many = isinstance(value, numbers.Integral)
    if not many and not gives_items(value):
        raise UsageError(
            f"seeds must be a whole number >= 1, or the seeds themselves; got {shown(value)}. Pass seeds=3 or [0, 1]."
        )
    given = range(whole_number("seeds", value, 1, most=MANY)) if many else value
    found = tuple(seed_of(seed, "Each of the seeds") for seed in itertools.islice(given, MANY + 1))
    if len(found) > MANY:
        raise UsageError(f"seeds must be at most {MANY}; got {shown(value)}. Take fewer.")
    if not found or len(set(found)) < len(found):
        raise UsageError(f"seeds must be at least one, and different ones; got {shown(value)}. Pass seeds=3 or [0, 1].")
    return found


def finite_number(
    name: str, value: Any, *, least: float | None = None, above: float | None = None, below: float | None = None,
    do: str = "Leave it out for the default.",
) -> float:  # fmt: skip
    """``value``, an ``int`` or a ``float``; ``UsageError`` for another thing, for NaN, infinity, and out of bounds."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    sides = [(sign, bound) for sign, bound in ((">=", least), (">", above), ("<", below)) if bound is not None]
    if not (real and -math.inf < value < math.inf and all(_HOLDS[sign](value, bound) for sign, bound in sides)):
        bounds = " and".join(f" {sign} {bound:g}" for sign, bound in sides)
        raise UsageError(f"{name} must be a finite number{bounds}; got {shown(value)}. {do}")
    return value if isinstance(value, int | float) else float(value)


def flag(name: str, value: Any) -> bool:
    """``value`` as a ``bool``; ``UsageError`` for what is neither that nor 0 or 1."""
    if isinstance(value, bool | int | type(None)) and value in (True, False, None):
        return bool(value)
    raise UsageError(f"{name} must be True or False; got {shown(value)}. Leave it out for the default.")


def function_of(name: str, value: Any) -> Any:
    """``value``, a function or ``None``; ``UsageError`` for what cannot be called."""
    if value is None or callable(value):
        return value
    raise UsageError(f"{name} must be a function; got {shown(value)}. Leave it out for none.")


@contextmanager
def noted(what: str) -> Iterator[None]:
    """An exception of the user's own code passes, with a note of what raised it."""
    try:
        yield
    except Exception as error:
        error.add_note(f"normscope: {what} raised this.")
        raise


def shown(value: object) -> str:
    """A value in a message: as it is written, or its type where that is long."""
    try:
        text = repr(value)
    except Exception:  # somebody else's object, or a number of more digits than Python writes
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def brief(text: object, most: int = 300) -> str:
    """A text from elsewhere on one line, its middle left out where it is long."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[: most * 2 // 3]} ... {line[-most // 3 :]}"
