"""The one error that means: what was asked for cannot be done as asked."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input. The message says what must hold, what came, and what to do.

    The command line prints it as one line and exits with code 2; in Python it is a ``ValueError``.
    """


class DoesNotRun(UsageError, RuntimeError):
    """The model refuses the batch: a layer of torch's raised. A ``UsageError`` that is a ``RuntimeError`` still."""


#: Names that a message lists.
MOST = 40


def unknown(kind: str, name: object, known: Iterable[str]) -> UsageError:
    """``UsageError`` for a name that is not registered, with the nearest known name."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    more = f", and {len(names) - MOST} more" if len(names) > MOST else ""
    return UsageError(f"There is no {kind} {str(name)!r}.{hint} Known: {', '.join(names[:MOST])}{more}.")
