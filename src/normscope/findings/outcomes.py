"""NS424 to NS427: what came of the user's own steps, for data that were held out, and for the outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.findings._rules import Hit, View, rule
from normscope.findings.trial import AHEAD, FALLING, FOLLOWS, HALF, LONG, another, best_race, nothing_trains

#: Eval or validation loss this share of chance above chance, where training fell by AHEAD.
ABOVE = 0.1
#: Steps of the user's own loop from which on it is told where the loss rests (chosen by us).
LEAST = 40


@rule(
    "NS424",
    "validation does not follow",
    severity="warning",
    meaning="The training loss falls in the trial while the loss of the validation data, in eval mode, rises above "
    "chance.",
    cure="Compare both: the same preparation, the same labels, no dropout or batch norm that is another function in "
    "eval mode.",
    source="chosen by us: training 30 % below chance, validation 10 % above where it began",
)
def validation(view: View) -> Iterator[Hit]:
    """After the user's own steps the training loss is 30 % below chance, and in eval mode it, or that of ``valid``, is
    above.

    If the loss of the *training* batches is high in eval mode too, it is the modes that differ (batch norm's running
    statistics, dropout), unless it is not once the statistics have caught up with the weights, which run ahead of them
    in the first steps; else the validation data are others than the training data, or few samples were memorized.
    Where no constant answer is known, as of a critic, only the modes are compared.
    """
    t = view.section("trial")
    own = t.get("own")
    if own is None or "eval_after" not in own or own["progress"] < AHEAD or own.get("slow_norm") or another(own):
        return
    chance, start = t["chance"], own["valid_before"]
    limit = chance + ABOVE * abs(chance)
    if own["eval_after"] > max(limit, own["again"] + ABOVE * abs(own["again"])):
        text = (
            f"after {own['steps']} steps the training batches' loss is {own['again']:.3g} in training mode and "
            f"{own['eval_after']:.3g} in eval mode: the two modes are different functions (running statistics, dropout)"
        )
        yield Hit(None, "eval_loss", own["eval_after"], limit, text)
    elif own["valid_after"] > max(limit, start + ABOVE * abs(start)) and math.isfinite(t["constant"]):
        text = (
            f"after {own['steps']} steps the training loss is {own['end']:.3g}, that of the validation data rose from "
            f"{start:.3g} to {own['valid_after']:.3g}: what is learnt does not carry over (leak, other preparation, "
            "other labels)"
        )
        yield Hit(None, "valid_loss", own["valid_after"], limit, text)


@rule(
    "NS425",
    "too few steps",
    severity="warning",
    meaning="The training ends while the loss is still falling fast.",
    cure="Train longer (more epochs, more steps), or raise the learning rate.",
    source="chosen by us: still falling by more than 15 % of itself in the last third of all steps",
)
def too_few(view: View) -> Iterator[Hit]:
    """``Step(steps=)`` is how long the user means to train; all of them ran in the trial, and the loss was still
    falling.

    By more than 15 % from the second to the last third, while the best race shows that as much again can be had.
    """
    t = view.section("trial")
    own, best = t.get("own"), best_race(t)
    if own is None or best is None or not own.get("all") or own["blown"] or own["progress"] > HALF:
        return
    if any(nothing_trains.check(view)):
        return
    x = own["losses"]
    third = max(1, len(x) // 3)
    last, before = sum(x[-third:]) / third, sum(x[:-third][-third:]) / max(1, len(x[:-third][-third:]))
    to_come = best[1]["progress"] - own["progress"]
    short = before - last > FALLING * abs(last) or (len(x) < 20 and last < 1.2 * before)
    if short and to_come > AHEAD:
        text = (
            f"after all {len(x)} steps the loss is {last:.3g} and still falling (from {before:.3g} a third before): "
            f"too few steps; {best[0]} gets one batch to {best[1]['end']:.3g} in {best[1]['steps']}. Train longer: "
            "more epochs"
        )
        yield Hit(None, "loss_fall", before - last, FALLING * abs(last), text)


@rule(
    "NS426",
    "learnt by heart only",
    severity="warning",
    meaning="One batch can be learnt by heart, but over the batches of the data neither the user's step nor a race "
    "gets below chance.",
    cure="Look at pairs of inputs and targets as the loader gives them: are they shuffled apart, or the labels noise?",
    source="chosen by us: 30 % below chance on one batch, 3 % on many, in as many steps",
)
def by_heart(view: View) -> Iterator[Hit]:
    """The race learns the one batch, and neither it nor the user's own steps get the loss of many batches below chance.

    A warning where validation data are given and their loss rises too, or 600 steps of the user's own end at chance,
    else a note: some tasks begin slowly. Without
    such data a quarter of the batches is held back: a warning where most are learnt and those never fall below a
        constant answer.
    """
    t = view.section("trial")
    best = best_race(t)
    if "stream" not in t or best is None or best[1]["progress"] < AHEAD:
        return
    unseen = t["stream"].get("unseen", math.nan)
    if t["stream"]["progress"] > 0.1 * AHEAD and unseen > FOLLOWS * t["chance"] and math.isfinite(t["constant"]):
        text = (
            f"{best[0]} gets one batch from {t['start']:.3g} to {best[1]['end']:.3g}, yet while it learns three "
            f"quarters of the {t['batches']} batches the loss of the others never falls below {unseen:.3g} (a constant "
            f"answer has {t['constant']:.3g}): nothing carries over. The labels are noise or shuffled apart from the "
            "inputs, or what tells them does not reach the network (another form of a feature, a wider view)"
        )
        sparse = view.section("data").get("sparse", False)  # each id is seen a few times only
        yield Hit(None, "unseen", unseen, FOLLOWS * t["chance"], text, "info" if sparse else "")
    if t["stream"]["progress"] > 0.1 * AHEAD:
        return
    own = t["own"]
    text = (
        f"{best[0]} gets one batch from {t['start']:.3g} to {best[1]['end']:.3g}, {t['batches']} batches in turn to "
        f"{t['stream']['end']:.3g} in {t['stream']['steps']} steps: labels or data do not fit together, or it begins "
        "slowly"
    )
    # a long run that ends where a constant answer is
    rests = math.isfinite(t["constant"]) and own["steps"] >= 2 * LONG and own["progress"] < 0.1 * HALF
    rises = own.get("valid_after", math.nan) > own["valid_before"] and not view.section("loss").get("several")
    if rests:
        text += f"; after {own['steps']} steps of your own the loss is that of a constant answer, {own['end']:.3g}"
    yield Hit(None, "progress", t["stream"]["progress"], 0.1 * AHEAD, text, "" if rises or rests else "info")


@rule(
    "NS427",
    "outputs collapse",
    severity="warning",
    meaning="The loss falls, and the outputs of all samples become one and the same: that is what this loss rewards.",
    cure="Give it something against the collapse: negatives, a stop-gradient (z.detach()) on one branch, a variance "
    "term; and look at the signs: what is alike is to be near.",
    source="chosen by us: the spread over samples falls to a tenth, below 2 % of the outputs' size",
)
def collapse(view: View) -> Iterator[Hit]:
    """In the user's own steps the loss falls below chance, and no output differs between samples any more.

    Or a script's loss comes to rest, to 1 %, at what it is where all outputs are alike, from elsewhere.
    Where a constant answer is known the loss cannot fall below it like that: this is about losses without targets. Of
    several outputs that the loss compares with each other, before any step: it is at its least where all of them are
    one and the same vector for all samples, and none is held fixed (a gradient reaches each).
    """
    t, free = view.section("trial"), view.section("free")
    if "agrees" in free:
        text = (
            f"the loss, {free['start']:.3g} now, is at its least ({free['agrees']:.3g}) where all outputs are one "
            "constant vector, the same for all samples, and each output gets a gradient: nothing keeps the "
            "representations from a collapse (is a stop-gradient missing: z.detach() on the branch that is followed?)"
        )
        yield Hit(None, "agrees", free["agrees"], free["start"], text)
        return
    own = t.get("own")
    if own is None or math.isfinite(t["constant"]) or own["blown"]:
        return
    before, after = own.get("spread", (math.nan, math.nan))
    x, third = own["losses"], max(1, len(own["losses"]) // 3)
    last, middle = sum(x[-third:]), sum(x[-2 * third : -third])
    rests = not view.section("observed").get("losses") or abs(last - middle) < 0.02 * abs(middle)
    if own["trains"] and after < min(0.1 * before, 0.02) and rests:
        text = (
            f"the loss falls from {own['start']:.3g} to {own['end']:.3g} while in {own['steps']} steps the spread of "
            f"outputs over samples falls from {before:.2g} to {after:.2g} of their size: they collapse to a constant "
            "(degenerate solution)"
        )
        yield Hit(None, "spread", after, 0.02, text)
        return
    end, alike = own["end"], own.get("alike", math.nan)
    came = own["steps"] >= LEAST and abs(own["start"] - alike) > 0.05 * abs(alike) > 5 * abs(end - alike)
    if came and rests and not view.section("observed").get("policy"):
        text = (
            f"the loss goes from {own['start']:.4g} to {end:.4g} and rests there, at what it is where the outputs of "
            f"all samples are the same ({alike:.4g}): they collapse, or nothing is learnt but a constant"
        )
        yield Hit(None, "alike", end, alike, text)
