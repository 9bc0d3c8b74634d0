"""NS701 to NS706: what the loss can see, from the loss as a function of the outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.findings._rules import Hit, View, inside, listed, rule

FLOOR = 0.1
#: Share of pairs, one pulled together and one pushed apart, that are in the wrong order (chosen by us; chance: a half).
WRONG = 0.65
#: A loss of the user's own steps that has fallen so many times its start below zero has no floor (chosen by us).
SUNK = 1000.0


@rule(
    "NS701",
    "logits that are none",
    severity="warning",
    meaning="The loss takes a softmax of outputs that are bounded already, so even a perfect answer costs much "
    "and gradients are small.",
    cure="Leave the last activation out: cross-entropy wants logits. For probabilities: loss = nn.NLLLoss() on "
    "log_softmax(outputs, 1).",
    source="chosen by us: the best answer within reach costs a tenth of what a constant answer costs",
)
def bounded_logits(view: View) -> Iterator[Hit]:
    """The loss does not change when a number is added to all outputs of a sample: it holds a softmax. But the outputs
    are bounded.

    Rows that sum to one are a softmax of their own; otherwise the last weights were scaled up 300-fold, and the outputs
    gathered at their ends (a sigmoid, a tanh). The best answer within these ends costs, with c classes between 0 and 1,
    log(1 + (c - 1)/e): 1.46 of log 10 = 2.30.
    """
    s = view.section("loss")
    sums = s.get("sums_to_one", {})
    module = s.get("reach", {}).get("module", "")
    probabilities = sums.get("what") == "probabilities" and sums.get("over") == "classes"
    if s.get("task") == "classes" and probabilities and s.get("linear") and s["value"] < 0:
        text = "the loss takes the probabilities as they are, minus the one of the right class: log_softmax is missing"
        yield Hit(None, "loss", s["value"], 0.0, text, name=module or s.get("last", ""))
        return
    if wrong := view.section("calls").get("no_logs"):
        text = (
            f"{wrong} takes log-probabilities, which are never positive, and gets numbers of 0 and more (probabilities "
            "of a softmax): log_softmax is missing, the logarithm"
        )
        yield Hit(None, "loss", s.get("value", math.nan), 0.0, text, name=s.get("last", ""))
        return
    if s.get("task") != "binary" and not (s.get("task") == "classes" and s.get("softmax_in_loss")):
        return
    if s["task"] == "classes" and sums.get("what") == "probabilities" and sums.get("over") == "classes":
        text = (
            f"the {s['columns']} outputs are probabilities already (rows in 0..1 with sum 1), and the loss takes a "
            "softmax of them again: softmax twice"
        )
        yield Hit(None, "floor", s.get("floor", math.nan), 0.0, text, name=module or s.get("last", ""))
    elif "floor" in s and "constant" in s and s["floor"] - s["free"] > FLOOR * max(s["constant"] - s["free"], 1e-9):
        kind = s["reach"]["module_kind"]
        ends = " to ".join(f"{s['reach'][k]:.3g}" if k in s["reach"] else "infinity" for k in ("low", "high"))
        text = (
            f"the logits are bounded by {module} ({kind}), {ends}, before the loss's own "
            f"{'sigmoid' if s['task'] == 'binary' else 'softmax'}: the best answer costs {s['floor']:.2f}, a constant "
            f"one {s['constant']:.2f}"
        )
        yield Hit(None, "floor", s["floor"], s["free"], text, name=module)
    elif "capped" in s and s["capped"][0] > FLOOR * s["capped"][1]:
        best, worst = s["capped"]
        kind = "sigmoid" if s["task"] == "binary" else "softmax"
        text = (
            f"the loss {s['name']} lies between {best:.2f} and {worst:.2f} however right or wrong the logits are: a "
            f"{kind} is taken before the loss's own ({kind} twice)"
        )
        yield Hit(None, "floor", best, 0.0, text, name=s.get("last", ""))


@rule(
    "NS702",
    "normalized over the batch",
    severity="error",
    meaning="The softmax runs over the samples instead of the classes: what one sample gets is taken from the others.",
    cure="Name the class axis: torch.log_softmax(outputs, dim=1), nn.Softmax(dim=1).",
    source="sums over axis 0 equal to one within 1e-4",
)
def over_the_batch(view: View) -> Iterator[Hit]:
    """The outputs, or their exponentials, sum to one over the samples, not over the classes; or the loss itself takes a
    softmax or log-sum-exp of (n, k) over its n samples.
    """
    sums = view.section("loss").get("sums_to_one", {})
    over = sums.get("over", "classes")
    if over != "classes":
        name = "the batch axis (dim=0)" if over == "samples" else f"{over} (dim={over[5:]})"
        text = (
            f"the outputs are {sums['what']} that sum to one over {name}, not over the classes: a softmax along a "
            "wrong axis"
        )
        yield Hit(None, "sums", 1.0, 1.0, text, name=view.section("loss").get("last", ""))
    within = view.section("calls").get("over_samples")
    if within:
        text = (
            f"the loss takes a {within['function']} of shape {tuple(within['shape'])} over the batch axis (dim=0): "
            "samples compete with each other, classes or components do not"
        )
        yield Hit(None, "axis", 0.0, 1.0, text)


@rule(
    "NS703",
    "targets broadcast",
    severity="error",
    meaning="Every output is compared with every target, so the network learns the mean of the targets.",
    cure="Give both one shape: targets[:, None], or outputs.squeeze(1).",
    source="the loss is the same for targets in another order",
)
def broadcast(view: View) -> Iterator[Hit]:
    """Outputs and targets have different shapes, and permuting the targets over the samples leaves the loss as it is.

    Or a column (n, 1) is added to or multiplied with a row (n,) of other numbers, in the loss or in the model: every
    sample meets every other one.
    """
    s, crossed = view.section("loss"), view.section("calls").get("crossed")
    if crossed and not s.get("broadcast"):
        one, other = (tuple(shape) for shape in crossed["shapes"])
        place = inside(crossed["module"]) or " in the loss"
        text = (
            f"{crossed['function']} of {one} and {other}{place} broadcasts to {(max(one[0], other[0]),) * 2}: every "
            "sample is combined with every other one"
        )
        sure = crossed["function"].endswith("_loss")  # of an arithmetic of the user's own all pairs may be meant
        yield Hit(None, "broadcast", 1, 0, text, "error" if sure else "warning", crossed["module"])
    if s.get("broadcast"):
        text = (
            f"outputs {tuple(s['outputs'])} and targets {tuple(s['targets'])} broadcast against each other: the loss "
            "is the same for the targets in any order"
        )
        yield Hit(None, "broadcast", 1, 0, text)


@rule(
    "NS704",
    "the loss does not see the outputs",
    severity="error",
    meaning="The loss is the same whatever the outputs are, so there is no gradient.",
    cure="For two classes and one output: nn.BCEWithLogitsLoss(); for c classes: c outputs and nn.CrossEntropyLoss().",
    source="gradient exactly zero, and the same value for random outputs",
)
def blind(view: View) -> Iterator[Hit]:
    """The gradient of the loss in the outputs is exactly zero, and other outputs give the same loss.

    A softmax cross-entropy over one column is zero whatever the weights.
    """
    s = view.section("loss")
    if s.get("zero_gradient") and s.get("moves") is False and not s["reaches_weights"]:
        one = math.prod(s["outputs"][1:]) == 1 and not view.section("wiring").get("lost", {}).get("tensors")
        why = ": a softmax over one output (a single class) is constant" if one else ""
        text = f"the loss {s['name']} is {s['value']:.3g} for any outputs {tuple(s['outputs'])}, no gradient{why}"
        yield Hit(None, "gradient", 0.0, 0.0, text, name=s.get("last", ""))
    elif s.get("zero_gradient") and not s["reaches_weights"] and not view.section("wiring").get("cut"):
        text = (
            f"the loss {s['name']} changes with the outputs in steps only, its gradient is exactly zero: it is not "
            "differentiable (a rounding, a comparison, a hard threshold, an accuracy)"
        )
        yield Hit(None, "gradient", 0.0, 0.0, text)


@rule(
    "NS705",
    "wrong sign",
    severity="error",
    meaning="The right answer costs more than a wrong one: training goes away from the targets.",
    cure="Turn the loss round: minimize -log_likelihood, not log_likelihood.",
    source="chosen by us: for 95 % of the samples the right class has the largest, positive gradient",
)
def sign(view: View) -> Iterator[Hit]:
    """The loss rises when the outputs are moved to the targets: the right class raised, or the outputs set to the
    targets. Or, of pairs of inputs, it pulls together those that are less alike and pushes the others apart. Or of two
    networks that play against each other, the second one's loss moves the first one's scores of what it made as the
    first one's own loss does. Or of a cross-entropy over all pairs of samples, (n, n), the labels name the least alike.
    Or a flow's log-determinant, held against its Jacobian, enters the likelihood with the wrong sign.
    """
    s = view.section("loss")
    game = view.section("observed").get("same_way")
    if game:
        text = (
            f"{game['judge']} lowers its loss by {game['moves']} its scores of what {game['maker']} makes, and the "
            f"loss of {game['maker']} {game['moves'][:-3]}s them too: the two do not play against each other, its "
            "labels (or its sign) are those of made samples"
        )
        cure = "Give the maker's loss the labels of real samples: criterion(judge(made), ones); or -judge(made).mean()."
        yield Hit(None, "same_way", 1.0, 0.0, text, "warning", cure=cure)
    wrong = view.section("pairs").get("pulled_apart", 0.0)
    if wrong > WRONG:
        text = (
            "of a pair that the loss pulls together and one that it pushes apart (contrastive, triplets), in "
            f"{wrong:.0%} the first is the less alike in the inputs: labels, or positive and negative, are swapped (1 "
            "for same and 1 for different are two conventions); the sign is flipped"
        )
        yield Hit(None, "pulled_apart", wrong, WRONG, text, "warning")
    v = view.section("volume")
    if v and v["sign"] == v["slope"]:
        which = "log|det dz/dx|" if v["sign"] == 1 else "minus log|det dz/dx|"
        text = (
            f"the number that the model gives each sample is {which}, and the loss "
            f"{'falls' if v['slope'] < 0 else 'rises'} with it: the volume enters with the wrong sign, what is "
            "minimized is no likelihood"
        )
        cure = "loss = -(log_prob(z) + log|det dz/dx|).mean()."
        yield Hit(None, "slope", v["slope"], 0.0, text, cure=cure)
    of = view.section("calls").get("partners") or {}
    if of and of["said"] < -of["out"]:
        text = (
            f"of the {of['n']} rows of similarities the loss wants the least alike raised ({-of['said']:.2g} standard "
            "deviations below the mean of their row): their sign is flipped (a distance is no similarity)"
        )
        cure = "Give it similarities: u @ v.T / 0.1, or -distance."
        yield Hit(None, "said", of["said"], 0.0, text, cure=cure)
    if s.get("wrong_sign") and "pulled_apart" not in view.section("pairs"):
        text = (
            f"the loss rises from {s['value']:.3g} to {s['right_answer']:.3g} when the outputs move to the "
            "right answer: its sign is flipped"
        )
        yield Hit(None, "right_answer", s["right_answer"], s["value"], text)


@rule(
    "NS706",
    "loss without a floor",
    severity="warning",
    meaning="The loss falls without end as the outputs grow, so it rewards size instead of right answers.",
    cure="Give the loss what it needs: log-probabilities for nn.NLLLoss (log_softmax(outputs, 1)), targets in "
    "0..1 for binary losses.",
    source="chosen by us: the loss at outputs of 10 000 is below -50 times that of now, or own steps end below -1000 "
    "times",
)
def bottomless(view: View) -> Iterator[Hit]:
    """Far down its own gradient the loss goes to minus infinity, and nothing keeps the outputs from going there.

    Silent for losses that are linear in the outputs and have no classes, as a critic's score. Or the user's own steps
    brought it a thousand times further below zero than it was above.
    """
    s, own = view.section("loss"), view.section("trial").get("own", {})
    if own and own["end"] < -SUNK * max(abs(own["start"]), 1.0):
        text = (
            f"in {own['steps']} steps of your own the loss falls from {own['start']:.3g} to {own['end']:.3g}: it is "
            "unbounded below, some term of it has the wrong sign (a KL divergence, an entropy, a penalty)"
        )
        cure = "Look at each term alone: a divergence and a penalty are never negative, and are added."
        yield Hit(None, "far", own["end"], -SUNK, text, cure=cure)
        return
    sunk = view.section("free").get("sunk")
    if sunk:
        text = (
            f"the loss falls from {sunk['now']:.3g} to {sunk['far']:.3g} as {listed(sunk['names'])} moves away by 10 "
            "000: it is unbounded below, a learnable weight of the loss makes it negative (exp(-s) * loss + s keeps it "
            "honest)"
        )
        yield Hit(None, "far", sunk["far"], -50.0, text, name=sunk["names"][0])
    # a score, or a log density, that is meant to have no floor
    critic = s.get("linear") and (s.get("task") == "other" or not s.get("reads", True))
    if s.get("unbounded") and not critic and not s.get("wrong_sign") and not s.get("outside_binary"):
        text = (
            f"the loss falls from {s['value']:.3g} to {s['far']:.3g} as the outputs grow to 10 000: it is "
            "unbounded below (a log-variance of the wrong sign, logits for log-probabilities)"
        )
        yield Hit(None, "far", s["far"], -50.0, text, name=s.get("last", ""))
