"""Tokens that a model is asked for, beside those that it sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import mapped, tensors
from normscope.findings.checkup.scene import Rerun, Scene


def next_token(scene: Scene, o: Tensor, g: Tensor) -> dict[str, Any]:
    """The share of positions where the loss wants the input token itself raised, of a model that does not look ahead,
    or the next but one; and how far a model that is asked for the next token looks ahead: how much a change of the last
    one moves the outputs before.
    """
    ids = [x for x in tensors((scene.at.args, scene.at.kwargs)) if x.dim() == 2 and x.dtype == torch.long]
    if not ids or o.dim() != 3 or o.shape[1] < 3:
        return {}
    beside = [x for x in ids if x.shape == o.shape[:2]]
    if not beside:
        return _fed_answers(scene, ids[0], g)
    seen = (g != 0).any(-1)
    if not bool(seen.any()):
        return {}
    wanted = g.argmin(-1)
    given = max(beside, key=lambda x: float((wanted == x.to(g.device))[seen].float().mean()))  # a decoder's, of two
    x = given.to(g.device)
    same = float((wanted == x)[seen].float().mean())
    following = float((wanted[:, :-1] == x[:, 1:])[seen[:, :-1]].float().mean())
    after = float((wanted[:, :-2] == x[:, 2:])[seen[:, :-2]].float().mean())
    if same > 0.9 and (hidden := _one_token(x, ~seen)) is not None:
        return {"visible_only": {"share": float(seen.float().mean()), "token": hidden}}
    before = float((wanted[:, 1:] == x[:, :-1])[seen[:, 1:]].float().mean())
    if after > 0.9 > max(same, following):
        return {"two_ahead": after}
    if same > 0.99 and float(seen.float().mean()) < 0.9 and len(x[~seen].unique()) > 3:
        return {"asked_shown": same}  # what is left out is no padding: some places are asked for
    again = Rerun.of(scene.at, 8)
    if max(same, following, before) < 0.9 or again is None:
        return {}

    def other_end(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, -1] = torch.where(x[:, -1] == x[:, 0], x[:, 1], x[:, 0])
        return x

    def ahead() -> tuple[float, float]:
        """How much the last token moves the outputs before it, and the last."""
        rows = given[: again.samples.n]
        alone = mapped((again.args, again.kwargs), lambda t: other_end(t) if _same(t, rows) else t)
        base, changed = again.output(), again.output(*alone)
        moved = (base - changed).abs() / base.abs().max().clamp_min(1e-12)
        return float(moved[:, :-1].max()), float(moved[:, -1].max())

    found = again.run(ahead, "eval")
    if found is None:
        return {}
    looks, reads = found
    asked = looks < 1e-5 and (before > same or reads > 1e-5)  # what is not read at its own place is there to be told
    return {
        "copied_inputs": max(same, before) if asked else 0.0, "back": before > same,
        "sees_ahead": looks if following > 0.9 else 0.0,
    }  # fmt: skip


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def shifted_by_both(scene: Scene) -> dict[str, Any]:
    """The share of positions where the ``labels`` of a model with a loss of its own, which shifts them by one, are the
    next tokens already.
    """
    labels = scene.at.kwargs.get("labels")
    ids = next((x for x in tensors((scene.at.args, scene.at.kwargs)) if x.dim() == 2 and x.dtype == torch.long), None)
    again = Rerun.of(scene.at, 8)
    if not isinstance(labels, Tensor) or ids is None or again is None or labels.shape != ids.shape or len(ids[0]) < 3:
        return {}
    asked = labels[:, :-1] >= 0
    share = float((labels[:, :-1] == ids[:, 1:])[asked].float().mean())
    if not share > 0.9 or bool((labels[:, :1] < 0).any()):
        return {}

    def shifts() -> bool:
        """Whether no loss reads the first label."""
        other = again.kwargs["labels"].clone()
        other[:, 0] = other[:, 1:].flip(1)[:, 0]
        losses = [
            [t for t in tensors(again.whole(again.args, again.kwargs | {"labels": k})) if not t.dim()]
            for k in (again.kwargs["labels"], other)
        ]
        return bool(losses[0]) and all(map(torch.equal, *losses)) and not torch.equal(other, again.kwargs["labels"])

    return {"two_ahead": share} if again.run(shifts, "eval") else {}


def _one_token(x: Tensor, where: Tensor) -> int | None:
    """The id that stands at nearly all of these positions, in between others, and nowhere else: a mask, not padding."""
    if not 0.02 < float(where.float().mean()) < 0.9:
        return None
    token = int(x[where].mode().values)
    inside = where[:, :-1] & ~where[:, 1:]  # another position follows
    often = float((x[where] == token).float().mean())
    padding = float(inside.any(1).float().mean()) < 0.3
    return None if often < 0.75 or padding or bool((x[~where] == token).any()) else token


def _fed_answers(scene: Scene, x: Tensor, g: Tensor) -> dict[str, Any]:
    """Whether the ids that the loss wants raised stand in longer inputs, each where its own output reads it: a decoder
    that is fed the answers, not shifted.
    """
    wanted, length = g.argmin(-1), g.shape[1]
    if len(x) != len(g) or x.shape[1] <= length or not bool((g != 0).any(-1).all()):
        return {}
    starts = [k for k in range(x.shape[1] - length + 1) if bool((x[:, k : k + length] == wanted).all())]
    again = Rerun.of(scene.at, 8)
    if not starts or again is None:
        return {}
    at = starts[-1] + length - 1

    def other_last(ids: Tensor) -> Tensor:
        ids[:, at] = torch.where(ids[:, at] == ids[:, at - 1], ids[:, at - 2], ids[:, at - 1])
        return ids

    def answers() -> float:
        base, changed = again.output(), again.output(*again.alter(other_last))
        return float((base - changed)[:, -1].abs().max()) / float(base.abs().max().clamp_min(1e-12))

    looks = again.run(answers, "eval")
    return {"fed_answers": at} if looks is not None and looks > 1e-4 else {}


def padding(scene: Scene) -> dict[str, Any]:
    """The share of padding among the tokens, and what it pulls on its embedding beside all other tokens together."""
    ids = [t for t in tensors((scene.at.args, scene.at.kwargs)) if not t.is_floating_point() and t.dim() == 2]
    tables = [m for _, m in scene.at.root.named_modules() if isinstance(m, nn.Embedding)]
    names = {m: n for n, m in scene.at.root.named_modules()}
    for x in ids[:1]:
        ends = x[:, -1], x[:, 0]
        for end, flipped in zip(ends, (False, True), strict=True):
            pad = int(end.mode().values)
            if float((end == pad).float().mean()) < 0.8:
                continue
            run = ((x if flipped else x.flip(1)) == pad).long().cumprod(1)
            share = float(run.float().mean())
            ragged = int(run.sum(1).max()) > 1  # one in each row is a place to read from, say
            if share < 0.3 or not ragged or int((x == pad).sum()) > 1.05 * int(run.sum()) + 5:
                continue
            for table in tables:
                g = scene.grads.get(f"{names[table]}.weight")
                if (at := table.padding_idx) not in (None, pad) and _inside(x, int(at)):
                    return {"share": share, "id": pad, "module": names[table], "named": at}
                if g is None or table.padding_idx is not None or not 0 <= pad < len(g) or len(g) <= int(x.max()):
                    continue
                rest = float(torch.cat([g[:pad], g[pad + 1 :]]).norm())
                return {
                    "share": share, "pull": float(g[pad].norm()) / max(rest, 1e-30), "id": pad, "module": names[table],
                }  # fmt: skip
    return {}


def _inside(x: Tensor, token: int) -> bool:
    """Whether a token stands in between others, and not at the ends of the rows as padding does."""
    at = x == token
    ends = at.long().cumprod(1) + at.flip(1).long().cumprod(1).flip(1)
    return int(at.sum()) >= 8 and int((at & (ends == 0)).sum()) > 0.5 * int(at.sum())
