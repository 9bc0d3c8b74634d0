"""NS3xx: units that do nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.core.spec import POINTWISE
from normscope.findings._rules import Hit, View, rule, where

DEAD, DEAD_WARNING, DEAD_ERROR = 0.6, 0.75, 0.99
#: Mean of the largest attention weights.
PEAK = 0.75
SATURATED, SATURATED_WARNING = 0.5, 0.9


@rule(
    "NS301",
    "dead units",
    severity="warning",
    meaning="These units are zero for every sample, get no gradient, and will stay so: the layer is narrower "
    "than it looks.",
    cure="Lower the biases or the learning rate that drove them there, use leaky ReLU, or recentre before the "
    "activation.",
    source="chosen by us: half of a rank-one ReLU layer is dead whatever the batch",
)
def dead_units(view: View) -> Iterator[Hit]:
    """More than 60 % of a layer's units are exactly zero for every sample of the batch (75 %: warning, 99 %: error).

    In a collapsed ReLU net about half the units are dead: if all samples point one way, a random neuron is off for all
    of them with probability 1/2. So a share near 50 % is a symptom of NS101; above 60 % the biases or a norm do it.
    """
    curve = [r for r in view.hidden("dead_units") if not math.isnan(r.value)]
    curve = [
        r for r in curve if r.kind not in POINTWISE or POINTWISE[r.kind].dies
    ]  # of weights 0 tanh is 0, and learns
    worst = max(curve, key=lambda r: r.value, default=None)
    if worst and worst.value > DEAD:
        first = next(r for r in curve if r.value > DEAD)
        text = f"{worst.value:.0%} of the units of {where(worst)} are zero for all {view.samples} samples"
        severity = "error" if worst.value > DEAD_ERROR else "" if worst.value > DEAD_WARNING else "info"
        yield Hit(first, "dead_units", worst.value, DEAD, text, severity)


@rule(
    "NS302",
    "saturated units",
    severity="warning",
    meaning="Most units sit at the flat ends of their activation, where the derivative is small: gradients vanish.",
    cure="Lower the gain of the weights (`normscope cure MODEL --how lsuv`), or normalize before the activation.",
    source="chosen by us: more than half of a layer's derivatives are then below a tenth of the largest",
)
def saturated_units(view: View) -> Iterator[Hit]:
    """More than half of the outputs of a bounded activation lie within 2.5 % of its range from one of its ends.

    For tanh that is |h| > 0.95, where the derivative 1 - h^2 is below 0.1. Info up to 90 %: trained and frozen layers
    are often half saturated, and nets of gain 3 train at 16 layers.
    """
    curve = [r for r in view.hidden("saturated_units") if not math.isnan(r.value)]
    worst = max(curve, key=lambda r: r.value, default=None)
    if worst and worst.value > SATURATED:
        first = next(r for r in curve if r.value > SATURATED)
        fed = view.section("wiring").get("fed", {}).get(worst.name)
        by = f" (fed by {fed}, whose weights are too large)" if fed else ""
        text = f"{worst.value:.0%} of the outputs of {where(worst)}{by} are at an end of the activation's range"
        yield Hit(
            first, "saturated_units", worst.value, SATURATED, text, "" if worst.value > SATURATED_WARNING else "info"
        )


@rule(
    "NS303",
    "saturated attention",
    severity="warning",
    meaning="Each query looks at a single key from the start: attention is a lookup, and its gradient is nearly zero.",
    cure="Divide the scores by sqrt(width of a head): scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]).",
    source="chosen by us: the largest of six or more weights is 0.75 on average, before anything is learnt",
)
def saturated_attention(view: View) -> Iterator[Hit]:
    """The softmax over the keys gives its largest weight 0.75 on average, over queries with six keys or more that no
    mask leaves out. Info where the loss is below that of a constant answer already: what is learnt may be sharp.

    Queries and keys of independent entries of variance 1 have scores of variance d, the width of a head: without the
    factor 1/sqrt(d) a softmax over them is nearly one-hot (Vaswani et al. 2017, section 3.2.1).
    """
    p, loss = view.section("calls").get("peaked") or {"peak": 0.0}, view.section("loss")
    if p["peak"] > PEAK:
        learnt = loss.get("value", 0.0) < 0.8 * loss.get("constant", 0.0)
        text = (
            f"the largest attention weight of {p['module']} is {p['peak']:.2f} on average: its softmax is saturated, "
            "one-hot (scores not divided by sqrt(d), or multiplied by it; scale)"
        )
        yield Hit(None, "peak", p["peak"], PEAK, text, "info" if learnt else "", p["module"])
