"""Flags among the targets (done, padding, weight), and whether anything reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from normscope.call.arguments import mapped
from normscope.findings.checkup.scene import Scene
from normscope.training.own import Own
from normscope.training.short import ShortRuns, Update

#: Flags that are looked at, at most.
MOST = 8


def of_flags(scene: Scene) -> dict[str, Any]:
    """``unread``: names of columns, or of tensors of several targets, that hold zeros and ones, and whose other values
    change neither the loss nor a step of the user's own loop, which other targets do change.
    """
    at, loss, given = scene.at, scene.loss, scene.targets
    flags = list(_flags(given, scene.output))[:MOST]
    if not flags or loss is None or at.step is not None:
        return {}
    if at.train_step is not None and at.optimizer is not None:

        def same(targets: Any) -> bool:
            return torch.equal(_end(scene, targets), base)

        base = _end(scene, given)
    else:

        def same(targets: Any) -> bool:
            with torch.no_grad():
                return float(loss.value(scene.whole, targets, at.seed)) == now

        with torch.no_grad():
            now = float(loss.value(scene.whole, given, at.seed))
    if same(mapped(given, lambda t: t.roll(1, 0) if t.dim() else t)):  # nothing moves yet, or no target is read at all
        return {}
    return {"unread": [name for name, other in flags if same(other)]}


def _flags(given: Any, output: Tensor | None) -> Iterator[tuple[str, Any]]:
    """(name, the targets with the flag's values exchanged)."""
    if isinstance(given, Tensor):
        if given.dim() != 2 or not 2 <= given.shape[1] <= 32 or (output is not None and given.shape == output.shape):
            return
        for j in range(given.shape[1]):
            if _binary(given[:, j]) and not _one_hot(given, j):
                other = given.clone()
                other[:, j] = 1 - other[:, j]
                yield f"column {j}", other
        return
    parts = given if isinstance(given, Mapping) else dict(enumerate(given)) if isinstance(given, tuple | list) else {}
    for k, t in parts.items():
        if len(parts) > 1 and isinstance(t, Tensor) and _binary(t) and (t.is_floating_point() or t.dtype is torch.bool):
            turned = {**parts, k: ~t if t.dtype is torch.bool else 1 - t}
            yield f"{k!r}", turned if isinstance(given, Mapping) else type(given)(turned.values())


def _binary(t: Tensor) -> bool:
    """Whether it holds zeros and ones, some of each."""
    return t.numel() > 7 and bool(((t == 0) | (t == 1)).all()) and bool((t == 0).any()) and bool((t == 1).any())


def _one_hot(table: Tensor, j: int) -> bool:
    """Whether the column is one of three or more, side by side, of which exactly one is 1 in every row."""
    for a in range(j + 1):
        for b in range(max(j, a + 2), table.shape[1]):
            block = table[:, a : b + 1]
            if bool((block.sum(1) == 1).all()) and bool(((block == 0) | (block == 1)).all()):
                return True
    return False


def _end(scene: Scene, targets: Any) -> Tensor:
    """All parameters behind one step of the user's own loop."""
    at = replace(scene.at, targets=targets)
    own, ends = Own(at), []

    def begin(copies: Mapping[int, Tensor]) -> Update:
        update = own.begin(copies)

        def noted(*batch: Any) -> Tensor:
            value = update(*batch)
            ends.append(torch.cat([c.detach().flatten().double() for c in copies.values() if c.is_floating_point()]))
            return value

        return noted

    ShortRuns(at).run(begin, 1, around=own.around)
    return ends[0]
