"""NS707 to NS711: targets that outputs or loss cannot take as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.findings._rules import Hit, View, listed, rule

FLOOR, OUTSIDE = 0.1, 0.1


@rule(
    "NS707",
    "targets out of the outputs' reach",
    severity="warning",
    meaning="The last activation bounds the outputs, and part of the targets lie beyond.",
    cure="Leave the last activation out for regression, or scale the targets into its range.",
    source="chosen by us: a tenth of the targets outside, and a tenth of the constant answer's loss left",
)
def reach(view: View) -> Iterator[Hit]:
    """With the last weights scaled up 300-fold the outputs gather at ends, and the targets, cut off there, still cost.

    The floor is the loss of the targets clamped into the outputs' range.
    """
    s, b = view.section("loss"), view.section("pull").get("beyond")
    if b:
        ends = ", ".join(f"{x:.3g}" for x in b["ends"])
        text = (
            f"output {b['output']} of {b['module'] or 'the model'} is bounded, ({ends}), and {b['share']:.0%} of its "
            f"targets, from {b['low']:.3g} to {b['high']:.3g}, are out of range: they cannot be reached (scale or "
            "normalize them)"
        )
        yield Hit(None, "outside", b["share"], OUTSIDE, text, name=b["module"])
    far = view.section("observed").get("out_of_reach")
    if far and far["share"] > OUTSIDE:
        lie, reach = (" to ".join(f"{x:.3g}" for x in far[k]) for k in ("bounds", "ends"))
        text = (
            f"what {far['maker']} makes lies in {lie} ({far['last']}), the samples that it is held against reach from "
            f"{reach}: {far['share']:.0%} of their numbers are out of range, it is told by that alone"
        )
        yield Hit(None, "outside", far["share"], OUTSIDE, text)
    if s.get("task") != "regression" or "outside" not in s or s["outside"] < OUTSIDE:
        return
    if s["floor"] - s["free"] > FLOOR * (s.get("constant", math.inf) - s["free"]):
        r = s["reach"]
        ends = ", ".join(f"{r[k]:.3g}" if k in r else "infinity" for k in ("low", "high"))
        text = (
            f"the outputs lie in ({ends}) whatever the weights, bounded by the last layer {r['module']} "
            f"({r['module_kind']}): "
            f"{s['outside']:.0%} of the targets are out of range, the loss cannot fall below {s['floor']:.3g}"
        )
        yield Hit(None, "outside", s["outside"], OUTSIDE, text, name=r["module"])


@rule(
    "NS708",
    "several labels a sample, one softmax",
    severity="warning",
    meaning="The outputs of a sample sum to one, but several of its labels are one.",
    cure="Several labels a sample want nn.BCEWithLogitsLoss() on raw outputs, a sigmoid each.",
    source="chosen by us: in 10 % of the rows",
)
def several_labels(view: View) -> Iterator[Hit]:
    """The targets are zeros and ones with several ones in a row, and the outputs, or the loss, hold a softmax over the
    row.
    """
    s = view.section("loss")
    sums = s.get("sums_to_one", {}).get("over") == "classes"
    if s.get("several_ones", 0) > 0.1 and (sums or s.get("softmax_in_loss")):
        text = (
            f"{s['several_ones']:.0%} of the samples have several labels (multi-label), and a softmax makes the "
            "outputs of a sample sum to one: use a sigmoid each"
        )
        yield Hit(None, "several_ones", s["several_ones"], 0.1, text, name=s.get("last", ""))


@rule(
    "NS709",
    "classes regressed as numbers",
    severity="warning",
    meaning="The targets look like class indices, and the loss takes class 4 for the mean of classes 3 and 5.",
    cure="One output a class: nn.Linear(width, classes) with nn.CrossEntropyLoss() and targets.long().",
    source="chosen by us: 3 or more whole numbers from 0 without a gap, each 0.6 times as often as on average "
    "or more, to two standard errors",
)
def classes_as_numbers(view: View) -> Iterator[Hit]:
    """One output and a regression loss, and targets that are 0, 1, ..., c - 1, all about equally often.

    Counts and ratings are seldom so even; if yours are, this is a false alarm. A note where the user's own trial
    trains.
    """
    c, loss = view.section("data").get("class_like", 0), view.section("loss")
    if c and loss.get("task") == "regression" and math.prod(loss["outputs"][1:]) == 1:
        text = (
            f"the targets are the whole numbers 0 to {c - 1}, about equally often, like class indices, and "
            "one output is regressed (mse) on them"
        )
        trains = view.section("trial").get("own", {}).get("trains")  # grades may be meant as numbers
        yield Hit(None, "class_like", c, 3, text, "info" if trains else "")


@rule(
    "NS710",
    "targets beyond a binary loss",
    severity="error",
    meaning="A binary cross-entropy takes targets from 0 to 1; beyond, it has no floor.",
    cure="c classes want c outputs and nn.CrossEntropyLoss(); labels -1 and 1 want (targets + 1) / 2.",
    source="range of the targets",
)
def not_binary(view: View) -> Iterator[Hit]:
    """The loss is a binary cross-entropy, and targets lie outside 0..1: more classes than two, or labels of -1 and
    1.
    """
    s = view.section("loss")
    if s.get("outside_binary"):
        low, high = s["target_range"]
        text = (
            f"the targets range from {low:g} to {high:g} for a binary loss: more than two classes need as many outputs"
        )
        yield Hit(None, "target_range", high, 1.0, text)


@rule(
    "NS711",
    "a class is ignored",
    severity="warning",
    meaning="Samples of one class get no gradient, or much less than those of classes that need it less.",
    cure="Take an index that no class has: nn.CrossEntropyLoss(ignore_index=-100); class weights fall with the class's "
    "count.",
    source="rows of exactly zero gradient; chosen by us: a pull twice as large though three times as common",
)
def ignored(view: View) -> Iterator[Hit]:
    """Every sample of one class has a gradient of exactly zero in the outputs, and no sample of the others; padding
    apart.

    Or targets of -1 are ignored, and all other classes but the last one are there: labels shifted down by one. Or all
    samples of a class together pull less than 3 % of what the middle one's do; or those of the commonest pull
    more than twice as hard as those of the rarest, where counts differ threefold.
    """
    k = view.section("loss").get("ignored_class")
    if k:
        hinge = "a hinge or embedding loss wants targets of -1 and 1, not 0 and 1 (dissimilar pairs are -1)"
        text = (
            f"{k['share']:.0%} of the targets are ignored: all samples of class {k['class']} get no gradient "
            f"({hinge if k.get('binary') else 'ignore_index or weight 0'})"
        )
        yield Hit(None, "ignored", k["share"], 0.0, text)
    away = view.section("loss").get("shifted_away")
    if away and not k:
        text = (
            f"{away['share']:.0%} of the targets are -1 and ignored, and none is {away['last']}, the last class: the "
            "labels are shifted down by one, and their first class is never trained"
        )
        yield Hit(
            None, "ignored", away["share"], 0.0, text, cure="Keep labels from 0 on: no - 1, or reduce_zero_label."
        )
    signed = view.section("observed").get("signed")
    if signed and not k:
        text = (
            f"{signed['loss']} wants targets of -1 and 1, and gets {listed(signed['values'])}: pairs with a target of "
            "0 get no gradient (dissimilar pairs are -1)"
        )
        cure = "Give 1 and -1: target = 2 * same - 1."
        yield Hit(None, "signed", signed["share"], 0.0, text, cure=cure)
    blank = view.section("calls").get("blank", 0.0)
    if blank > 0.01:
        text = (
            f"{blank:.0%} of the labels of the CTC loss are its blank: that class is never emitted (number the labels "
            "from 1, with blank=0)"
        )
        cure = (
            "Number the labels from 1 (0 is the blank), and give the last layer one output more than there are labels; "
            "or name the class that your model keeps for it: CTCLoss(blank=classes - 1)."
        )
        yield Hit(None, "blank", blank, 0.01, text, cure=cure)
    slight = view.section("loss").get("slighted")
    if slight:
        text = (
            f"all samples of class {slight['class']} together pull {slight['share']:.2g} times as hard as those of the "
            "middle class: its weight in the loss is next to nothing, it will not be learnt"
        )
        yield Hit(None, "weights", slight["share"], 0.03, text)
    w = view.section("loss").get("weighted")
    if w and w["pull"] > 2:
        text = (
            f"a sample of class {w['common']} pulls {w['pull']:.2g} times as hard as one of class {w['rare']}, which "
            f"is {w['counts']:.2g} times as rare: the class weights are inverted, the majority counts even more"
        )
        yield Hit(None, "weights", w["pull"], 2.0, text)
