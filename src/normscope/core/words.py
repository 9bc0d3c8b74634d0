"""Numbers in words, labels told apart, the version and the homepage."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """``0.3 s``, ``40 s``, ``12 min``, ``2.5 h``, ``3.0 days``: in the unit that fits."""
    for size, unit, digits in ((86400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1g} s"


def amount(number: float, digits: int = 2) -> str:
    """A number in a sentence: ``3.2``, ``4.1e+05``; what hardly fits into float32 in words, ``beyond 1e30``."""
    if abs(number) > 1e30:
        return "beyond 1e30"
    if 0 < abs(number) < 1e-30:
        return "below 1e-30"
    return f"{number:.{digits}g}"


def version() -> str:
    """The library's version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("normscope")
    except PackageNotFoundError:
        return "unknown"


def homepage() -> str:
    """Where the documentation is published, by the package's metadata; "" where it does not say."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        pairs = [line.partition(", ") for line in metadata("normscope").get_all("Project-URL") or ()]
    except PackageNotFoundError:
        return ""
    return next((url for label, _, url in pairs if label.lower() == "documentation"), "")


def distinct(labels: list[str]) -> list[str]:
    """Labels of which no two are alike: the second of a name has (2) behind it."""
    seen: dict[str, int] = {}
    out = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        out.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return out
