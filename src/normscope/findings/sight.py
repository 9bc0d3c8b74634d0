"""NS11x and NS12x: who sees whom, and what a layer lets through."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.findings._rules import Hit, View, inside, rule

MIXES, OUTSHINES = 1e-2, 0.3
AFFINE = 1e-4
DROPPED = 0.05
FEW = 4.0


@rule(
    "NS111",
    "samples see each other",
    severity="error",
    meaning="What the network says of one sample depends on the others in the batch, so it cannot learn what "
    "belongs to which.",
    cure="Keep the batch axis apart: x.transpose(0, 1) or x.permute(...) instead of view/reshape, batch_first=True for "
    "attention and recurrent layers.",
    source="chosen by us: a hundredth of the spread over samples, and (outside sequence layers) a third of the "
    "own change",
)
def mixing(view: View) -> Iterator[Hit]:
    """One sample was exchanged, in eval mode (batch norms frozen), and the outputs of others changed.

    Two mechanisms are told from what is meant (batch statistics, graphs): a layer that runs along a sequence
    (attention, recurrent) runs along the batch, it is named; or another sample's output changes at least a third as
    much as that of the sample that was exchanged, as when ``view`` cuts rows out of a transposed tensor. A batch
    statistic moves the others by 1/n of it, and is silent here. Inputs of two axes are judged by sequence layers only:
    rows may be nodes of a graph. Nor may an output depend on the place of its sample in the batch, nor the number of
    outputs be that of the batch by chance only.
    """
    along = view.section("mixing").get("along_batch")
    if along:
        text = (
            f"{along['module']} ({along['kind']}) gets {tuple(along['shape'])}, samples first, and is built for "
            "(length, samples, width): it runs over the samples of the batch (batch_first=True is missing)"
        )
        if along.get("square"):
            text += "; it runs at all only because there are as many samples as positions, with half of them it fails"
        yield Hit(None, "along_batch", 1.0, 0.0, text, name=along["module"])
        return
    rows = view.section("mixing").get("rows")
    if rows:
        text = (
            f"the outputs have {rows[0]} rows also where {rows[1]} of the {rows[0]} samples go in: their first axis is "
            "not that of the samples but another of the same length (time), so the loss pairs answers with targets "
            "across the batch dimension; out[:, -1] for the last step of (batch, time, features), not out[-1]"
        )
        yield Hit(None, "rows", rows[0], rows[1], text)
        return
    m = view.section("mixing").get("mixes", {})
    cut = view.section("calls").get("sliced")
    where_from = "" if not cut else (
        f"; {tuple(cut['from'])} is reshaped to {tuple(cut['to'])}{inside(cut['module'])}"
        + (f", behind {cut['behind']}: transpose the samples to the front first" if cut["behind"] else "")
    )  # fmt: skip
    culprit = (cut["behind"] or cut["module"]) if cut else ""
    place = view.section("mixing").get("place", 0.0)
    if place > MIXES and not (m and m["others"] >= MIXES and m.get("sequence")):
        text = (
            f"when the samples of the batch change places the outputs change by {place:.2g} of their spread: what a "
            "sample gets depends on its place in the batch, something is added or cut along the batch axis (a "
            f"positional encoding, a mask, a view){where_from}"
        )
        yield Hit(None, "place_in_batch", place, MIXES, text, name=culprit)
        return
    if not m or m["others"] < MIXES:
        return
    strong = m["axes"] >= 3 and m["others"] > OUTSHINES * m["own"]
    if m.get("sequence") or strong:
        name = m.get("module", "")
        who = f"{name} ({m['kind']}) runs over the samples of the batch" if m.get("sequence") else (
            "a view, reshape or permute mixes the batch axis with another"
        )  # fmt: skip
        text = (
            f"exchanging one sample moves the outputs of other samples by {m['others']:.2g} of their spread (its own "
            f"by {m['own']:.2g}): {who}{'' if m.get('sequence') else where_from}"
        )
        yield Hit(None, "others_moved", m["others"], MIXES, text, name=name if m.get("sequence") else culprit)


@rule(
    "NS112",
    "places are lost",
    severity="warning",
    meaning="Shuffling the pixels of an image, or the tokens of a text, changes no output: their order is not seen.",
    cure="Pool after the convolutions, not before them: nn.Sequential(convolutions, nn.AdaptiveAvgPool2d(1), "
    "nn.Flatten(), head); add positions to tokens: h = embed(ids) + positions(torch.arange(ids.shape[1])).",
    source="chosen by us: no change beyond rounding",
)
def pixels_lost(view: View) -> Iterator[Hit]:
    """All pixels of the inputs (n, c, h, w) were shuffled by one permutation, and the outputs stayed the same; or all
    patches, or all token ids of a model with attention: a note, unless the user's own trial got nowhere.

    Global pooling of the raw image does this: one number a channel is left, a bottleneck.
    """
    attention, order = view.section("calls").get("attention"), view.section("mixing").get("order", math.inf)
    if attention is not None and order < 1e-4:
        text = (
            f"with shuffled tokens the outputs change by {order:.1e} of their spread (or change places with them): "
            f"attention{inside(attention)} sees a bag of words, positions are not added (positional encoding or "
            "embedding)"
        )
        lost = (
            view.section("trial").get("own", {}).get("trains") is False
        )  # a bag of words may be all that is asked for
        yield Hit(None, "order", order, 1e-4, text, "" if lost else "info", attention)
    patch, change = view.section("mixing").get("patch"), view.section("mixing").get("shuffled_pixels")
    if patch is not None and not (change is not None and change < 1e-4):
        text = (
            f"with its patches of {patch} x {patch} pixels shuffled an image gets the same outputs: their places are "
            "not seen, positions are not added, or layers mix along another axis than that of the patches (tokens)"
        )
        yield Hit(None, "patch", patch, 0.0, text, name=attention or "")
    if change is not None and change < 1e-4:
        first = view.section("mixing").get("first", "")
        text = f"with shuffled pixels the outputs change by {change:.1e} of their spread: "
        if view.section("mixing").get("pointwise"):
            text += "all convolutions have kernels of 1 x 1, no pixel sees another one"
        else:
            text += f"pooling took all places away{f', at {first} (what is left is the bottleneck)' if first else ''}"
        yield Hit(None, "shuffled_pixels", change, 1e-4, text, name=first)


@rule(
    "NS113",
    "no nonlinearity between the layers",
    severity="warning",
    meaning="The network is an affine function however many layers it has: it can do no more than a single Linear.",
    cure="Put an activation between them: nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c)).",
    source="f(a x + (1 - a) y) = a f(x) + (1 - a) f(y) to rounding, at a = 0.3 and 20",
)
def affine(view: View) -> Iterator[Hit]:
    """The outputs on the line through two samples are those of an affine function, inside and far outside of the data.

    Judged with two layers of weights or more, no normalization, and no hidden layer narrower than both ends: a narrow
    one (a linear autoencoder, a factorization) does what a single layer cannot.
    """
    a = view.section("mixing").get("affine")
    if a and a["gap"] < AFFINE:
        names = ", ".join(a["layers"][:6])
        text = (
            f"the outputs are an affine function of the inputs (to {a['gap']:.0e}): no activation between "
            f"the layers {names}"
        )
        yield Hit(None, "affine_gap", a["gap"], AFFINE, text)


@rule(
    "NS114",
    "constant output",
    severity="error",
    meaning="One layer makes all samples alike whatever its weights are: no gradient gets behind it.",
    cure="Take the layer out: a norm or softmax over a single feature is constant (use nn.Sigmoid(), or "
    "nothing, instead).",
    source="no difference beyond rounding",
)
def constant(view: View) -> Iterator[Hit]:
    """Samples differ before a layer by more than 0.1 % of the rms, and behind it by less than a millionth, up to the
    outputs.

    LayerNorm or softmax over one feature does this. A last layer of zero weights is no such case: it trains.
    """
    c = view.section("mixing").get("constant")
    if c:
        what = f"{c['module']} ({c['kind']}) gives every sample the same output"
        if c["size"] == 1:
            what += f": {c['kind']} over one feature (a single output) is constant"
        yield Hit(None, "spread", 0.0, 1e-6, what, name=c["module"])
    wiring = view.section("wiring")
    awake = not wiring.get("asleep", {}).get("weights") and not wiring.get("zero_layers")
    if not c and awake and view.section("loss").get("reach", {}).get("equal"):
        text = (
            "all samples get the same output, however large the last weights are: something takes a mean over the batch"
        )
        ends = view.section("mixing").get("padded_ends", 0.0)
        if ends > 0.6:
            text = (
                f"all samples get the same output, and {ends:.0%} of the rows end in padding: what is read at the last "
                "step (out[:, -1]) has seen padding for long; take each row's own last position (its length), or pack "
                "the sequences"
            )
        tiny = view.section("loss")["reach"].get("tiny")
        if tiny:
            text = (
                f"all samples get the same output: the weights of {tiny['module']} have rms {tiny['rms']:.1g}, so "
                "small that what they say of a sample drowns in what is added behind them"
            )
            cure = "Start it at its usual size: nn.init.normal_(layer.weight, std=0.02) or larger."
            yield Hit(None, "spread", 0.0, 1e-6, text, "warning", tiny["module"], cure=cure)
            return
        recurrent = view.section("places").get("time", {}).get("module", "") if ends > 0.6 else ""
        yield Hit(None, "spread", 0.0, 1e-6, text, name=recurrent)


@rule(
    "NS115",
    "padding takes part",
    severity="warning",
    meaning="The padding pulls harder on its embedding than all real tokens on theirs: the answer is mostly "
    "about padding.",
    cure="Mask it: (h * mask).sum(1) / mask.sum(1) instead of h.mean(1), key_padding_mask= in attention, "
    "nn.Embedding(..., padding_idx=0).",
    source="chosen by us: the gradient of the padding's row is twice that of all other rows together",
)
def padding(view: View) -> Iterator[Hit]:
    """One token fills the ends of the rows (30 % of all positions or more), and the loss depends on its embedding.

    Measured by the gradient of the loss with respect to that row of the embedding, beside that of all other rows. A
    mask, or ``padding_idx``, makes it exactly zero; one that names a token from in between is the wrong one. Samples
    that come out of a packed sequence as zeros were read at its last step. Or attention looks at one token (or zeros)
    only, where many others are left out.
    """
    only = view.section("calls").get("padding_only")
    if only:
        text = (
            f"{only['module'] or 'attention'} attends to padding alone ({only['share']:.0%} of the positions), and not "
            "to the tokens: the mask is inverted (True means ignore to nn.MultiheadAttention, keep to "
            "scaled_dot_product_attention)"
        )
        yield Hit(None, "padding_only", only["share"], 0.0, text, name=only["module"])
        return
    zero = view.section("wiring").get("zero_rows")
    if zero:
        text = (
            f"{zero['share']:.0%} of the samples come to {zero['module']} as zeros alone, from {zero['behind']}: they "
            "are read at the last step (out[:, -1]) of packed sequences, where shorter ones have nothing"
        )
        cure = "Take each sequence's own last output: out[arange(n), lengths - 1], or h[-1], which packing makes right."
        yield Hit(None, "zero_rows", zero["share"], 0.1, text, name=zero["module"], cure=cure)
    p = view.section("mixing").get("padding")
    if p and "named" in p:
        text = (
            f"padding_idx of {p['module']} is {p['named']}, a token that stands in between others and so never learns "
            f"nor means anything, and the padding at the ends is {p['id']}, which does"
        )
        cure = f"Name the padding: nn.Embedding(..., padding_idx={p['id']})."
        yield Hit(None, "padding_idx", p["share"], 0.3, text, name=p["module"], cure=cure)
    elif p and p["pull"] > 2:
        text = (
            f"token {p['id']} is padding ({p['share']:.0%} of the positions), and the output depends on it: the "
            f"gradient of its row of {p['module']} is {p['pull']:.2g} times that of all other rows; no mask"
        )
        yield Hit(None, "padding_pull", p["pull"], 2.0, text, name=p["module"])


@rule(
    "NS116",
    "dropout on the outputs",
    severity="warning",
    meaning="Part of the predictions are set to zero in training, and the others scaled up: the loss cannot "
    "become small.",
    cure="Put the dropout before the last layer: nn.Sequential(..., nn.Dropout(0.5), nn.Linear(width, outputs)).",
    source="chosen by us: 5 % of the outputs are exactly zero in training mode, and none in eval mode",
)
def dropped(view: View) -> Iterator[Hit]:
    """At least 5 % of the outputs are exactly zero in training mode, others when drawn anew, and fewer than 1 % in eval
    mode.

    Zeros that stay where they are come from a batch norm over samples that are all alike.
    """
    z = view.section("mixing").get("zeroed")
    if z and z["train"] > DROPPED and z["redrawn"] > 0.01 and z["eval"] < 0.01:
        text = (
            f"{z['train']:.0%} of the outputs are exactly zero in training mode and {z['eval']:.0%} in eval "
            "mode: dropout at the output"
        )
        yield Hit(None, "zeroed", z["train"], DROPPED, text, name=z["module"])


@rule(
    "NS117",
    "batch norm over too few values",
    severity="warning",
    meaning="Means and variances of so few values are noise, and over two values a norm keeps nothing but the sign.",
    cure="Use batches of at least 8 samples (DataLoader(..., batch_size=32)), or nn.GroupNorm, which does not "
    "look at the batch.",
    source="chosen by us: of 4 values the standard deviation is known to 40 %",
)
def few_in_a_norm(view: View) -> Iterator[Hit]:
    """A batch norm in training mode averages over at most 4 values a channel, in batches as the loader gives them.

    Maps count: a batch of two images of 32 x 32 pixels has 2048 values a channel.
    """
    s = view.section("data").get("small_norm", {})
    if s and s["count"] <= FEW:
        text = (
            f"{s['module']} averages over {s['count']:.0f} values a channel: the batch size is {s['batch']} "
            "samples, too small"
        )
        yield Hit(None, "values", s["count"], FEW, text, name=s["module"])


@rule(
    "NS118",
    "outputs normalized",
    severity="warning",
    meaning="A norm after the last layer fixes the mean (and the scale) of the outputs, and the targets have others.",
    cure="Leave the last norm out, or standardize the targets: (targets - targets.mean()) / targets.std().",
    source="chosen by us: the targets' mean is half a standard deviation off, or their scale a factor of 3",
)
def normalized(view: View) -> Iterator[Hit]:
    """However the last weights are scaled, the outputs of a batch have mean zero, and the targets have not."""
    r = view.section("loss").get("reach", {})
    if "target_mean" not in r or not r.get("mean_fixed"):
        return
    if abs(r["target_mean"]) > 0.5 * r["target_std"]:
        text = (
            f"{r['module']} ({r['module_kind']}) normalizes the output to mean 0 whatever the weights, and the targets "
            f"have mean {r['target_mean']:.3g} (standard deviation {r['target_std']:.3g}): they cannot be reached"
        )
        yield Hit(None, "target_mean", r["target_mean"], 0.5 * r["target_std"], text, name=r["module"])
