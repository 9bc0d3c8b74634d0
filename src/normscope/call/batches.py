"""Batches as a user's loader gives them, read without moving its random streams."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from normscope.call.reach import GENERATORS, MOST_BYTES, Reach
from normscope.call.surroundings import Surroundings
from normscope.call.traceless import locked
from normscope.core.errors import UsageError, noted

#: Objects of a data set that are looked at (chosen by us: lists of a million files are none to write to).
OBJECTS = 20_000


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


def _data_sets(data: Any, depth: int = 4) -> list[Any]:
    """Data sets of the user's own classes behind a loader, under torch's wrappers. What torch and Python have of their
    own is read, and does not write.
    """
    inner = [getattr(data, "dataset", None), *(getattr(data, "datasets", None) or ())] if depth else []
    found = [d for one in inner if one is not None for d in _data_sets(one, depth - 1)]
    own = callable(getattr(data, "__getitem__", None)) and not type(data).__module__.startswith(("torch.", "builtins"))
    return [*found, data] if own else found


class Stored:
    """What the data sets behind loaders hold in memory: reading a sample may write into it. Workers read a copy."""

    def __init__(self, *loaders: Any) -> None:
        here = [data for data in loaders if not getattr(data, "num_workers", 0)]
        self.sets = list({id(d): d for data in here for d in _data_sets(data)}.values())
        self.reach = Reach.of(self.sets, OBJECTS)
        self.tensors: list[tuple[Tensor, Tensor]] = []
        room = MOST_BYTES
        for t in self.reach.tensors.values():
            room -= t.numel() * t.element_size()
            if room > 0 and t.layout is torch.strided and not t.is_inference():
                self.tensors.append((t, t.detach().clone()))

    @property
    def changed(self) -> bool:
        """Whether tensors or arrays hold other numbers than before."""
        return bool(self.reach.written) or any(not _equal(t, value) for t, value in self.tensors)

    def restore(self) -> None:
        """What was written to as it was, and the containers that may tell of it (which samples are in a cache)."""
        if not self.changed:
            return
        for tensor, value in self.tensors:
            if not _equal(tensor, value):
                with torch.no_grad():
                    tensor.copy_(value)
        for place in self.reach.places:
            place.write(place.items)
        self.reach.restore_randomness()


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN in the same places."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def pull(data: Any, most: int | None = None) -> list[Any]:
    """The first ``most`` batches (all); the loader's random streams and the caller's, and what its data sets hold, are
    as they were afterwards.
    """
    with locked():
        around, streams, stored = Surroundings(set()), Reach.of(_streams(data)), Stored(data)
        try:
            with noted("reading data"):
                batches = list(itertools.islice(data, most))
        finally:
            around.restore()
            streams.restore_randomness()
            stored.restore()
    if not batches:
        raise UsageError("data must hold at least one batch; it is empty.")
    return batches
