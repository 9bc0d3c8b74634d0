"""Batches as a user's loader gives them, read without moving its random streams."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from normscope.call.surroundings import Surroundings
from normscope.call.traceless import locked
from normscope.core.errors import UsageError


def read_batch(batch: Any) -> tuple[Any, Any]:
    """(inputs, targets) of what a loader gives: a pair, or a whole batch that goes to the model as it is."""
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        if len(batch) == 2:
            return batch[0], batch[1]
        if len(batch) == 1:
            return batch[0], None
        raise UsageError(
            f"A batch of data must be (inputs, targets), one tensor, or a dictionary; got {len(batch)} parts. Pair them: "
            "((x, z), targets), or pass step=lambda model, batch: ...."
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


def pull(data: Any, most: int | None = None) -> list[Any]:
    """The first ``most`` batches (all), the loader's random streams and the caller's as they were afterwards."""
    held = (getattr(data, "generator", None), getattr(getattr(data, "sampler", None), "generator", None))
    generators = [g for g in held if isinstance(g, torch.Generator)]
    with locked():
        around, states = Surroundings(set()), [g.get_state() for g in generators]
        try:
            batches = list(itertools.islice(data, most))
        except Exception as error:
            error.add_note("normscope: reading data raised this.")
            raise
        finally:
            around.restore()
            for g, state in zip(generators, states, strict=True):
                g.set_state(state)
    if not batches:
        raise UsageError("data must hold at least one batch; it is empty.")
    return batches
