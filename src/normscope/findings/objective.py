"""NS7xx: what the loss can see, from the loss as a function of the outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.findings._rules import Hit, View, inside, rule

FLOOR, OUTSIDE = 0.1, 0.1
START = 6.0
#: The least share of the gradient for the targets; how unevenly two tasks may pull.
DROWNED, UNEVEN = 0.05, 300.0


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
    if s.get("task") != "binary" and not (s.get("task") == "classes" and s.get("softmax_in_loss")):
        return
    if s["task"] == "classes" and sums.get("what") == "probabilities" and sums.get("over") == "classes":
        text = (
            f"the {s['columns']} outputs are probabilities already (rows in 0..1 with sum 1), and the loss "
            "takes a softmax of them "
            "again: softmax twice"
        )
        yield Hit(None, "floor", s.get("floor", math.nan), 0.0, text, name=module or s.get("last", ""))
    elif "floor" in s and "constant" in s and s["floor"] - s["free"] > FLOOR * max(s["constant"] - s["free"], 1e-9):
        kind = s["reach"]["module_kind"]
        ends = " to ".join(f"{s['reach'][k]:.3g}" if k in s["reach"] else "infinity" for k in ("low", "high"))
        text = (
            f"the logits are bounded by {module} ({kind}), {ends}, before the loss's own "
            f"{'sigmoid' if s['task'] == 'binary' else 'softmax'}: the best "
            "answer costs "
            f"{s['floor']:.2f}, a constant one {s['constant']:.2f}"
        )
        yield Hit(None, "floor", s["floor"], s["free"], text, name=module)
    elif "capped" in s and s["capped"][0] > FLOOR * s["capped"][1]:
        best, worst = s["capped"]
        kind = "sigmoid" if s["task"] == "binary" else "softmax"
        text = (
            f"the loss {s['name']} lies between {best:.2f} and {worst:.2f} however right or wrong the logits are: a {kind} is "
            f"taken before the loss's own ({kind} twice)"
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
    """The outputs, or their exponentials, sum to one over the samples, not over the classes; or the loss itself takes a softmax
    or log-sum-exp of (n, k) over its n samples.
    """
    sums = view.section("loss").get("sums_to_one", {})
    over = sums.get("over", "classes")
    if over != "classes":
        name = "the batch axis (dim=0)" if over == "samples" else f"{over} (dim={over[5:]})"
        text = f"the outputs are {sums['what']} that sum to one over {name}, not over the classes: a softmax along a wrong axis"
        yield Hit(None, "sums", 1.0, 1.0, text, name=view.section("loss").get("last", ""))
    within = view.section("calls").get("over_samples")
    if within:
        text = (
            f"the loss takes a {within['function']} of shape {tuple(within['shape'])} over the batch axis (dim=0): samples compete "
            "with each other, classes or components do not"
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

    Or a column (n, 1) is added to or multiplied with a row (n,) of other numbers, in the loss or in the model: every sample
    meets every other one.
    """
    s, crossed = view.section("loss"), view.section("calls").get("crossed")
    if crossed and not s.get("broadcast"):
        one, other = (tuple(shape) for shape in crossed["shapes"])
        place = inside(crossed["module"]) or " in the loss"
        text = (
            f"{crossed['function']} of {one} and {other}{place} broadcasts to {(max(one[0], other[0]),) * 2}: every sample is "
            "combined with every other one"
        )
        yield Hit(None, "broadcast", 1, 0, text, "warning", crossed["module"])
    if s.get("broadcast"):
        text = (
            f"outputs {tuple(s['outputs'])} and targets {tuple(s['targets'])} broadcast against each other: the "
            "loss is the same for "
            "the targets in any order"
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
            f"the loss {s['name']} changes with the outputs in steps only, its gradient is exactly zero: it is not differentiable "
            "(a rounding, a comparison, a hard threshold, an accuracy)"
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
    """The loss rises when the outputs are moved to the targets: the right class raised, or the outputs set to the targets."""
    s = view.section("loss")
    if s.get("wrong_sign"):
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
    source="chosen by us: the loss at outputs of 10 000 is below -50 times that of now",
)
def bottomless(view: View) -> Iterator[Hit]:
    """Far down its own gradient the loss goes to minus infinity, and nothing keeps the outputs from going there.

    Silent for losses that are linear in the outputs and have no classes, as a critic's score.
    """
    s = view.section("loss")
    critic = s.get("linear") and s.get("task") == "other"  # a score that is meant to have no floor
    if s.get("unbounded") and not critic and not s.get("wrong_sign") and not s.get("outside_binary"):
        text = (
            f"the loss falls from {s['value']:.3g} to {s['far']:.3g} as the outputs grow to 10 000: it is "
            "unbounded below (a log-variance of the wrong sign, logits for log-probabilities)"
        )
        yield Hit(None, "far", s["far"], -50.0, text, name=s.get("last", ""))


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
    s = view.section("loss")
    if s.get("task") != "regression" or "outside" not in s or s["outside"] < OUTSIDE:
        return
    if s["floor"] > FLOOR * s.get("constant", math.inf):
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
    """The targets are zeros and ones with several ones in a row, and the outputs, or the loss, hold a softmax over the row."""
    s = view.section("loss")
    sums = s.get("sums_to_one", {}).get("over") == "classes"
    if s.get("several_ones", 0) > 0.1 and (sums or s.get("softmax_in_loss")):
        text = (
            f"{s['several_ones']:.0%} of the samples have several labels (multi-label), and a softmax makes the "
            "outputs of a sample sum to "
            "one: use a sigmoid each"
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

    Counts and ratings are seldom so even; if yours are, this is a false alarm. A note where the user's own trial trains.
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
    """The loss is a binary cross-entropy, and targets lie outside 0..1: more classes than two, or labels of -1 and 1."""
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
    cure="Take an index that no class has: nn.CrossEntropyLoss(ignore_index=-100); class weights fall with the class's count.",
    source="rows of exactly zero gradient; chosen by us: a pull twice as large though three times as common",
)
def ignored(view: View) -> Iterator[Hit]:
    """Every sample of one class has a gradient of exactly zero in the outputs, and no sample of the others; padding apart.

    Or the samples of the commonest class pull more than twice as hard as those of the rarest, where counts differ threefold.
    """
    k = view.section("loss").get("ignored_class")
    if k:
        text = (
            f"{k['share']:.0%} of the targets are ignored: all samples of class {k['class']} get no gradient "
            f"({'a hinge loss wants targets of -1 and 1, not 0 and 1' if k.get('binary') else 'ignore_index or weight 0'})"
        )
        yield Hit(None, "ignored", k["share"], 0.0, text)
    w = view.section("loss").get("weighted")
    if w and w["pull"] > 2:
        text = (
            f"a sample of class {w['common']} pulls {w['pull']:.2g} times as hard as one of class {w['rare']}, which is "
            f"{w['counts']:.2g} times as rare: the class weights are inverted, the majority counts even more"
        )
        yield Hit(None, "weights", w["pull"], 2.0, text)


@rule(
    "NS712",
    "the targets are the inputs",
    severity="warning",
    meaning="Each position is asked for a token that it sees: the loss falls to zero and nothing is learnt.",
    cure="Shift by one: model(tokens[:, :-1]) against tokens[:, 1:]; in a model that sees ahead, give attention a causal mask.",
    source="chosen by us: 99 % of the positions, in a model that does not look ahead; 90 % of the next ones in one that does",
)
def unshifted(view: View) -> Iterator[Hit]:
    """At 99 % of the positions the token whose logit the loss wants raised is the input token there, in a causal model; or it
    is the next token, and the model looks ahead.

    A loss that shifts by itself wants another token, and is silent.
    """
    share = view.section("loss").get("copied_inputs", 0.0)
    if share > 0.99:
        text = f"at {share:.0%} of the positions the target equals the input token: not shifted by one"
        yield Hit(None, "copied", share, 0.99, text)
    ahead = view.section("loss").get("sees_ahead", 0.0)
    if ahead > 1e-4:
        who = view.section("calls").get("attention") or ""
        text = (
            f"the targets are the next tokens, and another last token changes the outputs before it (by {ahead:.1g} of the "
            f"largest): the model sees the future, attention{inside(who)} has no causal mask; the answer leaks"
        )
        yield Hit(None, "sees_ahead", ahead, 1e-4, text, name=who)


@rule(
    "NS713",
    "a start far above chance",
    severity="warning",
    meaning="The first loss is many times that of an answer that ignores the inputs: the outputs start far too large.",
    cure="Start the last layer (and the embeddings it shares) small: nn.init.normal_(layer.weight, std=0.02), "
    "or standardize the inputs.",
    source="chosen by us: six times the loss of the class frequencies, and 3 nat above it",
)
def bad_start(view: View) -> Iterator[Hit]:
    """The loss of a classifier at this point is more than six times that of the constant answer (the class frequencies).

    Of a regression: the same, and the outputs are three times as large as the targets. Fresh layers of usual gain start
    within 1.5 times; logits of size s cost about s.
    """
    s = view.section("loss")
    wide = s.get("task") == "regression" and s.get("output_rms", 0.0) > 3 * s.get("target_rms", math.inf)
    judged = (s.get("task") == "classes" or wide) and "constant" in s and not s.get("wrong_sign")
    if judged and s["value"] > max(START * max(s["constant"], 0.1), s["constant"] + 3):
        text = (
            f"the loss is {s['value']:.3g} at the start, and {s['constant']:.3g} for an answer that ignores the "
            f"inputs: {'outputs' if wide else 'logits'} of size "
            f"{s.get('output_rms', math.nan):.2g}, too large an initial scale at "
            f"{s.get('last_weight', 'the last layer')}"
        )
        yield Hit(None, "loss", s["value"], START * s["constant"], text, name=s.get("last_weight", ""))


@rule(
    "NS714",
    "the targets hardly matter",
    severity="warning",
    meaning="Other parts of the loss (a penalty, a divergence, another task) drown the one that knows the right answers, so "
    "training serves them.",
    cure="Bring the parts to one size: sum or average both over the same axes, then weigh: loss = fit + 0.01 * penalty.",
    source="chosen by us: all targets together decide less than a twentieth of the gradient; of two tasks one pulls 300 times "
    "as hard",
)
def drowned(view: View) -> Iterator[Hit]:
    """The gradient is taken again with every target another one (the next class, the other side of zero). In the parameters
    that all outputs depend on it stays what it was to 5 %: what pulls there is not the targets.

    Several targets: the same for each alone, in the parameters that all of them move.
    """
    s, loss = view.section("pull"), view.section("loss")
    share = s.get("share", math.nan)
    far = loss.get("output_rms", 0.0) > 20 * loss.get("target_rms", math.inf)  # outputs that dwarf any target: NS713
    if 1e-6 < share < DROWNED and not far:  # a loss that reads no targets at all has others
        text = (
            f"other targets change the gradient by {share:.2g} of its size: a penalty or divergence (KL) term of the loss "
            "outweighs the part that fits the targets; its weight is too large"
        )
        yield Hit(None, "share", share, DROWNED, text)
    tasks = s.get("tasks", [])
    if tasks and min(tasks) > 0 and max(tasks) > UNEVEN * min(tasks):
        strong, weak = tasks.index(max(tasks)), tasks.index(min(tasks))
        text = (
            f"target {strong} pulls {max(tasks) / min(tasks):.2g} times as hard as target {weak} on what they share: the "
            "losses of the tasks have different scales, and one drowns the other"
        )
        yield Hit(None, "tasks", max(tasks) / min(tasks), UNEVEN, text)


@rule(
    "NS715",
    "wrong answers hardly pull",
    severity="warning",
    meaning="The loss asks more of samples that are answered rightly than of those that are wrong: the hard ones are not learnt.",
    cure="Weigh by what is missing: (1 - p) ** gamma * cross_entropy, with p the probability of the right class.",
    source="chosen by us: 1.2 times the pull on right answers, at logits of 2 and -2; a cross-entropy has a seventh",
)
def easy(view: View) -> Iterator[Hit]:
    """The gradient that raises the right class is smaller where another class is ahead than where it is right already.

    As a focal factor p ** gamma makes it. A softmax cross-entropy of two classes pulls 7 times as hard on wrong answers.
    """
    s = view.section("loss")
    pulls = s.get("pulls", [])
    logits = s.get("softmax_in_loss") or s.get("task") == "binary"
    if len(pulls) == 2 and logits and not s.get("wrong_sign") and pulls[0] > max(1.2 * pulls[1], 1e-9):
        text = (
            f"a sample that is answered rightly (logits of 2) is pulled by {pulls[0]:.2g} towards its class, one that is wrong by "
            f"{pulls[1]:.2g}: easy samples count most, the weighting (focal factor) is inverted"
        )
        yield Hit(None, "pull", pulls[0], 1.2 * pulls[1], text)
