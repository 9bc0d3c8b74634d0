"""NS119 to NS126: axes, channels, inputs and layers that were taken for others, groups that are too small."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.findings._rules import Hit, View, inside, listed, rule

#: Outputs that two units of one sign cannot tell apart (chosen by us).
MANY = 8


@rule(
    "NS119",
    "axes exchanged by a reshape",
    severity="warning",
    meaning="A view or reshape keeps the order of the numbers: what was one row, pixel or channel is cut up among "
    "others.",
    cure="Move the axes first: x.transpose(1, 2) for (n, time, channels), x.permute(0, 2, 3, 1).reshape(-1, c) for "
    "images.",
    source="the shapes: two axes have each other's lengths behind the call",
)
def reshaped(view: View) -> Iterator[Hit]:
    """A reshape or view in the model or the loss gives axes each other's places: (n, a, b) to (n, b, a), (n, c, h, w)
    to (n h w, c). Axes of equal lengths cannot be told apart and are not judged.
    """
    c = view.section("calls").get("reshaped")
    if c:
        text = (
            f"a reshape takes {tuple(c['from'])} to {tuple(c['to'])}{inside(c['module'])}: the axes exchange their "
            "lengths and the numbers are scrambled; a permute (transpose) is missing"
        )
        yield Hit(None, "axes", 1.0, 0.0, text, name=c["module"])


@rule(
    "NS120",
    "softmax over another axis",
    severity="warning",
    meaning="The weights do not sum to one where they are summed over: attention is no average of the values any more.",
    cure="Take the axis that the product sums over: scores.softmax(-1) @ values.",
    source="the axis of the softmax beside that of the product",
)
def softmax(view: View) -> Iterator[Hit]:
    """What a softmax gave is multiplied into another tensor, and the product sums over another axis than the softmax
    did; or the loss takes its softmax over another axis than the one on which the last layer put the classes.
    """
    c = view.section("calls").get("softmax")
    if c:
        text = (
            f"a softmax runs over axis {c['dim']} (dim={c['dim']}) of {tuple(c['shape'])}{inside(c['module'])}, and "
            f"the product behind it sums over axis {c['summed']}: the attention weights of a query do not sum to one; "
            "wrong axis"
        )
        yield Hit(None, "axes", 1.0, 0.0, text, name=c["module"])
    loss = view.section("loss")
    if loss.get("other_classes"):
        text = (
            f"the loss takes axis 1 of the outputs {tuple(loss['outputs'])} for the classes (cross entropy's class "
            f"dimension is dim 1), and {loss['last']} put its features on the last one; the axes are of one length, so "
            "that nothing complains: outputs.transpose(1, 2)"
        )
        yield Hit(None, "axes", 1.0, 0.0, text, name=loss["last"])


@rule(
    "NS121",
    "the same features twice",
    severity="warning",
    meaning="Half of what this layer gets repeats the other half: what was to stand there is not seen.",
    cure="Look at the torch.cat in front of it: torch.cat([up, skip], 1), not the same tensor twice.",
    source="equal to the last bit",
)
def twice(view: View) -> Iterator[Hit]:
    """The two halves of a layer's input channels are equal, to the last bit, for all samples, and not constant; or two
    of the inputs are; or a tensor is added to itself.
    """
    same = view.section("data").get("equal_inputs")
    if same:
        text = (
            f"two of the inputs are identical, tensors {same[0]} and {same[1]}: one view (augmentation, image) was "
            "given twice, where two different ones are to be compared"
        )
        yield Hit(None, "inputs", 1.0, 0.0, text)
    doubled = view.section("calls").get("doubled", [])
    if doubled:
        place = f" behind {doubled[0]}" if doubled[0] else ""
        text = (
            f"a tensor is added to itself{place} (additions like this: {len(doubled)}): the sum is twice the same, and "
            "the path that was to go around (a skip, another branch) is missing"
        )
        cure = "Keep it before the block runs: skip = x; x = block(x); x = x + skip."
        yield Hit(None, "doubled", len(doubled), 0.0, text, name=doubled[0], cure=cure)
    for c in view.section("calls").get("twice", [])[:1]:
        text = (
            f"{c['module']} gets {c['channels']} channels, the second half equal to the first: the same tensor was "
            "concatenated with itself (a duplicate in torch.cat), and the skip or second input is not seen"
        )
        yield Hit(None, "channels", 0.5, 0.0, text, name=c["module"])


@rule(
    "NS122",
    "an input that is not read",
    severity="warning",
    meaning="Other samples' values of this input change nothing: what it holds cannot be learnt from.",
    cure="Look at forward: is the argument used, and not another one in its place?",
    source="equal to the last bit",
)
def unread(view: View) -> Iterator[Hit]:
    """One of several inputs, or one of at most eight columns of ids, was exchanged between samples, and no output
    changed. Or the outputs depend on the first of all tokens alone, or not on one of two or three views of each sample.

    Inputs that are the same for all samples are not judged.
    """
    u = view.section("mixing").get("unread")
    if u and not view.section("loss").get("reach", {}).get("equal"):  # then the outputs depend on nothing
        text = (
            f"the outputs do not depend on {u['name']}, {tuple(u['shape'])}: it is ignored, never read, or one and the "
            "same for all once it was prepared (an integer division, a clamp) (another in "
            "its place?)"
        )
        yield Hit(None, "unread", 1.0, 0.0, text)
    r = view.section("places").get("lost", {})
    if r and r["unread"] == "first":
        text = (
            f"of {r['of']} places along axis {r['axis']} of {r['module'] or 'the inputs'} the outputs depend on the "
            "first one alone: it is the one that is read, and it sees no other (behind a causal mask)"
        )
        cure = "Read the last place, h[:, -1], or the mean over all."
        yield Hit(
            None, "unread", len(r["lost"]), 0.0, text, name=view.section("calls").get("attention") or "", cure=cure
        )
    elif r and r["unread"] == "view":
        text = (
            f"the outputs do not depend on {listed([f'[:, {i}]' for i in r['lost']])} of the inputs, a view of each "
            f"sample along axis {r['axis']}, one of {r['of']}: it is never read (another one in its place?)"
        )
        yield Hit(None, "unread", len(r["lost"]), 0.0, text)


@rule(
    "NS123",
    "layers without an activation between them",
    severity="info",
    meaning="Two Linear layers in a row are one: the second adds parameters, and no function.",
    cure="nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c)).",
    source="the second gets what the first gave, to the last bit",
)
def in_a_row(view: View) -> Iterator[Hit]:
    """A Linear layer gets exactly what another one gave, and the first is not narrower than both ends (a
    factorization).
    """
    pairs = view.section("wiring").get("in_a_row", [])
    if pairs:
        names = "; ".join(f"{a} and {b}" for a, b in pairs[:4])
        text = f"no activation between the linear layers {names}: consecutive linear layers are one linear (affine) map"
        yield Hit(None, "pairs", len(pairs), 0.0, text, name=pairs[0][0])


@rule(
    "NS124",
    "a layer of one unit",
    severity="warning",
    meaning="All that later layers learn of a sample is one number: no set of classes or outputs fits through it.",
    cure="Make it as wide as its neighbours: nn.Linear(64, 64).",
    source="width of what a trained layer gets from trained layers",
)
def one_unit(view: View) -> Iterator[Hit]:
    """A layer with several outputs gets a single number a sample, which wider layers made of a wider input; or two, of
    neither sign, as a ReLU leaves them.

    A note without a trial of the user's own, where it trains, and where there are two outputs at most; of two numbers a
    warning for eight outputs or more. Scores and gates
    lead on no layer, and are silent.
    """
    c, loss = view.section("calls").get("one_unit"), view.section("loss")
    if c and len(loss.get("outputs", [])) >= 2:
        stuck = view.section("trial").get("own", {}).get("trains") is False
        units = int(c["units"])
        text = (
            f"{c['before'] or 'the layer before'} has {'one unit' if units == 1 else 'two units'} between wider ones: "
            f"{c['module']} gets {units} number{'s' * (units > 1)} a sample, a bottleneck too narrow for "
            f"{loss['outputs'][-1]} outputs"
        )
        grave = (stuck and loss["outputs"][-1] > 2 * units) or (units == 2 and loss["outputs"][-1] >= MANY)
        yield Hit(None, "width", units, units + 1.0, text, "" if grave else "info", c["before"] or c["module"])


@rule(
    "NS125",
    "neighbours summed, not averaged",
    severity="info",
    meaning="Each layer multiplies features by the number of a node's neighbours: they grow like its power with the "
    "depth.",
    cure="Normalize by the degrees: d = a.sum(-1).clamp(min=1).rsqrt(); a = d[..., :, None] * a * d[..., None, :].",
    source="chosen by us: a constant square matrix whose rows sum up to more than 2",
)
def neighbours(view: View) -> Iterator[Hit]:
    """Features are multiplied by a constant square matrix without negative entries, as an adjacency matrix, whose rows
    sum up to 2 or more; a warning where the loss starts far above that of a constant answer.

    Reference: Kipf, Welling 2017, section 2.2 (the renormalization trick).
    """
    n, loss = view.section("calls").get("neighbours"), view.section("loss")
    if n:
        large = loss.get("value", 0.0) > 3 * loss.get("constant", math.inf)
        text = (
            f"a matrix product{inside(n['module'])} sums over {n['degree']:.3g} neighbours (the adjacency matrix is "
            "not normalized by the degrees): activations grow by that factor in each such layer"
        )
        yield Hit(None, "degree", n["degree"], 2.0, text, "warning" if large else "", n["module"])


#: Numbers in a group: two keep a sign, and from SMALL on (chosen by us) a group norm keeps three quarters of them.
PAIR, FEW, SMALL = 2, 4, 8
#: Layers with groups of three or four, and how much larger the first one's gradient must be than the last one's, chosen
#: by us: eight layers of groups of four grow so on digits, and train worse (the source of NS126).
DEEP, GROWN = 4, 4.0


@rule(
    "NS126",
    "group norm over too few values",
    severity="warning",
    meaning="A group norm takes mean and size out of each group: of two numbers it keeps which one is larger, of m it "
    "keeps m - 2, and the smaller the groups, the more gradients grow towards the first layers.",
    cure="Take fewer groups, with 8 numbers or more in each (channels / groups x positions): "
    "nn.GroupNorm(max(1, channels // 8), channels).",
    source="trained nets: 3 layers of 96 units on digits, best of SGD and Adam .43 with groups of 2, .88 of 3, .91 of "
    "4, .92 of 8; 8 layers .14, .48, .82, .88",
)
def small_groups(view: View) -> Iterator[Hit]:
    """A group norm has two numbers in each group; or four layers or more have three or four, and the gradient of the
    first of them is four times that of the last.

    A group of m = (channels / groups) x positions numbers leaves m - 2 of them: one goes with the mean, one with the
    size. The squared gradient grows by (m - 2)/(m - 3) a layer, as behind a batch norm of m samples: without bound for
    m = 3, by 2 for 4, 1.2 for 8, 1.02 for 64; of m = 2 only eps bounds it. On images positions count: 32 groups of
    two channels on maps of 8 x 8 have 128 numbers. Large groups are no fault of this kind: one group (layer norm)
    keeps most of each sample and least gradient growth, but less of the differences between samples (Lubana, Dick,
    Tanaka 2021). Groups of one number are NS114.
    """
    found = [(m, *one) for one in view.section("norms").get("groups", []) if (m := one[1] * one[3] // one[2]) > 1]
    pairs, few = [f for f in found if f[0] == PAIR], [f for f in found if PAIR < f[0] <= FEW]
    curve = {r.name: r.value for r in view.curve("gradient_norm", "gradient")}
    grown = 0.0
    if len(few) >= DEEP and curve.get(few[-1][1], 0.0) > 0:
        grown = curve.get(few[0][1], 0.0) / curve[few[-1][1]]
    if not pairs and not grown > GROWN:
        return
    m, name, channels, groups, positions = (pairs or few)[0]
    best = next(g for g in range(groups, 0, -1) if channels % g == 0 and (channels // g * positions >= SMALL or g == 1))
    kept = channels // best * positions
    count = len(pairs or few)
    more = f" (and {count - 1} more)" if count > 1 else ""
    text = (
        f"{name}{more}: {groups} groups of {m} numbers, of which {m - 2} are left when mean and size are gone"
        + (": the sign of one difference" if m == PAIR else f", and gradients grow {grown:.3g}-fold over them")
        + f"; nn.GroupNorm({best}, {channels}) leaves {kept - 2} of {kept}"
    )
    yield Hit(None, "group", m, PAIR if m == PAIR else FEW, text, name=name)


@rule(
    "NS127",
    "one module several times",
    severity="warning",
    meaning="The places of a list hold one and the same module: what they give of one input is the same, and it is "
    "trained as one.",
    cure="nn.ModuleList([Expert() for _ in range(n)]), not nn.ModuleList([Expert()] * n).",
    source="the same object, and the same tensor as its input",
)
def again(view: View) -> Iterator[Hit]:
    """A layer stands several times in a container of modules and gets the same input each time, as experts, heads or
    members of an ensemble do; one after another (weights shared over depth) is something else, and silent.
    """
    for name, count in list(view.section("calls").get("again", {}).items())[:1]:
        text = (
            f"{name} gets the same input {count} times in one pass: its list holds one module several times "
            "([Module()] * n repeats the object and its weights)"
        )
        yield Hit(None, "repeats", count, 1.0, text, name=name)


@rule(
    "NS128",
    "features pooled, not places",
    severity="warning",
    meaning="The mean, sum or maximum runs over the features of each place, so that one number of a place is left, and "
    "the places are what the next layer takes for features.",
    cure="Pool over the places: h.mean(1) of (n, places, features), h.max(2).values of (n, channels, places).",
    source="the axis on which the layer before put its features",
)
def pooled(view: View) -> Iterator[Hit]:
    """What a Linear, norm or embedding gave, (n, places, features), or a Conv1d, (n, channels, places), is pooled along
    the axis of its features, and a Linear layer gets the rest.
    """
    p = view.section("calls").get("pooled")
    if p:
        text = (
            f"{p['function']} over axis {p['axis']} of {tuple(p['shape'])}{inside(p['module'])} pools the features of "
            f"each place, and {p['next']} gets one number a place: the axis is not the one of the places (tokens, "
            "points)"
        )
        yield Hit(None, "axis", p["axis"], 0.0, text, name=p["next"])
