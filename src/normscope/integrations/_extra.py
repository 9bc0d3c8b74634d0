"""What is missing, and the line that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from normscope.core.errors import UsageError


class MissingLibrary(UsageError, ImportError):
    """A library that an integration is for is not installed. A ``UsageError`` and an ``ImportError``."""


@contextmanager
def needs(what: str, install: str) -> Iterator[None]:
    """Around the import of the library: a missing one becomes one line that says what to install."""
    try:
        yield
    except ImportError as error:
        raise MissingLibrary(
            f"{what} needs a package that is not installed ({error}). Run: pip install {install}"
        ) from error
