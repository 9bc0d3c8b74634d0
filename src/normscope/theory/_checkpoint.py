"""Chains on disk: the factors, the random streams and the numbers so far, in one ``.npz`` file without pickles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normscope.core import files
from normscope.core.errors import UsageError
from normscope.linalg import Array
from normscope.theory._chain import Group

Tables = list[tuple[int, Sequence[int], dict[str, Array]]]


def save(path: str | Path, groups: Sequence[Group], key: str, tables: Tables) -> None:
    """Write it, whole or not at all."""
    arrays: dict[str, Any] = {"key": np.array(key)}
    numbers = [[layer, list(map(int, seeds)), {k: v.tolist() for k, v in t.items()}] for layer, seeds, t in tables]
    arrays["tables"] = np.array(json.dumps(numbers))
    for i, g in enumerate(groups):
        lost = {str(k): v for k, v in g.lost.items()}
        arrays[f"{i}.header"] = np.array(json.dumps([g.layer, g.features, g.columns, lost]))
        for name in ("factor", "gram", "pivot", "log_scale"):
            arrays[f"{i}.{name}"] = getattr(g, name)
        if g.rows is not None:
            arrays[f"{i}.rows"] = g.rows
        for name, stream in _streams(g).items():
            arrays[f"{i}.{name}"] = stream.buffer[:, stream.at :]
        arrays |= {f"{i}.state{j}": _get(rng) for j, rng in enumerate(_generators(g))}
    files.write(lambda file: np.savez(file, **arrays), path)


def load(path: str | Path, groups: Sequence[Group], key: str) -> Tables:
    """Put the groups where the file left them; the numbers so far (none if there is no file)."""
    for half in files.left_overs(Path(path)):
        half.unlink(missing_ok=True)
    try:
        stored = files.read(path, lambda file: dict(np.load(file, allow_pickle=False)))
    except files.Damaged as error:
        raise UsageError(f"{path} is not a checkpoint of simulate(): {error}. Delete it to start again.") from None
    if stored is None:
        return []
    if str(stored.get("key")) != key:
        raise UsageError(f"{path} belongs to another simulation (spec, start, seeds, metrics ...); use another file.")
    for i, g in enumerate(groups):
        g.layer, g.features, g.columns, lost = json.loads(str(stored[f"{i}.header"]))
        g.lost = {int(k): v for k, v in lost.items()}
        for name in ("factor", "gram", "pivot", "log_scale"):
            setattr(g, name, stored[f"{i}.{name}"])
        g.rows = stored.get(f"{i}.rows")
        for name, stream in _streams(g).items():
            stream.buffer, stream.at = stored[f"{i}.{name}"], 0
        for j, rng in enumerate(_generators(g)):
            _set(rng, stored[f"{i}.state{j}"])
    return [
        (layer, seeds, {k: np.array(v) for k, v in t.items()}) for layer, seeds, t in json.loads(str(stored["tables"]))
    ]


def _streams(g: Group) -> dict[str, Any]:
    return {"stream": g.stream, "chi": g.chi} if g.bartlett else {"stream": g.stream}


def _generators(g: Group) -> list[Any]:
    return [*g.generators, *g.torch_generators]


def _get(rng: Any) -> Any:
    if isinstance(rng, torch.Generator):
        return rng.get_state().numpy()
    return np.array(rng.bit_generator.state["state"]["state"], np.uint64)


def _set(rng: Any, state: Any) -> None:
    if isinstance(rng, torch.Generator):
        rng.set_state(torch.from_numpy(state))
    else:
        whole = rng.bit_generator.state
        whole["state"]["state"] = state
        rng.bit_generator.state = whole
