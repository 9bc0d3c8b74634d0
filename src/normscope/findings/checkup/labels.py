"""What a loss reads of its targets: classes that it ignores, or hardly hears."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.losses import Loss
from normscope.call.targets import class_axis

#: A class that pulls less than this share of what the middle one does, all its samples together (chosen by us).
SLIGHTED = 0.03
#: What is set in a mask is heard where it has this share of the pull (chosen by us).
EVEN = 0.2


def is_binary(o: Tensor, t: Tensor) -> bool:
    """Whether the targets are zeros and ones of the outputs' shape."""
    return t.is_floating_point() and t.shape == o.shape and bool(((t == 0) | (t == 1)).all())


def reading_of_targets(
    o: Tensor, t: Tensor, g: Tensor, loss: Loss, classes: Tensor | None, ids: list[Tensor], n: int
) -> dict[str, Any]:
    """The range of the targets, classes whose samples have no gradient in the outputs, and how hard classes pull."""
    found: dict[str, Any] = {"target_range": [float(t.float().min()), float(t.float().max())] if t.numel() else []}
    binary = loss.kind == "bce_with_logits" or isinstance(loss.call, nn.BCELoss)
    found["outside_binary"] = binary and (found["target_range"][0] < 0 or found["target_range"][1] > 1)
    if t.shape == o.shape and o.dim() == 2 and o.shape[1] > 2 and bool(((t == 0) | (t == 1)).all()):
        found["several_ones"] = float((t.sum(1) > 1).float().mean())
    if binary and t.dim() > 2 and bool(((t == 0) | (t == 1)).all()):
        pull = float(g[t == 1].abs().sum() / g.abs().sum().clamp_min(1e-30)) if g.shape == t.shape else 1.0
        found["positive"] = float(t.float().mean()) if pull < EVEN else 1.0  # else the loss weighs them
    rows = None
    if t.dim() == 1 and o.dim() >= 1 and len(o) == len(t):
        rows, columns = g.reshape(len(g), -1), o.shape[-1]
    elif classes is not None and classes.dim() >= 3 and classes.shape != t.shape:
        axis = class_axis(o, t)
        rows, columns = g.movedim(axis, -1).reshape(t.numel(), -1), o.shape[axis]
    if rows is not None and 2 <= len(t.unique()) <= 100:
        flat, silent = t.flatten(), (rows == 0).all(1)
        for k in t.unique().tolist():
            mine = flat == k
            known = classes is None or 0 <= k < columns
            if known and bool(silent[mine].all()) and not bool(silent[~mine].any()) and not _padded(ids, t == k, n):
                two = set(t.unique().tolist()) == {0, 1} and (columns == 1 or classes is None)
                found["ignored_class"] = {"class": int(k), "share": float(mine.float().mean()), "binary": two}
        found |= _class_weights(rows, flat) if classes is not None else {}
        away = flat == -1
        every = int(flat.max()) == columns - 2 and len(flat.unique()) == columns  # all numbers from -1 on
        if t.dim() == 1 and every and bool(away.any()) and bool(silent[away].all()):
            found["shifted_away"] = {"share": float(away.float().mean()), "last": columns - 1}
    if is_binary(o, t) and t.numel() == len(t):
        rows, flat = g.reshape(len(g), -1), t.flatten()
        silent = (rows == 0).all(1)
        for k in (0, 1):
            if bool((flat == k).any()) and bool(silent[flat == k].all()) and not bool(silent[flat != k].any()):
                found["ignored_class"] = {"class": k, "share": float((flat == k).float().mean()), "binary": True}
        found |= _class_weights(g.reshape(len(g), -1), t.flatten())
    return found


def _padded(ids: list[Tensor], ignored: Tensor, n: int) -> bool:
    """Whether what a loss ignores is padding: positions of one token, or ends of n sequences of unlike lengths."""
    rows = ignored.reshape(n, -1).int() if ignored.numel() % n == 0 else ignored.new_ones(1, 1).int()
    if not bool(rows[:, 0].any()) and bool((rows.diff(dim=1) >= 0).all()) and len(rows.sum(1).unique()) > 1:
        return True
    at = [x[ignored] for x in ids if x.shape == ignored.shape]
    return any(float((x == x.mode().values).float().mean()) > 0.8 for x in at if len(x))


def _class_weights(rows: Tensor, classes: Tensor) -> dict[str, Any]:
    """How the pull of a sample of the commonest class compares with that of the rarest, beside how common they are."""
    kinds, counts = classes.unique(return_counts=True)
    if len(kinds) > 50 or int(counts.min()) < 2:
        return {}
    pulls = torch.stack([rows[classes == k].norm(dim=1).mean() for k in kinds])
    each = pulls * counts
    if len(kinds) > 2 and 0 < float(each.min()) < SLIGHTED * float(each.median()):
        return {"slighted": {"class": int(kinds[each.argmin()]), "share": float(each.min() / each.median())}}
    if int(counts.max()) < 3 * int(counts.min()):
        return {}
    most, least = int(counts.argmax()), int(counts.argmin())
    if not bool((pulls > 0).all()):
        return {}
    return {
        "weighted": {
            "common": int(kinds[most]), "rare": int(kinds[least]), "pull": float(pulls[most] / pulls[least]),
            "counts": float(counts[most] / counts[least]),
        }
    }  # fmt: skip
