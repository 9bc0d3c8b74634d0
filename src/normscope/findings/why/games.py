"""Two optimizers that take turns: whether two networks play against each other, and whether they really do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import tensors
from normscope.findings.why.tape import Entry, Tape, replay
from normscope.findings.why.watch import Pair

TIMES = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__}


def against(pair: Pair, other: Pair) -> bool:
    """Whether two optimizers of different parameters take turns, and one's loss depends on what the other trains."""
    if other.beside is pair:
        return False
    turns = pair.span[0] < other.span[1] and other.span[0] < pair.span[1]
    return turns and any(not (other.held & pair.held) and other.held & set(map(id, b.parameters)) for b in pair.before)


def same_way(maker: Pair, judge: Pair) -> dict[str, Any] | None:
    """Of a judge that scores what the maker makes, and other samples the other way: whether the maker's loss moves the
    scores of what it made as the judge's own loss does. ``None`` where they play against each other, or nobody knows.
    """
    mine, _ = _slopes(maker, maker, judge)
    made, real = _slopes(judge, maker, judge)
    if not mine or not made or not real or made == {0} or real != {-x for x in made} or mine != made:
        return None
    names = [_name(p) for p in (maker, judge)]
    return {"maker": names[0], "judge": names[1], "moves": "lowering" if made == {1} else "raising"}


#: Between which numbers what a module makes lies, as the last one of a maker.
BOUNDS = {nn.Sigmoid: (0.0, 1.0), nn.Tanh: (-1.0, 1.0), nn.Softmax: (0.0, 1.0), nn.Hardtanh: (-1.0, 1.0)}


def out_of_reach(maker: Pair, judge: Pair) -> dict[str, Any] | None:
    """Of the samples that a judge sees beside what the maker makes: how many of their numbers its last module cannot
    give.
    """
    taken = next((t for t in judge.taken if t.losses), None)
    entries = taken.tape.entries if taken is not None else []
    made, real, last = list[Tensor](), list[Tensor](), None
    for e in (e for e in entries if _of(e, judge)):
        assert taken is not None
        given = list(tensors(e.args))[:1]
        behind = [x for t in given for x in taken.tape.behind(t) if _of(x, maker)]
        last = [*behind[-1].module.modules()][-1] if behind and behind[-1].module is not None else last
        (made if behind else real).extend(given)
    shapes = {t.shape[1:] for t in (*made, *real)}
    if last is None or type(last) not in BOUNDS or not made or not real or len(shapes) > 1:
        return None
    low, high = BOUNDS[type(last)]
    if any(bool(((t < low) | (t > high)).any()) for t in made):  # something else stands beside it
        return None
    numbers = torch.cat([t.detach().flatten() for t in real]).float()
    wide = 0.05 * (high - low)
    share = float(((numbers < low - wide) | (numbers > high + wide)).float().mean())
    ends = [float(numbers.min()), float(numbers.max())]
    return {"maker": _name(maker), "last": type(last).__name__, "bounds": [low, high], "ends": ends, "share": share}


def policy(pair: Pair) -> bool:
    """Whether the loss weighs logarithms of densities by numbers of the script's own, which are no mask: what was done
    by chance, by what it earned.
    """
    taken = next((t for t in pair.taken if t.losses), None)
    if taken is None or not taken.tape.densities:
        return False
    tape, parts = taken.tape, [e for loss, _ in taken.losses for e in taken.tape.behind(loss)]
    for e in (e for e in parts if e.call in TIMES):
        dense, others = list[Tensor](), list[Tensor]()
        for t in tensors(e.args):
            behind = [t, *(x for b in tape.behind(t) for x in b.made)]
            (dense if any(id(x) in tape.densities for x in behind) else others).append(t)
        weights = [t for t in others if t.numel() > 1 and not t.requires_grad and len(t.unique()) > 1]
        if dense and any(not bool(((t == 0) | (t == 1)).all()) for t in weights):
            return True
    return False


def _slopes(pair: Pair, maker: Pair, judge: Pair) -> tuple[set[int], set[int]]:
    """The signs of a loss's slope in the judge's scores of what the maker made, and in its other scores, of the pair's
    first step; 0: mixed.
    """
    made, other = set[int](), set[int]()
    taken = next((t for t in pair.taken if t.losses), None)
    for loss, _ in taken.losses if taken is not None else ():
        assert taken is not None
        entries = taken.tape.behind(taken.tape.unscaled(loss))
        for e in (e for e in entries if _of(e, judge) and len(e.made) == 1):
            given = [x for t in tensors((e.args, e.kwargs)) for x in taken.tape.behind(t)]
            sign = _slope(taken.tape, entries, e, loss)
            (made if any(_of(x, maker) for x in given) else other).add(sign)
    return made, other


def _of(e: Entry, pair: Pair) -> bool:
    return e.module is not None and any(id(p) in pair.held for p in e.module.parameters())


def _slope(tape: Tape, entries: list[Entry], call: Entry, loss: Tensor) -> int:
    """The sign of the loss's slope in what a call gave, all else being as it was; 0 where there is not one sign."""
    (seen,) = call.made
    given = {id(t): t.detach() for e in entries if e.module is not None for t in e.made}
    leaf = given[id(seen)] = seen.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            value = replay(entries, given, tape.unscaled(loss))
            (slope,) = torch.autograd.grad(value.sum(), leaf)
    except RuntimeError:  # a loss that differentiates by itself (a gradient penalty), or not in this
        return 0
    signs = {int(s) for s in slope.sign().unique().tolist()} - {0}
    return signs.pop() if len(signs) == 1 else 0


def _name(pair: Pair) -> str:
    taken = next(t for t in pair.taken if t.losses)
    return next((type(e.module).__name__ for e in taken.tape.entries if _of(e, pair)), "network") + (
        f" ({pair.place})" if pair.place else ""
    )
