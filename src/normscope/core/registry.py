"""Named things: a dictionary whose misses name the nearest hit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from normscope.core.errors import unknown

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Ordered name -> thing. ``registry[name]`` raises ``UsageError`` with the nearest known name."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T) -> T:
        """Enrol a thing; a name is given once."""
        if name in self._things:
            raise RuntimeError(f"{self.kind} {name!r} is registered twice")
        self._things[name] = thing
        return thing

    def register(self, name: str | None = None) -> Callable[[T], T]:
        """Decorator: enrol a function or class under ``name`` (default: its own)."""

        def enrol(thing: T) -> T:
            return self.add(name or thing.__name__, thing)  # type: ignore[attr-defined]

        return enrol

    def __getitem__(self, name: str) -> T:
        try:
            return self._things[name]
        except (KeyError, TypeError):
            raise unknown(self.kind, name, self._things) from None

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)
