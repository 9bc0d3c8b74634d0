"""NS421 to NS423: what a short trial showed, of the user's own step and of plain SGD and Adam at several rates."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from normscope.findings._rules import Hit, View, rule

#: Progress below which nothing was learnt, and below which little was (cross-validated: docs/findings.md).
NOTHING, LITTLE = 0.15, 0.35
#: A fall of the loss below this share of the best race's, and that race's progress, for NS423 (chosen by us).
BEHIND, AHEAD = 0.01, 0.3
#: A relative change of the weights in one step, of the median matrix, and progress, by which a rate is too large that
#: holds the loss at chance (chosen by us).
WILD, LITTLE_WILD = 0.2, 0.05
#: Progress beyond which a training did not end too soon.
HALF = 0.5
#: A rise of the loss, in shares of chance, that is no detour; of several outputs, which may move apart at first (a
#: codebook and its encoder).
RISES, RISES_OF_PARTS = 0.5, 2.0
#: Share of chance below which the loss of unseen batches falls once where anything carries over.
FOLLOWS = 0.99
FALLING = 0.15
#: The share of a loss of three tenths before below which it still falls (chosen by us).
STILL = 0.75
#: Steps of the user's own loop that are a long run (chosen by us).
LONG = 300
#: A first loss of the user's loop this many times smaller or larger than that of the loss given is another one.
OTHER = 5.0
#: Steps that layers of zeros may take to wake (chosen by us: Fixup nets stand still for 60).
WAKES = 200


@rule(
    "NS421",
    "nothing trains it",
    severity="error",
    meaning="Neither SGD nor Adam gets the loss of one batch far below that of a constant answer, at no rate that was "
    "tried.",
    cure="Begin with the other findings; with none, let it memorize 16 samples first, and look at labels and loss.",
    source="cross-validated on the trained nets of docs/findings.md, leaving one kind out",
)
def nothing_trains(view: View) -> Iterator[Hit]:
    """The best of several rates of SGD and of Adam ends above .85 of chance (a warning: above .65), the batch being the
    same at each step; chance is the loss of the best constant answer, where there is one, else the first loss.

    Up to 200 steps on copies; fewer than 50 decide nothing, nor fewer than 200 where branches or a head start at zero,
    which open slowly. Two optimizers that end flat at the same loss below chance have trained: the network can do no
    more.
    """
    t = view.section("trial")
    if "sgd" not in t or t["sgd"]["trains"] is not False or t["adam"]["trains"] is not False:
        return
    best = max(t["sgd"]["progress"], t["adam"]["progress"])
    if best >= LITTLE or t.get("own", {}).get("trains"):
        return
    if view.section("observed").get("policy"):
        return  # what a policy did by chance cannot be learnt by heart
    if view.section("observed").get("trained") and not math.isfinite(t["constant"]):
        return  # the loss begins where another optimizer has brought it, and nobody knows how low it can get
    asleep = view.section("wiring").get("zero_layers") and not view.section("wiring").get("asleep", {}).get("weights")
    if asleep and max(t["sgd"]["steps"], t["adam"]["steps"]) < WAKES:
        return
    yield Hit(None, "progress", best, NOTHING, _races(t), "" if best < NOTHING else "warning")


def _races(t: Mapping[str, Any]) -> str:
    text = (
        f"in {max(t['sgd']['steps'], t['adam']['steps'])} steps on one batch SGD gets the loss from {t['start']:.3g} "
        f"to {t['sgd']['end']:.3g} at best (rate {t['sgd']['rate']:g}), Adam to {t['adam']['end']:.3g} (rate "
        f"{t['adam']['rate']:g})"
    )
    return text + (f"; a constant answer has {t['constant']:.3g}" if math.isfinite(t["constant"]) else "")


@rule(
    "NS422",
    "plain SGD hardly trains it",
    severity="info",
    meaning="Adam lowers the loss of one batch, plain SGD hardly, at no rate that was tried.",
    cure="Train it with Adam, or mend what makes it hard for SGD: a norm, another initialization, other scales.",
    source="cross-validated on the trained nets of docs/findings.md, leaving one kind out",
)
def only_adam(view: View) -> Iterator[Hit]:
    """As NS421 for SGD alone, below .35 of chance. A note: nobody said that SGD was meant, and where an optimizer is
    given its own trial counts.
    """
    t = view.section("trial")
    if (
        "sgd" not in t
        or t["sgd"]["trains"] is not False
        or not (t["adam"]["trains"] or t["adam"].get("slow"))
        or t["sgd"]["progress"] >= LITTLE
    ):
        return
    yield Hit(None, "progress", t["sgd"]["progress"], LITTLE, _races(t))


@rule(
    "NS423",
    "your own step hardly trains it",
    severity="warning",
    meaning="With the optimizer (and the loop) as given the loss does not fall, although the same network trains with "
    "another.",
    cure="Compare: optimizer = torch.optim.Adam(model.parameters(), lr=...) at the rate that is named, in the plain "
    "loop.",
    source="chosen by us: the loss of the same batches falls by less than a hundredth of what the best race gets, or "
    "rises",
)
def own_step(view: View) -> Iterator[Hit]:
    """After the user's own steps, on copies, the loss of the same batches is hardly lower, where SGD or Adam get far
    below chance; or it stays at chance while each step changes the weights by a fifth, at a rate above three times the
    best of that kind. Or a long run of the user's own loop gets less than half as far as a short race brings batches
    that are held back from it.

    Not judged while the learning rate still rises (a warm-up), nor for fewer than twenty steps.
    """
    t = view.section("trial")
    own, best = t.get("own"), best_race(t)
    falls = own is not None and own["end"] < 0.7 * own["losses"][0]  # a loss of the loop's own that it does bring down
    if own is not None and own.get("plain", 0.0) > 2 * AHEAD and own["progress_again"] < AHEAD / 2 and not falls:
        text = (
            f"in {own['steps']} steps of the loop as given the loss of the batches gets from {own['start']:.3g} to "
            f"{own['again']:.3g}; the same optimizer in the plain loop gets {own['plain']:.0%} of the way from chance "
            "to zero: the loop changes the inputs before the model gets them (augmentation, flip, mixup, noise, "
            "scaling), do the targets follow?"
        )
        yield Hit(None, "progress", own["progress_again"], AHEAD / 2, text)
        return
    if own is None or best is None or (own["steps"] < 20 and not own["blown"]) or own["warms_up"] or another(own):
        return
    name, race = best
    far = _far_behind(t)
    if far:
        yield Hit(None, "progress", own["progress"], HALF * far, _long_run(t, name))
        return
    race = t.get("stream", race)  # of the same batches as the user's own steps
    k = min(own["steps"], len(race["losses"]))
    there = sum(race["losses"][max(k - 5, 0) : k]) / min(k, 5)  # the race after as many steps
    fall, theirs = operator.sub(*ends(own)), own["start"] - there
    u = view.section("update")
    kin = t["adam" if u and "ada" in u["class"].lower() else "sgd"]["rate"]  # the best rate of the optimizer's own kind
    wild = bool(u) and u["lr"] > 3 * kin and u.get("median", 0.0) > WILD and own["progress"] < LITTLE_WILD
    several = view.section("loss").get("several", False)
    # what a policy is rewarded for grows as it learns, and its loss with it
    seen = bool(view.section("observed").get("losses"))
    played = seen and not math.isfinite(t["constant"])
    rises = own["blown"] or (not played and fall < -(RISES_OF_PARTS if several else RISES) * abs(t["chance"]))
    stands = wild or (abs(fall) if several or played else fall) < BEHIND * theirs
    bounded = abs(race["end"]) <= abs(t["start"])
    heart = seen and race.get("unseen", -math.inf) > FOLLOWS * t["chance"]
    if race["progress"] < AHEAD or not (rises or (bounded and stands and not heart)):
        return
    kind = f"{u['class']} at learning rate {u['lr']:.2g}" if u else "the optimizer as given"
    fate = "the loss diverges" if own["blown"] else "the loss rises" if rises else "the loss hardly falls"
    if u and view.section("loop").get("moved", 1):
        fate += (
            ": the rate is too large"
            if u["lr"] > 3 * kin
            else ": the rate is too small"
            if u["lr"] < kin / 20 and not rises
            else ""
        )
    first, last = ends(own)
    text = (
        f"{kind}: {fate}, {first:.3g} to {last:.3g} in {len(own['losses'])} steps; "
        f"{name} at rate {best[1]['rate']:g} in the plain loop gets to {race['end']:.3g}"
    )
    other = "rate is too" not in fate and not own["blown"]
    cure = "Look at what the loop does beside the step, and at pairs of inputs and targets: the rate is not far off."
    yield Hit(None, "loss_fall", fall, BEHIND * theirs, text, cure=cure if other else "")


def _far_behind(t: Mapping[str, Any]) -> float:
    """How far the race brings batches that it never saw, from chance to zero, where a long run of the user's own loop
    over many batches gets less than half of that; else 0.
    """
    own, stream = t["own"], t.get("stream", {})
    reached = (t["chance"] - stream.get("unseen", math.nan)) / abs(t["chance"] or math.nan)
    # the whole training, or so much of it that a slow rate would have got somewhere
    least = max(LONG // 3, stream.get("steps", 0)) if own.get("all") else max(LONG, 4 * stream.get("steps", 0))
    known = math.isfinite(t["constant"]) and own["steps"] >= least
    x, tenth = own["losses"], max(1, own["steps"] // 10)
    middle = sum(x[-4 * tenth : -3 * tenth]) / tenth if len(x) >= 4 * tenth else math.inf
    if own.get("all") and sum(x[-tenth:]) / tenth < STILL * middle:
        return 0.0  # it ended while the loss fell: too few steps (NS425)
    return reached if known and reached > HALF and own["progress"] < HALF * reached else 0.0


def _long_run(t: Mapping[str, Any], name: str) -> str:
    own, stream = t["own"], t["stream"]
    few = max(1, own["steps"] // 20)
    means = [sum(own["losses"][i : i + few]) / few for i in range(0, own["steps"] - few + 1, few)]
    low = min(range(len(means)), key=means.__getitem__)
    again = means[-1] - means[low] > FALLING * t["chance"]
    words = f", after {means[low]:.3g} at step {(low + 1) * few}" if again else ""
    return (
        f"in {own['steps']} steps of the loop as given the loss goes from {own['start']:.3g} to {own['end']:.3g}"
        f"{words}; {name} at rate {t[name.lower()]['rate']:g} in the plain loop brings batches that it never saw to "
        f"{stream['unseen']:.3g} in {stream['steps']} steps over {t['batches']} of the batches: the rate, the "
        "schedule, or what else the loop does (to the data, to the weights) holds it back"
    )


def ends(own: Mapping[str, Any]) -> tuple[float, float]:
    """The loss before and after the user's own steps: of the same batches; of a loop that changes what its model gets,
    or has a loss of its own, as it returns it.
    """
    if not own["blown"] and (own.get("changed") or another(own)):
        return own["losses"][0], own["end"]
    return own["start"], own.get("again", math.inf)


def another(own: Mapping[str, Any]) -> bool:
    """Whether the user's loop returns another loss than the one that is given: at the first step, far from it; where
    batches come by name, which a loop may read as it likes, at all, or one that falls where the given one does not.
    """
    first, given = abs(own["losses"][0]), abs(own["start"])
    apart = not given / OTHER < first < OTHER * given
    if own.get("keyed", False):
        falls_alone = own["end"] < 0.7 * own["losses"][0] and own["again"] > 0.9 * own["start"]
        apart = abs(first - given) > 0.02 * given or falls_alone
    return not own["blown"] and apart


def best_race(t: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The race that got lowest, and its name."""
    races = [(label, t[name]) for name, label in (("sgd", "SGD"), ("adam", "Adam")) if name in t]
    return min(races, key=lambda pair: pair[1]["end"]) if races else None
