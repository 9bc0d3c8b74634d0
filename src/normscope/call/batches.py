"""Batches as a user's loader gives them, read without moving its random streams."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from normscope.call.reach import GENERATORS, Reach
from normscope.call.surroundings import Surroundings
from normscope.call.traceless import locked
from normscope.core.errors import UsageError, noted


def read_batch(batch: Any) -> tuple[Any, Any]:
    """(inputs, targets) of what a loader gives: a pair, or a whole batch that goes to the model as it is."""
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        if len(batch) == 2:
            return batch[0], batch[1]
        if len(batch) == 1:
            return batch[0], None
        raise UsageError(
            f"A batch of data must be (inputs, targets), one tensor, or a dictionary; got {len(batch)} parts. Pair "
            "them: ((x, z), targets), or pass step=lambda model, batch: ...."
        )
    return batch, None


def check_batches(name: str, data: Any) -> None:
    """``UsageError`` for what cannot be read batch by batch, from its start each time."""
    if data is None:
        return
    if isinstance(data, Tensor | str | bytes | Mapping) or not (
        isinstance(data, Iterable) or hasattr(data, "__getitem__")
    ):
        raise UsageError(
            f"{name} must be a DataLoader or a list of batches; got {type(data).__name__}. Pass [batch] for one."
        )
    if hasattr(data, "__next__"):
        raise UsageError(f"{name} must be read from its start each time; got an iterator. Pass the loader itself.")


def _streams(data: Any, depth: int = 4) -> list[Any]:
    """Random generators that a loader holds, or its samplers, or its data set (one around another too)."""
    parts = [getattr(data, name, None) for name in ("dataset", "sampler", "batch_sampler")] if depth else []
    own = [v for v in getattr(data, "__dict__", {}).values() if isinstance(v, GENERATORS)]
    return own + [g for part in parts if part is not None for g in _streams(part, depth - 1)]


def pull(data: Any, most: int | None = None) -> list[Any]:
    """The first ``most`` batches (all), the loader's random streams and the caller's as they were afterwards."""
    with locked():
        around, streams = Surroundings(set()), Reach.of(_streams(data))
        try:
            with noted("reading data"):
                batches = list(itertools.islice(data, most))
        finally:
            around.restore()
            streams.restore_randomness()
    if not batches:
        raise UsageError("data must hold at least one batch; it is empty.")
    return batches
