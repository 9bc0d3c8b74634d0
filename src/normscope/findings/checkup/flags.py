"""Flags among the targets (done, padding, weight), and whether anything reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from normscope.findings.checkup.scene import Scene
from normscope.training.own import Own
from normscope.training.short import ShortRuns, Update

#: Flags that are looked at, at most.
MOST = 4


def of_flags(scene: Scene) -> dict[str, Any]:
    """``unread``: names of columns, or of tensors of several targets, that hold zeros and ones, and whose other values
    change neither the loss nor a step of the user's own loop, which reads others.
    """
    at, loss, given = scene.at, scene.loss, scene.targets
    flags = list(_flags(given, scene.output))[:MOST]
    if not flags or loss is None or at.step is not None:
        return {}
    if at.train_step is not None and at.optimizer is not None:
        base = _end(scene, given)
        unread = [name for name, other in flags if torch.equal(_end(scene, other), base)]
    else:
        with torch.no_grad():
            now = float(loss.value(scene.whole, given, at.seed))
            unread = [n for n, other in flags if float(loss.value(scene.whole, other, at.seed)) == now]
    return {"unread": unread}


def _flags(given: Any, output: Tensor | None) -> Iterator[tuple[str, Any]]:
    """(name, the targets with the flag's values exchanged)."""
    if isinstance(given, Tensor):
        if given.dim() != 2 or not 2 <= given.shape[1] <= 32 or (output is not None and given.shape == output.shape):
            return
        for j in range(given.shape[1]):
            if _binary(given[:, j]):
                other = given.clone()
                other[:, j] = 1 - other[:, j]
                yield f"column {j}", other
        return
    keys = (
        list(given)
        if isinstance(given, Mapping)
        else list(range(len(given)))
        if isinstance(given, tuple | list)
        else []
    )
    for k in keys:
        t = given[k]
        if len(keys) > 1 and isinstance(t, Tensor) and _binary(t) and (t.is_floating_point() or t.dtype is torch.bool):
            other = ~t if t.dtype is torch.bool else 1 - t
            changed = {i: other if i == k else given[i] for i in keys}
            yield f"{k!r}", changed if isinstance(given, Mapping) else type(given)(changed.values())


def _binary(t: Tensor) -> bool:
    """Whether it holds zeros and ones, some of each."""
    return t.numel() > 7 and bool(((t == 0) | (t == 1)).all()) and bool((t == 0).any()) and bool((t == 1).any())


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
