"""Bytes: what may still be taken, what would not fit, and how an amount is written."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from normscope.core.errors import UsageError

#: Environment variables that set, in bytes or as ``8GB``, what may be taken at once, and how large a file may be.
MEMORY, FILE = "NORMSCOPE_MEMORY", "NORMSCOPE_MAX_FILE"
#: What is less is taken without a look at what is free.
LEAST = 1 << 26
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def size(given: str | int | None, name: str = "memory") -> int | None:
    """Bytes, also written ``2GB`` or ``500MB`` (powers of ten)."""
    if given is None or (isinstance(given, int) and not isinstance(given, bool)):
        return given
    text = str(given).strip().lower().removesuffix("b").removesuffix("i")
    number, unit = (text[:-1], text[-1]) if text and text[-1] in _UNITS else (text, "")
    try:
        return int(float(number) * _UNITS[unit])
    except (ValueError, OverflowError):
        raise UsageError(f"{name} is written 500MB or 2GB; got {given!r}.") from None


def shown(number: float) -> str:
    """``3.2 GB``: an amount in the unit that fits."""
    for unit, bytes_ in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= bytes_:
            return f"{number / bytes_:.3g} {unit}"
    return f"{number:.0f} bytes"


def available() -> int:
    """Bytes of main memory that this process may still take: the machine's, the container's, the process's own limit.

    What the environment variable `MEMORY` says takes the place of all of these.
    """
    if (asked := size(os.environ.get(MEMORY) or None, MEMORY)) is not None:
        return asked
    free = [10**12]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
    with suppress(OSError, ValueError):  # none, or "max"
        limit, used = (Path("/sys/fs/cgroup", name).read_text() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        free.append(max(int(limit) - int(used) + int(stat.get("inactive_file", 0)), 0))  # files read are let go of
    with suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        free.append(max(addresses() - pages * os.sysconf("SC_PAGE_SIZE"), 0))
    return min(free)


def addresses() -> int:
    """Bytes of addresses that this process may have in all (``ulimit -v``)."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 1 << 62
    limit: int = resource.getrlimit(resource.RLIMIT_AS)[0]
    return 1 << 62 if limit == resource.RLIM_INFINITY else limit


def largest_file() -> int:
    """Bytes that a file of data may take, packed or unpacked: 2 GB, or what the variable `FILE` says."""
    asked = size(os.environ.get(FILE) or None, FILE)
    return min(2 * 10**9, available()) if asked is None else asked


def check_room(needed: float, what: str, do: str) -> None:
    """``UsageError`` if ``needed`` bytes are more than is `available`; ``what`` takes them, the start of a sentence."""
    if needed > LEAST and needed > (free := available()):
        raise UsageError(
            f"{what} must fit in memory; it takes about {shown(needed)}, and {shown(free)} are free. {do} "
            f"({MEMORY}=64GB says that there is more.)"
        )


def check_copies(tensors: Iterable[Any], times: int, what: str, itemsize: int = 0) -> None:
    """`check_room` for so many tensors like each of a model's, of those in main memory; ``what``: what they will be.

    itemsize: bytes of an entry where they have another type.
    """
    needed = times * sum(t.numel() * (itemsize or t.element_size()) for t in tensors if t.device.type == "cpu")
    check_room(needed, f"What is made beside the model ({what})", "Take a smaller net of its kind: fewer layers, say.")


@cache
def _trim() -> Any:
    with suppress(OSError, AttributeError):  # glibc's alone
        return ctypes.CDLL(None).malloc_trim
    return None


def trim() -> None:
    """Give back to the system what was freed: glibc keeps aligned blocks of a few MB, and seldom uses them again."""
    if (give := _trim()) is not None:
        give(0)


def does_not_fit(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError | getattr(torch, "OutOfMemoryError", MemoryError)):
        return True
    # torch has no class of its own for main memory: the one place where an error's text decides
    return type(error) is RuntimeError and "DefaultCPUAllocator" in str(error)
