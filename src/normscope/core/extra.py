"""Optional parts: what is missing, and the line that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from normscope.core.errors import UsageError


class MissingExtra(UsageError, ImportError):
    """An optional package is not installed. A ``UsageError`` (exit code 2) and an ``ImportError``."""


@contextmanager
def needs_extra(
    what: str = "HTML reports and pictures need", extra: str = "report", package: str = ""
) -> Iterator[None]:
    """Around the imports of an optional part: a missing package becomes one line that says what to install.

    what: who needs it, with the verb. extra: of ours that installs it; ``package``: it is none of ours, but this one.
    """
    try:
        yield
    except ImportError as error:
        line = f"pip install {package}" if package else _line(extra)
        raise MissingExtra(f"{what} a package that is not installed ({error}). Run: {line}") from error


def _line(extra: str) -> str:
    """How an extra is installed, from the index and in a checkout."""
    return f"pip install 'normscope[{extra}]' (in a checkout of the source: pip install -e '.[{extra}]')"
