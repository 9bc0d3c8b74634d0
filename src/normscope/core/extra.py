"""Optional parts: what is missing, and the line that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from normscope.core.errors import UsageError


class MissingExtra(UsageError, ImportError):
    """An optional package is not installed. A ``UsageError`` (exit code 2) and an ``ImportError``."""


@contextmanager
def needs_extra(what: str = "HTML reports and pictures need", install: str = "'normscope[report]'") -> Iterator[None]:
    """Around the imports of an optional part: a missing package becomes one line that says what to install.

    what: who needs it, with the verb. install: what pip is given.
    """
    try:
        yield
    except ImportError as error:
        raise MissingExtra(f"{what} a package that is not installed ({error}). Run: pip install {install}") from error
