"""NS2xx: how the loss gradient travels back through the layers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.core.records import Record
from normscope.core.words import amount
from normscope.findings._rules import Hit, View, rule, where

RATIO_INFO, RATIO_WARNING, RATIO_ERROR = 100.0, 300.0, 1e4
#: Torch's default ReLU nets of up to 10 layers are at 1e-4 or above, and train with Adam, which divides each layer's
#: scale out.
SHALLOW, VANISHED = 10, 1e-7
COLLINEAR = 0.95
SMALL_UPDATE = 3e-3


@rule(
    "NS201",
    "exploding gradients",
    severity="warning",
    meaning="The first layers get gradients far larger than the last ones: a rate that suits the one breaks or "
    "freezes the other.",
    cure="Fewer layers, skip connections, or a warm-up of the learning rate; where there are skip connections, "
    "branches that "
    "start at zero (`normscope cure MODEL --how zero-branches`); without batch norm other weights (`--how auto`).",
    source="trained nets (docs/findings.md)",
)
def exploding(view: View) -> Iterator[Hit]:
    """The gradient norm grows more than a hundredfold on its way from the last hidden layer to the first.

    The squared norm of the loss gradient with respect to the hidden representations grows per layer, going back, by
    π/(π-1) = 1.467 in wide ReLU nets with batch norm, by (n-2)/(n-3) in linear ones with recentring and (n-1)/(n-2)
    without: harmless at 10 layers, a factor of 10⁴ in the norm at 50. Without a norm it grows when the weights' gain is
    too large. Layers of the commonest kind of module are compared.

    Deep residual nets with batch norm (ResNet-50 among them) grow by about 100 at initialization, and are trained with
    a warm-up of the learning rate, or with the last norm of each block started at zero.

    Info at 100, warning at 300, error at 10 000 (norms, not squares): most trained nets between 100 and 300 do train.
    References: Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz 2019 (Theorem 8); Meterez et al. 2024.
    """
    yield from _ratio(view, upward=True)


@rule(
    "NS202",
    "vanishing gradients",
    severity="warning",
    meaning="The first layers get almost no gradient: they stay at their random values while the last ones train.",
    cure="Match the gain of the weights to the activation, add batch norm or skip connections; "
    "`normscope cure MODEL --how auto` tries what can be done without.",
    source="trained nets (docs/findings.md)",
)
def vanishing(view: View) -> Iterator[Hit]:
    """The gradient norm shrinks more than a hundredfold on its way from the last hidden layer to the first.

    Per layer the squared norm is multiplied by gain² E φ'(u)²: below 1 for ReLU with less than He's gain, for tanh
    beyond its linear range, and for sigmoid always. Info at 1/100; warning at 1/10 000, and at 1/100
    with more than 10 layers; error at 1e-7 (norms, not squares): below, Adam's eps outweighs what is left. Not where a
    layer before the first one compared has a large gradient: then the first one is a side branch, as of queries.

    Reference: Glorot and Bengio 2010; He et al. 2015.
    """
    yield from _ratio(view, upward=False)


@rule(
    "NS203",
    "collinear gradients",
    severity="warning",
    meaning="All samples pull the hidden representations along one line, so a step cannot serve different "
    "classes differently.",
    cure="Restore the rank of the representations first (see NS101): `normscope cure MODEL --how auto`.",
    source="chosen by us: two random gradients of a 10-class loss have mean |cosine| 0.2",
)
def collinear(view: View) -> Iterator[Hit]:
    """The mean |cosine| between the gradients that two samples send to a hidden layer is above 0.95 at every hidden
    layer.

    Normal for a net with one output (its gradients differ by a factor only): then this rule is silent. With a rank-one
    last representation the gradients with respect to the weights of each output neuron are collinear too, whatever the
    loss.

    Reference: Daneshmand, Kohler, Bach, Hofmann, Lucchi 2020, section 3.
    """
    curve = [r for r in view.hidden("gradient_collinearity", "gradient") if view.width(r) > 1]
    last = view.curve("gradient_collinearity", "gradient")[-1:]
    if not curve or not last or not last[0].value < COLLINEAR:
        return
    values = [r.value for r in curve if not math.isnan(r.value)]
    if values and min(values) > COLLINEAR:
        text = f"mean |cosine| between two samples' gradients is at least {min(values):.3f} at every hidden layer"
        yield Hit(curve[0], "gradient_collinearity", min(values), COLLINEAR, text)


@rule(
    "NS204",
    "gradients too small to move the weights",
    severity="warning",
    meaning="One step at learning rate 1 changes no layer by more than a fraction of a percent: training looks stuck.",
    cure="Raise the gain of the weights (`normscope cure MODEL --how lsuv`) or add a norm, so that the outputs depend "
    "on the input; a larger rate alone rarely helps.",
    source="trained nets (docs/findings.md)",
)
def small_updates(view: View) -> Iterator[Hit]:
    """For every layer, the norm of the loss gradient with respect to its weights is below 0.003 of the norm of the
    weights. Info down to 0.0003 in nets of up to 10 such layers.

    That ratio times the learning rate is the relative change in one step of plain gradient descent. Judged for the
    cross-entropy of a classifier only (the scale of other losses is the user's), without embeddings, most of whose rows
    a batch does not touch, and not where the optimizer given divides by the gradients' size, as Adam does. Nor where
    the loss is below that of a constant answer already, or where a head of zeros keeps gradients from all layers for
    one step.
    """
    if view.facts.get("loss") != "cross_entropy" and view.section("loss").get("task") != "classes":
        return
    curve = [
        r for r in view.hidden("relative_gradient", "weight") if not math.isnan(r.value) and "mbedding" not in r.kind
    ]
    loss, asleep = view.section("loss"), view.section("wiring").get("asleep", {"weights": 1})
    if loss.get("value", math.inf) < 0.9 * loss.get("constant", 0.0) or not asleep["weights"]:
        return
    if str(view.section("update").get("class", "SGD")) != "SGD":  # the others divide by the gradients' size
        return
    if curve and (top := max(curve, key=lambda r: r.value)).value < SMALL_UPDATE:
        text = f"the largest relative gradient of a hidden layer is {top.value:.1e}, at {where(top)}"
        severe = top.value < SMALL_UPDATE / 10 or len(curve) > SHALLOW
        yield Hit(top, "relative_gradient", top.value, SMALL_UPDATE, text, "" if severe else "info")


@rule(
    "NS205",
    "no gradient through time",
    severity="info",
    meaning="What happened at the first steps of the sequences cannot be learnt from the answer at the end.",
    cure="Shorter sequences, attention or a mean over the steps, or a forget gate that starts open: "
    "nn.init.constant_(rnn.bias_hh_l0[hidden:2 * hidden], 2.0).",
    source="chosen by us: a millionth; a fresh LSTM halves the gradient at each step",
)
def through_time(view: View) -> Iterator[Hit]:
    """The gradient at the first time step of a recurrent layer's input is below a millionth of that at the last one. Or
    it is exactly zero at a fifth of the places of the data or more; a warning where the outputs depend on these places.

    A fresh LSTM forgets by half a step, so that 20 steps are a millionth. Only the recent past counts in many tasks: an
    info.

    Reference: Jozefowicz, Zaremba, Sutskever 2015, section 2 (the bias of the forget gate).
    """
    r = view.section("places").get("lost", {})
    if r and not r["unread"]:
        n, places = len(r["lost"]), f"places {r['lost'][0]} to {r['lost'][-1]} of {r['of']} along axis {r['axis']}"
        step = f" at each step of {r['step']}" if r.get("step") else " at each step"
        why = (
            f"though the outputs depend on them: the gradient is cut on the way (a detach{step}, truncated "
            "backpropagation)"
            if r.get("depends")
            else "and the outputs do not depend on them: they lie outside of the receptive field, or are never read (a "
            f"hidden state that is not carried on{step if r.get('step') else ''}, attention along another axis)"
        )
        text = f"no gradient reaches {n} {places} of {r['module'] or 'the inputs'}, {why}"
        name = r.get("step") or view.section("calls").get("attention") or r["module"]
        stuck = view.section("trial").get("own", {}).get("trains") is False
        cut = "Take the detach() between the steps away, or do it once in many steps." if r.get("depends") else ""
        yield Hit(None, "lost", n, 0.0, text, "warning" if r.get("depends") or stuck else "", name, cure=cut)
    t = view.section("places").get("time", {})
    if t and t["first"] < 1e-6 * t["last"]:
        text = (
            f"the gradient through time vanishes in {t['module']}: {t['first']:.1e} at the first of {t['steps']} "
            f"steps, {t['last']:.1e} at the last"
        )
        yield Hit(None, "first_step", t["first"], 1e-6 * t["last"], text, name=t["module"])


def _ratio(view: View, *, upward: bool) -> Iterator[Hit]:
    curve = [r for r in view.alike("gradient_norm", "gradient") if not math.isnan(r.value)]
    if len(curve) < 3 or not curve[-1].value:
        return
    before = (r.value for r in view.curve("gradient_norm", "gradient") if r.layer < curve[0].layer and r.value > 0)
    first = curve[0].value if upward else max([curve[0].value, *before])
    ratio = first / curve[-1].value
    limit = RATIO_INFO if upward else 1 / RATIO_INFO
    if not (ratio > limit if upward else ratio < limit):
        return
    steps = len(curve) - 1
    rate = ratio ** (1 / steps) if ratio else 0.0
    severe = ratio > RATIO_ERROR if upward else ratio < VANISHED
    mild = ratio < RATIO_WARNING if upward else ratio > 1 / RATIO_ERROR and len(curve) <= SHALLOW
    start = _crossing(curve, limit, upward)
    yield Hit(
        start,
        "gradient_norm",
        ratio,
        limit,
        f"the gradient norm is {amount(curve[-1].value)} at {where(curve[-1])} and {amount(curve[0].value)} at "
        f"{where(curve[0])}: x {rate:.3g} a layer on its way back",
        "error" if severe else "info" if mild else "warning",
    )


def _crossing(curve: list[Record], limit: float, upward: bool) -> Record:
    """Going back from the output: the first layer whose gradient passes the limit, relative to the last layer's."""
    last = curve[-1].value
    for r in reversed(curve):
        if r.value > limit * last if upward else r.value < limit * last:
            return r
    return curve[0]
