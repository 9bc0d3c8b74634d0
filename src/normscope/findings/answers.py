"""NS712 to NS719: the answers that a loss asks for, and how hard it pulls to them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.findings._rules import Hit, View, inside, listed, rule

#: How far above a constant answer's loss a start is bad.
START = 6.0
#: The least share of the gradient for the targets; how unevenly two tasks may pull.
DROWNED, UNEVEN = 0.02, 300.0
#: Squared correlation of an output with its targets below which it has learnt nothing of them.
UNLIKE = 0.05
#: How many times as hard some columns of an output may be pulled as the others (chosen by us).
APART = 100.0
#: How little a loss varies with the outputs; how little is left of it with one answer for all samples.
FLAT, BLIND = 0.1, 1e-2


@rule(
    "NS712",
    "targets that are not the next tokens",
    severity="warning",
    meaning="Each position is asked for a token that it sees: the loss falls to zero and nothing is learnt.",
    cure="Shift by one: model(tokens[:, :-1]) against tokens[:, 1:]; in a model that sees ahead, give attention a "
    "causal mask.",
    source="chosen by us: 99 % of the positions, in a model that does not look ahead; 90 % of the next ones in one "
    "that does",
)
def unshifted(view: View) -> Iterator[Hit]:
    """At 99 % of the positions the token whose logit the loss wants raised is the input token there, in a causal model;
    or it is the next token, and the model looks ahead.

    Or the loss is on the tokens that stand in the inputs alone, and leaves out those that a mask token hides.

    A loss that shifts by itself wants another token, and is silent; of shifted targets it would want the next token but
    one.
    """
    share = view.section("loss").get("copied_inputs", 0.0)
    if share > 0.99:
        which = "token before: shifted the wrong way" if view.section("loss")["back"] else "token: not shifted by one"
        yield Hit(None, "copied", share, 0.99, f"at {share:.0%} of the positions the target equals the input {which}")
    asked = view.section("loss").get("asked_shown", 0.0)
    if asked:
        text = (
            f"at {asked:.0%} of the positions that the loss asks for (the others are ignored) the target equals the "
            "input token: the labels are the masked inputs themselves, one tensor (masked in place)"
        )
        cure = "Copy the labels before the inputs are masked: labels = ids.clone()."
        yield Hit(None, "copied", asked, 0.99, text, cure=cure)
    fed = view.section("loss").get("fed_answers")
    if fed is not None:
        text = (
            "the decoder is fed the targets themselves, not shifted by one: each output reads the token it is asked "
            f"for (place {fed} of the inputs for the last one); the answer leaks, and generation has none"
        )
        yield Hit(None, "copied", 1.0, 0.99, text)
    visible = view.section("loss").get("visible_only")
    if visible:
        text = (
            f"the loss is on the {visible['share']:.0%} of the positions whose token the input shows, each asked to "
            f"copy it, and ignores (-100) those hidden by token {visible['token']}: the mask of the labels is inverted"
        )
        yield Hit(None, "copied", visible["share"], 0.99, text)
    two = view.section("loss").get("two_ahead", 0.0)
    if two:
        text = (
            f"at {two:.0%} of the positions the target is the next token but one: shifted twice, by the data and again "
            "by the loss or model (off by one)"
        )
        yield Hit(None, "two_ahead", two, 0.9, text)
    ahead = view.section("loss").get("sees_ahead", 0.0)
    if ahead > 1e-4:
        who = view.section("calls").get("attention") or ""
        text = (
            f"the targets are the next tokens, and another last token changes the outputs before it (by {ahead:.1g} of "
            f"the largest): the model sees the future, attention{inside(who)} has no causal mask, or one the wrong way "
            "round; the answer leaks"
        )
        turn = (
            "Mask what comes later. In scaled_dot_product_attention True means: is seen (torch.ones(n, n).tril().bool()"
            ", or is_causal=True); in nn.MultiheadAttention and nn.Transformer True means: is hidden (.triu(1))."
        )
        yield Hit(None, "sees_ahead", ahead, 1e-4, text, name=who, cure=turn)


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
    """The loss of a classifier at this point is more than six times that of the constant answer (the class
    frequencies).

    Of a regression: the same, and the outputs are three times as large as the targets. Fresh layers of usual gain start
    within 1.5 times; logits of size s cost about s.
    """
    s = view.section("loss")
    wide = s.get("task") == "regression" and s.get("output_rms", 0.0) > 3 * s.get("target_rms", math.inf)
    judged = (s.get("task") == "classes" or wide) and "constant" in s and not s.get("wrong_sign")
    if judged and s["value"] > max(START * max(s["constant"], 0.1), s["constant"] + 3):
        text = (
            f"the loss is {s['value']:.3g} at the start, and {s['constant']:.3g} for an answer that ignores the "
            f"inputs: {'outputs' if wide else 'logits'} of size {s.get('output_rms', math.nan):.2g}, too large an "
            f"initial scale at {s.get('last_weight', 'the last layer')}"
        )
        kept = s.get("last_frozen")  # learnt elsewhere, and meant to stay
        severity, name = "info" if kept else "", s.get("last_weight", "")
        own = "Its last layer is frozen: are its weights those that it was trained with, the inputs prepared as then?"
        yield Hit(None, "loss", s["value"], START * s["constant"], text, severity, name, cure=own if kept else "")


@rule(
    "NS714",
    "the targets hardly matter",
    severity="warning",
    meaning="Other parts of the loss (a penalty, a divergence, another task) drown the one that knows the right "
    "answers, so training serves them.",
    cure="Bring the parts to one size: sum or average both over the same axes, then weigh: loss = fit + 0.01 * "
    "penalty.",
    source="chosen by us: all targets together decide less than a fiftieth of the gradient; of two tasks one pulls 300 "
    "times as hard",
)
def drowned(view: View) -> Iterator[Hit]:
    """The gradient is taken again with every target another one (the next class, the other side of zero). In the
    parameters that all outputs depend on it stays what it was to 2 %: what pulls there is not the targets.

    In the trial: two optimizers bring the loss of one batch down, and of several outputs that of the targets' shape has
    no likeness to them.

    Several targets: the same for each alone, in the parameters that all of them move. Several outputs that answer to
        one
    table of targets: the gradient that comes through each.
    """
    s, loss = view.section("pull"), view.section("loss")
    share = s.get("share", math.nan)
    far = loss.get("output_rms", 0.0) > 20 * loss.get("target_rms", math.inf)  # outputs that dwarf any target: NS713
    if 1e-6 < share < DROWNED and not far:  # a loss that reads no targets at all has others
        text = (
            f"other targets change the gradient by {share:.2g} of its size: a penalty or divergence (KL) term of the "
            "loss outweighs the part that fits the targets; its weight is too large"
        )
        yield Hit(None, "share", share, DROWNED, text)
    races = [t for n in ("sgd", "adam") if (t := view.section("trial").get(n))]
    alike = [r["likeness"] for r in races if not math.isnan(r.get("likeness", math.nan))]
    best = min(races, key=lambda r: r["end"], default={"end": math.nan})
    lower = best["end"] - 0.2 * abs(best["end"])
    beyond = view.section("trial").get("own", {}).get("end", math.inf) < lower  # the targets come later
    if alike and max(alike) < UNLIKE and not beyond and all(r["progress"] > 0.1 and r["steps"] >= 30 for r in races):
        text = (
            f"in {best['steps']} steps on one batch the loss falls from {view.section('trial')['start']:.3g} to "
            f"{best['end']:.3g}, yet the output of the targets' shape has nothing of them (squared correlation "
            f"{max(alike):.2g}): the rest of the loss, a divergence (KL term, posterior collapse) or penalty, "
            "outweighs the part that fits the targets"
        )
        yield Hit(None, "likeness", max(alike), UNLIKE, text)
    c = loss.get("pulled_columns", {})
    if c and c["ratio"] > APART:
        weak, strong = (listed([str(k) for k in c[x]]) for x in ("weak", "strong"))
        text = (
            f"the loss pulls the columns {strong} of the outputs more than {c['ratio']:.2g} times as hard as the "
            f"others ({weak}): one part of it drowns another, which learns nothing"
        )
        yield Hit(None, "columns", c["ratio"], APART, text)
    for name in ("tasks", "heads"):
        names = s.get("of", []) if name == "heads" else []
        yield from _uneven(s.get(name, []), {"tasks": "target", "heads": "output"}[name], names)


def _uneven(tasks: list[float], what: str, names: list[str]) -> Iterator[Hit]:
    """Of several targets, or outputs, one that pulls far harder than another."""
    if tasks and min(tasks) > 0 and max(tasks) > UNEVEN * min(tasks):
        strong, weak = tasks.index(max(tasks)), tasks.index(min(tasks))
        text = (
            f"{what} {strong} pulls {max(tasks) / min(tasks):.2g} times as hard as {what} {weak} on what they share: "
            "the losses of the tasks have different scales, and one drowns the other"
        )
        yield Hit(None, "tasks", max(tasks) / min(tasks), UNEVEN, text, name=names[weak] if names else "")


@rule(
    "NS715",
    "wrong answers hardly pull",
    severity="warning",
    meaning="The loss asks more of samples that are answered rightly than of those that are wrong: the hard ones are "
    "not learnt.",
    cure="Weigh by what is missing: (1 - p) ** gamma * cross_entropy, with p the probability of the right class.",
    source="chosen by us: 1.2 times the pull on right answers, at logits of 2 and -2; a cross-entropy has a seventh",
)
def easy(view: View) -> Iterator[Hit]:
    """The gradient that raises the right class is smaller where another class is ahead than where it is right already.

    As a focal factor p ** gamma makes it. A softmax cross-entropy of two classes pulls 7 times as hard on wrong
    answers.
    """
    s = view.section("loss")
    pulls = s.get("pulls", [])
    logits = s.get("softmax_in_loss") or s.get("task") == "binary"
    if len(pulls) == 2 and logits and not s.get("wrong_sign") and pulls[0] > max(1.2 * pulls[1], 1e-9):
        text = (
            f"a sample that is answered rightly (logits of 2) is pulled by {pulls[0]:.2g} towards its class, one that "
            f"is wrong by {pulls[1]:.2g}: easy samples count most, the weighting (focal factor) is inverted"
        )
        yield Hit(None, "pull", pulls[0], 1.2 * pulls[1], text)


@rule(
    "NS716",
    "a loss that is nearly flat",
    severity="warning",
    meaning="Whatever the outputs are, the loss hardly changes, so that no answer is much better than any other.",
    cure="Look at the scale of its logits: similarities in -1..1 are divided by a temperature (sim / 0.07), not "
    "multiplied by it.",
    source="chosen by us: from the worst to the best outputs that a descent finds the loss changes by a tenth of "
    "itself",
)
def flat(view: View) -> Iterator[Hit]:
    """A descent and an ascent in the outputs themselves, free to be anything (of unit norm where they are), move the
    loss by less than 10 % of its value.

    Of losses that are no plain cross-entropy and no regression; silent where the trial trains.
    """
    s, own = view.section("free"), view.section("trial").get("own", {})
    spread = s.get("worst", math.nan) - s.get("best", math.nan)
    if 0 < spread < FLAT * abs(s["start"]) and not own.get("trains"):
        text = (
            f"the loss is {s['start']:.3g} now, {s['best']:.3g} with the best outputs that were found and "
            f"{s['worst']:.3g} with the worst: it hardly depends on the outputs; its logits or similarities are too "
            "small (multiplied by a temperature instead of divided?)"
        )
        yield Hit(None, "spread", spread, FLAT * abs(s["start"]), text)


@rule(
    "NS717",
    "a loss that falls without right answers",
    severity="warning",
    meaning="One and the same output for all samples brings the loss to nothing, whatever the targets are.",
    cure="Give the loss the term that keeps it honest: 0.5 * (log_var + error ** 2 / log_var.exp()), not the error "
    "alone.",
    source="chosen by us: less than a hundredth of the loss is left",
)
def blind_answer(view: View) -> Iterator[Hit]:
    """A descent in one output for all samples gets the loss below a hundredth of its start, with targets that differ,
    and also where noise as large as they are is added to them.

    As a predicted variance without its log term does (it grows without end), or a mask, or a weight, that is learnt
    beside what it weighs.
    """
    s = view.section("free")
    if 0 <= s.get("blind", math.inf) < BLIND * s.get("start", 0.0) and s.get("blind_apart", math.inf) < BLIND:
        text = (
            f"with one answer for all samples the loss falls from {s['start']:.3g} to {s['blind']:.2g}, though the "
            "targets differ: an output switches it off (a variance or sigma that may grow without its log term, a "
            "learnt mask or weight)"
        )
        yield Hit(None, "blind", s["blind"], BLIND * s["start"], text)


@rule(
    "NS718",
    "positive twice",
    severity="warning",
    meaning="The model makes its output positive, and the loss takes the exponential of it: what the loss calls a rate "
    "or a variance is never below 1.",
    cure="One of the two: raw outputs with log_input=True (or a log-variance), or softplus outputs with "
    "log_input=False.",
    source="the gradient in the output grows as exp, to 20 %, and the output ends at zero by its last function",
)
def two_links(view: View) -> Iterator[Hit]:
    """The output ends in a ReLU, softplus or exponential, and the loss's gradient in it grows by e² from 8 to 10, and
    from 10 to 12: the loss exponentiates it.
    """
    k = view.section("free").get("links")
    if k:
        text = (
            f"output {k['output']} is positive by {k['module'] or 'its last function'} (softplus, exp, relu), and the "
            "loss takes its exponential (a log rate, as PoissonNLLLoss(log_input=True), or a log variance): two links, "
            "its answer is never below exp(0) = 1"
        )
        yield Hit(None, "links", 2, 1, text, name=k["module"])


@rule(
    "NS719",
    "flags that nothing reads",
    severity="warning",
    meaning="A column of zeros and ones comes with the targets, and neither the loss nor the loop looks at it.",
    cure="Use it where it belongs: target = reward + gamma * (1 - done) * next_value; loss = (mask * error).sum() / "
    "mask.sum().",
    source="the loss, or one step of the given loop, is the same to the last bit with the flags exchanged",
)
def unread_flags(view: View) -> Iterator[Hit]:
    """Of a table of targets a column of zeros and ones, or of several targets one, can be exchanged (0 for 1) without
    any change: a done flag, a mask, a weight that was meant to count.
    """
    names = view.section("flags").get("unread", [])
    if names:
        text = (
            f"{listed(names)} of the targets, zeros and ones, changes nothing: a flag (done of terminal steps, as a "
            "bootstrap target needs it, or a padding mask, a weight) is never used"
        )
        yield Hit(None, "unread", len(names), 0, text)


@rule(
    "NS720",
    "noise as the answer",
    severity="error",
    meaning="What the model is to predict is noise that it has no way to know: the best it can do is the mean.",
    cure="Draw once and use the same tensor twice: noise = torch.randn_like(x); loss = mse(model(x + sigma * noise), "
    "noise).",
    source="random numbers of which the only use is a comparison with a prediction",
)
def aimless(view: View) -> Iterator[Hit]:
    """Random numbers that were drawn in the model, the loss or the loop are compared with what was predicted, and no
    other function has read them: they are in no input.
    """
    if view.section("calls").get("aimless") or view.section("loop").get("aimless"):
        text = (
            "the target is random noise, drawn in this step, that nothing but the loss has seen: the input holds other "
            "noise, or none (drawn twice instead of kept), so the target is independent of it and unpredictable"
        )
        yield Hit(None, "noise", 1, 0, text)
