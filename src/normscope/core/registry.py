"""Named things: a dictionary whose misses name the nearest hit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, TypeVar

from normscope.core.errors import unknown

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Ordered name -> thing. ``registry[name]`` raises ``UsageError`` with the nearest known name.

    home: the module that enrols the first things, on a higher floor perhaps; it is imported when the registry is first
        used.
    """

    def __init__(self, kind: str, home: str = "") -> None:
        self.kind = kind
        self._home = home
        self._enrolled: dict[str, T] = {}

    @property
    def _things(self) -> dict[str, T]:
        if self._home:
            import_module(self._home)  # each time: another thread may be in the middle of it, and is waited for
        return self._enrolled

    def add(self, name: str, thing: T) -> T:
        """Enrol a thing; a name is given once."""
        things = self._things
        if name in things:
            raise RuntimeError(f"{self.kind} {name!r} is registered twice")
        things[name] = thing
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

    def get(self, name: str, default: Any = None) -> Any:
        """The thing, or ``default``: a miss is no mistake here."""
        return self._things.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)
