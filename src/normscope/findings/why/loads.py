"""Checkpoints that a script loads without ``strict``: what they left as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class Load:
    """One call of ``load_state_dict``. missing: parameters that it left, by ``id``, and their names there; ``stray``:
    what the state held beside, name and shape.
    """

    place: str
    missing: dict[int, str]
    shapes: dict[str, tuple[int, ...]]
    stray: dict[str, tuple[int, ...]]
    held: int


class Loads:
    """All that were seen; a later one makes good what an earlier one left."""

    def __init__(self) -> None:
        self._seen: list[Load] = []

    def add(self, module: nn.Module, state: Any, found: Any, place: str) -> None:
        """What ``load_state_dict`` said of one call."""
        missing = set(getattr(found, "missing_keys", ()))
        named = dict(module.named_parameters())
        loaded = {id(p) for n, p in named.items() if n not in missing}
        for old in self._seen:
            old.missing = {k: n for k, n in old.missing.items() if k not in loaded}
        if missing and isinstance(state, Mapping):
            stray = {k: tuple(state[k].shape) for k in found.unexpected_keys if isinstance(state.get(k), Tensor)}
            left = {id(p): n for n, p in named.items() if n in missing}
            self._seen.append(Load(place, left, {n: tuple(named[n].shape) for n in left.values()}, stray, len(named)))

    def left(self, mine: set[int]) -> dict[str, Any] | None:
        """Of a model's parameters (by ``id``) those that a checkpoint holds by another name, two or more; or all of
        them.
        """
        for load in self._seen:
            names = [n for k, n in load.missing.items() if k in mine]
            free, pairs = dict(load.stray), list[tuple[str, str]]()
            for n in names:
                end = n.rpartition(".")[2]
                other = next(
                    (u for u, shape in free.items() if u.rpartition(".")[2] == end and shape == load.shapes[n]), ""
                )
                if other:
                    del free[other]
                    pairs.append((n, other))
            if len(pairs) > 1 or (names and len(names) == load.held):
                pair = pairs[0] if pairs else ("", "")
                return {"place": load.place, "missing": len(names), "of": load.held, "pair": pair}
        return None
