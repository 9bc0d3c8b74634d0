"""Numbers in words, and the version."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """``0.3 s``, ``40 s``, ``12 min``, ``2.5 h``, ``3.0 days``: in the unit that fits."""
    for size, unit, digits in ((86400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1g} s"


def version() -> str:
    """The library's version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("normscope")
    except PackageNotFoundError:
        return "unknown"
