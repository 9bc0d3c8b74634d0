"""Axes as text: ``1:64:log2``, ``none,batch,layer``, ``0.1``."""

from __future__ import annotations

import re
from typing import Any

from normscope.core.errors import MANY, UsageError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf", re.I)
HELP = "a,b,c; lo:hi (whole numbers, both ends); lo:hi:step; lo:hi:log2 (or log10, x3: times 2, 10, 3 each)"


def axis(text: str, name: str = "axis", kind: str = "") -> list[Any]:
    """The values of an axis written as text.

    ``a,b,c``: these, each a number, ``true``, ``false``, ``none`` or a word. ``lo:hi``: whole numbers, both ends in.
    ``lo:hi:step``: lo, lo + step, ... up to hi. ``lo:hi:log2``: lo, 2 lo, 4 lo, ... up to hi; ``log10``; ``x3``: times
    3. Ranges and values may be mixed with commas. kind: the annotation of the parameter: a ``str`` is never a number or
    a range, and ``none`` means None only where the annotation has it.

    Raises ``UsageError``: an empty item, a range that is none, that runs the wrong way, or of more than `MANY` values.
    """
    words = "str" in kind
    values: list[Any] = []
    for item in text.split(","):
        item = item.strip()
        if not item:
            raise UsageError(f"{name} must be {HELP}; got {text!r}, which has an empty item.")
        values += [_word(item, kind)] if words or not _is_range(item) else _range(item, name)
    if len(values) > MANY:
        raise UsageError(f"An axis has at most {MANY} values; {name} = {text!r} has {len(values)}.")
    return values


def _is_range(item: str) -> bool:
    parts = item.split(":")
    return len(parts) > 1 and all(_NUMBER.fullmatch(p) for p in parts[:1])


def _range(item: str, name: str) -> list[Any]:
    parts = item.split(":")
    wrong = UsageError(f"{name} must be {HELP}; got {item!r}.")
    if len(parts) not in (2, 3) or not all(_NUMBER.fullmatch(p) for p in parts[:2]):
        raise wrong
    lo, hi = _number(parts[0]), _number(parts[1])
    if lo > hi or hi == float("inf"):
        raise UsageError(f"A range goes up from lo to hi; {name} = {item!r} does not. Write {parts[1]}:{parts[0]}?")
    how = parts[2] if len(parts) == 3 else "1"
    factor = re.fullmatch(r"(?:log|x)(\d+\.?\d*)", how)
    if factor:
        times = _number(factor[1])
        if times <= 1 or lo <= 0:
            raise UsageError(f"A range of powers starts above 0 and multiplies by more than 1; got {name} = {item!r}.")
        return _steps(lo, hi, name, item, lambda i: lo * times**i)
    if not _NUMBER.fullmatch(how) or _number(how) <= 0:
        raise wrong
    if len(parts) == 2 and not isinstance(lo, int):
        raise UsageError(
            f"lo:hi counts whole numbers; for others write the step, as in 0:1:0.25; got {name} = {item!r}."
        )
    step = _number(how)
    return _steps(lo, hi, name, item, lambda i: lo + i * step)


def _steps(lo: float, hi: float, name: str, item: str, at: Any) -> list[Any]:
    values: list[Any] = []

    def reached() -> Any:
        try:
            return at(len(values))
        except OverflowError:
            return float("inf")

    while (value := reached()) <= hi * (1 + 1e-12) + 1e-300:
        # 3 * 0.1 is not 0.3: a range says the number that one would write.
        values.append(value if isinstance(value, int) else float(f"{value:.12g}"))
        if len(values) > MANY:
            raise UsageError(f"An axis has at most {MANY} values; {name} = {item!r} has more.")
    return values


def _word(item: str, kind: str) -> Any:
    low = item.lower()
    if low == "none":
        return None if "None" in kind or not kind else item
    if "str" in kind:
        return item
    if low in ("true", "false"):
        return low == "true"
    return _number(item) if _NUMBER.fullmatch(item) else item


def _number(text: str) -> Any:
    try:
        return int(text)
    except ValueError:
        return float(text)
